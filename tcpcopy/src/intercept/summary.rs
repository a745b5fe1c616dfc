//! What `intercept` says when it ends.

use std::{sync::atomic::Ordering::Relaxed, time::Duration};

use tcpcopy_common::{counters::TargetCounter, response::WireStats};

use super::reporter::ReportCounts;
use crate::{
    bpf::CounterValues,
    control::ServerCounters,
    summary::{Figure, Report},
};

/// The figures of a run.
pub(super) fn summarise(
    programs: &CounterValues<TargetCounter>,
    wire: &WireStats,
    reports: &ReportCounts,
    server: &ServerCounters,
    ran_for: Duration,
) -> Report {
    let count = |c: TargetCounter| (c.label(), Figure::Count(programs.get(c)));
    use TargetCounter::{
        BadTag, Collision, Learned, Malformed, MapFull, Reclaimed, ReflectFailed, Reflected, ReflectionSeen,
        ReportLost, Swallowed, SwallowedBytes, SwallowedFragments, SwallowedIcmp, SynRepeated, UnknownInstance,
        Wakeups,
    };
    let counter = |name, value: &std::sync::atomic::AtomicU64| (name, Figure::Count(value.load(Relaxed)));
    Report::default()
        .section("run", [("duration", Figure::Seconds(ran_for.as_secs_f64()))])
        .section(
            "seen_on_the_wire",
            [
                ("segments", Figure::Count(wire.segments)),
                ("payload", Figure::Bytes(wire.payload_bytes)),
                ("syns", Figure::Count(wire.syns)),
                ("fins", Figure::Count(wire.fins)),
            ],
        )
        .section("sessions", [count(Learned), count(SynRepeated), count(Reclaimed)])
        .section(
            "refused_syns",
            [count(BadTag), count(UnknownInstance), count(MapFull), count(Collision), count(Malformed)],
        )
        .section(
            "swallowed",
            [
                count(Swallowed),
                (SwallowedBytes.label(), Figure::Bytes(programs.get(SwallowedBytes))),
                count(SwallowedIcmp),
                count(SwallowedFragments),
            ],
        )
        .section("acknowledged_here", [count(Reflected), count(ReflectFailed), count(ReflectionSeen)])
        .section(
            "reports",
            [
                ("sent", Figure::Count(reports.reported)),
                count(ReportLost),
                ("channel_too_slow", Figure::Count(reports.dropped)),
                ("owner_without_channel", Figure::Count(reports.unowned)),
                ("bad_records", Figure::Count(reports.bad_records)),
                count(Wakeups),
            ],
        )
        .section(
            "control_connections",
            [
                counter("accepted", &server.accepted),
                counter("bad_key", &server.bad_key),
                counter("garbage", &server.garbage),
                counter("timeout", &server.timeout),
                counter("too_many", &server.too_many),
                counter("wrong_version", &server.wrong_version),
                counter("insecure_mismatch", &server.insecure_mismatch),
                counter("refused", &server.refused),
                counter("closed", &server.closed),
                counter("failed", &server.failed),
            ],
        )
}
