//! What `tcpcopy` says when it ends: where everything captured went, stage by stage.

use std::time::Duration;

use tcpcopy_common::{
    counters::{CaptureCounter, CaptureCounter as C},
    figures,
    figures::{Figures as _, Section, Visit, gauge},
};
use tcpcopy_replay::worker::{CopySnapshot, Counts};

use super::host::Snapshot;
use crate::{bpf::CounterValues, control::Stats as TargetStats, inject::InjectStats, summary::Report};

figures! {
    /// The run itself.
    #[derive(Debug, Default)]
    struct Run {
        /// How long it took, or takes.
        duration: Duration = gauge(Section::Run).seconds(),
        /// How often each connection is replayed (`-n`).
        copies: u64 = gauge(Section::Run),
    }
}

/// The figures of a run, summed over its workers.
#[derive(Default)]
pub(super) struct Summary {
    run: Run,
    programs: CounterValues<CaptureCounter>,
    inject: InjectStats,
    targets: TargetStats,
    workers: Counts,
    /// Of all copies.
    all: CopySnapshot,
    /// Of each copy.
    copies: Vec<CopySnapshot>,
}

impl Summary {
    /// Adds the workers up.
    pub(super) fn new(workers: &[Snapshot], programs: CounterValues<CaptureCounter>, ran_for: Duration) -> Self {
        let mut sum = Self { programs, ..Self::default() };
        for Snapshot { copies, inject, targets, own } in workers {
            sum.copies.resize_with(sum.copies.len().max(copies.len()), CopySnapshot::default);
            for (copy, theirs) in sum.copies.iter_mut().zip(copies) {
                copy.merge(theirs);
                sum.all.merge(theirs);
            }
            sum.inject.merge(inject);
            sum.targets.merge(targets);
            sum.workers.merge(own);
        }
        sum.run = Run { duration: ran_for, copies: sum.copies.len() as u64 };
        sum
    }

    /// The figures that tell whether all is well, for the log.
    pub(super) fn one_line(&self) -> String {
        let e = &self.all.engine;
        format!(
            "sessions: {} seen, {} active, {} aborted; octets: {} captured, {} sent, {} accepted, {} discarded, \
             {} lost to full rings; lag p99 {:?}",
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
            let segments = e.live_segments + self.workers.bad_records + elsewhere;
            let octets = e.bytes.captured + e.duplicate_bytes + e.refused.refused_bytes + elsewhere_bytes;
            for (what, kernel, user) in [("segments", captured[0], segments), ("octets", captured[1], octets)] {
                // The octets of a record that contradicts itself are not known.
                if kernel != user && self.workers.bad_records == 0 {
                    log::error!(
                        "the kernel captured {kernel} {what}, but {user} were handled: this is a bug in tcpcopy, \
                         please report it"
                    );
                }
            }
        }
    }

    /// All figures.
    pub(super) fn report(&self) -> Report {
        Report::of("tcpcopy", |visitor| self.visit(visitor))
    }

    fn visit(&self, visitor: &mut dyn Visit) {
        // Each copy's are in the sum.
        let Self { run, programs, inject, targets, workers, all, copies: _ } = self;
        run.visit(visitor);
        programs.visit(visitor);
        inject.visit(visitor);
        targets.visit(visitor);
        workers.visit(visitor);
        all.visit(visitor);
    }
}

/// Hands out every figure of `tcpcopy`, as at the start of a run.
#[cfg(test)]
pub(crate) fn visit_nothing_counted(visitor: &mut dyn Visit) {
    Summary::default().visit(visitor);
}
