//! A distant client: it acknowledges everything a round-trip time after it has come.

use std::{collections::VecDeque, time::Duration};

use crate::{store::moment::Moment, tcp::seq::TargetSeq, time::Nanos};

/// Parts that a round trip is cut into: a distant client acknowledges what comes within one of them together, at its
/// end. So no more acknowledgements than that are under way, and none is later by more than 1.6 %.
pub(super) const PARTS: usize = 64;
/// Acknowledgements for which a distant client keeps memory between two responses: most of its connections are idle
/// most of the time.
pub(super) const MIN_CAPACITY: usize = 4;

#[derive(Debug)]
pub(crate) struct Far {
    round_trip: Duration,
    /// The cumulative acknowledgement of the segments that are sent; `None` before the handshake is over, when none may
    /// be.
    acknowledged: Option<TargetSeq>,
    /// Acknowledgements under way, by the time when they are due.
    pub(super) waiting: VecDeque<(Nanos, TargetSeq)>,
    /// One of them has become due.
    due: bool,
}

impl Far {
    /// Begins when the target has answered the SYN, before the live client acknowledges that.
    pub(super) fn connecting(now: Nanos, round_trip: Duration, first: TargetSeq) -> Self {
        let mut far = Self { round_trip, acknowledged: None, waiting: VecDeque::new(), due: false };
        far.acknowledge(now, first);
        far
    }

    /// Begins when the live client has acknowledged the SYN-ACK, and so ends the handshake at the target too.
    pub(super) fn connected(round_trip: Duration, first: TargetSeq) -> Self {
        Self { round_trip, acknowledged: Some(first), waiting: VecDeque::new(), due: true }
    }

    /// The acknowledgement number of the segments that are sent now, if any may be sent.
    pub(super) const fn number(&self) -> Option<TargetSeq> {
        self.acknowledged
    }

    /// Acknowledges everything before `next` a round-trip time from now.
    pub(super) fn acknowledge(&mut self, now: Nanos, next: TargetSeq) {
        let part = (self.round_trip / PARTS as u32).as_nanos().max(1) as u64;
        let at = Nanos(now.after(self.round_trip).0.div_ceil(part).saturating_mul(part));
        // There are more only where nothing was released for some time.
        let full = self.waiting.len() > PARTS;
        if full || self.waiting.back().is_some_and(|(last, _)| *last == at) {
            self.waiting.pop_back();
        }
        self.waiting.push_back((at, next));
    }

    /// Advances to what `intercept` has acknowledged. Not to fall behind that keeps what is sent acceptable: an
    /// acknowledgement that is too old is refused, and the octets with it (RFC 5961, section 5.2).
    pub(super) fn handle_reflected(&mut self, next: TargetSeq) {
        let known = |number: TargetSeq| !number.is_after(next);
        if self.acknowledged.is_some_and(known) {
            self.acknowledged = Some(next);
        }
        while self.acknowledged.is_some() && self.waiting.front().is_some_and(|&(_, number)| known(number)) {
            self.waiting.pop_front();
        }
    }

    /// Advances to the last acknowledgement that has become due.
    pub(super) fn handle_timeout(&mut self, now: Nanos) {
        let mut released = false;
        while let Some(&(_, next)) = self.waiting.front().filter(|(at, _)| *at <= now) {
            self.waiting.pop_front();
            self.acknowledged = Some(next);
            released = true;
        }
        if released && self.waiting.is_empty() {
            self.waiting.shrink_to(MIN_CAPACITY);
        }
        self.due |= released;
    }

    /// Makes a pure ACK due.
    pub(super) fn acknowledge_now(&mut self) {
        self.due = true;
    }

    pub(super) fn deadline(&self) -> Moment {
        self.waiting.front().map(|(at, _)| *at).into()
    }

    pub(super) fn is_settled(&self) -> bool {
        self.waiting.is_empty() && !self.due
    }

    pub(super) const fn is_due(&self) -> bool {
        self.due
    }

    /// Records that a segment with the acknowledgement [`number`](Self::number) is sent.
    pub(super) fn record_sent(&mut self) {
        self.due = false;
    }
}
