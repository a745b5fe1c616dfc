//! One replay of every connection of a worker: `-n` makes several.

use super::snapshot::CopySnapshot;
use crate::{Engine, LiveSegment, Nanos};

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
        let family = usize::from(!segment.flow.client.is_v4());
        let rule = self.rules.get(usize::from(segment.rule)).and_then(|r| r[family]);
        match rule {
            Some(rule) => self.engine.handle_live(now, &LiveSegment { rule, ..*segment }),
            None => {
                self.elsewhere += 1;
                self.elsewhere_bytes += segment.payload.len() as u64;
            }
        }
        rule.is_some()
    }

    pub(super) fn snapshot(&self) -> CopySnapshot {
        let Self { engine, elsewhere, elsewhere_bytes, .. } = self;
        CopySnapshot { engine: engine.stats().clone(), elsewhere: *elsewhere, elsewhere_bytes: *elsewhere_bytes }
    }
}
