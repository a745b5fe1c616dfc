//! Delayed acknowledgements: when the target's octets are acknowledged. Late enough that most acknowledgements ride on
//! what is sent anyhow, and early enough that the target never waits for one.
//!
//! A client that seems *near* does what RFC 5681, section 4.2, and RFC 9293, section 3.8.6.3, let it do: the
//! acknowledgement of a response waits for the next request or FIN, but not longer than [`DELAY`]; whatever might keep
//! the target from sending is acknowledged at once. One that seems *far* (`-R`) acknowledges everything a round-trip
//! time after it has come. A client whose distance its live handshake is still to show sends nothing until then: its
//! acknowledgement ends the replayed handshake too.

use std::{collections::VecDeque, time::Duration};

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

/// The longest that an acknowledgement waits for a segment to ride on: as long as it waits at least on Linux
/// (`TCP_DELACK_MIN`). RFC 1122, section 4.2.3.2, allows 500 ms, but a target retransmits what is unacknowledged after
/// 200 ms.
const DELAY: Duration = Duration::from_millis(40);
/// Maximum segments of a response that is acknowledged as a whole, instead of every second segment: it leaves the
/// target in one go, as the initial window has ten (RFC 6928) and shrinks only with a loss.
const MAX_SEGMENTS_UNACKNOWLEDGED: u32 = 8;
/// Parts that a round trip is cut into: a distant client acknowledges what comes within one of them together, at its
/// end. So no more acknowledgements than that are under way, and none is later by more than 1.6 %.
const PARTS: usize = 64;
/// Acknowledgements for which a distant client keeps memory between two responses: most of its connections are idle
/// most of the time.
const MIN_CAPACITY: usize = 4;
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

#[derive(Debug)]
pub(crate) struct Far {
    round_trip: Duration,
    /// The cumulative acknowledgement of the segments that are sent; `None` before the handshake is over, when none may
    /// be.
    acknowledged: Option<TargetSeq>,
    /// Acknowledgements under way, by the time when they are due.
    waiting: VecDeque<(Nanos, TargetSeq)>,
    /// One of them has become due.
    due: bool,
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
            Some(Distance::Far(ticks)) => {
                let mut far =
                    Far { round_trip: ticks.time(), acknowledged: None, waiting: VecDeque::new(), due: false };
                far.acknowledge(now, first);
                Self::Far(Box::new(far))
            }
        }
    }

    /// Ends the replayed handshake, as the live one has ended just now. Nothing new if the target had not answered yet:
    /// then [`new`](Self::new) knows.
    pub(crate) fn learn(&mut self, distance: Distance) {
        if let Self::Awaited(Awaited { first, handshake_us, .. }) = *self {
            *self = match distance {
                Distance::Near => Self::Near(Near::new(first, handshake_us)),
                Distance::Far(ticks) => Self::Far(Box::new(Far {
                    round_trip: ticks.time(),
                    acknowledged: Some(first),
                    waiting: VecDeque::new(),
                    due: true,
                })),
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
            Self::Far(far) => far.acknowledged,
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
            Self::Near(near) => {
                near.acknowledged = next;
                let left = receiver.next() != next;
                near.ack = if left { Delayed::Until(Moment::at(now.after(DELAY))) } else { Delayed::Settled };
            }
            Self::Far(far) => far.handle_reflected(next),
        }
    }

    /// Handles that the SYN-ACK came again: the end of the handshake was lost, or is not due yet.
    pub(crate) fn handle_syn_ack_again(&mut self) {
        match self {
            Self::Awaited(_) => {}
            Self::Near(near) => near.ack = Delayed::Now,
            Self::Far(far) => far.due = true,
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
            Self::Near(near) => {
                if matches!(near.ack, Delayed::Until(at) if at.is_due(now)) {
                    near.ack = Delayed::Now;
                }
            }
            Self::Far(far) => far.release(now),
        }
    }

    /// When [`handle_timeout`](Self::handle_timeout) has something to do.
    pub(crate) fn deadline(&self) -> Moment {
        match self {
            Self::Awaited(awaited) => awaited.until,
            Self::Near(Near { ack: Delayed::Until(at), .. }) => *at,
            Self::Near(_) => Moment::NEVER,
            Self::Far(far) => far.waiting.front().map(|(at, _)| *at).into(),
        }
    }

    /// Whether the last segment sent acknowledged everything that the target had sent.
    pub(crate) fn is_settled(&self) -> bool {
        match self {
            Self::Awaited(_) => false,
            Self::Near(near) => matches!(near.ack, Delayed::Settled | Delayed::SettledAlone(_)),
            Self::Far(far) => far.waiting.is_empty() && !far.due,
        }
    }

    /// Whether to send a pure ACK, unless there is something else to send.
    pub(crate) fn is_due(&self) -> bool {
        match self {
            Self::Awaited(_) => false,
            Self::Near(near) => near.ack == Delayed::Now,
            Self::Far(far) => far.due,
        }
    }

    /// Records that a segment with the acknowledgement [`number`](Self::number) is sent.
    pub(crate) fn record_sent(&mut self, receiver: &Receiver) {
        match self {
            Self::Awaited(_) => {}
            Self::Near(near) => {
                near.acknowledged = receiver.next();
                near.ack = Delayed::Settled;
            }
            Self::Far(far) => far.due = false,
        }
    }

    /// Records that this segment was a pure ACK.
    pub(crate) fn record_sent_alone(&mut self, now: Nanos, receiver: &Receiver) {
        if let Self::Near(near) = self
            && receiver.is_complete()
        {
            near.ack = Delayed::SettledAlone(Moment::at(now));
        }
    }
}

impl Near {
    /// The end of the handshake is due.
    const fn new(acknowledged: TargetSeq, handshake_us: u32) -> Self {
        Self { acknowledged, careful: false, handshake_us, ack: Delayed::Now }
    }

    fn handle_segment(
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
}

impl Far {
    /// Acknowledges everything before `next` a round-trip time from now.
    fn acknowledge(&mut self, now: Nanos, next: TargetSeq) {
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
    fn handle_reflected(&mut self, next: TargetSeq) {
        let known = |number: TargetSeq| !number.is_after(next);
        if self.acknowledged.is_some_and(known) {
            self.acknowledged = Some(next);
        }
        while self.acknowledged.is_some() && self.waiting.front().is_some_and(|&(_, number)| known(number)) {
            self.waiting.pop_front();
        }
    }

    /// Advances to the last acknowledgement that has become due.
    fn release(&mut self, now: Nanos) {
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const HANDSHAKE: Duration = Duration::from_nanos(1_000);
    const RTT: Duration = Duration::from_millis(1);
    const US: u64 = 1_000;
    const SEGMENT: u16 = 100;

    /// A target's stream, and what acknowledges it.
    struct Ends {
        receiver: Receiver,
        acknowledger: Acknowledger,
        nagle: Nagle,
        sent: u32,
    }

    impl Ends {
        /// Open since time 0.
        fn new(distance: Option<Distance>) -> Self {
            let receiver = Receiver::new(TargetSeq::new(0));
            let mut acknowledger = Acknowledger::new(Nanos(0), distance, HANDSHAKE, &receiver);
            if distance == Some(Distance::Near) {
                assert!(acknowledger.is_due(), "the end of the handshake");
                acknowledger.record_sent(&receiver);
            }
            let nagle = Nagle::learnt();
            Self { receiver, acknowledger, nagle, sent: 0 }
        }

        fn far() -> Self {
            Self::new(Some(Distance::measured(RTT)))
        }

        /// A segment; `skip` octets before it are missing.
        fn hear(&mut self, now: u64, skip: u32, len: u32, push: bool) {
            self.sent += skip;
            let seq = TargetSeq::new(1 + self.sent);
            self.sent += len;
            if push {
                self.receiver.note_end(seq.plus(len));
            }
            let received = self.receiver.receive(seq, len, false);
            let (want, new) = (received.acknowledge, received.new);
            self.acknowledger.handle_segment(Nanos(now), want, new, &self.receiver, SEGMENT, &mut self.nagle);
        }

        fn acknowledge_alone(&mut self, now: u64) {
            assert!(self.acknowledger.is_due());
            self.acknowledger.record_sent(&self.receiver);
            self.acknowledger.record_sent_alone(Nanos(now), &self.receiver);
        }
    }

    #[test]
    fn an_answer_is_acknowledged_with_what_is_sent_next_or_after_a_delay() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.hear(5, 0, 50, true);
        assert!(!ends.acknowledger.is_due());
        ends.acknowledger.record_sent(&ends.receiver);
        assert_eq!(ends.acknowledger.deadline(), Moment::NEVER);

        ends.hear(10, 0, 50, true);
        ends.hear(20, 0, 50, true);
        let delayed = Nanos(10).after(DELAY);
        assert_eq!(ends.acknowledger.deadline(), Moment::at(delayed));
        ends.acknowledger.handle_timeout(Nanos(delayed.0 - 1));
        assert!(!ends.acknowledger.is_due());
        ends.acknowledger.handle_timeout(delayed);
        assert!(ends.acknowledger.is_due());
        assert_eq!(
            ends.acknowledger.deadline(),
            Moment::NEVER,
            "what is due while the channel is down must not stay a deadline"
        );
    }

    #[test]
    fn what_is_not_the_end_of_an_answer_is_acknowledged_every_second_segment() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.hear(5, 0, 100, false);
        assert!(!ends.acknowledger.is_due());
        ends.hear(5, 0, 1, false);
        assert!(ends.acknowledger.is_due());
    }

    #[test]
    fn a_long_answer_is_acknowledged_before_the_target_s_window_is_full() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.hear(5, 0, 800, true);
        assert!(!ends.acknowledger.is_due());
        ends.hear(5, 0, 1, true);
        assert!(ends.acknowledger.is_due());
    }

    #[test]
    fn what_the_target_s_intercept_has_acknowledged_needs_nothing_more() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.hear(5, 0, 50, true);
        ends.hear(5, 0, 5_000, false);
        assert!(ends.acknowledger.is_due());
        ends.acknowledger.handle_reflected(Nanos(5), TargetSeq::new(5_051), &ends.receiver);
        assert!(!ends.acknowledger.is_due() && ends.acknowledger.is_settled());
        ends.hear(6, 0, 60, true);
        assert!(!ends.acknowledger.is_due(), "only what came since counts");
        // A FIN came with the payload.
        ends.receiver.receive(TargetSeq::new(5_111), 0, true);
        ends.acknowledger.handle_reflected(Nanos(7), TargetSeq::new(5_111), &ends.receiver);
        assert_eq!(ends.acknowledger.deadline(), Moment::at(Nanos(7).after(DELAY)));
    }

    #[test]
    fn after_a_loss_every_second_segment_is_acknowledged() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.hear(5, 10, 50, true);
        ends.acknowledge_alone(6);
        ends.sent = 0;
        ends.hear(7, 0, 10, true);
        assert!(ends.acknowledger.is_due(), "it fills a hole");
        ends.acknowledge_alone(8);
        ends.sent = 60;
        ends.hear(9, 0, 101, true);
        assert!(ends.acknowledger.is_due());
    }

    #[test]
    fn a_client_far_away_acknowledges_each_piece_after_its_time() {
        let mut ends = Ends::far();
        ends.acknowledger.handle_timeout(Nanos(999 * US));
        assert!(!ends.acknowledger.is_due() && ends.acknowledger.number(&ends.receiver).is_none());
        ends.hear(500 * US, 0, 10, false);
        ends.acknowledger.handle_timeout(Nanos(1_000 * US));
        let number = ends.acknowledger.number(&ends.receiver);
        assert!(ends.acknowledger.is_due());
        assert_eq!((number, ends.acknowledger.deadline()), (Some(TargetSeq::new(1)), Moment::at(Nanos(1_500 * US))));
        ends.acknowledger.record_sent(&ends.receiver);
        ends.acknowledger.handle_timeout(Nanos(1_499 * US));
        assert!(!ends.acknowledger.is_due());
        ends.acknowledger.handle_timeout(Nanos(5_000 * US));
        let number = ends.acknowledger.number(&ends.receiver);
        assert_eq!((number, ends.acknowledger.deadline()), (Some(TargetSeq::new(11)), Moment::NEVER));
    }

    #[test]
    fn what_comes_close_together_is_acknowledged_together_and_hardly_later() {
        let mut ends = Ends::far();
        let part = RTT.as_nanos() as u64 / PARTS as u64;
        for micros in 0..5_000 {
            ends.acknowledger.handle_timeout(Nanos(micros * US));
            if let Some(number) = ends.acknowledger.number(&ends.receiver) {
                // An octet came each microsecond, from 0 on.
                let heard = micros.checked_sub(u64::from(number.distance(TargetSeq::new(1)).unsigned_abs()));
                let late = heard.map_or(0, |age| age * US).saturating_sub(RTT.as_nanos() as u64);
                assert!(heard.is_some() && late <= part + US, "at {micros} µs: {late} ns late");
                ends.acknowledger.record_sent(&ends.receiver);
            }
            ends.hear(micros * US, 0, 1, false);
            let Acknowledger::Far(far) = &ends.acknowledger else { unreachable!() };
            assert!(far.waiting.len() <= PARTS + 1, "{}", far.waiting.len());
        }
    }

    #[test]
    fn while_nothing_is_released_more_than_fit_become_one_and_the_last_is_kept() {
        let mut ends = Ends::far();
        for n in 0..1_000 {
            ends.hear(n * 100 * US, 0, 1, false);
        }
        let Acknowledger::Far(far) = &ends.acknowledger else { unreachable!() };
        assert_eq!(far.waiting.len(), PARTS + 1);
        ends.acknowledger.handle_timeout(Nanos(101_000 * US));
        assert_eq!(ends.acknowledger.number(&ends.receiver), Some(TargetSeq::new(1_001)));
        let Acknowledger::Far(far) = &ends.acknowledger else { unreachable!() };
        assert_eq!(far.waiting.capacity(), MIN_CAPACITY, "an idle client holds little memory");
    }

    #[test]
    fn nothing_is_said_before_it_is_known_where_the_client_is() {
        let mut ends = Ends::new(None);
        let acknowledger = &mut ends.acknowledger;
        // The target repeats its SYN-ACK.
        acknowledger.handle_syn_ack_again();
        acknowledger.handle_timeout(Nanos(1_999_999 * US));
        assert!(!acknowledger.is_due() && acknowledger.number(&ends.receiver).is_none() && !acknowledger.is_settled());
        assert_eq!(acknowledger.deadline(), Moment::at(Nanos(2_000_000 * US)));
        acknowledger.learn(Distance::measured(RTT));
        let number = acknowledger.number(&ends.receiver);
        assert!(acknowledger.is_due());
        assert_eq!((number, acknowledger.deadline()), (Some(TargetSeq::new(1)), Moment::NEVER));
        acknowledger.record_sent(&ends.receiver);
        ends.hear(5_000_000 * US, 0, 10, true);
        assert_eq!(ends.acknowledger.deadline(), Moment::at(Nanos(5_001_000 * US)));
        // What it is told a second time it knows.
        ends.acknowledger.learn(Distance::Near);
        assert!(matches!(ends.acknowledger, Acknowledger::Far(_)));
    }

    #[test]
    fn a_client_of_which_nothing_is_heard_is_near_in_the_end() {
        let mut ends = Ends::new(None);
        ends.acknowledger.handle_timeout(Nanos(2_000_000 * US));
        assert!(ends.acknowledger.is_due() && !ends.acknowledger.is_awaited());
        assert_eq!(ends.acknowledger.number(&ends.receiver), Some(TargetSeq::new(1)));
        ends.acknowledger.record_sent(&ends.receiver);
        ends.hear(3_000_000 * US, 0, 10, true);
        assert_eq!(ends.acknowledger.deadline(), Moment::at(Nanos(3_000_000 * US).after(DELAY)));
    }

    #[test]
    fn a_client_far_away_does_not_fall_behind_what_the_target_was_told_already() {
        let mut ends = Ends::far();
        ends.hear(500 * US, 0, 100, false);
        ends.acknowledger.handle_reflected(Nanos(500 * US), TargetSeq::new(101), &ends.receiver);
        assert_eq!(ends.acknowledger.number(&ends.receiver), None, "the handshake has not ended");
        ends.acknowledger.handle_timeout(Nanos(1_000 * US));
        ends.acknowledger.record_sent(&ends.receiver);
        ends.hear(1_100 * US, 0, 100, false);
        ends.hear(1_250 * US, 0, 50, true);
        ends.acknowledger.handle_reflected(Nanos(1_250 * US), TargetSeq::new(201), &ends.receiver);
        let number = |ends: &Ends| ends.acknowledger.number(&ends.receiver);
        assert_eq!((number(&ends), ends.acknowledger.is_due()), (Some(TargetSeq::new(201)), false));
        assert_eq!(ends.acknowledger.deadline(), Moment::at(Nanos(2_250 * US)), "only what is left");
        ends.acknowledger.handle_timeout(Nanos(2_250 * US));
        assert_eq!((number(&ends), ends.acknowledger.is_due()), (Some(TargetSeq::new(251)), true));
        // A report that was overtaken.
        ends.acknowledger.handle_reflected(Nanos(2_300 * US), TargetSeq::new(101), &ends.receiver);
        assert_eq!(number(&ends), Some(TargetSeq::new(251)));
    }

    /// A server with Nagle's algorithm, that writes header and body one after the other.
    #[test]
    fn a_target_that_waits_for_acknowledgements_gets_them_at_once() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.nagle = Nagle::default();
        let mut now = 0;
        for answer in 0..200 {
            now += 10_000_000;
            ends.hear(now, 0, 50, true);
            assert!(ends.acknowledger.is_due(), "answer {answer}");
            ends.acknowledge_alone(now);
            now += HANDSHAKE.as_nanos() as u64;
            ends.hear(now, 0, 50, true);
            ends.acknowledger.record_sent(&ends.receiver);
        }
        // Now the service does it no more.
        let mut due = |ends: &mut Ends| {
            now += 10_000_000;
            ends.hear(now, 0, 50, true);
            let due = ends.acknowledger.is_due();
            ends.acknowledger.record_sent(&ends.receiver);
            due
        };
        let late = (0..2_000).filter(|_| !due(&mut ends)).count();
        assert!(late > 500, "{late}");
    }

    #[test]
    fn what_comes_sooner_than_an_acknowledgement_can_reach_the_target_does_not_count() {
        let mut ends = Ends::new(Some(Distance::Near));
        ends.nagle = Nagle::default();
        let mut at_once = 0;
        for answer in 0..200 {
            let now = answer * 10_000_000;
            ends.hear(now, 0, 50, true);
            if ends.acknowledger.is_due() {
                at_once += 1;
                ends.acknowledge_alone(now);
            }
            ends.hear(now + 400, 0, 50, true);
            ends.acknowledger.record_sent(&ends.receiver);
        }
        assert!((8..30).contains(&at_once), "{at_once}");
    }
}
