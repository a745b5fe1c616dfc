//! Room for new connections: when there are as many as allowed, the one that has been idle for longest ends.
//!
//! A session lasts as long as its live connection (see [`Config::keepalive_timeout`](crate::config::Config)), and a
//! live connection may end without a captured FIN. So the limit of connections is what bounds them, and it must not
//! keep new ones out for the sake of those that nobody uses.

use std::time::Duration;

use super::candidates::Candidate;
use crate::{
    engine::{Connection, Engine, Replay},
    stats::Reason,
    store::id::Id,
    tcp::session::Final,
    time::Nanos,
};

/// Connections that were used within this time are not idle.
const LEAST: Duration = Duration::from_secs(10);
/// How long a search that has found nobody is not repeated, because it visits all connections.
const PAUSE: Duration = Duration::from_secs(1);
/// The share of the connections that a search remembers, so that each eviction visits so many connections on average.
const SHARE: usize = 16;
/// What a search remembers at least.
const BATCH: usize = 64;

impl Engine {
    /// Makes room for another connection; returns whether there is any.
    ///
    /// Only for connections that are proven: what anybody can forge must not end those of others.
    pub(super) fn make_room(&mut self, now: Nanos) -> bool {
        while self.connections.len() >= self.config.max_sessions {
            let Some(id) = self.longest_idle(now) else { return false };
            self.abandon(id, Reason::SessionLimit, Final::Reset);
            self.forget(id, Reason::SessionLimit);
        }
        true
    }

    fn longest_idle(&mut self, now: Nanos) -> Option<Id> {
        loop {
            while let Some(candidate) = self.candidates.found.pop() {
                if self.connections.get(candidate.id).and_then(|c| candidate_of(candidate.id, c)) == Some(candidate) {
                    return Some(candidate.id);
                }
            }
            if self.candidates.vain.is_some_and(|vain| now.since(vain) < PAUSE) {
                return None;
            }
            self.search(now);
            if self.candidates.found.is_empty() {
                self.candidates.vain = Some(now);
                return None;
            }
        }
    }

    /// Finds those that have been idle for longest. Whatever comes or is used later is idle for less time than they, so
    /// that they are the right ones until they have run out.
    fn search(&mut self, now: Nanos) {
        let idle = |id: Id| {
            let candidate = candidate_of(id, self.connections.get(id)?)?;
            (now.since(candidate.last_activity) >= LEAST).then_some(candidate)
        };
        let mut found: Vec<Candidate> = self.connections.ids().into_iter().filter_map(idle).collect();
        let most = (self.connections.len() / SHARE).max(BATCH);
        if found.len() > most {
            found.select_nth_unstable(most);
            found.truncate(most);
            found.shrink_to_fit();
        }
        found.sort_unstable_by(|a, b| b.cmp(a));
        self.candidates.found = found;
    }
}

/// A connection as a candidate, unless something of it waits to be replayed: time-outs are for that.
fn candidate_of(id: Id, connection: &Connection) -> Option<Candidate> {
    let (active, last_activity) = match &connection.replay {
        Replay::Parked(..) => (false, connection.last_activity),
        Replay::Active(session) if session.sent() < connection.stream.end() => return None,
        Replay::Active(session) => (true, connection.last_activity.max(session.last_progress())),
    };
    Some(Candidate { active, last_activity, id })
}
