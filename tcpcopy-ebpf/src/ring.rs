//! Rings, and waking a reader that sleeps: what both objects have.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::RingBuf,
};

use crate::maps;

/// A ring of a size that user space decides.
pub type Ring<T> = RingBuf<T, PLACEHOLDER>;

/// A multiple of the page of every machine, of which the largest has 64 KiB: else the kernel refuses the ring.
const PLACEHOLDER: usize = 64 << 10;
/// Submits without a notification: see [`tcpcopy_common::wakeup`].
pub const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;
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
