//! Where everything captured of one kind went.

use tcpcopy_common::figures::{Family, Figure, Section, Value, Visit, counter, gauge};

use super::{
    balance::{Unbalanced, balance},
    reason::{ByReason, ByReasonFamilies, Reason, by_reason},
};

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

    /// Takes back what was captured and is held: it turns out to be none of the live client's.
    pub(crate) fn withdraw(&mut self, n: u64) {
        self.captured -= n.min(self.captured);
        self.pending -= n.min(self.pending);
    }

    /// Counts what is captured and given up at once, without ever being held.
    pub(crate) fn refuse(&mut self, reason: Reason, n: u64) {
        self.captured += n;
        self.discarded.add(reason, n);
    }

    pub(super) fn check(&self, what: &'static str) -> Result<(), Unbalanced> {
        balance(what, self.captured, self.sent + self.pending + self.discarded.total())
    }
}

/// The declaration of a [`Ledger`].
#[derive(Clone, Copy, Debug)]
pub struct LedgerFamilies {
    captured: Family,
    sent: Family,
    pending: Family,
    discarded: ByReasonFamilies,
}

/// Declares a ledger in `section`, with what was discarded by reason in one of its own.
pub(super) const fn ledger(section: Section, by_reasons: Section) -> LedgerFamilies {
    LedgerFamilies {
        captured: counter(section).declared("captured", "Captured; what the live client retransmitted counts once."),
        sent: counter(section).declared("sent", "Sent to the target for the first time."),
        pending: gauge(section).declared("pending", "Held, and still to be sent."),
        discarded: by_reason(section, by_reasons).declared("discarded", "Given up."),
    }
}

impl LedgerFamilies {
    /// Declares that octets are counted.
    pub(super) const fn bytes(self) -> Self {
        Self {
            captured: self.captured.bytes(),
            sent: self.sent.bytes(),
            pending: self.pending.bytes(),
            discarded: self.discarded.bytes(),
        }
    }

    /// Takes nothing from the field: the help of its section tells what is counted.
    #[doc(hidden)]
    pub const fn declared(self, _field: &'static str, _help: &'static str) -> Self {
        self
    }
}

impl Figure for Ledger {
    type Declaration = LedgerFamilies;

    fn add(&mut self, other: &Self) {
        let Self { captured, sent, pending, discarded } = other;
        self.captured += captured;
        self.sent += sent;
        self.pending += pending;
        Figure::add(&mut self.discarded, discarded);
    }

    fn hand_out(&self, families: &'static LedgerFamilies, visitor: &mut dyn Visit) {
        let Self { captured, sent, pending, discarded } = self;
        visitor.figure(&families.captured, &[], Value::Number(*captured));
        visitor.figure(&families.sent, &[], Value::Number(*sent));
        visitor.figure(&families.pending, &[], Value::Number(*pending));
        discarded.hand_out(&families.discarded, visitor);
    }
}
