//! Waking the reader of a ring: what both objects have.

use aya_ebpf::bindings::BPF_RB_FORCE_WAKEUP;

use crate::{maps, ring::Ring};

const FORCE_WAKEUP: u64 = BPF_RB_FORCE_WAKEUP as u64;

/// Wakes the reader of the ring with that index if it has asked for it; see [`tcpcopy_common::wakeup`] for why it is
/// done like this, and after the record was submitted.
#[inline(always)]
pub fn wake_sleeper<T>(ring: &Ring<T>, index: u32) -> bool {
    let Some(signals) = maps::signals(index) else { return false };
    // SAFETY: the reader's signals are in a map; a volatile access is a single one, which is all that its peer needs.
    if unsafe { (&raw const (*signals).need_wakeup).read_volatile() } == 0 {
        return false;
    }
    let Some(nothing) = ring.reserve_bytes(size_of::<u64>(), 0) else { return false };
    // SAFETY: as above.
    unsafe { (&raw mut (*signals).need_wakeup).write_volatile(0) };
    nothing.discard(FORCE_WAKEUP);
    true
}
