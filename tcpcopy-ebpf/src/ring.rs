//! Putting records into rings: the size buckets of captured segments, and waking a reader that sleeps.

use aya_ebpf::{
    bindings::{BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP},
    btf_maps::RingBuf,
};
use tcpcopy_common::{
    capture::CaptureHeader,
    counters::{CaptureCounter, TargetCounter},
    response::ResponseHeader,
};

use crate::{
    counters::Counter,
    maps::{self, Ring},
    packet::{Packet, Unreadable, bounded},
};

const NO_WAKEUP: u64 = BPF_RB_NO_WAKEUP as u64;
const FORCE_WAKEUP: u64 = BPF_RB_FORCE_WAKEUP as u64;
const HEADER: u32 = size_of::<CaptureHeader>() as u32;

/// Puts a captured segment into the ring of `worker`: `header`, and the `len` octets at `offset` of `packet`.
///
/// The verifier wants a constant size to reserve, so that a record is as large as the next of these buckets. Reserving and
/// then copying once costs 114 to 223 ns; a scratch buffer or a dynptr costs half as much again (measured on 6.18).
#[inline(always)]
pub fn capture(
    packet: &impl Packet,
    worker: u32,
    header: &CaptureHeader,
    offset: u32,
    len: u32,
) -> Result<(), CaptureCounter> {
    let ring = maps::capture_ring(worker).ok_or(CaptureCounter::NoRing)?;
    let result = match HEADER + len {
        ..=128 => put::<128>(packet, ring, header, offset, len),
        129..=256 => put::<256>(packet, ring, header, offset, len),
        257..=512 => put::<512>(packet, ring, header, offset, len),
        513..=1024 => put::<1024>(packet, ring, header, offset, len),
        1025..=1600 => put::<1600>(packet, ring, header, offset, len),
        1601..=2048 => put::<2048>(packet, ring, header, offset, len),
        2049..=4096 => put::<4096>(packet, ring, header, offset, len),
        4097..=9216 => put::<9216>(packet, ring, header, offset, len),
        9217..=16384 => put::<16384>(packet, ring, header, offset, len),
        16385..=32768 => put::<32768>(packet, ring, header, offset, len),
        32769..=49152 => put::<49152>(packet, ring, header, offset, len),
        // A header, and as much as an IP packet can hold.
        49153..=65600 => put::<65600>(packet, ring, header, offset, len),
        _ => Err(CaptureCounter::TooLarge),
    };
    if matches!(result, Err(CaptureCounter::RingFull))
        && let Some(signals) = maps::signals(worker)
    {
        // SAFETY: as in `wake_sleeper`. What several processors add at once may count once: it is to change, no more.
        unsafe {
            let lost = &raw mut (*signals).lost;
            lost.write_volatile(lost.read_volatile().wrapping_add(1));
        }
    }
    // A full ring wakes its reader too.
    if wake_sleeper(ring, worker) {
        CaptureCounter::Wakeups.count();
    }
    result
}

#[inline(always)]
fn put<const SIZE: usize>(
    packet: &impl Packet,
    ring: &Ring<CaptureHeader>,
    header: &CaptureHeader,
    offset: u32,
    len: u32,
) -> Result<(), CaptureCounter> {
    let mut record = ring.reserve_bytes(SIZE, 0).ok_or(CaptureCounter::RingFull)?;
    let start = record.as_mut_ptr();
    // SAFETY: every bucket has room for a header, and records are 8-aligned.
    unsafe { start.cast::<CaptureHeader>().write(*header) };
    let copied = match bounded(len, SIZE as u32 - HEADER) {
        // SAFETY: what is left of the record has room for `len` octets, which are not none.
        Some(len) => unsafe { packet.load_bytes(offset, start.add(HEADER as usize), len) }
            .map_err(|Unreadable| CaptureCounter::CopyFailed),
        None if len == 0 => Ok(()),
        None => Err(CaptureCounter::TooLarge),
    };
    match copied {
        Ok(()) => record.submit(NO_WAKEUP),
        Err(_) => record.discard(NO_WAKEUP),
    }
    copied
}

/// Reports a response or an event of a session to `intercept`: what `make` makes, and what `complete` adds to it. Neither is called without room in the ring; both work in the ring, to spare the stack. A lost report is counted
/// with its `instance`. Whether there was room.
#[inline(always)]
pub fn report(
    instance: u32,
    make: impl FnOnce() -> ResponseHeader,
    complete: impl FnOnce(&mut ResponseHeader),
) -> bool {
    let ring = maps::reports();
    let room = match ring.reserve(0) {
        Some(mut record) => {
            let report = record.write(make());
            complete(report);
            record.submit(NO_WAKEUP);
            true
        }
        None => {
            report_lost(instance);
            false
        }
    };
    if wake_sleeper(ring, 0) {
        TargetCounter::Wakeups.count();
    }
    room
}

/// Counts a report that cannot be made.
#[inline(always)]
pub fn report_lost(instance: u32) {
    TargetCounter::ReportLost.count();
    if let Some(stats) = maps::wire_stats(instance) {
        // SAFETY: the entry belongs to this CPU, on which programs of this type do not interrupt each other.
        unsafe { (*stats).reports_lost += 1 };
    }
}

/// Wakes the reader of the ring with that index if it has asked for it; see [`tcpcopy_common::wakeup`] for why it is
/// done like this, and after the record was submitted.
#[inline(always)]
fn wake_sleeper<T, const SIZE: usize>(ring: &RingBuf<T, SIZE>, index: u32) -> bool {
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
