//! What precedes the IP packet in a frame that a packet socket takes: a `struct virtio_net_hdr` (`PACKET_VNET_HDR`),
//! which says what the kernel is to do with the packet, and the Ethernet header.
//!
//! The former defers two things, perhaps for ever: the checksum is left to the interface, and a *super-packet*, whose
//! payload is that of many segments, stays whole until the interface, or the kernel just before it, cuts it up (generic
//! segmentation offload).

use crate::headers::{TCP_CHECKSUM, length16};

/// Octets of a `struct virtio_net_hdr`.
const VNET_HEADER: usize = 10;
/// Octets of an Ethernet header (IEEE 802.3).
const ETHERNET: usize = 14;
/// Octets of both.
pub(crate) const FRONT: usize = VNET_HEADER + ETHERNET;

/// EtherType of IPv4 (IEEE 802 numbers, RFC 894).
const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6 (RFC 2464, section 3).
const ETHERTYPE_IPV6: u16 = 0x86dd;

/// A 48-bit link-layer address, in transmission order.
pub type MacAddress = [u8; 6];

/// Values of `struct virtio_net_hdr` (virtio 1.2, section 5.1.6).
mod virtio {
    pub(super) const NEEDS_CSUM: u8 = 1;
    pub(super) const GSO_NONE: u8 = 0;
    pub(super) const GSO_TCPV4: u8 = 1;
    pub(super) const GSO_TCPV6: u8 = 4;
}

/// An Ethernet header, ready to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthernetHeader([u8; ETHERNET]);

impl EthernetHeader {
    /// Makes the header of frames from an interface with the address `source` to its neighbour `destination`.
    #[must_use]
    pub const fn new(destination: MacAddress, source: MacAddress, v6: bool) -> Self {
        let ethertype = if v6 { ETHERTYPE_IPV6 } else { ETHERTYPE_IPV4 };
        let ([d0, d1, d2, d3, d4, d5], [s0, s1, s2, s3, s4, s5]) = (destination, source);
        let [t0, t1] = ethertype.to_be_bytes();
        Self([d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1])
    }

    /// Makes the front of a frame whose IP header has `ip` octets, and whose IP and TCP headers have `headers` octets
    /// together. `segment` is the payload of each segment of a super-packet, in octets.
    pub(crate) fn front(&self, v6: bool, ip: usize, headers: usize, segment: Option<u16>) -> [u8; FRONT] {
        let (gso_type, hdr_len, gso_size) = match segment {
            None => (virtio::GSO_NONE, 0, 0),
            // The kernel has these octets in one piece, which it needs to rewrite them.
            Some(size) => (if v6 { virtio::GSO_TCPV6 } else { virtio::GSO_TCPV4 }, length16(ETHERNET + headers), size),
        };
        let mut front = [0; FRONT];
        front[0] = virtio::NEEDS_CSUM;
        front[1] = gso_type;
        // In the order of this host: packet sockets know no other.
        front[2..4].copy_from_slice(&hdr_len.to_ne_bytes());
        front[4..6].copy_from_slice(&gso_size.to_ne_bytes());
        front[6..8].copy_from_slice(&length16(ETHERNET + ip).to_ne_bytes());
        front[8..10].copy_from_slice(&length16(TCP_CHECKSUM).to_ne_bytes());
        front[VNET_HEADER..].copy_from_slice(&self.0);
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
