//! Live connections whose clients have not completed the handshake: a small entry each, however many SYNs come.
//!
//! A SYN proves nothing, as its source address may be forged. The entry of a four-tuple waits for the live server's
//! SYN-ACK, and for the client's acknowledgement of that; only then there is a connection, and a session for it. When
//! there are too many, the oldest goes first, so that a client near enough is not crowded out by a flood.

use std::{collections::VecDeque, time::Duration};

use tcpcopy_common::flow::Flow;

use crate::{
    segment::LiveOptions,
    store::{id::Id, table::FlowTable},
    tcp::seq::{LiveAck, LiveSeq},
    time::Nanos,
};

/// How long an entry is kept after its SYN, or after the SYN-ACK: Linux repeats a SYN-ACK for 63 s.
const LIFETIME: Duration = Duration::from_secs(64);
/// Expired entries are looked for so often at most: a flood of them must not wake the worker one by one.
const SWEEP: Duration = Duration::from_millis(500);
/// The most entries. A flood of 50,000 SYNs per second on one worker leaves an honest client 2.6 s for its handshake.
const MOST: usize = 1 << 17;
/// Entries that there is always room for.
const LEAST: usize = 16;
/// Octets of an entry, with its places in the table and in the queue.
const FOOTPRINT: usize = size_of::<Slot>() + 2 * 8 + 8;

/// A live client that has sent a SYN.
#[derive(Clone, Debug)]
pub(super) struct HalfOpen {
    pub flow: Flow,
    /// Of the client: of its SYN, or as the SYN-ACK says.
    pub isn: LiveSeq,
    /// The SYN, unless only the SYN-ACK was seen.
    pub syn: Option<Syn>,
    pub answer: Option<Answer>,
}

/// What is known from a SYN.
#[derive(Clone, Debug)]
pub(super) struct Syn {
    /// When the last copy of it was captured.
    pub time: Nanos,
    pub options: LiveOptions,
    /// Octets that it carries (TCP Fast Open, RFC 7413), and whether a PSH ends them.
    pub payload: Option<Box<[u8]>>,
    pub push: bool,
}

/// What is known from a SYN-ACK.
#[derive(Clone, Copy, Debug)]
pub(super) struct Answer {
    /// The number of the live server's first octet after its SYN.
    pub first: LiveAck,
    pub options: LiveOptions,
}

#[derive(Debug)]
struct Slot {
    /// How often the slot was used: the queue names entries that are gone.
    generation: u32,
    until: Nanos,
    value: Option<HalfOpen>,
}

/// The entries, by four-tuple and by age.
#[derive(Debug)]
pub(super) struct HalfOpens {
    slots: Vec<Slot>,
    free: Vec<u32>,
    by_flow: FlowTable,
    /// Slots with their generations, the oldest entry first.
    order: VecDeque<(u32, u32)>,
    most: usize,
    /// Octets of payload that the entries may hold, and hold.
    most_payload: usize,
    payload: usize,
}

impl HalfOpens {
    /// Entries that together take an eighth of `memory` at most, and their payload another sixteenth.
    pub(super) fn new(seed: u64, memory: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            by_flow: FlowTable::new(seed),
            order: VecDeque::new(),
            most: (memory / 8 / FOOTPRINT).clamp(LEAST, MOST),
            most_payload: memory / 16,
            payload: 0,
        }
    }

    /// Octets that entries and payload may take.
    pub(super) const fn budget(&self) -> usize {
        self.most * FOOTPRINT + self.most_payload
    }

    pub(super) const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn find(&self, flow: &Flow) -> Option<Id> {
        self.by_flow.find(self.by_flow.tag(flow), |id| self.get(id).is_some_and(|entry| entry.flow == *flow))
    }

    pub(super) fn get(&self, id: Id) -> Option<&HalfOpen> {
        self.slots.get(id.get() as usize)?.value.as_ref()
    }

    pub(super) fn get_mut(&mut self, id: Id) -> Option<&mut HalfOpen> {
        self.slots.get_mut(id.get() as usize)?.value.as_mut()
    }

    /// Whether a SYN's payload may be held.
    pub(super) const fn has_room_for(&self, octets: usize) -> bool {
        self.payload + octets <= self.most_payload
    }

    /// Adds an entry, whose four-tuple no other has; returns the oldest if it had to go for it.
    pub(super) fn insert(&mut self, now: Nanos, entry: HalfOpen) -> Option<HalfOpen> {
        let evicted = if self.len() >= self.most { self.pop_oldest() } else { None };
        let flow = entry.flow;
        self.payload += entry.payload_len();
        let until = now.after(LIFETIME);
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, until, value: None });
                self.slots.len() as u32 - 1
            }
        };
        if let Some(slot) = self.slots.get_mut(index as usize) {
            slot.generation = slot.generation.wrapping_add(1);
            slot.until = until;
            slot.value = Some(entry);
            self.order.push_back((index, slot.generation));
        }
        self.by_flow.insert(&flow, Id::new(index));
        // Entries that were completed leave their places in the queue.
        if self.order.len() > 2 * self.len() + LEAST {
            let slots = &self.slots;
            self.order.retain(|&(index, generation)| is_current(slots, index, generation));
        }
        evicted
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<HalfOpen> {
        let entry = self.slots.get_mut(id.get() as usize)?.value.take()?;
        self.by_flow.remove(&entry.flow, id);
        self.payload -= entry.payload_len();
        self.free.push(id.get());
        Some(entry)
    }

    /// Takes the payload out of an entry's SYN.
    pub(super) fn take_payload(&mut self, id: Id) -> Option<Box<[u8]>> {
        let payload = self.get_mut(id)?.syn.as_mut()?.payload.take()?;
        self.payload -= payload.len();
        Some(payload)
    }

    /// When expired entries should be looked for.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        let &(index, _) = self.order.front()?;
        // That of an entry that is gone is early, which does no harm.
        self.slots.get(index as usize).map(|slot| slot.until.after(SWEEP))
    }

    /// Takes out an entry whose time is over.
    pub(super) fn pop_expired(&mut self, now: Nanos) -> Option<HalfOpen> {
        while let Some(&(index, generation)) = self.order.front() {
            if is_current(&self.slots, index, generation) {
                let due = self.slots.get(index as usize).is_some_and(|slot| slot.until <= now);
                return if due { self.pop_oldest() } else { None };
            }
            self.order.pop_front();
        }
        None
    }

    /// Takes out the oldest entry.
    pub(super) fn pop_oldest(&mut self) -> Option<HalfOpen> {
        while let Some((index, generation)) = self.order.pop_front() {
            if is_current(&self.slots, index, generation) {
                return self.remove(Id::new(index));
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &HalfOpen> {
        self.slots.iter().filter_map(|slot| slot.value.as_ref())
    }
}

impl HalfOpen {
    pub(super) fn payload_len(&self) -> usize {
        self.syn.as_ref().and_then(|syn| syn.payload.as_ref()).map_or(0, |payload| payload.len())
    }
}

fn is_current(slots: &[Slot], index: u32, generation: u32) -> bool {
    slots.get(index as usize).is_some_and(|slot| slot.generation == generation && slot.value.is_some())
}

// A flood makes a hundred thousand of them.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Slot>() <= 136);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::flow;

    fn entry(port: u16, payload: usize) -> HalfOpen {
        let payload = (payload > 0).then(|| vec![0; payload].into());
        let syn = Syn { time: Nanos(0), options: LiveOptions::default(), payload, push: false };
        HalfOpen { flow: flow(port), isn: LiveSeq::new(port.into()), syn: Some(syn), answer: None }
    }

    #[test]
    fn the_oldest_entry_makes_room_for_the_newest() {
        let mut entries = HalfOpens::new(1, 0);
        for port in 0..LEAST as u16 {
            assert!(entries.insert(Nanos(port.into()), entry(port, 0)).is_none());
        }
        let second = entries.find(&flow(1)).unwrap();
        assert!(entries.remove(second).is_some());
        assert!(entries.insert(Nanos(100), entry(100, 0)).is_none());
        let evicted = |entries: &mut HalfOpens, port| entries.insert(Nanos(200), entry(port, 0)).map(|e| e.flow);
        assert_eq!(evicted(&mut entries, 101), Some(flow(0)));
        assert_eq!(evicted(&mut entries, 102), Some(flow(2)));
        assert_eq!((entries.len(), entries.find(&flow(2)), entries.find(&flow(1))), (LEAST, None, None));
    }

    #[test]
    fn entries_that_come_and_go_leave_nothing_behind() {
        let mut entries = HalfOpens::new(1, 1 << 20);
        for port in 0..60_000 {
            entries.insert(Nanos(port), entry(port as u16, 10));
            let id = entries.find(&flow(port as u16)).unwrap();
            assert!(entries.remove(id).is_some());
        }
        assert!(entries.order.len() < 100 && entries.slots.len() == 1 && entries.payload == 0);
        assert_eq!(entries.len(), 0);
    }

    #[test]
    fn an_entry_expires_and_is_counted_out() {
        let mut entries = HalfOpens::new(1, 1 << 20);
        entries.insert(Nanos(0), entry(1, 10));
        entries.insert(Nanos(1), entry(2, 0));
        let end = Nanos(0).after(LIFETIME);
        assert!(entries.deadline().is_some_and(|at| at >= end));
        assert!(entries.pop_expired(Nanos(end.0 - 1)).is_none());
        assert_eq!(entries.pop_expired(end).map(|e| e.flow), Some(flow(1)));
        assert!(entries.pop_expired(end).is_none());
        assert_eq!((entries.payload, entries.len()), (0, 1));
    }
}
