//! What the engine counts, and the identities that the counts obey (rule S6).

pub(crate) mod histogram;

pub use self::histogram::Histogram;

macro_rules! reasons {
    ($($(#[doc = $help:literal])* $variant:ident = $label:literal,)*) => {
        /// Why something captured was not replayed, or why a session ended early.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $help])* $variant,)*
        }

        impl Reason {
            /// All reasons.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Returns the name in tables, JSON and metrics: snake case.
            #[must_use]
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

reasons! {
    /// The connection was open before capture began, and no request boundary has been seen yet.
    BeforeJoin = "before_join",
    /// The connection's SYN was not captured, and only complete connections are replayed.
    Incomplete = "incomplete",
    /// The connection's SYN was not captured, because connections are admitted little by little.
    NotAdmitted = "not_admitted",
    /// The segment has a rule number that is not configured.
    UnknownRule = "unknown_rule",
    /// Client and target are of different IP versions.
    AddressFamily = "address_family",
    /// The limit of connections was reached.
    SessionLimit = "session_limit",
    /// The limit of octets that one connection may hold back was reached.
    SessionMemory = "session_memory",
    /// The limit of octets that all connections together may hold back was reached.
    TotalMemory = "total_memory",
    /// Octets of the live client's stream were never captured.
    CaptureGap = "capture_gap",
    /// Octets beyond the live client's FIN, or flags that contradict each other.
    Nonsense = "nonsense",
    /// Neither side sent anything for the session timeout.
    IdleTimeout = "idle_timeout",
    /// The control channel was down when the session should have begun.
    NoChannel = "no_channel",
    /// The target's `intercept` started afresh and knows none of its sessions.
    ChannelLost = "channel_lost",
    /// The target answered the SYN with RST: nothing listens.
    TargetRefused = "target_refused",
    /// The target reset the connection.
    TargetReset = "target_reset",
    /// The target closed in the middle of a request.
    TargetClosed = "target_closed",
    /// The target acknowledged none of several retransmissions.
    TargetSilent = "target_silent",
    /// Every client port tried is taken at the target.
    Collision = "collision",
    /// A client of the target's own opened a connection on the same four-tuple.
    Reclaimed = "reclaimed",
    /// The session's adapter left the octets out of what it sent.
    Filtered = "filtered",
    /// The live client reset its connection over octets that were still missing.
    LiveReset = "live_reset",
    /// The program was told to stop.
    Shutdown = "shutdown",
}

/// A count for each [`Reason`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByReason([u64; Reason::ALL.len()]);

impl ByReason {
    /// Returns the count of one reason.
    #[must_use]
    pub const fn get(&self, reason: Reason) -> u64 {
        self.0[reason as usize]
    }

    /// Returns the sum over all reasons.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Returns the reasons that occurred, with their counts.
    pub fn iter(&self) -> impl Iterator<Item = (Reason, u64)> + '_ {
        Reason::ALL.iter().map(|&r| (r, self.get(r))).filter(|&(_, n)| n > 0)
    }

    pub(crate) fn add(&mut self, reason: Reason, n: u64) {
        self.0[reason as usize] += n;
    }

    fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }
}

/// Where everything captured of one kind went: `captured = sent + pending + discarded`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Ledger {
    /// Captured; what the live client retransmitted counts once.
    pub captured: u64,
    /// Sent to the target for the first time.
    pub sent: u64,
    /// Held, and still to be sent.
    pub pending: u64,
    /// Given up.
    pub discarded: ByReason,
}

impl Ledger {
    pub(crate) fn capture(&mut self, n: u64) {
        self.captured += n;
        self.pending += n;
    }

    pub(crate) fn send(&mut self, n: u64) {
        self.sent += n;
        self.pending -= n.min(self.pending);
    }

    pub(crate) fn discard(&mut self, reason: Reason, n: u64) {
        self.discarded.add(reason, n);
        self.pending -= n.min(self.pending);
    }

    /// Counts what is captured and given up at once, without ever being held.
    pub(crate) fn refuse(&mut self, reason: Reason, n: u64) {
        self.captured += n;
        self.discarded.add(reason, n);
    }

    fn merge(&mut self, other: &Self) {
        self.captured += other.captured;
        self.sent += other.sent;
        self.pending += other.pending;
        self.discarded.merge(&other.discarded);
    }

    fn check(&self, what: &'static str) -> Result<(), Unbalanced> {
        balance(what, self.captured, self.sent + self.pending + self.discarded.total())
    }
}

/// Sessions: `seen = finished + active + aborted`. A connection that is joined again after its session was aborted
/// counts as another session; one that continues after an early close by the target does not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sessions {
    /// Begun.
    pub seen: u64,
    /// Ended as the live connection did, with everything sent.
    pub finished: u64,
    /// Still there.
    pub active: u64,
    /// Ended early.
    pub aborted: ByReason,
}

macro_rules! plain_counters {
    ($($(#[doc = $help:literal])* $name:ident,)*) => {
        /// The engine's counters. Plain numbers; [`merge`](Self::merge) adds those of several workers up.
        #[derive(Clone, Debug, Default)]
        pub struct Stats {
            /// Payload octets.
            pub bytes: Ledger,
            /// SYNs: only of connections that were captured from their start.
            pub syns: Ledger,
            /// FINs.
            pub fins: Ledger,
            /// Sessions.
            pub sessions: Sessions,
            /// How late segments with payload are first sent: from the capture, or from when the gate would have let
            /// them through. The wait for a greeting, while it is unknown who speaks first, is the gate's too.
            pub lag: Histogram,
            /// Time from the capture until the gate opened, the wait behind other requests included; only of segments
            /// that had to ask. How far a replay trails behind shows here.
            pub gate_wait: Histogram,
            $($(#[doc = $help])* pub $name: u64,)*
        }

        impl Stats {
            /// Adds another worker's counts to these.
            pub fn merge(&mut self, other: &Self) {
                self.bytes.merge(&other.bytes);
                self.syns.merge(&other.syns);
                self.fins.merge(&other.fins);
                self.sessions.seen += other.sessions.seen;
                self.sessions.finished += other.sessions.finished;
                self.sessions.active += other.sessions.active;
                self.sessions.aborted.merge(&other.sessions.aborted);
                self.lag.merge(&other.lag);
                self.gate_wait.merge(&other.gate_wait);
                $(self.$name += other.$name;)*
            }

            /// Returns the counters that stand alone, with their names in tables, JSON and metrics.
            pub fn counters(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

plain_counters! {
    /// Segments of live clients handed in.
    live_segments,
    /// Payload octets in them that had been captured before: live retransmissions, keep-alive probes.
    duplicate_bytes,
    /// Octets of live clients that were never captured, as far as is known.
    missing_bytes,
    /// Live SYNs on a four-tuple whose previous connection was still known.
    port_reuses,
    /// Target connections established.
    connected,
    /// Live clients whose handshake took a millisecond or more, and which therefore acknowledge late; only where each
    /// has a round trip of its own.
    distant_clients,
    /// Sessions whose live client's handshake was not seen to end.
    handshakes_unseen,
    /// Connections joined in the middle, at a request boundary.
    joined,
    /// Sessions continued on another target connection after an early close by the target.
    reconnects,
    /// Requests sent to a target connection that ended without an answer to them, and not sent again elsewhere, because
    /// they were too long to be kept or cannot be told from what was answered. Aborted sessions are counted apart.
    requests_unanswered,
    /// Requests that may have stayed without an answer when the target closed: what it had sent since an earlier one
    /// may be no more than the answer to the earlier one.
    requests_unclear,
    /// Segments (before re-segmentation) first sent with payload.
    sent_segments,
    /// Segments (before re-segmentation), SYNs and FINs included, sent again.
    retransmitted_segments,
    /// Payload octets sent again.
    retransmitted_bytes,
    /// Retransmissions that a timer caused.
    timeouts,
    /// Retransmissions that three duplicate acknowledgements caused.
    fast_retransmits,
    /// Probes of a closed window.
    window_probes,
    /// Segments sent that only acknowledge.
    pure_acks,
    /// Resets sent.
    resets_sent,
    /// First-sent payload octets that the target acknowledged.
    accepted_bytes,
    /// Response segments of known sessions.
    response_segments,
    /// Response segments that the target's `intercept` acknowledged itself.
    reflected_segments,
    /// Payload octets in response segments; what was retransmitted counts once.
    response_bytes,
    /// Responses of no session, or of an earlier connection on the same four-tuple.
    stale_responses,
    /// ICMP errors reported by the target.
    icmp_errors,
    /// SYNs refused because another instance holds the four-tuple.
    collisions,
    /// SYNs refused because the target's session map is full.
    session_map_full,
    /// Connections that were left at a target, by an `intercept` that was killed or because the channel was down when
    /// their session ended.
    orphans,
    /// Orphaned connections that were removed, or were found to be owned by another session.
    orphans_settled,
    /// Orphaned connections abandoned after all probes timed out.
    orphans_given_up,
    /// Segments that waited for an answer until they were more than 5 ms old: the replay trails behind.
    gate_late,
    /// Times that a segment reached the limit of waiting for an answer.
    gate_expired,
    /// Sessions that are no longer gated because that happened too often.
    sessions_ungated,
}

/// An identity of the counters that does not hold: a bug in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {seen} seen, but {accounted} accounted for; this is a bug in tcpcopy, please report it")]
pub struct Unbalanced {
    /// Which identity.
    pub what: &'static str,
    /// What came in.
    pub seen: u64,
    /// What is known about where it went.
    pub accounted: u64,
}

fn balance(what: &'static str, seen: u64, accounted: u64) -> Result<(), Unbalanced> {
    if seen == accounted { Ok(()) } else { Err(Unbalanced { what, seen, accounted }) }
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
    use super::*;

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = Reason::ALL.iter().map(|r| r.label()).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
    }

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
