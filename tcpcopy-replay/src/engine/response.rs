//! Handles what targets send.

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{ACK, FIN, RST, SYN},
};

use crate::{
    config::TargetId,
    engine::{Engine, Replay},
    report::{Report, SegmentReport, SessionReport},
    stats::Reason,
    store::id::Id,
    tcp::{
        seq::{ReplaySeq, TargetSeq},
        session::{Final, FinalSegment, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Handles a report of a target's `intercept`.
    pub fn handle_report(&mut self, now: Nanos, target: TargetId, report: &Report<'_>) {
        let SessionReport { flow, instance } = *report.session();
        if self.credentials(target).is_none_or(|known| known.instance != instance) {
            self.stats.stale_responses += 1;
            return;
        }
        if self.handle_fuse_report(now, target, report) {
            return;
        }
        match self.session_of(target, &flow) {
            Some(id) => self.handle_session_report(now, id, report),
            None => self.handle_stray(target, report),
        }
    }

    fn session_of(&self, target: TargetId, flow: &Flow) -> Option<Id> {
        let id = self.id_at_target(flow)?;
        match &self.connections.get(id)?.replay {
            Replay::Active(session) if session.target() == target => Some(id),
            _ => None,
        }
    }

    fn handle_session_report(&mut self, now: Nanos, id: Id, report: &Report<'_>) {
        let outcome = self.with_session(now, id, |session, stream, cx| {
            let refused = |isn| session.awaits(ReplaySeq::new(isn));
            match report {
                Report::Segment(segment) => return Some(session.handle_segment(segment, stream, cx)),
                Report::Collision(syn) if refused(syn.isn) => return Some(Outcome::Collided),
                Report::Reclaimed(_) => return Some(Outcome::Aborted(Reason::Reclaimed, Final::Nothing)),
                // Perhaps the path is broken, perhaps it is a forgery: the timer decides.
                Report::IcmpError(_) => cx.stats.icmp_errors += 1,
                // The SYN was dropped: the timer sends it again.
                Report::MapFull(syn) if refused(syn.isn) => cx.stats.session_map_full += 1,
                // Of an earlier SYN.
                Report::Collision(_) | Report::MapFull(_) => cx.stats.stale_responses += 1,
                Report::Probed(_) | Report::Unanswered(_) => {}
            }
            None
        });
        if let Some(outcome) = outcome.flatten() {
            self.conclude(now, id, outcome);
        }
    }

    /// Resets the socket that has sent a segment which no session expects: it has outlived its session. A RST is never
    /// answered (RFC 9293, section 3.10.7.1).
    fn handle_stray(&mut self, target: TargetId, report: &Report<'_>) {
        if !self.settle_orphan(target, report) {
            self.stats.stale_responses += 1;
        }
        let Report::Segment(segment) = report else { return };
        if !segment.flags.contains(RST) {
            self.final_segments.push_back(reset_of(target, segment));
        }
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

/// The RST for a segment that no session expects (RFC 9293, section 3.10.7.1).
fn reset_of(target: TargetId, segment: &SegmentReport<'_>) -> FinalSegment {
    let flow = segment.session.flow;
    if segment.flags.contains(ACK) {
        return FinalSegment::reset(target, flow, ReplaySeq::new(segment.ack));
    }
    let octets = u32::from(segment.flags.contains(SYN)) + u32::from(segment.flags.contains(FIN));
    let ack = TargetSeq::new(segment.seq).plus(segment.payload_len).plus(octets).get();
    FinalSegment { ack, flags: RST | ACK, ..FinalSegment::reset(target, flow, ReplaySeq::default()) }
}
