//! Delayed acknowledgements: when the target's octets are acknowledged. Late enough that most acknowledgements ride on
//! what is sent anyhow, and early enough that the target never waits for one.
//!
//! A client that seems *near* does what RFC 5681, section 4.2, and RFC 9293, section 3.8.6.3, let it do: the
//! acknowledgement of a response waits for the next request or FIN, but not longer than [`near::DELAY`]; whatever might
//! keep the target from sending is acknowledged at once. One that seems *far* (`-R`) acknowledges everything a round-trip
//! time after it has come. A client whose distance its live handshake is still to show sends nothing until then: its
//! acknowledgement ends the replayed handshake too.

mod far;
mod near;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::{far::Far, near::Near};
use crate::{
    store::moment::Moment,
    tcp::{
        distance::Distance,
        nagle::Nagle,
        receiver::{Receiver, Want},
        seq::TargetSeq,
    },
    time::Nanos,
};

/// How long the end of the live handshake is waited for. A client without an answer retransmits its SYN after a second
/// (RFC 6298, section 2.1), and may be as far away as can be measured then.
const PATIENCE: Duration = Duration::from_secs(2);

/// Acknowledges the target's octets, as a client at one distance does.
#[derive(Debug)]
pub(crate) enum Acknowledger {
    /// The distance is not known yet, and the replayed handshake has not ended.
    Awaited(Awaited),
    Near(Near),
    /// In memory of its own: most clients are near, and are to be small.
    Far(Box<Far>),
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Awaited {
    /// The target's first octet.
    first: TargetSeq,
    /// See [`Near`].
    handshake_us: u32,
    /// When the live handshake is no longer waited for.
    until: Moment,
}

impl Acknowledger {
    /// Begins for a connection whose SYN-ACK came just now, `handshake` after the SYN. The end of the handshake is the
    /// first thing to be acknowledged. `distance` is `None` while the live handshake is under way.
    pub(crate) fn new(now: Nanos, distance: Option<Distance>, handshake: Duration, receiver: &Receiver) -> Self {
        let first = receiver.next();
        let handshake_us = handshake.as_micros().min(1_000_000) as u32;
        match distance {
            None => Self::Awaited(Awaited { first, handshake_us, until: Moment::at(now.after(PATIENCE)) }),
            Some(Distance::Near) => Self::Near(Near::new(first, handshake_us)),
            Some(Distance::Far(ticks)) => Self::Far(Box::new(Far::connecting(now, ticks.time(), first))),
        }
    }

    /// Ends the replayed handshake, as the live one has ended just now. Nothing new if the target had not answered yet:
    /// then [`new`](Self::new) knows.
    pub(crate) fn learn(&mut self, distance: Distance) {
        if let Self::Awaited(Awaited { first, handshake_us, .. }) = *self {
            *self = match distance {
                Distance::Near => Self::Near(Near::new(first, handshake_us)),
                Distance::Far(ticks) => Self::Far(Box::new(Far::connected(ticks.time(), first))),
            };
        }
    }

    /// Whether the live handshake is still to end.
    pub(crate) const fn is_awaited(&self) -> bool {
        matches!(self, Self::Awaited(_))
    }

    /// Returns the acknowledgement number of the segments that are sent now, if any may be sent.
    pub(crate) fn number(&self, receiver: &Receiver) -> Option<TargetSeq> {
        match self {
            Self::Awaited(_) => None,
            Self::Near(_) => Some(receiver.next()),
            Self::Far(far) => far.number(),
        }
    }

    /// Handles a segment of the target that the receiver has received: `new` octets of its payload had not been
    /// reported before. `segment_size`: about how many octets the target puts in a segment.
    pub(crate) fn handle_segment(
        &mut self,
        now: Nanos,
        want: Want,
        new: u32,
        receiver: &Receiver,
        segment_size: u16,
        nagle: &mut Nagle,
    ) {
        match self {
            Self::Near(near) => near.handle_segment(now, want, new, receiver, segment_size, nagle),
            Self::Awaited(_) => {}
            Self::Far(_) if want == Want::Nothing => {}
            Self::Far(far) => far.acknowledge(now, receiver.next()),
        }
    }

    /// Handles that the target's `intercept` has acknowledged everything before `next`. What may be left is a FIN.
    pub(crate) fn handle_reflected(&mut self, now: Nanos, next: TargetSeq, receiver: &Receiver) {
        match self {
            Self::Awaited(_) => {}
            Self::Near(near) => near.handle_reflected(now, next, receiver),
            Self::Far(far) => far.handle_reflected(next),
        }
    }

    /// Handles that the SYN-ACK came again: the end of the handshake was lost, or is not due yet.
    pub(crate) fn handle_syn_ack_again(&mut self) {
        match self {
            Self::Awaited(_) => {}
            Self::Near(near) => near.acknowledge_now(),
            Self::Far(far) => far.acknowledge_now(),
        }
    }

    /// Fires expired timers.
    pub(crate) fn handle_timeout(&mut self, now: Nanos) {
        match self {
            // The end was not captured, or the live client has vanished: as without `-R`.
            Self::Awaited(awaited) => {
                if awaited.until.is_due(now) {
                    self.learn(Distance::Near);
                }
            }
            Self::Near(near) => near.handle_timeout(now),
            Self::Far(far) => far.handle_timeout(now),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn deadline(&self) -> Moment {
        match self {
            Self::Awaited(awaited) => awaited.until,
            Self::Near(near) => near.deadline(),
            Self::Far(far) => far.deadline(),
        }
    }

    /// Whether the last segment sent acknowledged everything that the target had sent.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Awaited(_) => false,
            Self::Near(near) => near.is_settled(),
            Self::Far(far) => far.is_settled(),
        }
    }

    /// Whether to send a pure ACK, unless there is something else to send.
    pub(crate) fn is_due(&self) -> bool {
        match self {
            Self::Awaited(_) => false,
            Self::Near(near) => near.is_due(),
            Self::Far(far) => far.is_due(),
        }
    }

    /// Records that a segment with the acknowledgement [`number`](Self::number) is sent.
    pub(crate) fn record_sent(&mut self, receiver: &Receiver) {
        match self {
            Self::Awaited(_) => {}
            Self::Near(near) => near.record_sent(receiver),
            Self::Far(far) => far.record_sent(),
        }
    }

    /// Records that this segment was a pure ACK.
    pub(crate) fn record_sent_alone(&mut self, now: Nanos, receiver: &Receiver) {
        if let Self::Near(near) = self
            && receiver.is_complete()
        {
            near.record_sent_alone(now);
        }
    }
}
