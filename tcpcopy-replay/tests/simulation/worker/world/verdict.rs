//! What must hold when the worker has returned.

use std::time::Duration;

use tcpcopy_common::flow::Flow;

use super::World;
use crate::worker::site::Figures;

impl World<'_> {
    /// The worker has returned.
    pub fn verdict(mut self) -> Result<crate::world::Outcome, String> {
        let left = self.ring.upcoming().count();
        if left > 0 {
            return Err(format!("{left} records are left in the ring"));
        }
        if !self.left {
            return Err("the worker has ended without a farewell".to_owned());
        }
        let Some(snapshot) = self.snapshot.take() else { return Err("no figures".to_owned()) };
        if snapshot.own.bad_records != self.ring.bad || snapshot.inject != self.departed {
            return Err(format!("{:?} and {} packets, in truth {}", snapshot.own, snapshot.inject, self.departed));
        }
        let mut expected = Figures::default();
        for site in &self.sites {
            expected += site.expected_figures();
        }
        if snapshot.targets != expected {
            return Err(format!("the targets have told {expected:?}, and {:?} are published", snapshot.targets));
        }
        self.nothing_stays_open()?;
        let answered = self.scenario.surroundings.answers_farewell;
        if answered && self.sites.iter().any(|site| site.left && site.attached.is_some()) {
            return Err("the worker has not waited for the last figures of a target".to_owned());
        }
        let mut outcome = crate::world::Outcome::default();
        for (site, copy) in self.sites.into_iter().zip(&snapshot.copies) {
            let stats = &copy.engine;
            let handled = stats.live_segments + copy.elsewhere + snapshot.own.bad_records;
            if handled != self.ring.drained {
                return Err(format!("of {} records {handled} were handled", self.ring.drained));
            }
            site.oracle.verdict(stats, &site.target.received())?;
            outcome.lost += site.up.lost + site.down.lost;
            outcome.octets += stats.bytes.sent;
            outcome.discarded += stats.bytes.discarded.total();
            outcome.reconnects += stats.reconnects;
            outcome.retransmissions += stats.retransmitted_segments;
        }
        outcome.lost += self.refused;
        outcome.worker = self.outcome;
        Ok(outcome)
    }

    /// The worker's resets have ended every connection, where the way there loses nothing.
    fn nothing_stays_open(&mut self) -> Result<(), String> {
        self.elapse(Duration::from_secs(60));
        let lossless = self.scenario.up.loss == 0 && self.scenario.up.bandwidth.is_none() && self.refused == 0;
        let open: Vec<Flow> = self.sites.iter().flat_map(|site| site.target.established()).collect();
        if lossless && self.outcome.breaks == 0 && !open.is_empty() {
            return Err(format!("{} connections stay open at the target: {open:?}", open.len()));
        }
        Ok(())
    }
}
