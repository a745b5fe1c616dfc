//! The mark: a TCP option in a replayed SYN that proves to the target who sent it.
//!
//! | octets | content |
//! |---|---|
//! | 1 | kind 253, for experiments (RFC 4727) |
//! | 1 | length, 16 |
//! | 2 | ExID (RFC 6994), [`EXID`] |
//! | 4 | instance, network order |
//! | 8 | tag, little-endian SipHash-2-4 |
//!
//! The tag is keyed by a 128-bit key that `intercept` gave the instance over the authenticated channel, and covers the
//! four-tuple, the protocol, the initial sequence number and the instance, so that a mark cannot be moved to another
//! connection.

use bytemuck::{Pod, Zeroable};

use crate::flow::Flow;

/// TCP option kind (RFC 4727).
pub const KIND: u8 = 253;
/// Octets of the whole option.
pub const LENGTH: usize = OCTETS as usize;
const OCTETS: u8 = 16;
/// Our experiment identifier, "tc" (RFC 6994).
pub const EXID: [u8; 2] = *b"tc";

/// The option as it stands in the SYN.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Mark {
    /// [`KIND`].
    pub kind: u8,
    /// [`LENGTH`].
    pub length: u8,
    /// [`EXID`].
    pub exid: [u8; 2],
    /// The owning instance, network order.
    pub instance: [u8; 4],
    /// The keyed hash, little-endian.
    pub tag: [u8; 8],
}

const _: () = assert!(size_of::<Mark>() == LENGTH);

impl Mark {
    /// Makes the mark for a SYN of `flow` (as the target sees it) with initial sequence number `isn` (network order).
    pub fn new(key: &MarkKey, instance: u32, flow: &Flow, isn: [u8; 4]) -> Self {
        Self {
            kind: KIND,
            length: OCTETS,
            exid: EXID,
            instance: instance.to_be_bytes(),
            tag: tag(key, instance, flow, isn).to_le_bytes(),
        }
    }
}

/// The 128-bit key of an instance: value of the map of instances.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
pub struct MarkKey {
    /// First eight octets of the key, as a little-endian number in host order.
    pub k0: u64,
    /// Last eight octets, likewise.
    pub k1: u64,
}

impl core::fmt::Debug for MarkKey {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("MarkKey(..)")
    }
}

/// Computes SipHash-2-4 over client address, server address, client port, server port, protocol and three zeros (a
/// [`Flow`]), ISN and instance: 48 octets in network order.
#[inline(always)]
pub fn tag(key: &MarkKey, instance: u32, flow: &Flow, isn: [u8; 4]) -> u64 {
    let c = &flow.client.0;
    let s = &flow.server.0;
    let mut v = [
        key.k0 ^ 0x736f_6d65_7073_6575,
        key.k1 ^ 0x646f_7261_6e64_6f6d,
        key.k0 ^ 0x6c79_6765_6e65_7261,
        key.k1 ^ 0x7465_6462_7974_6573,
    ];
    absorb(&mut v, le64(c, 0));
    absorb(&mut v, le64(c, 8));
    absorb(&mut v, le64(s, 0));
    absorb(&mut v, le64(s, 8));
    let p = flow.client_port;
    let q = flow.server_port;
    absorb(&mut v, u64::from_le_bytes([p[0], p[1], q[0], q[1], flow.protocol, 0, 0, 0]));
    let i = instance.to_be_bytes();
    absorb(&mut v, u64::from_le_bytes([isn[0], isn[1], isn[2], isn[3], i[0], i[1], i[2], i[3]]));
    absorb(&mut v, 48 << 56);
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn le64(b: &[u8; 16], at: usize) -> u64 {
    u64::from_le_bytes([b[at], b[at + 1], b[at + 2], b[at + 3], b[at + 4], b[at + 5], b[at + 6], b[at + 7]])
}

#[inline(always)]
fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use core::hash::Hasher as _;

    use super::*;
    use crate::flow::IpAddress;

    #[test]
    fn tag_is_siphash_2_4_of_the_documented_octets() {
        let server = IpAddress(core::array::from_fn(|i| i as u8));
        let flow = Flow::tcp((IpAddress::from_v4([192, 0, 2, 7]), [0xab, 0xcd]), (server, [0, 80]));
        let isn = [1, 2, 3, 4];
        let key = MarkKey { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };
        let mut reference = siphasher::sip::SipHasher24::new_with_keys(key.k0, key.k1);
        reference.write(bytemuck::bytes_of(&flow));
        reference.write(&isn);
        reference.write(&77u32.to_be_bytes());
        assert_eq!(tag(&key, 77, &flow, isn), reference.finish());
    }
}
