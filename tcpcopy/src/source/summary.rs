//! What `tcpcopy` says when it ends: where everything captured went, stage by stage.

use std::time::Duration;

use tcpcopy_common::counters::{CaptureCounter, CaptureCounter as C};
use tcpcopy_replay::{ByReason, Histogram, Ledger, Stats, worker::CopySnapshot};

use super::host::Snapshot;
use crate::{
    bpf::CounterValues,
    control::Stats as TargetStats,
    inject::InjectStats,
    summary::{Figure, Report},
};

/// The figures of a run, summed over its workers.
pub(super) struct Summary {
    programs: CounterValues<CaptureCounter>,
    /// Of each copy.
    copies: Vec<CopySnapshot>,
    /// Of all copies.
    engine: Stats,
    inject: InjectStats,
    targets: TargetStats,
    bad_records: u64,
    no_target: u64,
    no_target_bytes: u64,
    sleeps: u64,
    naps: u64,
    ran_for: Duration,
}

impl Summary {
    /// Adds the workers up.
    pub(super) fn new(workers: &[Snapshot], programs: CounterValues<CaptureCounter>, ran_for: Duration) -> Self {
        let mut sum = Self {
            programs,
            copies: Vec::new(),
            engine: Stats::default(),
            inject: InjectStats::default(),
            targets: TargetStats::default(),
            bad_records: 0,
            no_target: 0,
            no_target_bytes: 0,
            sleeps: 0,
            naps: 0,
            ran_for,
        };
        for worker in workers {
            sum.copies.resize_with(sum.copies.len().max(worker.copies.len()), CopySnapshot::default);
            for (copy, theirs) in sum.copies.iter_mut().zip(&worker.copies) {
                copy.engine.merge(&theirs.engine);
                copy.elsewhere += theirs.elsewhere;
                copy.elsewhere_bytes += theirs.elsewhere_bytes;
                sum.engine.merge(&theirs.engine);
            }
            sum.inject += worker.inject;
            sum.targets += worker.targets;
            sum.bad_records += worker.own.bad_records;
            sum.no_target += worker.own.no_target;
            sum.no_target_bytes += worker.own.no_target_bytes;
            sum.sleeps += worker.own.sleeps;
            sum.naps += worker.own.naps;
        }
        sum
    }

    /// The figures that tell whether all is well, for the log.
    pub(super) fn one_line(&self) -> String {
        let e = &self.engine;
        format!(
            "sessions: {} seen, {} active, {} aborted; octets: {} captured, {} sent, {} accepted, {} discarded, {} lost to full rings; lag p99 {:?}",
            e.sessions.seen,
            e.sessions.active,
            e.sessions.aborted.total(),
            e.bytes.captured,
            e.bytes.sent,
            e.accepted_bytes,
            e.bytes.discarded.total(),
            self.programs.get(CaptureCounter::RingFullBytes),
            e.lag.percentile(99.0)
        )
    }

    /// Complains of figures that do not add up, copy by copy: a bug, not a loss.
    pub(super) fn verify(&self) {
        let captured = [C::Captured, C::CapturedBytes].map(|counter| self.programs.get(counter));
        for CopySnapshot { engine: e, elsewhere, elsewhere_bytes } in &self.copies {
            if let Err(e) = e.check() {
                log::error!("{e}");
            }
            let segments = e.live_segments + self.bad_records + elsewhere;
            let octets = e.bytes.captured + e.duplicate_bytes + elsewhere_bytes;
            for (what, kernel, user) in [("segments", captured[0], segments), ("octets", captured[1], octets)] {
                // The octets of a record that contradicts itself are not known.
                if kernel != user && self.bad_records == 0 {
                    log::error!(
                        "the kernel captured {kernel} {what}, but {user} were handled: this is a bug in tcpcopy, please report it"
                    );
                }
            }
        }
    }

    /// All figures.
    pub(super) fn report(&self) -> Report {
        let e = &self.engine;
        let program = |c: C| (c.label(), Figure::Count(self.programs.get(c)));
        let counted =
            |rows: &[C]| rows.iter().map(|&c| program(c)).filter(|(_, f)| *f != Figure::Count(0)).collect::<Vec<_>>();
        Report::default()
            .section(
                "run",
                [
                    ("duration", Figure::Seconds(self.ran_for.as_secs_f64())),
                    ("copies", Figure::Count(self.copies.len() as u64)),
                ],
            )
            .section(
                "stages",
                [
                    program(C::Captured),
                    ("captured_bytes", Figure::Bytes(self.programs.get(C::CapturedBytes))),
                    ("captured_unique_bytes", Figure::Bytes(e.bytes.captured)),
                    ("sent_bytes", Figure::Bytes(e.bytes.sent)),
                    ("injected_packets", Figure::Count(self.inject.packets)),
                    ("seen_on_the_wire_segments", Figure::Count(self.targets.wire.segments)),
                    ("seen_on_the_wire_bytes", Figure::Bytes(self.targets.wire.payload_bytes)),
                    ("accepted_bytes", Figure::Bytes(e.accepted_bytes)),
                    ("answered_segments", Figure::Count(e.response_segments)),
                    ("answered_bytes", Figure::Bytes(e.response_bytes)),
                ],
            )
            .section("not_selected", counted(&[C::Filtered, C::NotSampled]))
            .section(
                "not_copied",
                counted(&[
                    C::RingFull,
                    C::RingFullBytes,
                    C::RingFullControl,
                    C::NoRing,
                    C::CopyFailed,
                    C::TooLarge,
                    C::OtherBytes,
                    C::OtherControl,
                    C::Fragment,
                    C::Malformed,
                ])
                .into_iter()
                .chain(nonzero([
                    ("bad_records", self.bad_records),
                    ("no_target_for_ip_version", self.no_target),
                    ("no_target_for_ip_version_bytes", self.no_target_bytes),
                ])),
            )
            .section("sessions", {
                let s = &e.sessions;
                [("seen", s.seen), ("finished", s.finished), ("active", s.active), ("aborted", s.aborted.total())]
                    .map(|(n, v)| (n, Figure::Count(v)))
            })
            .section("aborted", by_reason(&e.sessions.aborted, Figure::Count))
            .section("bytes", ledger(&e.bytes, Figure::Bytes))
            .section("discarded", by_reason(&e.bytes.discarded, Figure::Bytes))
            .section("syns", ledger(&e.syns, Figure::Count))
            .section("syns_discarded", by_reason(&e.syns.discarded, Figure::Count))
            .section("fins", ledger(&e.fins, Figure::Count))
            .section("fins_discarded", by_reason(&e.fins.discarded, Figure::Count))
            .section("replay", e.counters().map(|(n, v)| (n, Figure::Count(v))).filter(|(_, f)| *f != Figure::Count(0)))
            .section(
                "not_injected",
                nonzero([
                    ("would_block", self.inject.would_block),
                    ("queue_full", self.inject.queue_full),
                    ("larger_than_mtu", self.inject.emsgsize),
                    ("interface_down", self.inject.net_down),
                    ("next_hop_unresolved", self.inject.unresolved),
                    ("other", self.inject.other),
                ]),
            )
            .section(
                "not_reported",
                nonzero([
                    ("ring_full", self.targets.wire.reports_lost),
                    ("channel_too_slow", self.targets.responses_dropped),
                ]),
            )
            .section("lag_us", percentiles(&e.lag))
            .section("gate_wait_us", percentiles(&e.gate_wait))
            .section(
                "cost",
                [
                    program(C::PureAck),
                    ("wakeups", Figure::Count(self.programs.get(C::Wakeups))),
                    ("sleeps", Figure::Count(self.sleeps)),
                    ("naps", Figure::Count(self.naps)),
                ],
            )
    }
}

fn nonzero<const N: usize>(rows: [(&'static str, u64); N]) -> impl Iterator<Item = (&'static str, Figure)> {
    rows.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, Figure::Count(n)))
}

fn ledger(ledger: &Ledger, unit: fn(u64) -> Figure) -> [(&'static str, Figure); 4] {
    [
        ("captured", unit(ledger.captured)),
        ("sent", unit(ledger.sent)),
        ("pending", unit(ledger.pending)),
        ("discarded", unit(ledger.discarded.total())),
    ]
}

fn by_reason(counts: &ByReason, unit: fn(u64) -> Figure) -> impl Iterator<Item = (&'static str, Figure)> {
    counts.iter().map(move |(reason, n)| (reason.label(), unit(n)))
}

/// Nothing was measured when there is nothing to show.
fn percentiles(histogram: &Histogram) -> Vec<(&'static str, Figure)> {
    if histogram.count() == 0 {
        return Vec::new();
    }
    [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p99.9", 99.9)]
        .map(|(name, p)| (name, Figure::micros(histogram.percentile(p))))
        .into_iter()
        .chain([("max", Figure::micros(histogram.max())), ("count", Figure::Count(histogram.count()))])
        .collect()
}
