//! Which clients are copied, by ranges of their addresses.

use std::{collections::BTreeMap, fmt, net::IpAddr, str::FromStr};

use aya::maps::lpm_trie::{Key, LpmTrie};
use tcpcopy_common::flow::IpAddress;

use super::{BpfError, names::map, object::Object};

/// Bits before an IPv4 address in its mapped form.
const MAPPED_BITS: u8 = 96;

/// A range of addresses: those that share a prefix. The bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// A text that names no range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// The part before the slash.
    #[error("{0:?} is not an IP address")]
    Address(String),
    /// The part behind the slash.
    #[error("{prefix:?} is not the length of a prefix, which is 0 to {most} here")]
    Prefix {
        /// As given.
        prefix: String,
        /// The bits of such an address.
        most: u8,
    },
    /// Bits behind the prefix.
    #[error("{given} has bits behind its prefix; the network is {network}")]
    HostBits {
        /// As given.
        given: String,
        /// The network without these bits.
        network: Network,
    },
    /// `::ffff:10.0.0.1`, or a range of such.
    #[error("{0} is an IPv4 address in IPv6 form, which no packet carries: write it as IPv4")]
    Mapped(String),
}

impl FromStr for Network {
    type Err = NetworkError;

    /// Reads `ADDRESS` or `ADDRESS/PREFIX`.
    fn from_str(text: &str) -> Result<Self, NetworkError> {
        let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
        let address: IpAddr = address.parse().map_err(|_| NetworkError::Address(address.to_owned()))?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => most,
            Some(text) => text
                .parse()
                .ok()
                .filter(|&prefix| prefix <= most)
                .ok_or_else(|| NetworkError::Prefix { prefix: text.to_owned(), most })?,
        };
        if matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some()) {
            return Err(NetworkError::Mapped(text.to_owned()));
        }
        let network = Self { address: masked(address, prefix), prefix };
        if network.address == address {
            Ok(network)
        } else {
            Err(NetworkError::HostBits { given: text.to_owned(), network })
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl Network {
    /// Returns the first address.
    #[must_use]
    pub const fn address(&self) -> IpAddr {
        self.address
    }

    /// Bits that all addresses share: 0 to 32 or 128.
    #[must_use]
    pub const fn prefix(&self) -> u8 {
        self.prefix
    }

    /// Returns whether this address is one of them.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && masked(address, self.prefix) == self.address
    }
}

/// Returns the address with the bits behind the prefix cleared.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V4((v4.to_bits() & mask).into())
        }
        IpAddr::V6(v6) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
            IpAddr::V6((v6.to_bits() & mask).into())
        }
    }
}

/// Which clients are wanted. The smallest range that an address is in decides about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientFilter {
    /// By address and bits of the prefix, in the key space of the programs: whether they are wanted.
    ranges: BTreeMap<(IpAddress, u8), bool>,
}

impl ClientFilter {
    /// Wants the clients in `only`, or all when that is empty, but not those in `except`. `None` when both are empty.
    ///
    /// # Errors
    /// A range that is in both.
    pub fn new(only: &[Network], except: &[Network]) -> Result<Option<Self>, Network> {
        if only.is_empty() && except.is_empty() {
            return Ok(None);
        }
        let others = only.is_empty();
        // One for each version of IP, because that of IPv6 includes the mapped form of all IPv4 addresses.
        let mut ranges = BTreeMap::from([
            ((IpAddress::UNSPECIFIED, 0), others),
            ((IpAddress::from_v4([0; 4]), MAPPED_BITS), others),
        ]);
        for network in only {
            ranges.insert(network.key(), true);
        }
        for network in except {
            if only.contains(network) {
                return Err(*network);
            }
            ranges.insert(network.key(), false);
        }
        Ok(Some(Self { ranges }))
    }

    /// Returns how many ranges the programs must know.
    pub(super) fn len(&self) -> u32 {
        self.ranges.len() as u32
    }

    /// Tells the programs.
    pub(super) fn write(&self, object: &mut Object) -> Result<(), BpfError> {
        let write = BpfError::write(map::CLIENTS);
        let mut trie: LpmTrie<_, IpAddress, u32> = object.map_mut(map::CLIENTS)?.try_into().map_err(&write)?;
        for (&(address, bits), &wanted) in &self.ranges {
            trie.insert(&Key::new(bits.into(), address), u32::from(wanted), 0).map_err(&write)?;
        }
        Ok(())
    }
}

impl Network {
    fn key(&self) -> (IpAddress, u8) {
        (self.address.into(), if self.address.is_ipv4() { MAPPED_BITS + self.prefix } else { self.prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written_alike() {
        for (text, shown) in [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.1.2.3", "10.1.2.3/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("fd00::/8", "fd00::/8"),
            ("::/0", "::/0"),
            ("2001:db8::1", "2001:db8::1/128"),
        ] {
            assert_eq!(text.parse::<Network>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_range_is_refused_with_its_reason() {
        for (text, part) in [
            ("", "not an IP address"),
            ("example.org", "not an IP address"),
            ("[fd00::]/8", "not an IP address"),
            ("10.0.0.0/33", "0 to 32"),
            ("10.0.0.0/", "0 to 32"),
            ("10.0.0.0/-1", "0 to 32"),
            ("fd00::/129", "0 to 128"),
            ("10.1.2.3/8", "the network is 10.0.0.0/8"),
            ("fd00::1/64", "the network is fd00::/64"),
            ("::ffff:10.0.0.1", "write it as IPv4"),
            ("::ffff:10.0.0.0/104", "write it as IPv4"),
        ] {
            let error = text.parse::<Network>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }

    #[test]
    fn a_range_cannot_be_wanted_and_excluded() {
        let network: Network = "10.0.0.0/8".parse().unwrap();
        assert_eq!(ClientFilter::new(&[network], &[network]), Err(network));
        assert_eq!(ClientFilter::new(&[], &[]), Ok(None));
    }
}
