//! The flow table: a hash table from four-tuples to connections.
//!
//! A connection knows its four-tuples, so the table does not hold them: a slot is 32 bits of the hash and an index,
//! eight of them share a cache line, and nearly every look-up touches one. The hash bits that are kept also say where a
//! slot belongs when the table grows, so that growing does not touch the connections.

use std::hash::{BuildHasher, Hasher};

use tcpcopy_common::flow::Flow;

use crate::store::{id::Id, prefetch::prefetch};

/// The bits of a four-tuple's hash that a slot keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(u32);

#[derive(Clone, Copy, Debug)]
struct Slot {
    tag: u32,
    /// [`EMPTY`] when the slot is not in use.
    id: u32,
}

const EMPTY: u32 = u32::MAX;
const VACANT: Slot = Slot { tag: 0, id: EMPTY };
/// Minimum slots; a power of two.
const MIN_SLOTS: usize = 64;

/// Connections by four-tuple: open addressing with linear probing, without tombstones.
#[derive(Debug)]
pub(crate) struct FlowTable {
    /// A power of two of them, of which at most seven eighths are in use.
    slots: Vec<Slot>,
    used: usize,
    hasher: FlowHasher,
}

impl FlowTable {
    pub(crate) fn new(seed: u64) -> Self {
        Self { slots: vec![VACANT; MIN_SLOTS], used: 0, hasher: FlowHasher::new(seed) }
    }

    /// Returns the tag of a four-tuple.
    pub(crate) fn tag(&self, flow: &Flow) -> Tag {
        let mut hasher = self.hasher;
        hasher.write(bytemuck::bytes_of(flow));
        Tag(hasher.finish() as u32)
    }

    /// Prefetches what a look-up needs.
    pub(crate) fn prefetch(&self, tag: Tag) {
        prefetch(&self.slots[self.home(tag.0)]);
    }

    /// Returns the first connection with a tag that `is` the one wanted.
    pub(crate) fn find(&self, tag: Tag, mut is: impl FnMut(Id) -> bool) -> Option<Id> {
        let mut at = self.home(tag.0);
        loop {
            let slot = self.slots[at];
            if slot.id == EMPTY {
                return None;
            }
            if slot.tag == tag.0 && is(Id::new(slot.id)) {
                return Some(Id::new(slot.id));
            }
            at = self.after(at);
        }
    }

    /// Adds a connection, whose four-tuple no other has.
    pub(crate) fn insert(&mut self, flow: &Flow, id: Id) {
        if (self.used + 1) * 8 > self.slots.len() * 7 {
            let larger = vec![VACANT; self.slots.len() * 2];
            let slots = std::mem::replace(&mut self.slots, larger);
            slots.into_iter().filter(|slot| slot.id != EMPTY).for_each(|slot| self.place(slot));
        }
        let Tag(tag) = self.tag(flow);
        self.place(Slot { tag, id: id.get() });
        self.used += 1;
    }

    /// Removes a connection's entry for a four-tuple, if there is one.
    pub(crate) fn remove(&mut self, flow: &Flow, id: Id) {
        let Tag(tag) = self.tag(flow);
        let mut hole = self.home(tag);
        while (self.slots[hole].tag, self.slots[hole].id) != (tag, id.get()) {
            if self.slots[hole].id == EMPTY {
                return;
            }
            hole = self.after(hole);
        }
        self.used -= 1;
        // Those that follow without a gap move up, unless that would put them before where they belong.
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = self.after(at);
            let slot = self.slots[at];
            if slot.id == EMPTY {
                break;
            }
            let displacement = at.wrapping_sub(self.home(slot.tag)) & mask;
            if displacement >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = slot;
                hole = at;
            }
        }
        self.slots[hole] = VACANT;
    }

    fn place(&mut self, slot: Slot) {
        let mut at = self.home(slot.tag);
        while self.slots[at].id != EMPTY {
            at = self.after(at);
        }
        self.slots[at] = slot;
    }

    const fn home(&self, tag: u32) -> usize {
        tag as usize & (self.slots.len() - 1)
    }

    const fn after(&self, at: usize) -> usize {
        (at + 1) & (self.slots.len() - 1)
    }
}

/// Keyed, because four-tuples come from outside and must not be chosen to collide; a multiplication per word, because
/// it runs for every segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FlowHasher {
    state: u64,
    key: u64,
}

impl FlowHasher {
    pub(crate) fn new(seed: u64) -> Self {
        let state = mix(seed ^ 0x243f_6a88_85a3_08d3, 0x1319_8a2e_0370_7345);
        // Odd, so that the multiplication loses nothing.
        Self { state, key: mix(state, 0xa409_3822_299f_31d1) | 1 }
    }
}

/// The halves of the 128-bit product, folded.
const fn mix(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

impl BuildHasher for FlowHasher {
    type Hasher = Self;

    fn build_hasher(&self) -> Self {
        *self
    }
}

impl Hasher for FlowHasher {
    fn write(&mut self, octets: &[u8]) {
        let (words, rest) = octets.as_chunks::<8>();
        for word in words {
            self.state = mix(self.state ^ u64::from_le_bytes(*word), self.key);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        self.state = mix(self.state ^ u64::from_le_bytes(last), self.key ^ octets.len() as u64);
    }

    fn finish(&self) -> u64 {
        mix(self.state, self.key)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::engine::tests::flow;

    fn hash(seed: u64, flow: &Flow) -> u64 {
        let mut hasher = FlowHasher::new(seed);
        hasher.write(bytemuck::bytes_of(flow));
        hasher.finish()
    }

    /// A table, and the connections that a slab would hold.
    struct Rig {
        table: FlowTable,
        ports: Vec<Option<u16>>,
    }

    impl Rig {
        fn find(&self, port: u16) -> Option<Id> {
            self.table.find(self.table.tag(&flow(port)), |id| self.ports[id.get() as usize] == Some(port))
        }
    }

    #[test]
    fn an_entry_of_another_connection_on_the_same_four_tuple_is_not_removed() {
        let mut rig = Rig { table: FlowTable::new(1), ports: vec![None, None, Some(1)] };
        let (old, new) = (Id::new(1), Id::new(2));
        rig.table.insert(&flow(1), new);
        rig.table.remove(&flow(1), old);
        assert_eq!(rig.find(1), Some(new));
    }

    #[test]
    fn equal_tags_are_told_apart_by_the_connections() {
        let mut table = FlowTable::new(1);
        let tag = table.tag(&flow(1));
        for id in 0..3 {
            table.place(Slot { tag: tag.0, id });
        }
        assert_eq!(table.find(tag, |id| id.get() == 2), Some(Id::new(2)));
        assert_eq!(table.find(tag, |_| false), None);
    }

    #[test]
    fn a_look_up_in_a_full_table_ends() {
        let mut rig = Rig { table: FlowTable::new(3), ports: (0..56).map(Some).collect() };
        (0..56).for_each(|port| rig.table.insert(&flow(port), Id::new(u32::from(port))));
        assert_eq!(rig.table.slots.len(), MIN_SLOTS, "full, but not beyond");
        assert!((0..56).all(|port| rig.find(port) == Some(Id::new(u32::from(port)))));
        assert!((56..1000).all(|port| rig.find(port).is_none()));
        rig.table.insert(&flow(56), Id::new(56));
        assert_eq!(rig.table.slots.len(), 2 * MIN_SLOTS);
    }

    #[test]
    fn most_entries_are_where_the_first_look_finds_them() {
        let mut table = FlowTable::new(4);
        (0..1000).for_each(|port| table.insert(&flow(port), Id::new(u32::from(port))));
        let first = (0..1000).filter(|&port| {
            let Tag(tag) = table.tag(&flow(port));
            table.slots[tag as usize % table.slots.len()].id == u32::from(port)
        });
        assert!(first.count() > 600);
    }

    proptest! {
        /// Few slots and many removals, so that runs of slots wrap around the end and close up in every way.
        #[test]
        fn the_table_finds_what_a_map_would(
            seed: u64,
            steps in prop::collection::vec((0u16..200, prop::bool::weighted(0.6)), 0..600),
        ) {
            let mut rig = Rig { table: FlowTable::new(seed), ports: vec![None; 200] };
            let mut model = HashMap::new();
            for (port, add) in steps {
                // A connection's index says nothing about its four-tuple.
                let id = u32::from(port * 7 % 200);
                if add && model.insert(port, Id::new(id)).is_none() {
                    rig.ports[id as usize] = Some(port);
                    rig.table.insert(&flow(port), Id::new(id));
                } else if !add && model.remove(&port).is_some() {
                    rig.table.remove(&flow(port), Id::new(id));
                    rig.ports[id as usize] = None;
                }
                prop_assert_eq!(rig.table.used, model.len());
            }
            for port in 0..200 {
                prop_assert_eq!(rig.find(port), model.get(&port).copied());
            }
        }
    }

    #[test]
    fn every_octet_of_a_four_tuple_counts_and_moves_the_low_bits_too() {
        let plain = flow(40_000);
        for at in 0..size_of::<Flow>() {
            let hashes: HashSet<u64> = (0..=u8::MAX)
                .map(|octet| {
                    let mut other = plain;
                    bytemuck::bytes_of_mut(&mut other)[at] = octet;
                    hash(5, &other)
                })
                .collect();
            assert_eq!(hashes.len(), 256, "octet {at}");
            // 1024 places for 256: by chance some 29 are taken twice.
            let low: HashSet<u64> = hashes.iter().map(|hash| hash & 1023).collect();
            assert!(low.len() > 190, "octet {at}: {}", low.len());
        }
    }

    #[test]
    fn what_differs_only_in_padding_or_seed_differs_in_its_hash() {
        let of = |octets: &[u8]| {
            let mut hasher = FlowHasher::new(5);
            hasher.write(octets);
            hasher.finish()
        };
        assert_ne!(of(&[]), of(&[0]));
        assert_ne!(hash(u64::MAX, &flow(1)), hash(1, &flow(1)));
    }

    #[test]
    fn hashes_spread_over_the_low_and_the_high_bits() {
        for seed in 0..4 {
            let mut low = [0u32; 64];
            let mut high = [0u32; 64];
            for port in 0..=u16::MAX {
                let h = hash(seed, &flow(port));
                low[(h & 63) as usize] += 1;
                high[(h >> 58) as usize] += 1;
            }
            // 1024 expected; six standard deviations are 190.
            assert!(low.iter().chain(&high).all(|n| (834..1214).contains(n)), "{low:?} {high:?}");
        }
    }
}
