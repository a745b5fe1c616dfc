//! Acknowledgements that take their time: a target that is to see clients at a distance gets each of them a round-trip time
//! after what it acknowledges, so that its congestion window grows as it would with real ones.

use std::{collections::VecDeque, time::Duration};

use super::seq::TargetSeq;
use crate::time::Nanos;

/// Acknowledgements under way. A client acknowledges every second segment, so this is a window of 128 segments; with more,
/// neighbours become one.
const MOST: usize = 64;

/// What a connection has acknowledged, and what it is about to.
#[derive(Debug)]
pub(super) struct Pacing {
    round_trip: Duration,
    /// What the segments that are sent acknowledge; `None` before the handshake is over, when none may be sent.
    acknowledged: Option<TargetSeq>,
    /// When to acknowledge what, in the order of time.
    waiting: VecDeque<(Nanos, TargetSeq)>,
}

impl Pacing {
    /// `first` is what the end of the handshake, a round-trip time from `now`, acknowledges.
    pub fn new(now: Nanos, round_trip: Duration, first: TargetSeq) -> Self {
        let mut waiting = VecDeque::with_capacity(MOST);
        waiting.push_back((now.after(round_trip), first));
        Self { round_trip, acknowledged: None, waiting }
    }

    /// What the segments that are sent now acknowledge, if any may be sent.
    pub const fn acknowledged(&self) -> Option<TargetSeq> {
        self.acknowledged
    }

    /// The target is to be told, a round-trip time from now, that everything before `next` has come.
    pub fn acknowledge(&mut self, now: Nanos, next: TargetSeq) {
        let entry = (now.after(self.round_trip), next);
        if self.waiting.len() == MOST {
            self.waiting.pop_back();
        }
        self.waiting.push_back(entry);
    }

    /// Lets those out that are due; whether there was one.
    pub fn release(&mut self, now: Nanos) -> bool {
        let mut released = false;
        while let Some(&(_, next)) = self.waiting.front().filter(|(at, _)| *at <= now) {
            self.waiting.pop_front();
            self.acknowledged = Some(next);
            released = true;
        }
        released
    }

    /// When the next one is due.
    pub fn deadline(&self) -> Option<Nanos> {
        self.waiting.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_nanos(1_000);

    #[test]
    fn each_acknowledgement_waits_its_time() {
        let mut pacing = Pacing::new(Nanos(0), ROUND_TRIP, TargetSeq::new(1));
        assert!(!pacing.release(Nanos(999)) && pacing.acknowledged().is_none());
        pacing.acknowledge(Nanos(500), TargetSeq::new(11));
        assert!(pacing.release(Nanos(1_000)) && !pacing.release(Nanos(1_499)));
        assert_eq!((pacing.acknowledged(), pacing.deadline()), (Some(TargetSeq::new(1)), Some(Nanos(1_500))));
        assert!(pacing.release(Nanos(5_000)));
        assert_eq!((pacing.acknowledged(), pacing.deadline()), (Some(TargetSeq::new(11)), None));
    }

    #[test]
    fn more_than_fit_become_one_and_the_last_is_kept() {
        let mut pacing = Pacing::new(Nanos(0), ROUND_TRIP, TargetSeq::new(1));
        let capacity = pacing.waiting.capacity();
        for n in 0..1_000 {
            pacing.acknowledge(Nanos(n), TargetSeq::new(n as u32));
        }
        assert_eq!((pacing.waiting.len(), pacing.waiting.capacity()), (MOST, capacity));
        assert!(pacing.release(Nanos(1_999)));
        assert_eq!(pacing.acknowledged(), Some(TargetSeq::new(999)));
    }
}
