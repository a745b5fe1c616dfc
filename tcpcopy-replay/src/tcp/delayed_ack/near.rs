//! A near client: it delays acknowledgements as any host does.

use std::time::Duration;

use crate::{
    store::moment::Moment,
    tcp::{
        nagle::Nagle,
        receiver::{Receiver, Want},
        seq::TargetSeq,
    },
    time::Nanos,
};

/// The longest that an acknowledgement waits for a segment to ride on: as long as it waits at least on Linux
/// (`TCP_DELACK_MIN`). RFC 1122, section 4.2.3.2, allows 500 ms, but a target retransmits what is unacknowledged after
/// 200 ms.
pub(super) const DELAY: Duration = Duration::from_millis(40);
/// Maximum segments of a response that is acknowledged as a whole, instead of every second segment: it leaves the
/// target in one go, as the initial window has ten (RFC 6928) and shrinks only with a loss.
const MAX_SEGMENTS_UNACKNOWLEDGED: u32 = 8;

#[derive(Debug)]
pub(crate) struct Near {
    /// The cumulative acknowledgement of the last segment sent.
    acknowledged: TargetSeq,
    /// Segments came out of order: the target's congestion window may be down to one segment.
    careful: bool,
    /// How long the handshake took, at most a second: before that, nothing can come because of an acknowledgement.
    handshake_us: u32,
    ack: Delayed,
}

/// The delayed-ACK state of a near client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Delayed {
    /// Everything is acknowledged.
    Settled,
    /// Everything is acknowledged; a pure ACK for what seemed to be a complete response was sent at this time.
    SettledAlone(Moment),
    /// An acknowledgement may wait for a segment to ride on until then.
    Until(Moment),
    /// An acknowledgement is due.
    Now,
}

impl Near {
    /// Begins when the handshake has ended at the target; the acknowledgement of that is due.
    pub(super) const fn new(acknowledged: TargetSeq, handshake_us: u32) -> Self {
        Self { acknowledged, careful: false, handshake_us, ack: Delayed::Now }
    }

    /// See [`Acknowledger::handle_segment`](super::Acknowledger::handle_segment).
    pub(super) fn handle_segment(
        &mut self,
        now: Nanos,
        want: Want,
        new: u32,
        receiver: &Receiver,
        segment_size: u16,
        nagle: &mut Nagle,
    ) {
        if new > 0
            && let Delayed::SettledAlone(at) = self.ack
        {
            let soonest = Duration::from_micros(self.handshake_us.into()) / 2;
            nagle.judge((soonest..=DELAY).contains(&now.since(at.time())));
        }
        let whole = receiver.is_complete();
        let wait = match want {
            Want::Nothing => return,
            Want::Now => {
                self.careful = true;
                false
            }
            Want::Soon => {
                let segments = if whole && !self.careful { MAX_SEGMENTS_UNACKNOWLEDGED } else { 1 };
                let waiting = receiver.next().distance(self.acknowledged).max(0) as u32;
                waiting <= segments * u32::from(segment_size) && !(whole && new > 0 && nagle.is_to_be_tried())
            }
        };
        self.ack = match self.ack {
            _ if !wait => Delayed::Now,
            Delayed::Settled | Delayed::SettledAlone(_) => Delayed::Until(Moment::at(now.after(DELAY))),
            ack @ (Delayed::Until(_) | Delayed::Now) => ack,
        };
    }

    /// Handles that everything before `next` is acknowledged already.
    pub(super) fn handle_reflected(&mut self, now: Nanos, next: TargetSeq, receiver: &Receiver) {
        self.acknowledged = next;
        let left = receiver.next() != next;
        self.ack = if left { Delayed::Until(Moment::at(now.after(DELAY))) } else { Delayed::Settled };
    }

    /// Makes a pure ACK due.
    pub(super) fn acknowledge_now(&mut self) {
        self.ack = Delayed::Now;
    }

    /// Fires the expired timer.
    pub(super) fn handle_timeout(&mut self, now: Nanos) {
        if matches!(self.ack, Delayed::Until(at) if at.is_due(now)) {
            self.ack = Delayed::Now;
        }
    }

    pub(super) const fn deadline(&self) -> Moment {
        match self.ack {
            Delayed::Until(at) => at,
            Delayed::Settled | Delayed::SettledAlone(_) | Delayed::Now => Moment::NEVER,
        }
    }

    pub(super) const fn is_settled(&self) -> bool {
        matches!(self.ack, Delayed::Settled | Delayed::SettledAlone(_))
    }

    pub(super) fn is_due(&self) -> bool {
        self.ack == Delayed::Now
    }

    /// Records that a segment acknowledges everything.
    pub(super) fn record_sent(&mut self, receiver: &Receiver) {
        self.acknowledged = receiver.next();
        self.ack = Delayed::Settled;
    }

    /// Records that this segment was a pure ACK for what seemed to be a complete response.
    pub(super) fn record_sent_alone(&mut self, now: Nanos) {
        self.ack = Delayed::SettledAlone(Moment::at(now));
    }
}
