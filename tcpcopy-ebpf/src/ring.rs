//! Rings: what both objects have.

use aya_ebpf::{bindings::BPF_RB_NO_WAKEUP, btf_maps::RingBuf};

/// A ring of a size that user space decides.
pub type Ring<T> = RingBuf<T, PLACEHOLDER>;

/// A multiple of the page of every machine, of which the largest has 64 KiB: else the kernel refuses the ring.
const PLACEHOLDER: usize = 64 << 10;
/// Submits without a notification: see [`tcpcopy_common::wakeup`].
pub const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;
