//! What the targets say.

use tcpcopy_common::{
    response::{ResponseHeader, kind},
    tcp_flags::{ACK, FIN, RST, SYN},
};

use crate::{
    config::TargetId,
    engine::{Engine, Replay, manners},
    stats::Reason,
    store::id::Id,
    tcp::{
        seq::{ReplaySeq, TargetSeq},
        session::{Context, Farewell, Last, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Takes a report of a target's `intercept` in.
    pub fn handle_response(&mut self, now: Nanos, target: TargetId, response: &ResponseHeader) {
        if self.credentials(target).is_none_or(|known| known.instance != response.instance) {
            self.stats.stale_responses += 1;
            return;
        }
        match self.session_of(target, response) {
            Some(id) => self.handle_session_response(now, id, response),
            None => self.handle_stray(target, response),
        }
    }

    fn session_of(&self, target: TargetId, response: &ResponseHeader) -> Option<Id> {
        let id = self.id_at_target(&response.flow)?;
        match &self.connections.get(id)?.replay {
            Replay::Active(session) if session.target == target => Some(id),
            _ => None,
        }
    }

    fn handle_session_response(&mut self, now: Nanos, id: Id, response: &ResponseHeader) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let distance = connection.distance(self.config.round_trip);
        let Replay::Active(session) = &mut connection.replay else { return };
        let refused = session.awaits(ReplaySeq::from_be(response.seq));
        let outcome = match response.kind {
            kind::SEGMENT => {
                let credentials = self.channels.get(usize::from(session.target.0)).copied().flatten();
                let mut cx = Context {
                    now,
                    config: &self.config,
                    stats: &mut self.stats,
                    manners: manners(&mut self.manners, connection.rule),
                    distance,
                    credentials,
                };
                session.handle_segment(response, &connection.stream, &mut cx)
            }
            kind::ICMP_ERROR => {
                // Perhaps the path is broken, perhaps somebody lies: the timer decides.
                self.stats.icmp_errors += 1;
                return;
            }
            kind::COLLISION if refused => Outcome::Collided,
            kind::MAP_FULL if refused => {
                // The SYN was dropped: the timer sends it again.
                self.stats.session_map_full += 1;
                return;
            }
            kind::RECLAIMED => Outcome::Aborted(Reason::Reclaimed, Farewell::Nothing),
            _ => {
                self.stats.stale_responses += 1;
                return;
            }
        };
        self.conclude(now, id, outcome);
    }

    /// A segment that no session expects comes from a socket that outlived its session: a RST, which is never answered,
    /// ends it (RFC 9293, section 3.10.7.1).
    fn handle_stray(&mut self, target: TargetId, response: &ResponseHeader) {
        if !self.settle_orphan(target, &response.flow, response.kind) {
            self.stats.stale_responses += 1;
        }
        if response.kind != kind::SEGMENT || response.flags.contains(RST) {
            return;
        }
        let last = if response.flags.contains(ACK) {
            Last::reset(target, response.flow, ReplaySeq::from_be(response.ack))
        } else {
            let octets = u32::from(response.flags.contains(SYN)) + u32::from(response.flags.contains(FIN));
            let ack = TargetSeq::from_be(response.seq).plus(response.payload_len).plus(octets).get();
            Last { ack, flags: RST | ACK, ..Last::reset(target, response.flow, ReplaySeq::default()) }
        };
        self.farewells.push_back(last);
    }

    /// The connections that have a session at `target`. Walks all: for rare events only.
    pub(crate) fn sessions_of(&self, target: TargetId) -> Vec<Id> {
        let of_target = |id: &Id| matches!(self.connections.get(*id).map(|c| &c.replay), Some(Replay::Active(s)) if s.target == target);
        self.connections.ids().into_iter().filter(of_target).collect()
    }
}
