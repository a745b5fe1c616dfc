//! Which connections are joined in the middle: see [`crate::causality::joining`].

use std::net::SocketAddr;

use crate::{
    causality::joining::{HEAD, is_self_contained},
    engine::{Connection, Engine, Replay},
    input::offset::LiveOffset,
    stats::Reason,
    store::id::Id,
    tcp::session::Outcome,
};

impl Engine {
    /// Returns the target of a rule whose connections are not joined any more; each once.
    pub fn poll_unjoinable_rule(&mut self) -> Option<SocketAddr> {
        let rule = self.unjoinable_rules.pop()?;
        self.config.rules.get(usize::from(rule)).map(|rule| rule.address)
    }

    /// Whether a connection may be joined at a request that begins with `head`. `parked`: why it has no session.
    pub(super) fn may_join(&self, rule: u16, parked: Option<Reason>, head: &[u8]) -> bool {
        let joins = self.profiles.get(usize::from(rule)).is_none_or(|profile| !profile.joins.are_over());
        may_join(joins, parked, head)
    }

    /// Keeps a connection out that cannot be joined, whatever its session asks for.
    pub(super) fn judge_join(&mut self, id: Id, outcome: Outcome) -> Outcome {
        let Some(Connection { rule, stream, replay: Replay::Active(session), .. }) = self.connections.get(id) else {
            return outcome;
        };
        let rule = *rule;
        match outcome {
            Outcome::Reconnect(_, kind, _)
            | Outcome::Rest(kind)
            | Outcome::Aborted(Reason::TargetReset | Reason::TargetClosed, kind)
                if session.is_refused(stream) =>
            {
                if self.profiles.get_mut(usize::from(rule)).is_some_and(|profile| profile.joins.refuse()) {
                    self.unjoinable_rules.push(rule);
                }
                Outcome::Aborted(Reason::Unjoinable, kind)
            }
            Outcome::Reconnect(from, kind, _)
                if from > LiveOffset::START && !self.may_join(rule, None, stream.slice(from, HEAD)) =>
            {
                Outcome::Aborted(Reason::Unjoinable, kind)
            }
            Outcome::Continue
            | Outcome::Finished(..)
            | Outcome::Aborted(..)
            | Outcome::Reconnect(..)
            | Outcome::Rest(_)
            | Outcome::Collided
            | Outcome::HalfOpen(_) => outcome,
        }
    }
}

/// The same where it is known whether connections of the rule are joined.
pub(super) fn may_join(joins: bool, parked: Option<Reason>, head: &[u8]) -> bool {
    (joins && parked != Some(Reason::Unjoinable)) || is_self_contained(head)
}
