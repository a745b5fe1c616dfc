//! What each kind of client acknowledges, and when.

use super::{
    far::{MIN_CAPACITY, PARTS},
    near::DELAY,
    *,
};

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
