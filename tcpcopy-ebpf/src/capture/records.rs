//! Putting captured segments into rings: the size buckets of their records.

use tcpcopy_common::{capture::CaptureHeader, counters::CaptureCounter};
use tcpcopy_ebpf::packet::{Packet, Unreadable, bounded};

use crate::{
    counters::Count as _,
    maps,
    ring::{NO_WAKEUP, Ring},
    wakeup::wake_sleeper,
};

const HEADER: u32 = size_of::<CaptureHeader>() as u32;

/// A record of headers alone: those of TCP take 60 octets at most.
const HEADERS: usize = 128;

/// Puts a captured segment into the ring of `worker`: `header`, and the `len` octets at `offset` of `packet`, which are its TCP
/// header and its payload.
///
/// The verifier wants a constant size to reserve, so that a record is as large as the next of these buckets. Reserving and
/// then copying once costs 114 to 223 ns; a scratch buffer or a dynptr costs half as much again (measured on 6.18).
#[inline(always)]
pub fn put(
    packet: &impl Packet,
    worker: u32,
    header: &CaptureHeader,
    offset: u32,
    len: u32,
) -> Result<(), CaptureCounter> {
    let ring = maps::capture_ring(worker).ok_or(CaptureCounter::NoRing)?;
    let result = match HEADER + len {
        ..=128 => reserve::<HEADERS>(packet, ring, header, offset, len),
        129..=256 => reserve::<256>(packet, ring, header, offset, len),
        257..=512 => reserve::<512>(packet, ring, header, offset, len),
        513..=1024 => reserve::<1024>(packet, ring, header, offset, len),
        1025..=1600 => reserve::<1600>(packet, ring, header, offset, len),
        1601..=2048 => reserve::<2048>(packet, ring, header, offset, len),
        2049..=4096 => reserve::<4096>(packet, ring, header, offset, len),
        4097..=9216 => reserve::<9216>(packet, ring, header, offset, len),
        9217..=16384 => reserve::<16384>(packet, ring, header, offset, len),
        16385..=32768 => reserve::<32768>(packet, ring, header, offset, len),
        32769..=49152 => reserve::<49152>(packet, ring, header, offset, len),
        // A header, and as much as an IP packet can hold.
        49153..=65600 => reserve::<65600>(packet, ring, header, offset, len),
        _ => Err(CaptureCounter::TooLarge),
    };
    told(ring, worker, result)
}

/// Puts the TCP header of a packet into the ring of `worker`, as [`put`] does.
#[inline(always)]
pub fn put_header(
    packet: &impl Packet,
    worker: u32,
    header: &CaptureHeader,
    offset: u32,
    len: u32,
) -> Result<(), CaptureCounter> {
    let ring = maps::capture_ring(worker).ok_or(CaptureCounter::NoRing)?;
    let result = reserve::<HEADERS>(packet, ring, header, offset, len);
    told(ring, worker, result)
}

/// Lets the reader of a ring know what has become of a record.
#[inline(always)]
fn told(ring: &Ring<CaptureHeader>, worker: u32, result: Result<(), CaptureCounter>) -> Result<(), CaptureCounter> {
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
fn reserve<const SIZE: usize>(
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
