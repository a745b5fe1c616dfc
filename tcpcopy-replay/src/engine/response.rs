//! Handles what targets send.

use tcpcopy_common::{
    response::{ResponseHeader, kind},
    tcp_flags::{ACK, FIN, RST, SYN},
};

use crate::{
    config::TargetId,
    engine::{Engine, Replay},
    stats::Reason,
    store::id::Id,
    tcp::{
        seq::{ReplaySeq, TargetSeq},
        session::{Final, FinalSegment, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Handles a response reported by a target's `intercept`.
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
            Replay::Active(session) if session.target() == target => Some(id),
            _ => None,
        }
    }

    fn handle_session_response(&mut self, now: Nanos, id: Id, response: &ResponseHeader) {
        let outcome = self.with_session(now, id, |session, stream, cx| {
            let refused = session.awaits(ReplaySeq::from_be(response.seq));
            match response.kind {
                kind::SEGMENT => return Some(session.handle_segment(response, stream, cx)),
                kind::COLLISION if refused => return Some(Outcome::Collided),
                kind::RECLAIMED => return Some(Outcome::Aborted(Reason::Reclaimed, Final::Nothing)),
                // Perhaps the path is broken, perhaps it is a forgery: the timer decides.
                kind::ICMP_ERROR => cx.stats.icmp_errors += 1,
                // The SYN was dropped: the timer sends it again.
                kind::MAP_FULL if refused => cx.stats.session_map_full += 1,
                _ => cx.stats.stale_responses += 1,
            }
            None
        });
        if let Some(outcome) = outcome.flatten() {
            self.conclude(now, id, outcome);
        }
    }

    /// Resets the socket that has sent a segment which no session expects: it has outlived its session. A RST is never
    /// answered (RFC 9293, section 3.10.7.1).
    fn handle_stray(&mut self, target: TargetId, response: &ResponseHeader) {
        if !self.settle_orphan(target, &response.flow, response.kind) {
            self.stats.stale_responses += 1;
        }
        if response.kind != kind::SEGMENT || response.flags.contains(RST) {
            return;
        }
        let segment = if response.flags.contains(ACK) {
            FinalSegment::reset(target, response.flow, ReplaySeq::from_be(response.ack))
        } else {
            let octets = u32::from(response.flags.contains(SYN)) + u32::from(response.flags.contains(FIN));
            let ack = TargetSeq::from_be(response.seq).plus(response.payload_len).plus(octets).get();
            FinalSegment { ack, flags: RST | ACK, ..FinalSegment::reset(target, response.flow, ReplaySeq::default()) }
        };
        self.final_segments.push_back(segment);
    }

    /// Returns the connections that have a session at `target`. Visits all connections: for rare events only.
    pub(crate) fn sessions_of(&self, target: TargetId) -> Vec<Id> {
        let of_target = |id: &Id| {
            let replay = self.connections.get(*id).map(|connection| &connection.replay);
            matches!(replay, Some(Replay::Active(session)) if session.target() == target)
        };
        self.connections.ids().into_iter().filter(of_target).collect()
    }
}
