//! The ring between the capture and the worker.

use std::{collections::VecDeque, mem, time::Duration};

use tcpcopy_replay::worker::Fill;

use super::{Event, RECORD_COST, World};
use crate::{live::Captured, worker::serves};

/// A record of the ring.
pub struct Record {
    pub segment: Captured,
    pub bad: bool,
    /// Records that were lost before this one.
    lost_before: u64,
}

impl Record {
    pub const fn octets(&self) -> usize {
        80 + self.segment.payload.len()
    }
}

enum Slot {
    Record(Record),
    /// Left behind by a wake-up.
    Discarded,
}

pub struct Ring {
    slots: VecDeque<Slot>,
    used: usize,
    size: usize,
    pub need_wakeup: bool,
    /// A producer is about to wake the reader.
    pub(super) waking: bool,
    lost: u64,
    /// Lost records that the worker knows of.
    announced: u64,
    /// Records that the worker got, those of the live server's SYN-ACKs apart.
    pub(super) drained: u64,
    pub(super) bad: u64,
}

impl Ring {
    pub(super) fn new(size: usize) -> Self {
        let slots = VecDeque::new();
        Self { slots, used: 0, size, need_wakeup: false, waking: false, lost: 0, announced: 0, drained: 0, bad: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub fn upcoming(&self) -> impl Iterator<Item = &Record> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Record(record) => Some(record),
            Slot::Discarded => None,
        })
    }

    pub const fn fill(&self) -> Fill {
        Fill { used: self.used, size: self.size }
    }

    pub fn prepare_sleep(&mut self) -> bool {
        self.need_wakeup = self.slots.is_empty();
        self.need_wakeup
    }

    /// A producer wakes the reader.
    pub(super) fn wake(&mut self) {
        self.waking = false;
        self.slots.push_back(Slot::Discarded);
    }

    /// Whether a producer has woken the reader.
    pub(super) fn has_woken(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Discarded))
    }
}

impl World<'_> {
    pub(super) fn capture(&mut self, segment: Captured) {
        // The programs are detached before the worker is told to stop.
        if self.stopping {
            return;
        }
        self.tell(|| segment.to_string());
        let bad = self.random.chance(self.scenario.surroundings.bad_records);
        let record = Record { segment, bad, lost_before: self.ring.lost };
        let fits = self.ring.used + record.octets() <= self.ring.size;
        for (copy, site) in self.sites.iter_mut().enumerate() {
            if fits && !bad && serves(self.scenario, copy, usize::from(record.segment.rule % 2)) {
                site.oracle.captured(&record.segment);
            } else {
                site.oracle.lost(&record.segment);
            }
        }
        if !fits {
            // Holes of other connections at about this time are not waited for either.
            self.sites.iter_mut().for_each(|site| site.oracle.disturb());
            self.ring.lost += 1;
            self.outcome.ring_full += 1;
            return;
        }
        self.ring.used += record.octets();
        self.ring.slots.push_back(Slot::Record(record));
        if mem::take(&mut self.ring.need_wakeup) {
            // The record is there before the wake-up is.
            self.ring.waking = true;
            let moment = Duration::from_nanos(self.random.within(0..=5_000));
            self.put(self.now.after(moment), Event::Woken);
        }
    }

    pub fn has_lost(&mut self) -> bool {
        // Others do not wait while the worker looks, neither before it has seen this nor afterwards.
        let moment = Duration::from_nanos(200 * self.scenario.surroundings.slowness);
        self.elapse(moment);
        let lost = mem::replace(&mut self.ring.announced, self.ring.lost) != self.ring.lost;
        self.elapse(moment);
        lost
    }

    /// The next record, if there is one and it is `wanted`. What is not a record goes in any case.
    pub fn drain(&mut self, wanted: bool) -> Option<Record> {
        while let Some(Slot::Discarded) = self.ring.slots.front() {
            self.ring.slots.pop_front();
            self.progress = true;
        }
        let Some(Slot::Record(record)) = self.ring.slots.pop_front_if(|_| wanted) else { return None };
        self.require(record.lost_before <= self.ring.announced, || {
            "a record is handled before the loss that came before it is known".to_owned()
        });
        self.ring.used -= record.octets();
        self.ring.drained += u64::from(record.bad || !record.segment.is_answer());
        self.ring.bad += u64::from(record.bad);
        self.records += 1;
        self.captured += record.octets();
        self.cost += RECORD_COST;
        self.progress = true;
        Some(record)
    }
}
