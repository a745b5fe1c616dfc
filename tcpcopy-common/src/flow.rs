//! Addresses and four-tuples.

use bytemuck::{Pod, Zeroable};

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (RFC 4291, section 2.5.5.2), in network order.
///
/// A packet on the wire never carries the mapped form (RFC 4291 forbids it there), so the prefix tells the version.
///
/// Aligned, because the programs' processor has no other way to load a number from octets than one by one.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct IpAddress(pub [u8; 16]);

impl IpAddress {
    /// `::`
    pub const UNSPECIFIED: Self = Self([0; 16]);

    /// Converts an IPv4 address into its mapped form.
    #[inline(always)]
    pub const fn from_v4(a: [u8; 4]) -> Self {
        Self([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a[0], a[1], a[2], a[3]])
    }

    /// Returns whether this is an IPv4 address.
    #[inline(always)]
    pub fn is_v4(&self) -> bool {
        self.0[..10] == [0; 10] && self.0[10] == 0xff && self.0[11] == 0xff
    }

    /// Returns the octets as numbers in the order of this host, for hashing.
    #[inline(always)]
    fn words(&self) -> [u32; 4] {
        bytemuck::cast(self.0)
    }

    /// Returns the last four octets: the IPv4 address when [`is_v4`](Self::is_v4).
    #[inline(always)]
    pub const fn v4_octets(&self) -> [u8; 4] {
        [self.0[12], self.0[13], self.0[14], self.0[15]]
    }
}

/// IANA protocol numbers, as in the IP header.
pub mod protocol {
    /// Transmission Control Protocol (RFC 9293).
    pub const TCP: u8 = 6;
}

/// The four-tuple of a connection and its protocol, seen from its client: the key of every session, live or replayed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Flow {
    /// The client's address.
    pub client: IpAddress,
    /// The server's address: of the live service, or of the target.
    pub server: IpAddress,
    /// The client's port, network order.
    pub client_port: [u8; 2],
    /// The server's port, network order.
    pub server_port: [u8; 2],
    /// The transport protocol, an IANA number: one of [`protocol`].
    pub protocol: u8,
    /// Zero.
    pub _reserved: [u8; 3],
}

const _: () = assert!(size_of::<Flow>() == 40);
const _: () = assert!(core::mem::offset_of!(Flow, protocol) == 36);

impl Flow {
    /// Makes the flow of a TCP connection; addresses and ports as in its packets.
    #[inline(always)]
    pub const fn tcp((client, client_port): (IpAddress, [u8; 2]), (server, server_port): (IpAddress, [u8; 2])) -> Self {
        Self { client, server, client_port, server_port, protocol: protocol::TCP, _reserved: [0; 3] }
    }

    /// Hashes addresses and ports, in kernel and user space alike, so that every segment of a connection goes to the
    /// same worker whatever path it took. (`skb->hash` differs between XDP, TC and drivers.)
    #[inline(always)]
    pub fn hash(&self) -> u32 {
        // FNV-1a over 32-bit words with a final avalanche: cheap enough for every packet,
        // and good enough to spread clients that differ in one bit of one port.
        let mut h: u32 = 0x811c_9dc5;
        let (client, server) = (self.client.words(), self.server.words());
        let mut i = 0;
        while i < 4 {
            h = (h ^ client[i]).wrapping_mul(0x0100_0193);
            h = (h ^ server[i]).wrapping_mul(0x0100_0193);
            i += 1;
        }
        let ports =
            u32::from_ne_bytes([self.client_port[0], self.client_port[1], self.server_port[0], self.server_port[1]]);
        avalanche((h ^ ports).wrapping_mul(0x0100_0193))
    }

    /// Returns the worker, of `workers`, that owns this flow. `workers` of 0 counts as 1.
    #[inline(always)]
    pub fn worker(&self, workers: u32) -> u32 {
        // The high bits of a multiplication instead of a division (Lemire's reduction).
        ((self.hash() as u64 * if workers == 0 { 1 } else { workers } as u64) >> 32) as u32
    }

    /// Returns the number that this connection has drawn in the lottery of `seed`: the connections that have drawn less
    /// than a threshold are a sample. Mixed once more, so that a sample is spread over the workers like the whole.
    #[inline(always)]
    pub fn draw(&self, seed: u32) -> u32 {
        avalanche(self.hash() ^ seed)
    }
}

/// Lets every bit of the result depend on every bit of `h` (the MurmurHash3 finaliser).
#[inline(always)]
const fn avalanche(mut h: u32) -> u32 {
    h ^= h >> 16;
    h = h.wrapping_mul(0x85eb_ca6b);
    h ^= h >> 13;
    h = h.wrapping_mul(0xc2b2_ae35);
    h ^ (h >> 16)
}

/// Conversions that need `core::net`; not used by the eBPF programs.
impl From<core::net::IpAddr> for IpAddress {
    fn from(a: core::net::IpAddr) -> Self {
        match a {
            core::net::IpAddr::V4(a) => Self::from_v4(a.octets()),
            core::net::IpAddr::V6(a) => Self(a.octets()),
        }
    }
}

impl From<IpAddress> for core::net::IpAddr {
    fn from(a: IpAddress) -> Self {
        if a.is_v4() { core::net::IpAddr::V4(a.v4_octets().into()) } else { core::net::IpAddr::V6(a.0.into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flow(port: u16) -> Flow {
        let [client, server] = [1, 2].map(|host| IpAddress::from_v4([10, 0, 0, host]));
        Flow::tcp((client, port.to_be_bytes()), (server, 80u16.to_be_bytes()))
    }

    #[test]
    fn successive_ports_spread_evenly_over_workers() {
        let mut count = [0u32; 4];
        for port in 32768..36864 {
            count[flow(port).worker(4) as usize] += 1;
        }
        assert!(count.iter().all(|&n| (824..=1224).contains(&n)), "{count:?}");
    }

    #[test]
    fn a_sample_has_the_wanted_size_and_is_spread_over_the_workers_like_the_whole() {
        for seed in [0, 1, 0xdead_beef] {
            let mut count = [0u32; 4];
            for port in 0..40_000 {
                if flow(port).draw(seed) < 1 << 30 {
                    count[flow(port).worker(4) as usize] += 1;
                }
            }
            // A quarter of 10,000 each, six standard deviations (43) at most away.
            assert!(count.iter().all(|&n| (2240..=2760).contains(&n)), "seed {seed:#x}: {count:?}");
        }
    }

    #[test]
    fn seeds_draw_different_samples() {
        let same = (0..40_000).filter(|&p| (flow(p).draw(1) < 1 << 31) == (flow(p).draw(2) < 1 << 31)).count();
        assert!((19_400..=20_600).contains(&same), "{same}");
    }

    #[test]
    fn addresses_survive_the_mapped_form() {
        for a in ["10.1.2.3", "2001:db8::1", "::1"] {
            let a: core::net::IpAddr = a.parse().unwrap();
            assert_eq!(core::net::IpAddr::from(IpAddress::from(a)), a);
        }
    }
}
