//! One timer per connection, in a hierarchical timing wheel: arming, moving and cancelling cost O(1) whatever the number of
//! connections.
//!
//! Time counts in ticks of 2^16 ns (66 µs). Level 0 has a slot per tick, each level above has slots 64 times as wide. A
//! timer sits on the level of the highest digit (base 64) in which its tick differs from the current one, and moves down
//! when the wheel reaches its slot; so each is touched at most once per level. Timers never fire early.

use super::table::Id;
use crate::time::Nanos;

const TICK_BITS: u32 = 16;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 48 bits of ticks hold all of 64 bits of nanoseconds.
const LEVELS: usize = ((64 - TICK_BITS) / SLOT_BITS) as usize;
/// No node; not armed.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Node {
    tick: u64,
    next: u32,
    previous: u32,
    /// Level times [`SLOTS`] plus slot; [`NONE`] when not armed.
    slot: u32,
}

const IDLE: Node = Node { tick: 0, next: NONE, previous: NONE, slot: NONE };

/// The wheel.
#[derive(Debug)]
pub(super) struct Timers {
    /// Everything before this tick has fired.
    now: u64,
    nodes: Vec<Node>,
    heads: Box<[u32; LEVELS * SLOTS]>,
    /// Per level: which slots are occupied.
    occupied: [u64; LEVELS],
}

/// The first tick that is not before `t`.
const fn tick_of(t: Nanos) -> u64 {
    t.0.div_ceil(1 << TICK_BITS)
}

impl Timers {
    pub fn new() -> Self {
        Self { now: 0, nodes: Vec::new(), heads: Box::new([NONE; LEVELS * SLOTS]), occupied: [0; LEVELS] }
    }

    /// Makes the connection's timer fire at `deadline` or within a tick after it; replaces what was armed before.
    pub fn arm(&mut self, id: Id, deadline: Nanos) {
        let index = id.index();
        if self.nodes.len() <= index {
            self.nodes.resize(index + 1, IDLE);
        }
        let tick = tick_of(deadline).max(self.now);
        let node = &self.nodes[index];
        if node.slot != NONE {
            if node.tick == tick {
                return;
            }
            self.unlink(index as u32);
        }
        self.nodes[index].tick = tick;
        self.link(index as u32);
    }

    /// Forgets the connection's timer.
    pub fn cancel(&mut self, id: Id) {
        if self.nodes.get(id.index()).is_some_and(|n| n.slot != NONE) {
            self.unlink(id.index() as u32);
        }
    }

    /// When to call [`expire`](Self::expire) next: not later than the earliest timer (it may be earlier, when timers
    /// have to move down a level).
    pub fn next(&self) -> Option<Nanos> {
        let (level, slot) = self.first_slot()?;
        Some(Nanos(self.start_of(level, slot).saturating_mul(1 << TICK_BITS)))
    }

    /// Disarms the timers that are due at `now`, and appends their connections to `due`.
    pub fn expire(&mut self, now: Nanos, due: &mut Vec<Id>) {
        let until = now.0 >> TICK_BITS;
        while let Some((level, slot)) = self.first_slot().filter(|&(l, s)| self.start_of(l, s) <= until) {
            self.now = self.now.max(self.start_of(level, slot));
            let mut index = std::mem::replace(&mut self.heads[level * SLOTS + slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let node = self.nodes[index as usize];
                if node.tick <= self.now {
                    self.nodes[index as usize] = IDLE;
                    due.push(Id::from_index(index as usize));
                } else {
                    self.link(index);
                }
                index = node.next;
            }
        }
        self.now = self.now.max(until);
    }

    /// The occupied slot that comes first: on the lowest occupied level, because all of a level lies before the next slot
    /// of the level above.
    fn first_slot(&self) -> Option<(usize, usize)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        Some((level, self.occupied[level].trailing_zeros() as usize))
    }

    /// The first tick of a slot.
    const fn start_of(&self, level: usize, slot: usize) -> u64 {
        let shift = level as u32 * SLOT_BITS;
        let above = self.now >> shift >> SLOT_BITS << SLOT_BITS << shift;
        above | (slot as u64) << shift
    }

    fn link(&mut self, index: u32) {
        let tick = self.nodes[index as usize].tick;
        // The highest digit in which it differs from now; the `| 1` makes the current tick level 0.
        let level = (((tick ^ self.now) | 1).ilog2() / SLOT_BITS) as usize;
        let slot = (tick >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        let place = level * SLOTS + slot;
        let next = self.heads[place];
        if next != NONE {
            self.nodes[next as usize].previous = index;
        }
        self.nodes[index as usize] = Node { tick, next, previous: NONE, slot: place as u32 };
        self.heads[place] = index;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, index: u32) {
        let node = self.nodes[index as usize];
        if node.previous == NONE {
            let place = node.slot as usize;
            self.heads[place] = node.next;
            if node.next == NONE {
                self.occupied[place / SLOTS] &= !(1 << (place % SLOTS));
            }
        } else {
            self.nodes[node.previous as usize].next = node.next;
        }
        if node.next != NONE {
            self.nodes[node.next as usize].previous = node.previous;
        }
        self.nodes[index as usize] = IDLE;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn id(i: usize) -> Id {
        Id::from_index(i)
    }

    fn expired(timers: &mut Timers, now: Nanos) -> Vec<usize> {
        let mut due = Vec::new();
        timers.expire(now, &mut due);
        due.into_iter().map(Id::index).collect()
    }

    #[test]
    fn a_timer_fires_once_never_early_and_within_a_tick() {
        let mut timers = Timers::new();
        let deadline = Nanos(123_456_789);
        timers.arm(id(0), deadline);
        assert!(timers.next().unwrap() <= Nanos(deadline.0 + (1 << TICK_BITS)));
        assert!(expired(&mut timers, Nanos(deadline.0 - 1)).is_empty());
        let late = Nanos(deadline.0 + (1 << TICK_BITS));
        assert_eq!(expired(&mut timers, late), [0]);
        assert!(expired(&mut timers, late).is_empty());
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn a_moved_or_cancelled_timer_does_not_fire_at_its_old_time() {
        let mut timers = Timers::new();
        for i in 0..3 {
            timers.arm(id(i), Nanos(1_000_000));
        }
        timers.arm(id(1), Nanos(9_000_000_000));
        timers.cancel(id(0));
        assert_eq!(expired(&mut timers, Nanos(2_000_000)), [2]);
        assert_eq!(expired(&mut timers, Nanos(9_100_000_000)), [1]);
    }

    proptest! {
        #[test]
        fn the_wheel_fires_what_a_sorted_list_would(
            steps in prop::collection::vec((0usize..20, 0u64..1 << 40, 0u64..1 << 33, 0u8..4), 1..200)
        ) {
            let mut timers = Timers::new();
            let mut model = BTreeMap::new();
            let mut now = Nanos(0);
            for (i, delay, advance, what) in steps {
                match what {
                    0 => { timers.cancel(id(i)); model.remove(&i); }
                    1 => {
                        now.0 += advance;
                        for fired in expired(&mut timers, now) {
                            let deadline: Nanos = model.remove(&fired).expect("not armed");
                            prop_assert!(deadline <= now);
                        }
                        // Whatever is overdue by more than a tick must be gone.
                        prop_assert!(model.values().all(|d| d.0 + (1 << TICK_BITS) > now.0));
                    }
                    _ => {
                        let deadline = Nanos(now.0 + delay);
                        timers.arm(id(i), deadline);
                        model.insert(i, deadline);
                    }
                }
                match (timers.next(), model.values().min()) {
                    (None, None) => {}
                    (Some(next), Some(first)) => prop_assert!(next.0 < first.0 + (1 << TICK_BITS)),
                    other => prop_assert!(false, "{other:?}"),
                }
            }
        }
    }
}
