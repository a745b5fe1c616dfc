//! Why something captured was not replayed, or why a session ended early.

use tcpcopy_common::figures::{Family, Figure, Label, LabelValue, Section, Value, Visit, counter};

/// The label of counters by reason.
const BY_REASON: &str = "reason";

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

            /// Their names in tables, JSON and metrics, in the same order.
            pub const LABELS: &'static [LabelValue] =
                &[$(LabelValue { name: $label, help: concat!($($help, "\n",)*).trim_ascii() },)*];
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
    /// All connections together held as many octets as they may, this one's client the most of them, and another client
    /// needed room.
    ClientMemory = "client_memory",
    /// Octets of the live client's stream were never captured.
    CaptureGap = "capture_gap",
    /// Octets beyond the live client's FIN, or flags that contradict each other.
    Nonsense = "nonsense",
    /// Neither side sent anything for the session timeout.
    IdleTimeout = "idle_timeout",
    /// The control channel was down when the session should have begun.
    NoChannel = "no_channel",
    /// Nothing was sent to the target when the session should have begun, or it was reset for that: what is sent there
    /// is not seen by the target's `intercept`, or what is answered.
    TargetStopped = "target_stopped",
    /// The target's `intercept` started afresh and knows none of its sessions.
    ChannelLost = "channel_lost",
    /// The connection cannot be joined in the middle: the target ended it at once, or has ended several of its service.
    Unjoinable = "unjoinable",
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
    /// The octets are a part of a connection whose others went by another subflow (Multipath TCP).
    Multipath = "multipath",
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
}

/// The declaration of counts by reason: their sum, and each of them.
#[derive(Clone, Copy, Debug)]
pub struct ByReasonFamilies {
    total: Family,
    each: Family,
}

/// Declares counts by reason: their sum in one section, each of them in another.
pub(super) const fn by_reason(total: Section, each: Section) -> ByReasonFamilies {
    ByReasonFamilies { total: counter(total), each: counter(each).by(BY_REASON, Reason::LABELS) }
}

impl ByReasonFamilies {
    /// Declares that octets are counted.
    pub(super) const fn bytes(self) -> Self {
        Self { total: self.total.bytes(), each: self.each.bytes() }
    }

    #[doc(hidden)]
    pub const fn declared(self, field: &'static str, help: &'static str) -> Self {
        Self { total: self.total.declared(field, help), each: self.each.declared(field, help) }
    }
}

impl Figure for ByReason {
    type Declaration = ByReasonFamilies;

    fn add(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    fn hand_out(&self, families: &'static ByReasonFamilies, visitor: &mut dyn Visit) {
        visitor.figure(&families.total, &[], Value::Number(self.total()));
        for (label, count) in Reason::LABELS.iter().zip(self.0) {
            visitor.figure(&families.each, &[Label { key: BY_REASON, value: label.name }], Value::Number(count));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_unique() {
        let mut labels: Vec<_> = Reason::LABELS.iter().map(|label| label.name).collect();
        labels.sort_unstable();
        labels.dedup();
        assert_eq!(labels.len(), Reason::ALL.len());
    }
}
