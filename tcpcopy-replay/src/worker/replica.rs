//! One replay of every connection of a worker: `-n` makes several.

use super::snapshot::CopySnapshot;
use crate::{Engine, LiveAnswer, LiveSegment, Nanos};

/// Records whose sessions are fetched from memory together.
pub(super) const LOOK_AHEAD: usize = 32;

/// For each rule id of the kernel, the engine's rules for IPv4 and for IPv6 flows.
pub type RuleTable = Vec<[Option<u16>; 2]>;

/// One replay of every connection of a worker.
pub struct Replica {
    pub(super) engine: Engine,
    rules: RuleTable,
    /// Segments, and their payload octets, of a service that this replica has no target for.
    elsewhere: u64,
    elsewhere_bytes: u64,
}

impl Replica {
    /// Makes a replica that `engine` replays, to the targets that `rules` names.
    #[must_use]
    pub const fn new(engine: Engine, rules: RuleTable) -> Self {
        Self { engine, rules, elsewhere: 0, elsewhere_bytes: 0 }
    }

    /// Handles a captured segment; returns whether this replica has a target for it.
    pub(super) fn handle_live(&mut self, now: Nanos, segment: &LiveSegment<'_>) -> bool {
        let rule = self.rule(segment.rule, segment.flow.client.is_v4());
        match rule {
            Some(rule) => self.engine.handle_live(now, &LiveSegment { rule, ..*segment }),
            None => {
                self.elsewhere += 1;
                self.elsewhere_bytes += segment.payload.len() as u64;
            }
        }
        rule.is_some()
    }

    /// Handles a captured SYN-ACK of the live server.
    pub(super) fn handle_answer(&mut self, now: Nanos, answer: &LiveAnswer) {
        if let Some(rule) = self.rule(answer.rule, answer.flow.client.is_v4()) {
            self.engine.handle_answer(now, &LiveAnswer { rule, ..*answer });
        }
    }

    fn rule(&self, rule: u16, is_v4: bool) -> Option<u16> {
        self.rules.get(usize::from(rule)).and_then(|r| r[usize::from(!is_v4)])
    }

    pub(super) fn snapshot(&self) -> CopySnapshot {
        let Self { engine, elsewhere, elsewhere_bytes, .. } = self;
        CopySnapshot { engine: engine.stats().clone(), elsewhere: *elsewhere, elsewhere_bytes: *elsewhere_bytes }
    }
}
