//! What `intercept` says when it ends.

use std::time::Duration;

use tcpcopy_common::{
    counters::TargetCounter,
    figures,
    figures::{Figures as _, Section, Visit, gauge},
    response::WireStats,
};

use super::reporter::ReportCounts;
use crate::{bpf::CounterValues, control::ServerCounters, summary::Report};

figures! {
    /// The run itself.
    #[derive(Debug, Default)]
    struct Run {
        /// How long it took, or takes.
        duration: Duration = gauge(Section::Run).seconds(),
    }
}

/// Collects the figures of a run.
pub(super) fn summarise(
    programs: &CounterValues<TargetCounter>,
    wire: &WireStats,
    reports: &ReportCounts,
    server: &ServerCounters,
    ran_for: Duration,
) -> Report {
    Report::of("intercept", |visitor| visit(programs, wire, reports, server, ran_for, visitor))
}

fn visit(
    programs: &CounterValues<TargetCounter>,
    wire: &WireStats,
    reports: &ReportCounts,
    server: &ServerCounters,
    duration: Duration,
    visitor: &mut dyn Visit,
) {
    Run { duration }.visit(visitor);
    wire.visit(visitor);
    programs.visit(visitor);
    reports.visit(visitor);
    server.visit(visitor);
}

/// Hands out every figure of `intercept`, as at the start of a run.
#[cfg(test)]
pub(crate) fn visit_nothing_counted(visitor: &mut dyn Visit) {
    visit(
        &CounterValues::default(),
        &WireStats::default(),
        &ReportCounts::default(),
        &ServerCounters::default(),
        Duration::ZERO,
        visitor,
    );
}
