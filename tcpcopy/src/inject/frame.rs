//! What precedes the IP packet in a frame that leaves by a frame socket: the orders to the kernel what to do with the
//! packet (`PACKET_VNET_HDR`), and the Ethernet header.
//!
//! The orders let two things be done late, or never: the checksum is left to the interface, and a *super-packet*, whose
//! payload is that of many segments, stays whole until the interface, or the kernel just before it, cuts it into them
//! (generic segmentation offload).

use crate::net::interface::Mac;

/// Octets of [`orders`].
const ORDERS: usize = 10;
/// Octets of an Ethernet header (IEEE 802.3).
const ETHERNET: usize = 14;
/// Octets of both.
pub(super) const FRONT: usize = ORDERS + ETHERNET;

/// The largest IP packet, super-packets included: what the length field of IPv4 can say.
pub(super) const LARGEST: usize = 65_535;

/// Where the checksum is in a TCP header (RFC 9293, section 3.1).
pub(super) const TCP_CHECKSUM: usize = 16;

/// Values of `struct virtio_net_hdr` (virtio 1.2, section 5.1.6).
mod virtio {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
}

/// An Ethernet header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct EthernetHeader([u8; ETHERNET]);

impl EthernetHeader {
    /// From an interface with the address `source` to a neighbour with the address `destination`.
    pub(super) const fn new(destination: Mac, source: Mac, v6: bool) -> Self {
        let ethertype = if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP } as u16;
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (destination, source);
        let [t0, t1] = ethertype.to_be_bytes();
        Self([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1])
    }

    /// The front of a frame whose IP header has `ip` octets, all headers of IP and TCP together `headers`. A super-packet
    /// gives the payload of each of its segments.
    pub(super) fn front(&self, v6: bool, ip: usize, headers: usize, segment: Option<u16>) -> [u8; FRONT] {
        let (gso_type, hdr_len, gso_size) = match segment {
            None => (virtio::GSO_NONE, 0, 0),
            // The kernel has these octets in one piece, which it needs to rewrite them.
            Some(size) => (if v6 { virtio::GSO_TCPV6 } else { virtio::GSO_TCPV4 }, (ETHERNET + headers) as u16, size),
        };
        let mut front = [0; FRONT];
        front[0] = virtio::NEEDS_CSUM;
        front[1] = gso_type;
        // In the order of this host: packet sockets know no other.
        front[2..4].copy_from_slice(&hdr_len.to_ne_bytes());
        front[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        front[6..8].copy_from_slice(&((ETHERNET + ip) as u16).to_ne_bytes());
        front[8..10].copy_from_slice(&(TCP_CHECKSUM as u16).to_ne_bytes());
        front[ORDERS..].copy_from_slice(&self.0);
        front
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[rustfmt::skip]
    fn the_front_of_a_super_packet_octet_by_octet() {
        let ethernet = EthernetHeader::new([1; 6], [2; 6], true);
        let front = ethernet.front(true, 40, 72, Some(1428));
        let native = |n: u16| n.to_ne_bytes();
        let [h, g, s, o] = [native(86), native(1428), native(54), native(16)];
        assert_eq!(front, [
            1, 4, h[0], h[1], g[0], g[1], s[0], s[1], o[0], o[1],
            1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd,
        ]);
    }

    #[test]
    fn a_single_segment_only_leaves_its_checksum_to_the_kernel() {
        let front = EthernetHeader::new([1; 6], [2; 6], false).front(false, 20, 40, None);
        assert_eq!(front[..6], [1, 0, 0, 0, 0, 0]);
        assert_eq!(front[22..], [0x08, 0x00]);
    }
}
