//! Timers in a hierarchical timing wheel: arming costs O(1) whatever the number of connections.
//!
//! Time counts in ticks of 2^16 ns (66 µs). Level 0 has a slot per tick, each level above has slots 64 times as wide.
//! An entry sits on the level of the highest digit (base 64) in which its tick differs from the current one, and moves
//! down when the wheel reaches its slot; so each is touched at most once per level. Timers never fire early.
//!
//! They are lazy. A deadline that moves to a later time, as nearly all do with every segment, leaves its entry where it
//! is; when that expires, the connection is asked for its deadline and armed anew. A deadline that moves to an earlier
//! time gets another entry, and the old one is found cancelled when it expires. So a segment in the steady state does
//! not touch the wheel, entries need no links to each other, and what is due can be prefetched.

use crate::{
    store::{id::Id, moment::Moment},
    time::Nanos,
};

const TICK_BITS: u32 = 16;
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 48 bits of ticks hold all of 64 bits of nanoseconds.
const LEVELS: usize = ((64 - TICK_BITS) / SLOT_BITS) as usize;
/// Maximum ticks (20 hours) that an entry lies ahead; a later deadline is looked at before: the wheel keeps the low 32
/// bits of ticks, and tells their order by the distance from the current one.
const MAX_TICKS_AHEAD: u64 = 1 << 30;

/// A connection's timers, by how far ahead their deadlines are: one that comes and goes within a millisecond must not
/// leave a cancelled entry for each time that it is set before one of minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Timer {
    /// The gate, delayed acknowledgements: up to some milliseconds.
    Soon,
    /// Retransmission: from 200 ms.
    Loss,
    /// Idleness, gaps, waits for a channel: from seconds.
    Late,
}

/// The entry in force of each of a connection's timers: the tick, or 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Armed([u32; 3]);

impl Armed {
    /// Notes that an entry has expired; returns whether one of the timers had it in force.
    pub(crate) fn fired(&mut self, tick: u32) -> bool {
        let mut in_force = false;
        for armed in self.0.iter_mut().filter(|armed| **armed == tick) {
            *armed = 0;
            in_force = true;
        }
        in_force
    }
}

/// A possibly cancelled expiry; confirm with [`Armed::fired`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub id: Id,
    pub tick: u32,
}

/// Entries of a slot, which is a list of blocks.
#[derive(Clone, Copy, Debug)]
struct Block {
    entries: [Entry; BLOCK],
    used: u32,
    next: u32,
}

/// Entries of a block, which takes 256 bytes with them.
const BLOCK: usize = 31;
/// No block.
const NONE: u32 = u32::MAX;
const EMPTY: Block = Block { entries: [Entry { id: Id::new(0), tick: 0 }; BLOCK], used: 0, next: NONE };

/// The wheel.
#[derive(Debug)]
pub(crate) struct Timers {
    /// Everything before this tick has expired.
    now: u64,
    /// All blocks, in slots or free; their memory is never released.
    blocks: Vec<Block>,
    free: u32,
    heads: Box<[u32; LEVELS * SLOTS]>,
    /// The occupied slots of each level, one bit each.
    occupied: [u64; LEVELS],
}

/// Returns the first tick that is not before `t`.
const fn tick_of(t: Nanos) -> u64 {
    t.0.div_ceil(1 << TICK_BITS)
}

impl Timers {
    pub(crate) fn new() -> Self {
        Self { now: 0, blocks: Vec::new(), free: NONE, heads: Box::new([NONE; LEVELS * SLOTS]), occupied: [0; LEVELS] }
    }

    /// Arms one of a connection's timers, to fire at `deadline` or within a tick after it; or earlier, when it was
    /// armed for an earlier time. A deadline that is never arms nothing.
    pub(crate) fn arm(&mut self, id: Id, armed: &mut Armed, timer: Timer, deadline: Moment) {
        if !deadline.is_set() {
            return;
        }
        let tick = tick_of(deadline.time()).clamp(self.now, self.now + MAX_TICKS_AHEAD);
        let armed = &mut armed.0[timer as usize];
        if *armed != 0 && self.widen(*armed) <= tick {
            return;
        }
        // 0 stands for none; a tick later is early enough.
        let tick = if tick as u32 == 0 { tick + 1 } else { tick };
        *armed = tick as u32;
        self.put(tick, id);
    }

    /// Whether an entry is in force that expires when the deadline does, or before.
    #[cfg(test)]
    pub(crate) fn covers(&self, armed: Armed, timer: Timer, deadline: Moment) -> bool {
        let tick = armed.0[timer as usize];
        !deadline.is_set() || tick != 0 && self.widen(tick) <= tick_of(deadline.time()).max(self.now) + 1
    }

    /// Returns how many entries there are, in force or cancelled.
    #[cfg(test)]
    pub(crate) fn len(&self) -> u32 {
        let blocks = |head: &u32| {
            std::iter::successors(self.blocks.get(*head as usize), |block| self.blocks.get(block.next as usize))
        };
        self.heads.iter().flat_map(blocks).map(|block| block.used).sum()
    }

    /// Returns when to call [`expire`](Self::expire) next: not later than the earliest timer (it may be earlier, when
    /// entries are cancelled or have to move down a level).
    pub(crate) fn next(&self) -> Option<Nanos> {
        let (level, slot) = self.first_slot()?;
        Some(Nanos(self.start_of(level, slot).saturating_mul(1 << TICK_BITS)))
    }

    /// Appends the entries that expire at `now` to `due`.
    pub(crate) fn expire(&mut self, now: Nanos, due: &mut Vec<Entry>) {
        let until = now.0 >> TICK_BITS;
        while let Some((level, slot)) = self.first_slot().filter(|&(l, s)| self.start_of(l, s) <= until) {
            self.now = self.now.max(self.start_of(level, slot));
            let mut index = std::mem::replace(&mut self.heads[level * SLOTS + slot], NONE);
            self.occupied[level] &= !(1 << slot);
            while index != NONE {
                let block = self.blocks[index as usize];
                for &entry in &block.entries[..block.used as usize] {
                    let tick = self.widen(entry.tick);
                    if tick <= self.now {
                        due.push(entry);
                    } else {
                        self.put(tick, entry.id);
                    }
                }
                self.blocks[index as usize].next = self.free;
                self.free = index;
                index = block.next;
            }
        }
        self.now = self.now.max(until);
    }

    /// Extends the low half of a tick that is at most half a circle away.
    const fn widen(&self, tick: u32) -> u64 {
        let ahead = tick.wrapping_sub(self.now as u32) as i32;
        self.now.wrapping_add_signed(ahead as i64)
    }

    /// Returns the first occupied slot: on the lowest occupied level, because all of a level lies before the next slot
    /// of the level above.
    fn first_slot(&self) -> Option<(usize, usize)> {
        let level = self.occupied.iter().position(|&bits| bits != 0)?;
        Some((level, self.occupied[level].trailing_zeros() as usize))
    }

    /// Returns the first tick of a slot.
    const fn start_of(&self, level: usize, slot: usize) -> u64 {
        let shift = level as u32 * SLOT_BITS;
        let above = self.now >> shift >> SLOT_BITS << SLOT_BITS << shift;
        above | (slot as u64) << shift
    }

    fn put(&mut self, tick: u64, id: Id) {
        // The highest digit in which it differs from now; the `| 1` makes the current tick level 0.
        let level = (((tick ^ self.now) | 1).ilog2() / SLOT_BITS) as usize;
        let slot = (tick >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        let place = level * SLOTS + slot;
        let mut index = self.heads[place];
        if index == NONE || self.blocks[index as usize].used as usize == BLOCK {
            index = self.new_block(index);
            self.heads[place] = index;
            self.occupied[level] |= 1 << slot;
        }
        let block = &mut self.blocks[index as usize];
        block.entries[block.used as usize] = Entry { id, tick: tick as u32 };
        block.used += 1;
    }

    /// Returns an empty block, followed by `next`.
    fn new_block(&mut self, next: u32) -> u32 {
        let index = if self.free == NONE {
            if self.blocks.len() == self.blocks.capacity() {
                // By less than a vector takes by itself: with a million sessions it is megabytes.
                self.blocks.reserve_exact(self.blocks.len() / 8 + 16);
            }
            self.blocks.push(EMPTY);
            (self.blocks.len() - 1) as u32
        } else {
            self.free
        };
        let block = &mut self.blocks[index as usize];
        if self.free == index {
            self.free = block.next;
        }
        (block.used, block.next) = (0, next);
        index
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    /// Timers, and what is noted about the connections that have them.
    struct Rig {
        timers: Timers,
        armed: Vec<Armed>,
    }

    impl Rig {
        fn new() -> Self {
            Self { timers: Timers::new(), armed: vec![Armed::default(); 20] }
        }

        fn arm(&mut self, index: usize, timer: Timer, deadline: Moment) {
            self.timers.arm(Id::new(index as u32), &mut self.armed[index], timer, deadline);
        }

        /// The connections with a timer in force that is due.
        fn expired(&mut self, now: Nanos) -> Vec<usize> {
            let mut due = Vec::new();
            self.timers.expire(now, &mut due);
            let index = |entry: &Entry| entry.id.get() as usize;
            due.iter().filter(|entry| self.armed[index(entry)].fired(entry.tick)).map(index).collect()
        }
    }

    #[test]
    fn a_timer_fires_once_never_early_and_within_a_tick() {
        let mut rig = Rig::new();
        let deadline = Nanos(123_456_789);
        rig.arm(0, Timer::Loss, Moment::at(deadline));
        assert!(rig.timers.next().unwrap() <= Nanos(deadline.0 + (1 << TICK_BITS)));
        assert!(rig.expired(Nanos(deadline.0 - 1)).is_empty());
        let late = Nanos(deadline.0 + (1 << TICK_BITS));
        assert_eq!(rig.expired(late), [0]);
        assert!(rig.expired(late).is_empty());
        assert_eq!(rig.timers.next(), None);
    }

    #[test]
    fn a_timer_that_moves_to_a_later_time_has_one_entry_and_one_that_moves_to_an_earlier_time_fires_once() {
        let mut rig = Rig::new();
        for deadline in [5_000_000, 9_000_000, 7_000_000] {
            rig.arm(1, Timer::Loss, Moment::at(Nanos(deadline)));
        }
        assert_eq!(rig.timers.len(), 1);
        rig.arm(1, Timer::Loss, Moment::at(Nanos(1_000_000)));
        assert_eq!(rig.expired(Nanos(2_000_000)), [1]);
        assert!(rig.expired(Nanos(9_000_000)).is_empty(), "the first entry is cancelled");
        rig.arm(1, Timer::Late, Moment::NEVER);
        assert_eq!(rig.timers.next(), None);
    }

    #[test]
    fn what_is_far_ahead_is_looked_at_before() {
        let mut rig = Rig::new();
        let month = Nanos(30 * 86_400_000_000_000);
        rig.arm(0, Timer::Late, Moment::at(month));
        assert_eq!(rig.expired(month), [0]);
        // The low half of the ticks has wrapped around more than once.
        for step in 1..200 {
            let deadline = Nanos(month.0 + step * 3_600_000_000_000);
            rig.arm(0, Timer::Late, Moment::at(deadline));
            assert!(rig.expired(Nanos(deadline.0 - 1)).is_empty(), "{step}");
            assert_eq!(rig.expired(Nanos(deadline.0 + (1 << TICK_BITS))), [0], "{step}");
        }
    }

    /// In an entry that is in force, 0 stands for none.
    #[test]
    fn a_tick_whose_low_half_is_zero_is_put_off_by_one() {
        let tick = 1 << TICK_BITS;
        for deadline in [0, tick << 32] {
            let mut rig = Rig::new();
            rig.expired(Nanos(deadline - deadline / 1000));
            for later in 0..3 {
                rig.arm(0, Timer::Soon, Moment::at(Nanos(deadline + later * 2 * tick)));
            }
            assert_eq!(rig.timers.len(), 1, "one entry covers them all");
            assert!(rig.expired(Nanos(deadline)).is_empty());
            assert_eq!(rig.expired(Nanos(deadline + tick)), [0]);
        }
    }

    #[test]
    fn what_is_due_together_shares_blocks() {
        let mut rig = Rig { timers: Timers::new(), armed: vec![Armed::default(); 2 * BLOCK] };
        for index in 0..2 * BLOCK {
            rig.arm(index, Timer::Loss, Moment::at(Nanos(5_000_000)));
        }
        assert_eq!(rig.timers.blocks.len(), 2);
        assert_eq!(rig.expired(Nanos(6_000_000)).len(), 2 * BLOCK);
    }

    #[test]
    fn memory_for_blocks_grows_in_few_steps_and_little_is_spare() {
        let mut timers = Timers::new();
        let mut steps = HashSet::new();
        for _ in 0..2000 {
            timers.new_block(NONE);
            let (len, capacity) = (timers.blocks.len(), timers.blocks.capacity());
            assert!(capacity <= len + len / 8 + 16, "{capacity} for {len}");
            steps.insert(capacity);
        }
        assert!(steps.len() < 40, "{}", steps.len());
    }

    #[test]
    fn blocks_are_used_again() {
        let mut rig = Rig::new();
        for round in 1..50 {
            for n in 0..100 {
                let deadline = Nanos(round * 100_000_000 - n as u64 * 200_000);
                rig.arm(n % 20, Timer::Soon, Moment::at(deadline));
            }
            rig.expired(Nanos(round * 100_000_000 + (1 << TICK_BITS)));
            assert_eq!(rig.timers.next(), None);
        }
        assert!(rig.timers.blocks.len() <= 101, "{}", rig.timers.blocks.len());
    }

    proptest! {
        /// A connection's deadline is the model's; the wheel may ask too often, but must ask in time.
        #[test]
        fn the_wheel_fires_all_that_a_sorted_list_would(
            steps in prop::collection::vec((0usize..20, 0u64..1 << 40, 0u64..1 << 33, 0u8..4), 1..200)
        ) {
            let mut rig = Rig::new();
            let mut deadlines = [Moment::NEVER; 20];
            let mut now = Nanos(0);
            for (i, delay, advance, what) in steps {
                match what {
                    0 => deadlines[i] = Moment::NEVER,
                    1 => {
                        now.0 += advance;
                        for fired in rig.expired(now) {
                            if deadlines[fired].is_due(now) {
                                deadlines[fired] = Moment::NEVER;
                            }
                            rig.arm(fired, Timer::Loss, deadlines[fired]);
                        }
                        // Whatever is overdue by more than a tick must be gone.
                        prop_assert!(deadlines.iter().all(|d| d.time().0.saturating_add(1 << TICK_BITS) > now.0));
                    }
                    _ => {
                        deadlines[i] = Moment::at(Nanos(now.0 + delay));
                        rig.arm(i, Timer::Loss, deadlines[i]);
                    }
                }
                let first = deadlines.into_iter().min().unwrap();
                let next = rig.timers.next();
                prop_assert!(!first.is_set() || next.is_some_and(|next| next.0 < first.time().0 + (1 << TICK_BITS)));
            }
        }
    }
}
