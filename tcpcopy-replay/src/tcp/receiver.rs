//! The receiving half of a target connection: which of the target's octets have been reported, and what is to be
//! acknowledged. The octets themselves stay at the target.

use crate::tcp::seq::TargetSeq;

/// The window field that is announced. Octets are never kept, so it never shrinks.
pub(crate) const WINDOW: u16 = u16::MAX;
/// With this shift (RFC 7323, section 2.2) the window is 8 MiB, and the target never waits for it.
pub(crate) const WINDOW_SCALE: u8 = 7;

/// Maximum ranges out of order that are remembered; others are reported again when the target retransmits them.
const MAX_RANGES: usize = 4;
/// Maximum distance from the expected number; what is further away belongs to another connection.
const PLAUSIBLE: i32 = 1 << 30;

/// The result of a response segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// Octets that had not been reported before (approximately, when more ranges are out of order than are remembered).
    pub new: u32,
    /// Whether the target wants an acknowledgement.
    pub acknowledge: Want,
}

/// How urgent an acknowledgement is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Want {
    #[default]
    Nothing,
    /// The segment was next in order: the acknowledgement may be delayed.
    Soon,
    /// Something was lost, retransmitted or overtaken (RFC 5681, section 4.2), or this is a keep-alive probe.
    Now,
}

/// Receiving half of a replayed connection.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// The target's initial sequence number.
    irs: TargetSeq,
    next: TargetSeq,
    /// Ranges after `next`, behind a gap.
    out_of_order: Option<Box<OutOfOrder>>,
    /// The end of the last segment that may end an answer; the number of the FIN, once that is known.
    pushed: TargetSeq,
    fin: bool,
    finished: bool,
}

/// The ranges out of order; in memory of their own, because nearly all receivers have none.
#[derive(Debug)]
struct OutOfOrder {
    /// First octet and the one after the last, sorted, disjoint.
    ranges: [(TargetSeq, TargetSeq); MAX_RANGES],
    used: u8,
}

impl Receiver {
    /// Creates a receiver that expects the octet after the target's SYN.
    pub(crate) fn new(irs: TargetSeq) -> Self {
        Self { irs, next: irs.plus(1), out_of_order: None, pushed: irs, fin: false, finished: false }
    }

    /// Returns the next sequence number expected, RCV.NXT: what is acknowledged.
    pub(crate) const fn next(&self) -> TargetSeq {
        self.next
    }

    /// Returns how many octets have been received in order, modulo 2³²; the FIN counts as one.
    pub(crate) const fn octets(&self) -> u32 {
        (self.next.distance(self.irs) as u32).wrapping_sub(1)
    }

    /// Whether everything up to the target's FIN has been received.
    pub(crate) const fn is_finished(&self) -> bool {
        self.finished
    }

    /// Whether a sequence number can belong to this connection.
    pub(crate) const fn is_plausible(&self, seq: TargetSeq) -> bool {
        let distance = seq.distance(self.next);
        -PLAUSIBLE < distance && distance < PLAUSIBLE
    }

    /// Whether a RST that acknowledges nothing can belong to this connection: it answers a segment of ours, so its
    /// number is one that was acknowledged (RFC 9293, section 3.10.7.1). The target also answers segments of an earlier
    /// connection.
    pub(crate) const fn is_plausible_reset(&self, seq: TargetSeq) -> bool {
        seq.is_after(self.irs) && !seq.is_after(self.next)
    }

    /// Notes that an answer may end before this number: a segment with PSH or FIN ends there.
    pub(crate) const fn note_end(&mut self, end: TargetSeq) {
        if !self.fin && end.is_after(self.pushed) {
            self.pushed = end;
        }
    }

    /// Whether an answer may be complete: nothing is missing, and what came last may have ended one.
    pub(crate) fn is_complete(&self) -> bool {
        self.out_of_order.is_none() && (self.finished || self.next == self.pushed)
    }

    /// Takes everything before `seq` for received: it has left the target, although not all of it may have been
    /// reported here.
    pub(crate) fn skip_to(&mut self, seq: TargetSeq) {
        if seq.is_after(self.next) {
            self.insert(self.next, seq);
        }
    }

    /// Receives a segment.
    pub(crate) fn receive(&mut self, seq: TargetSeq, len: u32, fin: bool) -> Received {
        let end = seq.plus(len);
        if len == 0 && !fin {
            // A keep-alive probe lies before what we expect, and wants an answer (RFC 9293, section 3.8.4). What lies
            // after it does not, although a report is missing: two ends that answer each other's bare ACKs never stop.
            let probe = self.next.is_after(seq);
            return Received { new: 0, acknowledge: if probe { Want::Now } else { Want::Nothing } };
        }
        let in_order = seq == self.next && self.out_of_order.is_none();
        if fin && !self.fin {
            self.fin = true;
            self.pushed = end;
        }
        let mut new = 0;
        if end.is_after(self.next) {
            let from = if seq.is_after(self.next) { seq } else { self.next };
            new = self.insert(from, end);
        }
        if !self.finished && self.fin && self.next == self.pushed {
            self.next = self.next.plus(1);
            self.finished = true;
        }
        Received { new, acknowledge: if in_order { Want::Soon } else { Want::Now } }
    }

    /// Adds a range that begins at or after `next`; returns how much of it was new.
    fn insert(&mut self, from: TargetSeq, end: TargetSeq) -> u32 {
        let known = self.out_of_order.as_ref().map_or(&[][..], |kept| &kept.ranges[..usize::from(kept.used)]);
        let mut kept = [(TargetSeq::default(), TargetSeq::default()); MAX_RANGES + 1];
        let mut n = 0;
        let mut merged = (from, end);
        let mut overlap = 0;
        for &(a, b) in known {
            if from.is_after(b) || a.is_after(end) {
                kept[n] = (a, b);
                n += 1;
                continue;
            }
            let low = if a.is_after(from) { a } else { from };
            let high = if b.is_after(end) { end } else { b };
            overlap += high.distance(low).max(0) as u32;
            if merged.0.is_after(a) {
                merged.0 = a;
            }
            if b.is_after(merged.1) {
                merged.1 = b;
            }
        }
        let new = (end.distance(from) as u32).wrapping_sub(overlap);
        if merged.0 == self.next {
            self.next = merged.1;
        } else {
            kept[n] = merged;
            n += 1;
            let base = self.next;
            kept[..n].sort_unstable_by_key(|range| range.0.distance(base));
        }
        // The furthest range is the one that can wait for a retransmission.
        let used = n.min(MAX_RANGES) as u8;
        if used == 0 {
            self.out_of_order = None;
        } else {
            let beyond =
                self.out_of_order.get_or_insert_with(|| Box::new(OutOfOrder { ranges: Default::default(), used }));
            beyond.ranges.copy_from_slice(&kept[..MAX_RANGES]);
            beyond.used = used;
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn receiver() -> Receiver {
        Receiver::new(TargetSeq::new(u32::MAX - 10))
    }

    fn at(offset: u32) -> TargetSeq {
        TargetSeq::new(u32::MAX - 9).plus(offset)
    }

    #[test]
    fn reports_out_of_order_are_acknowledged_only_up_to_the_gap() {
        let mut r = receiver();
        assert_eq!(r.receive(at(100), 50, false), Received { new: 50, acknowledge: Want::Now });
        assert_eq!(r.next(), at(0));
        assert_eq!(r.receive(at(0), 100, false).new, 100);
        assert_eq!(r.next(), at(150));
    }

    #[test]
    fn what_is_reported_twice_out_of_order_is_new_once() {
        let mut r = receiver();
        r.receive(at(100), 50, false);
        assert_eq!(r.receive(at(90), 100, false).new, 50);
        r.receive(at(300), 10, false);
        assert_eq!(r.receive(at(80), 240, false).new, 10 + 110 + 10, "around two ranges");
    }

    #[test]
    fn a_fin_counts_when_everything_before_it_has_come() {
        let mut r = receiver();
        r.receive(at(10), 10, true);
        assert!(!r.is_finished());
        r.receive(at(0), 10, false);
        assert!(r.is_finished());
        assert_eq!(r.next(), at(21));
        assert_eq!(r.receive(at(10), 10, true), Received { new: 0, acknowledge: Want::Now });
        assert_eq!(r.next(), at(21));
    }

    #[test]
    fn a_keep_alive_probe_is_answered_and_a_pure_ack_is_not() {
        let mut r = receiver();
        r.receive(at(0), 10, false);
        assert_eq!(r.receive(at(9), 0, false).acknowledge, Want::Now);
        assert_eq!(r.receive(at(10), 0, false).acknowledge, Want::Nothing);
        assert_eq!(r.receive(at(11), 0, false).acknowledge, Want::Nothing, "the ACK of an ACK, when a report was lost");
    }

    #[test]
    fn what_was_not_reported_and_will_not_be_is_passed_over() {
        let mut r = receiver();
        r.receive(at(100), 50, false);
        r.skip_to(at(100));
        assert_eq!(r.next(), at(150));
        r.skip_to(at(20));
        assert_eq!((r.next(), r.receive(at(150), 10, false)), (at(150), Received { new: 10, acknowledge: Want::Soon }));
    }

    #[test]
    fn an_answer_with_a_piece_missing_is_not_complete() {
        let mut r = receiver();
        r.receive(at(0), 10, false);
        assert!(!r.is_complete());
        r.note_end(at(30));
        r.receive(at(20), 10, true);
        assert!(!r.is_complete());
        r.receive(at(10), 10, false);
        assert!(r.is_complete());
    }

    #[test]
    fn a_reset_of_an_earlier_connection_is_told_by_its_number() {
        let mut r = receiver();
        r.receive(at(0), 100, false);
        assert!([0, 50, 100].into_iter().all(|offset| r.is_plausible_reset(at(offset))));
        assert!([u32::MAX, 101, 1 << 29].into_iter().all(|offset| !r.is_plausible_reset(at(offset))));
    }

    proptest! {
        #[test]
        fn any_order_of_reports_with_retransmission_completes(order in prop::collection::vec(0u32..40, 0..200)) {
            let mut r = receiver();
            let mut new = 0u64;
            for i in order {
                new += u64::from(r.receive(at(i * 7), 10, false).new);
            }
            // The target retransmits in order whatever was not acknowledged.
            for i in 0..40 {
                new += u64::from(r.receive(at(i * 7), 10, i == 39).new);
            }
            prop_assert_eq!(r.next(), at(39 * 7 + 10 + 1));
            prop_assert!(r.is_finished());
            prop_assert!(new >= 39 * 7 + 10);
        }
    }

    #[test]
    fn a_number_half_a_gigabyte_away_is_of_another_connection() {
        let r = receiver();
        let far = PLAUSIBLE as u32;
        assert!([0, far - 1, (far - 1).wrapping_neg()].into_iter().all(|offset| r.is_plausible(at(offset))));
        assert!([far, far.wrapping_neg(), 1 << 31].into_iter().all(|offset| !r.is_plausible(at(offset))));
    }

    #[test]
    fn an_end_noted_late_does_not_move_the_end_back_nor_past_the_fin() {
        let mut r = receiver();
        r.note_end(at(30));
        r.note_end(at(20));
        r.receive(at(0), 20, false);
        assert!(!r.is_complete());
        r.receive(at(20), 10, true);
        r.note_end(at(90));
        assert!(r.is_complete() && r.is_finished());
    }

    #[test]
    fn ranges_out_of_order_are_all_remembered() {
        let mut r = receiver();
        for offset in [300, 100, 200, 400] {
            assert_eq!(r.receive(at(offset), 10, false).new, 10);
        }
        for (offset, next) in [(0, 110), (110, 210), (210, 310), (310, 410)] {
            r.receive(at(offset), 100, false);
            assert_eq!(r.next(), at(next), "after the gap at {offset}");
        }
    }
}
