//! Socket addresses as the kernel reads them, for the three kinds of sockets that inject.

use std::net::IpAddr;

use crate::net::interface::Mac;

/// Room for the largest, `sockaddr_in6`.
const ROOM: usize = size_of::<libc::sockaddr_in6>();

/// A `sockaddr_ll`, `sockaddr_in` or `sockaddr_in6`.
#[repr(C, align(8))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SocketAddress {
    bytes: [u8; ROOM],
    length: u8,
}

impl SocketAddress {
    /// No address: for a connected socket.
    #[cfg(test)]
    pub(super) const NONE: Self = Self { bytes: [0; ROOM], length: 0 };

    /// Makes a `sockaddr_ll`: out of interface `ifindex`, to the link-layer address `mac` where the link has addresses.
    pub(super) fn link(ifindex: u32, v6: bool, mac: Option<Mac>) -> Self {
        let ethertype = if v6 { libc::ETH_P_IPV6 } else { libc::ETH_P_IP } as u16;
        let mut bytes = [0; ROOM];
        bytes[..2].copy_from_slice(&(libc::AF_PACKET as u16).to_ne_bytes());
        bytes[2..4].copy_from_slice(&ethertype.to_be_bytes());
        bytes[4..8].copy_from_slice(&ifindex.to_ne_bytes());
        if let Some(mac) = mac {
            bytes[11] = mac.len() as u8;
            bytes[12..12 + mac.len()].copy_from_slice(&mac);
        }
        Self { bytes, length: size_of::<libc::sockaddr_ll>() as u8 }
    }

    /// Makes a `sockaddr_in` or `sockaddr_in6` with port 0, which is what raw sockets want.
    pub(super) fn ip(address: IpAddr) -> Self {
        let mut bytes = [0; ROOM];
        let length = match address {
            IpAddr::V4(a) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
                bytes[4..8].copy_from_slice(&a.octets());
                size_of::<libc::sockaddr_in>()
            }
            IpAddr::V6(a) => {
                bytes[..2].copy_from_slice(&(libc::AF_INET6 as u16).to_ne_bytes());
                bytes[8..24].copy_from_slice(&a.octets());
                size_of::<libc::sockaddr_in6>()
            }
        };
        Self { bytes, length: length as u8 }
    }

    /// Returns the interface of a [`link`](Self::link) address.
    pub(super) fn ifindex(&self) -> Option<u32> {
        let [f0, f1, _, _, i0, i1, i2, i3, ..] = self.bytes;
        (u16::from_ne_bytes([f0, f1]) == libc::AF_PACKET as u16).then(|| u32::from_ne_bytes([i0, i1, i2, i3]))
    }

    pub(super) fn as_ptr(&self) -> *const u8 {
        self.bytes.as_ptr()
    }

    pub(super) fn len(&self) -> libc::socklen_t {
        self.length.into()
    }
}

// The octets above are written where the kernel reads them.
const _: () = {
    use std::mem::offset_of;
    assert!(offset_of!(libc::sockaddr_ll, sll_protocol) == 2 && offset_of!(libc::sockaddr_ll, sll_ifindex) == 4);
    assert!(offset_of!(libc::sockaddr_ll, sll_halen) == 11 && offset_of!(libc::sockaddr_ll, sll_addr) == 12);
    assert!(offset_of!(libc::sockaddr_in, sin_addr) == 4 && offset_of!(libc::sockaddr_in6, sin6_addr) == 8);
    assert!(size_of::<libc::sockaddr_ll>() <= ROOM && align_of::<libc::sockaddr_in6>() <= 8);
};
