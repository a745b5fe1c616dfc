//! What a ring's reader and its producers tell each other beside the records, above all *need-wakeup*: whether the
//! reader sleeps and wants to be woken.
//!
//! A notification per record costs 2.6 to 5 µs of the packet's CPU, a record without one 0.25 to 0.43 µs (measured on
//! 6.18), so a producer notifies only when the reader has said that it sleeps. The protocol, free of lost wake-ups:
//!
//! - The reader sets its flag, issues a full fence, looks into the ring once more, and only then sleeps, never longer
//!   than [`MAX_SLEEP_MS`]; awake, it clears the flag.
//! - The producer submits with `BPF_RB_NO_WAKEUP`, *then* reads the flag, and when it is set clears it and forces a
//!   wake-up with a discarded reservation. A reservation that fails wakes the reader too.

use bytemuck::{Pod, Zeroable};

/// What a ring's reader and its producers tell each other, alone on its cache line: element of an array map with
/// `BPF_F_MMAPABLE`, one per ring.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Signals {
    /// 1 while the reader sleeps or is about to, else 0.
    pub need_wakeup: u32,
    /// Grows with each record for which there was no room; wraps.
    pub lost: u32,
    /// Zero.
    pub _reserved: [u32; 14],
}

const _: () = assert!(size_of::<Signals>() == 64);

/// The longest a reader sleeps without looking into its ring.
pub const MAX_SLEEP_MS: u32 = 100;
