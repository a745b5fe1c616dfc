//! Reports to `intercept`, in their ring.

use tcpcopy_common::{counters::TargetCounter, response::ResponseHeader};
use tcpcopy_ebpf::packet::{Packet, bounded};

use crate::{counters::Count as _, maps, ring::NO_WAKEUP, wakeup::wake_sleeper};

const HEADER: usize = size_of::<ResponseHeader>();

/// Octets of a packet.
#[derive(Clone, Copy)]
pub struct Range {
    pub start: u32,
    pub len: u32,
}

/// Reports a response or an event of a session to `intercept`: what `make` makes, and what `complete` adds to it.
/// Neither is called without room in the ring; both work in the ring, to spare the stack. A lost report is counted with
/// its `instance`. Whether there was room.
#[inline(always)]
pub fn report(
    instance: u32,
    make: impl FnOnce() -> ResponseHeader,
    complete: impl FnOnce(&mut ResponseHeader),
) -> bool {
    let room = match maps::reports().reserve(0) {
        Some(mut record) => {
            let report = record.write(make());
            complete(report);
            record.submit(NO_WAKEUP);
            true
        }
        None => false,
    };
    conclude(room, instance)
}

/// Reports a response, and with it the first octets of its payload, which are `prefix` of `packet`. Otherwise as
/// [`report`]; returns the [`options`](ResponseHeader::options) that were reported, if there was room.
///
/// Where the octets find no room in the ring, or cannot be read, the headers are reported without them: on the headers
/// the replay depends.
#[inline(always)]
pub fn report_with_prefix(
    packet: &impl Packet,
    prefix: Range,
    instance: u32,
    make: impl FnOnce() -> ResponseHeader,
    complete: impl FnOnce(&mut ResponseHeader),
) -> Option<u8> {
    // It is always there, but the verifier cannot know.
    let Some(draft) = maps::draft() else {
        conclude(false, instance);
        return None;
    };
    // Not in the ring, as its size is not known: with each of the sizes the verifier would follow every path of
    // `complete` anew. Nor on the stack, whose content it follows.
    // SAFETY: the entry belongs to this CPU, on which programs of this type do not interrupt each other.
    unsafe {
        draft.write(make());
        complete(&mut *draft);
    }
    let room = put(packet, draft, prefix);
    // SAFETY: as above.
    conclude(room, instance).then_some(unsafe { (*draft).options })
}

/// Puts `draft` and the octets of `prefix` into the ring. Whether there was room, at least for the draft.
///
/// The verifier wants a constant size to reserve: see the buckets of captured segments.
#[inline(never)]
fn put(packet: &impl Packet, draft: *mut ResponseHeader, prefix: Range) -> bool {
    let with_prefix = match prefix.len {
        ..=16 => put_into::<16>(packet, draft, prefix),
        17..=64 => put_into::<64>(packet, draft, prefix),
        65..=256 => put_into::<256>(packet, draft, prefix),
        257..=1024 => put_into::<1024>(packet, draft, prefix),
        _ => put_into::<2048>(packet, draft, prefix),
    };
    with_prefix || put_into::<0>(packet, draft, prefix)
}

/// Puts `draft` into the ring, and the octets of `prefix` if there are no more of them than `ROOM`.
#[inline(always)]
fn put_into<const ROOM: usize>(packet: &impl Packet, draft: *const ResponseHeader, prefix: Range) -> bool {
    let Some(mut record) = maps::reports().reserve_bytes(HEADER + ROOM, 0) else { return false };
    let start = record.as_mut_ptr();
    // SAFETY: every bucket has room for a header, and records are 8-aligned. The draft is this CPU's, and complete.
    let report = unsafe {
        let report = start.cast::<ResponseHeader>();
        report.write(*draft);
        &mut *report
    };
    report.prefix_len = match bounded(prefix.len, ROOM as u32) {
        // SAFETY: what is left of the record has room for so many octets, which are not none.
        Some(len) if unsafe { packet.load_bytes(prefix.start, start.add(HEADER), len) }.is_ok() => len as u16,
        _ => {
            TargetCounter::PrefixLost.count();
            0
        }
    };
    record.submit(NO_WAKEUP);
    true
}

/// What is to be done behind a report: `room` tells whether there was room for it.
#[inline(always)]
fn conclude(room: bool, instance: u32) -> bool {
    if !room {
        report_lost(instance);
    }
    // A full ring wakes its reader too.
    if wake_sleeper(maps::reports(), 0) {
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
