//! The mark: a TCP option in a replayed SYN that proves to the target who sent it.
//!
//! | octets | content |
//! |---|---|
//! | 1 | kind 253, for experiments (RFC 4727) |
//! | 1 | length, 16 |
//! | 2 | ExID (RFC 6994), [`EXID`] |
//! | 4 | instance, network order |
//! | 1 | stamp, see [`Stamp`] |
//! | 7 | tag, the lower seven octets of a SipHash-2-4, little-endian |
//!
//! The tag is keyed by a 128-bit key that `intercept` gave the instance over the authenticated channel, and covers the
//! four-tuple, the protocol, the initial sequence number, the instance and the stamp, so that a mark cannot be moved
//! to another connection, nor mean anything else than it was made for.

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
    /// See [`Stamp`].
    pub stamp: u8,
    /// The keyed hash, little-endian.
    pub tag: [u8; TAG],
}

/// Octets of the tag.
const TAG: usize = 7;

const _: () = assert!(size_of::<Mark>() == LENGTH);

impl Mark {
    /// Makes the mark for a SYN of `flow` (as the target sees it) with initial sequence number `isn` (network order).
    pub fn new(key: &MarkKey, instance: u32, stamp: Stamp, flow: &Flow, isn: [u8; 4]) -> Self {
        Self {
            kind: KIND,
            length: OCTETS,
            exid: EXID,
            instance: instance.to_be_bytes(),
            stamp: stamp.octet(),
            tag: sealed(key, instance, stamp, flow, isn),
        }
    }

    /// Judges the mark of a SYN of `flow` with `isn` (network order) that comes in at `now`.
    #[inline(always)]
    pub fn judge(&self, key: &MarkKey, flow: &Flow, isn: [u8; 4], now: Epoch) -> Judgement {
        let age = now.0.wrapping_sub(self.stamp as u32) & LOW_EPOCH as u32;
        let (meets, probes) = (self.stamp & MEETS != 0, self.stamp & PROBES != 0);
        let stamp = Stamp { meets, probes, epoch: Epoch(now.0.wrapping_sub(age)) };
        let instance = u32::from_be_bytes(self.instance);
        if number(&sealed(key, instance, stamp, flow, isn)) != number(&self.tag) {
            Judgement::Forged
        } else if age > EPOCHS_GOOD {
            Judgement::Stale
        } else {
            Judgement::Valid
        }
    }
}

/// What is to be thought of a mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// The owner of the key has made it for this SYN, just now.
    Valid,
    /// The owner has made it for this SYN, but a while ago: it is late, or somebody repeats what was recorded.
    Stale,
    /// The owner has not made it for this SYN, or more than a minute ago.
    Forged,
}

/// A stretch of time of the target's clock, some 1.07 s, by which marks are told from those that were recorded.
///
/// The programs at the target have their own clock, and `intercept` tells each `tcpcopy` what it shows, so that no
/// clocks of two hosts are compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch at a time of `CLOCK_MONOTONIC`, in ns.
    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "the lower half is meant: it comes round after 146 years")]
    pub const fn at(ns: u64) -> Self {
        Self((ns >> 30) as u32)
    }
}

/// How many epochs after its own a mark is good. `tcpcopy` hears of each within a second, so that there are two
/// seconds left for the control channel and the way of the SYN; and what was recorded is worth nothing after 4.3 s.
const EPOCHS_GOOD: u32 = 3;

/// The bits of [`Mark::stamp`] for the lowest ones of [`Stamp::epoch`].
const LOW_EPOCH: u8 = 0x3f;

/// What a mark says beside whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// The SYN may meet an open connection on its four-tuple: the sender knows that an earlier session of its own has
    /// left one there, of which the target's programs know nothing any more. Without it such a connection is somebody
    /// else's, and is left alone.
    pub meets: bool,
    /// The SYN only asks whether the target's programs see it: they report it, and drop it.
    pub probes: bool,
    /// When it was made.
    pub epoch: Epoch,
}

/// The bit of [`Mark::stamp`] for [`Stamp::meets`].
pub const MEETS: u8 = 0x80;

/// The bit of [`Mark::stamp`] for [`Stamp::probes`].
pub const PROBES: u8 = 0x40;

/// What the session left behind has sent lies at most so many numbers below the ISN of a SYN that may meet it: by
/// this the target's programs tell its socket from one of somebody else, who has numbers of his own. More than Linux
/// has under way by default (`tcp_rmem`: 6 MiB).
pub const MEETS_WITHIN: u32 = 1 << 24;

impl Stamp {
    /// The octet in the mark.
    #[inline(always)]
    pub const fn octet(self) -> u8 {
        let [low, ..] = self.epoch.0.to_le_bytes();
        low & LOW_EPOCH | if self.meets { MEETS } else { 0 } | if self.probes { PROBES } else { 0 }
    }

    /// The octets that the tag covers, as a little-endian number: that in the mark, three zeros, and the whole epoch.
    #[inline(always)]
    const fn covered(self) -> u64 {
        self.octet() as u64 | (self.epoch.0 as u64) << 32
    }
}

#[inline(always)]
fn sealed(key: &MarkKey, instance: u32, stamp: Stamp, flow: &Flow, isn: [u8; 4]) -> [u8; TAG] {
    let [a, b, c, d, e, f, g, _] = hash(key, instance, flow, isn, stamp.covered()).to_le_bytes();
    [a, b, c, d, e, f, g]
}

/// A tag as a number, which the programs' processor compares at once.
#[inline(always)]
const fn number(tag: &[u8; TAG]) -> u64 {
    u64::from_le_bytes([tag[0], tag[1], tag[2], tag[3], tag[4], tag[5], tag[6], 0])
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
/// [`Flow`]), ISN and instance, in network order, and `stamp`, little-endian: 56 octets.
#[inline(always)]
pub fn hash(key: &MarkKey, instance: u32, flow: &Flow, isn: [u8; 4], stamp: u64) -> u64 {
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
    absorb(&mut v, stamp);
    absorb(&mut v, 56 << 56);
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
    fn the_tag_is_siphash_2_4_of_the_documented_octets() {
        let server = IpAddress(core::array::from_fn(|i| i as u8));
        let flow = Flow::tcp((IpAddress::from_v4([192, 0, 2, 7]), [0xab, 0xcd]), (server, [0, 80]));
        let isn = [1, 2, 3, 4];
        let key = MarkKey { k0: 0x0706_0504_0302_0100, k1: 0x0f0e_0d0c_0b0a_0908 };
        let mut reference = siphasher::sip::SipHasher24::new_with_keys(key.k0, key.k1);
        reference.write(bytemuck::bytes_of(&flow));
        reference.write(&isn);
        reference.write(&77u32.to_be_bytes());
        let unsealed = reference;
        for (probes, stamp) in [(false, 0xb4), (true, 0xf4)] {
            let mut reference = unsealed;
            reference.write(&[stamp, 0, 0, 0, 0x74, 3, 2, 1]);
            let mark = Mark::new(&key, 77, Stamp { meets: true, probes, epoch: Epoch(0x0102_0374) }, &flow, isn);
            assert_eq!((mark.stamp, &mark.tag[..]), (stamp, &reference.finish().to_le_bytes()[..7]));
        }
    }

    #[test]
    fn a_mark_is_valid_for_nothing_else_than_it_was_made_for() {
        let flow = |port| Flow::tcp((IpAddress::from_v4([192, 0, 2, 7]), [0, port]), (IpAddress([3; 16]), [0, 80]));
        let key = MarkKey { k0: 1, k1: 2 };
        let now = Epoch(1000);
        for (meets, probes) in [(false, false), (true, false), (false, true), (true, true)] {
            let mark = Mark::new(&key, 77, Stamp { meets, probes, epoch: now }, &flow(1), [0; 4]);
            assert_eq!(mark.judge(&key, &flow(1), [0; 4], now), Judgement::Valid);
            assert_eq!(mark.judge(&key, &flow(2), [0; 4], now), Judgement::Forged);
            assert_eq!(mark.judge(&key, &flow(1), [1; 4], now), Judgement::Forged);
            assert_eq!(mark.judge(&MarkKey { k0: 1, k1: 3 }, &flow(1), [0; 4], now), Judgement::Forged);
            let octets: [u8; LENGTH] = bytemuck::cast(mark);
            for at in 4..LENGTH {
                for bit in 0..8 {
                    let mut other = octets;
                    other[at] ^= 1 << bit;
                    let judgement = bytemuck::cast::<_, Mark>(other).judge(&key, &flow(1), [0; 4], now);
                    assert_eq!(judgement, Judgement::Forged, "octet {at} bit {bit}");
                }
            }
        }
    }

    #[test]
    fn a_mark_is_good_for_a_few_epochs_and_never_again() {
        let (key, flow) =
            (MarkKey { k0: 1, k1: 2 }, Flow::tcp((IpAddress([1; 16]), [0, 1]), (IpAddress([2; 16]), [0, 2])));
        // The second: while the number comes round.
        for made in [1000, u32::MAX - 1] {
            let mark = Mark::new(&key, 5, Stamp { epoch: Epoch(made), ..Stamp::default() }, &flow, [9; 4]);
            let judged = |age: u32| mark.judge(&key, &flow, [9; 4], Epoch(made.wrapping_add(age)));
            assert!((0..=3).all(|age| judged(age) == Judgement::Valid));
            assert!((4..64).all(|age| judged(age) == Judgement::Stale));
            // Also one that claims to come from the future.
            assert!((64..100_000).chain([1 << 31, u32::MAX]).all(|age| judged(age) == Judgement::Forged));
        }
        assert_eq!(Epoch::at(0), Epoch(0));
        assert_eq!((Epoch::at((7 << 30) - 1), Epoch::at(7 << 30)), (Epoch(6), Epoch(7)));
    }
}
