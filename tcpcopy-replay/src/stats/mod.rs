//! What the engine counts, and the identities that the counts obey (rule S6).

mod balance;
mod histogram;
mod ledger;
mod reason;
mod refusal;

use tcpcopy_common::{
    figures,
    figures::{Group, Section, counter, gauge, histogram},
};

pub(crate) use self::refusal::Refusal;
pub use self::{
    balance::Unbalanced,
    histogram::Histogram,
    ledger::Ledger,
    reason::{ByReason, Reason},
    refusal::Refused,
};
use self::{balance::balance, ledger::ledger, reason::by_reason};

figures! {
    /// Sessions: `seen = finished + active + aborted`. A connection that is joined again after its session was aborted
    /// counts as another session; one that continues after an early close by the target does not.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Sessions {
        /// Sessions begun.
        pub seen: u64 = counter(Section::Sessions),
        /// Sessions that ended as the live connection did, with everything sent.
        pub finished: u64 = counter(Section::Sessions),
        /// Sessions still there.
        pub active: u64 = gauge(Section::Sessions),
        /// Sessions that ended early.
        pub aborted: ByReason = by_reason(Section::Sessions, Section::Aborted),
    }
}

figures! {
    /// The engine's counters. Plain numbers; [`merge`](tcpcopy_common::figures::Figures::merge) adds those of several
    /// workers up.
    #[derive(Clone, Debug, Default)]
    pub struct Stats {
        /// Payload octets.
        pub bytes: Ledger = ledger(Section::Bytes, Section::Discarded).bytes(),
        /// SYNs: only of connections that were captured from their start.
        pub syns: Ledger = ledger(Section::Syns, Section::SynsDiscarded),
        /// FINs.
        pub fins: Ledger = ledger(Section::Fins, Section::FinsDiscarded),
        /// Sessions.
        pub sessions: Sessions = Group,
        /// Segments that the live server refuses: in no ledger, because they are not the live client's.
        pub refused: Refused = Group,
        /// Live clients whose handshake is under way.
        pub half_open: u64 = gauge(Section::Sessions),
        /// Payload octets that wait for a handshake.
        pub half_open_bytes: u64 = gauge(Section::Sessions).bytes(),
        /// How late segments with payload are first sent: from the capture, or from when the gate would have let
        /// them through. The wait for a greeting, while it is unknown who speaks first, is the gate's too.
        pub lag: Histogram = histogram(Section::Lag),
        /// Time from the capture until the gate opened, the wait behind other requests included; only of segments
        /// that had to ask. How far a replay trails behind shows here.
        pub gate_wait: Histogram = histogram(Section::GateWait),
        /// Segments of live clients handed in.
        pub live_segments: u64 = counter(Section::Replay),
        /// Payload octets in segments of live clients that had been captured before: live retransmissions, keep-alive
        /// probes.
        pub duplicate_bytes: u64 = counter(Section::Replay).bytes(),
        /// Octets of live clients that were never captured, as far as is known.
        pub missing_bytes: u64 = counter(Section::Replay).bytes(),
        /// Live handshakes on a four-tuple whose previous connection was still known.
        pub port_reuses: u64 = counter(Section::Replay),
        /// Target connections established.
        pub connected: u64 = counter(Section::Replay),
        /// Live clients whose handshake took a millisecond or more, and which therefore acknowledge late; only where
        /// each has a round trip of its own.
        pub distant_clients: u64 = counter(Section::Replay),
        /// Sessions whose live client's handshake was not seen to end.
        pub handshakes_unseen: u64 = counter(Section::Replay),
        /// Connections joined in the middle, at a request boundary.
        pub joined: u64 = counter(Section::Replay),
        /// Sessions continued on another target connection after an early close by the target.
        pub reconnects: u64 = counter(Section::Replay),
        /// Requests sent to a target connection that ended without an answer to them, and not sent again elsewhere,
        /// because they were too long to be kept or cannot be told from what was answered. Aborted sessions are counted
        /// apart.
        pub requests_unanswered: u64 = counter(Section::Replay),
        /// Requests that may have stayed without an answer when the target closed: what it had sent since an earlier
        /// one may be no more than the answer to the earlier one.
        pub requests_unclear: u64 = counter(Section::Replay),
        /// Segments (before re-segmentation) first sent with payload.
        pub sent_segments: u64 = counter(Section::Replay),
        /// Segments (before re-segmentation), SYNs and FINs included, sent again.
        pub retransmitted_segments: u64 = counter(Section::Replay),
        /// Octets that no live client has sent, and that are in no ledger: a header of the PROXY protocol at the
        /// beginning of each target connection.
        pub inserted_bytes: u64 = counter(Section::Replay).bytes(),
        /// Payload octets sent again, inserted ones among them.
        pub retransmitted_bytes: u64 = counter(Section::Replay).bytes(),
        /// Retransmissions that a timer caused.
        pub timeouts: u64 = counter(Section::Replay),
        /// Retransmissions that three duplicate acknowledgements caused.
        pub fast_retransmits: u64 = counter(Section::Replay),
        /// Probes of a closed window.
        pub window_probes: u64 = counter(Section::Replay),
        /// Probes of idle target connections.
        pub keepalive_probes: u64 = counter(Section::Replay),
        /// Segments sent that only acknowledge.
        pub pure_acks: u64 = counter(Section::Replay),
        /// Resets sent.
        pub resets_sent: u64 = counter(Section::Replay),
        /// First-sent payload octets that the target acknowledged.
        pub accepted_bytes: u64 = counter(Section::Stages).bytes(),
        /// Response segments of known sessions.
        pub response_segments: u64 = counter(Section::Stages).named("answered_segments"),
        /// Response segments of known sessions that the target's `intercept` acknowledged itself.
        pub reflected_segments: u64 = counter(Section::Replay),
        /// Payload octets in response segments of known sessions; what was retransmitted counts once.
        pub response_bytes: u64 = counter(Section::Stages).named("answered_bytes").bytes(),
        /// Responses of no session, or of an earlier connection on the same four-tuple.
        pub stale_responses: u64 = counter(Section::Replay),
        /// ICMP errors reported by the target.
        pub icmp_errors: u64 = counter(Section::Replay),
        /// SYNs refused because another instance holds the four-tuple.
        pub collisions: u64 = counter(Section::Replay),
        /// SYNs refused because the target's session map is full.
        pub session_map_full: u64 = counter(Section::Replay),
        /// Orphaned connections: left at a target, by an `intercept` that was killed or because the channel was down
        /// when their session ended.
        pub orphans: u64 = counter(Section::Replay),
        /// Orphaned connections that were removed, or were found to be owned by another session.
        pub orphans_settled: u64 = counter(Section::Replay),
        /// Orphaned connections abandoned after all probes timed out.
        pub orphans_given_up: u64 = counter(Section::Replay),
        /// SYNs that only asked whether the target's `intercept` sees them.
        pub probes_sent: u64 = counter(Section::Replay),
        /// Targets to which nothing is sent now; each worker and copy counts its own.
        pub stopped: u64 = gauge(Section::StoppedTargets).named("stopped_now"),
        /// Times that nothing more was sent because `intercept` did not report the probes sent there.
        pub probe_unseen: u64 = counter(Section::StoppedTargets),
        /// Times that nothing more was sent because `intercept` reported probes, and no SYN of a client.
        pub syns_unseen: u64 = counter(Section::StoppedTargets),
        /// Times that nothing more was sent because no SYN that had come to the target was answered.
        pub unanswered: u64 = counter(Section::StoppedTargets),
        /// Times that nothing more was sent because the target had answered SYNs, and `intercept` had not seen that.
        pub answers_unseen: u64 = counter(Section::StoppedTargets),
        /// Segments that waited for an answer until they were more than 5 ms old: the replay trails behind.
        pub gate_late: u64 = counter(Section::Replay),
        /// Times that a segment reached the limit of waiting for an answer.
        pub gate_expired: u64 = counter(Section::Replay),
        /// Ends of connections with several requests under way that waited in vain for a target which had sent less than
        /// the live server.
        pub farewells_in_vain: u64 = counter(Section::Replay),
        /// Sessions no longer gated because segments waited in vain too often.
        pub sessions_ungated: u64 = counter(Section::Replay),
    }
}

impl Stats {
    /// Verifies that everything captured and every session is accounted for.
    ///
    /// # Errors
    /// [`Unbalanced`] names the first identity that does not hold.
    pub fn check(&self) -> Result<(), Unbalanced> {
        self.bytes.check("payload octets")?;
        self.syns.check("SYNs")?;
        self.fins.check("FINs")?;
        let s = &self.sessions;
        balance("sessions", s.seen, s.finished + s.active + s.aborted.total())?;
        let settled = self.orphans_settled + self.orphans_given_up;
        if settled > self.orphans {
            return Err(Unbalanced { what: "orphaned connections", seen: self.orphans, accounted: settled });
        }
        if self.accepted_bytes > self.bytes.sent {
            return Err(Unbalanced { what: "accepted octets", seen: self.bytes.sent, accounted: self.accepted_bytes });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use tcpcopy_common::figures::Figures as _;

    use super::*;

    #[test]
    fn a_lost_octet_is_noticed() {
        let mut stats = Stats::default();
        stats.bytes.capture(10);
        stats.bytes.send(4);
        stats.bytes.discard(Reason::CaptureGap, 5);
        assert_eq!(stats.check(), Ok(()));
        stats.bytes.pending -= 1;
        assert_eq!(stats.check(), Err(Unbalanced { what: "payload octets", seen: 10, accounted: 9 }));
    }

    #[test]
    fn workers_add_up() {
        let mut a = Stats::default();
        a.syns.capture(1);
        a.sessions.seen = 1;
        a.sessions.active = 1;
        a.pure_acks = 2;
        let b = a.clone();
        a.merge(&b);
        assert_eq!((a.syns.captured, a.sessions.active, a.pure_acks), (2, 2, 4));
        assert_eq!(a.check(), Ok(()));
    }

    #[test]
    fn merging_adds_every_kind_of_count() {
        let stats = |n: u64| {
            let mut stats = Stats::default();
            for ledger in [&mut stats.bytes, &mut stats.syns, &mut stats.fins] {
                ledger.capture(10 * n);
                ledger.send(2 * n);
                ledger.discard(Reason::CaptureGap, 3 * n);
                ledger.discard(Reason::Nonsense, n);
            }
            stats.sessions = Sessions { seen: 3 * n, finished: n, active: n, aborted: ByReason::default() };
            stats.sessions.aborted.add(Reason::TargetReset, n);
            stats
        };
        let mut sum = stats(3);
        sum.merge(&stats(5));
        let expected = stats(8);
        assert_eq!((sum.bytes, sum.syns, sum.fins), (expected.bytes, expected.syns, expected.fins));
        assert_eq!(sum.sessions, expected.sessions);
        assert_eq!(sum.check(), Ok(()));
    }

    #[test]
    fn an_orphan_settled_twice_is_noticed() {
        let mut stats = Stats { orphans: 2, orphans_settled: 1, orphans_given_up: 1, ..Stats::default() };
        assert_eq!(stats.check(), Ok(()));
        stats.orphans = 1;
        assert_eq!(stats.check(), Err(Unbalanced { what: "orphaned connections", seen: 1, accounted: 2 }));
    }
}
