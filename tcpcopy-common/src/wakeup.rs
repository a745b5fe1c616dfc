//! *Need-wakeup*: whether the reader of a ring sleeps and wants to be woken.
//!
//! A notification per record costs 2.6 to 5 µs of the packet's CPU, a record without one 0.25 to 0.43 µs (measured on
//! 6.18), so a producer notifies only when the reader has said that it sleeps. The protocol, free of lost wake-ups:
//!
//! - The reader sets its flag, issues a full fence, looks into the ring once more, and only then sleeps, never longer than
//!   [`MAX_SLEEP_MS`]; awake, it clears the flag.
//! - The producer submits with `BPF_RB_NO_WAKEUP`, *then* reads the flag, and when it is set clears it and forces a
//!   wake-up with a discarded reservation. A reservation that fails wakes the reader too.

use bytemuck::{Pod, Zeroable};

/// A reader's flag, alone on its cache line: element of an array map with `BPF_F_MMAPABLE`, one per ring.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct NeedWakeup {
    /// 1 while the reader sleeps or is about to, else 0.
    pub flag: u32,
    /// Zero.
    pub _reserved: [u32; 15],
}

const _: () = assert!(size_of::<NeedWakeup>() == 64);

/// The longest a reader sleeps without looking into its ring.
pub const MAX_SLEEP_MS: u32 = 10;
