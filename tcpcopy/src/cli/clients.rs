//! Who the target sees: how often each client, and with which address and port.

use std::net::{IpAddr, SocketAddr};

use clap::{Args, ValueEnum};
use tcpcopy_replay::{AddressPool, ProxyVersion, Slot};

use crate::{bpf::Network, source::Clients};

/// The arguments, as typed. The letters are those of tcpcopy 1.0.
#[derive(Debug, Args)]
#[command(next_help_heading = "Clients at the target")]
pub struct ClientArgs {
    /// Replay every connection so many times, each time from another client port
    #[arg(
        short = 'n', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=64),
    )]
    copies: u32,
    /// Addresses that clients have at the target in place of their own, each client one of them; may be repeated. Ports
    /// are dealt out, so that no two connections collide. The target must route them to an interface of intercept
    #[arg(short = 'c', long, value_name = "CIDR,…", value_delimiter = ',')]
    client_addresses: Vec<Network>,
    /// Deal out client ports beginning at this place, 1 to 1023: for several tcpcopy with the same clients and the same
    /// target, each with a number of its own
    #[arg(short = 'f', long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=1023))]
    port_region: Option<u16>,
    /// Begin each connection at the target with a header of the PROXY protocol, which tells the live client's address
    /// and the one that it has connected to. Every target of -x must expect it
    #[arg(long, value_enum, value_name = "VERSION")]
    proxy_protocol: Option<ProxyProtocolArg>,
}

/// `--proxy-protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ProxyProtocolArg {
    /// A line of text
    V1,
    /// Binary
    V2,
}

impl From<ProxyProtocolArg> for ProxyVersion {
    fn from(argument: ProxyProtocolArg) -> Self {
        match argument {
            ProxyProtocolArg::V1 => Self::V1,
            ProxyProtocolArg::V2 => Self::V2,
        }
    }
}

/// Client addresses or copies that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClientsError {
    /// Each engine takes a slot of the ports of a client.
    #[error(
        "-n {copies}: {engines} workers and copies are more than there are ports for ({max} at most)",
        max = Slot::MAX
    )]
    TooManyEngines {
        /// As typed.
        copies: u32,
        /// Workers, for each copy and target.
        engines: u32,
    },
    /// Addresses that no client can have.
    #[error("-c {network}: {reason}")]
    Unusable {
        /// As typed.
        network: Network,
        /// Why.
        reason: Unusable,
    },
    /// A target among the clients.
    #[error("-c: {0} is a target's own address, and a host drops packets that seem to come from itself")]
    OwnAddress(IpAddr),
    /// A target without a client.
    #[error("-c: there is no address of the IP version of the target {0}")]
    NoneOfVersion(SocketAddr),
}

/// Why clients cannot have an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// 127.0.0.0/8 or `::1`.
    #[error("a target drops packets from loopback addresses")]
    Loopback,
    /// Multicast or broadcast.
    #[error("these are not addresses of single hosts")]
    Many,
    /// 0.0.0.0 or `::`.
    #[error("this is not the address of a host")]
    Unspecified,
}

impl ClientArgs {
    /// Returns how often each connection is replayed to each of its targets.
    pub(super) const fn copies(&self) -> u32 {
        self.copies
    }

    /// Returns whether clients get other addresses.
    pub(super) const fn rewrites(&self) -> bool {
        !self.client_addresses.is_empty()
    }

    /// Validates the arguments. `engines` is the number of workers times the number of copies, `targets` what the rules
    /// name.
    pub(super) fn validate(&self, engines: u32, targets: &[SocketAddr]) -> Result<Clients, ClientsError> {
        if engines > u32::from(Slot::MAX) {
            return Err(ClientsError::TooManyEngines { copies: self.copies, engines });
        }
        let mut pool = AddressPool::default();
        for &network in &self.client_addresses {
            add(&mut pool, &network).map_err(|reason| ClientsError::Unusable { network, reason })?;
        }
        let addresses = (!self.client_addresses.is_empty()).then_some(pool);
        if let Some(pool) = &addresses {
            if let Some(target) = targets.iter().find(|target| pool.contains(target.ip())) {
                return Err(ClientsError::OwnAddress(target.ip()));
            }
            if let Some(target) = targets.iter().find(|target| !pool.has(target.is_ipv4())) {
                return Err(ClientsError::NoneOfVersion(*target));
            }
        }
        let proxy_protocol = self.proxy_protocol.map(Into::into);
        Ok(Clients { copies: self.copies, addresses, region: self.port_region, proxy_protocol })
    }
}

/// Adds the addresses of a network that a host can have.
fn add(pool: &mut AddressPool, network: &Network) -> Result<(), Unusable> {
    let first = network.address();
    let bits = if first.is_ipv4() { 32 } else { 128 };
    let count = 1u128.checked_shl(bits - u32::from(network.prefix())).unwrap_or(u128::MAX);
    let covers = |address: &str| address.parse().is_ok_and(|address: IpAddr| network.contains(address));
    if first.is_loopback() || covers("127.0.0.1") || covers("::1") {
        return Err(Unusable::Loopback);
    }
    if first.is_multicast() || covers("224.0.0.1") || covers("ff02::1") || covers("255.255.255.255") {
        return Err(Unusable::Many);
    }
    if first.is_unspecified() && count == 1 {
        return Err(Unusable::Unspecified);
    }
    match first {
        // Without the address of the network itself and that of broadcasts, unless it is a point-to-point link (RFC
        // 3021).
        IpAddr::V4(v4) if count > 2 => pool.add(IpAddr::V4((v4.to_bits() + 1).into()), count - 2),
        _ => pool.add(first, count),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        clients: ClientArgs,
    }

    fn validate(args: &str, targets: &[&str]) -> Result<Clients, String> {
        let line = Line::try_parse_from(format!("x {args}").split_ascii_whitespace()).map_err(|e| e.to_string())?;
        let targets: Vec<SocketAddr> = targets.iter().map(|target| target.parse().unwrap()).collect();
        line.clients.validate(line.clients.copies(), &targets).map_err(|e| e.to_string())
    }

    #[test]
    fn networks_become_addresses_that_hosts_can_have() {
        let clients = validate("-c 10.9.0.0/24,10.9.1.7 -c fd09::/126", &["10.0.0.3:80", "[fd00::3]:80"]).unwrap();
        let pool = clients.addresses.unwrap();
        for (address, inside) in [
            ("10.9.0.0", false),
            ("10.9.0.1", true),
            ("10.9.0.254", true),
            ("10.9.0.255", false),
            ("10.9.1.7", true),
            ("10.9.1.8", false),
            ("fd09::", true),
            ("fd09::3", true),
            ("fd09::4", false),
        ] {
            assert_eq!(pool.contains(address.parse().unwrap()), inside, "{address}");
        }
        let clients = validate("", &["10.0.0.3:80"]).unwrap();
        assert_eq!(clients, Clients { copies: 1, addresses: None, region: None, proxy_protocol: None });
    }

    #[test]
    fn the_header_of_the_proxy_protocol_has_the_version_that_is_named() {
        for (args, version) in [
            ("--proxy-protocol v1", Some(ProxyVersion::V1)),
            ("--proxy-protocol v2", Some(ProxyVersion::V2)),
            ("", None),
        ] {
            assert_eq!(validate(args, &["10.0.0.3:80"]).unwrap().proxy_protocol, version, "{args:?}");
        }
    }

    #[test]
    fn what_no_target_could_answer_is_refused_with_its_reason() {
        for (args, part) in [
            ("-c 127.0.0.1", "loopback"),
            ("-c ::/0", "loopback"),
            ("-c 224.0.0.0/8", "single hosts"),
            ("-c 128.0.0.0/1", "single hosts"),
            ("-c 0.0.0.0", "not the address of a host"),
            ("-c 10.0.0.0/24", "10.0.0.3 is a target's own address"),
            ("-c fd00::1", "no address of the IP version of the target 10.0.0.3:80"),
            ("-c 10.9.0.1/24", "10.9.0.0/24"),
            ("-c 10.9.0.x", "not an IP address"),
            ("-n 0", "1..=64"),
            ("-n 65", "1..=64"),
            ("-f 0", "1..=1023"),
            ("-f 1024", "1..=1023"),
            ("--proxy-protocol", "v1, v2"),
            ("--proxy-protocol 2", "v1, v2"),
            ("--proxy-protocol v3", "v1, v2"),
        ] {
            let error = validate(args, &["10.0.0.3:80"]).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
