//! Reports to `intercept`, in their ring.

use tcpcopy_common::{counters::TargetCounter, response::ResponseHeader};

use crate::{counters::Count as _, maps, ring::NO_WAKEUP, wakeup::wake_sleeper};

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
