//! Where connections live and how they are found: a slab, and maps from four-tuples into it.

use std::{
    collections::HashMap,
    hash::{BuildHasher, Hash, Hasher},
};

use tcpcopy_common::flow::Flow;

/// Names a connection for as long as it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

impl Id {
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    pub const fn from_index(index: usize) -> Self {
        Self(index as u32)
    }
}

/// Values at stable indices; a freed index is used again.
///
/// Ids carry no generation: whoever removes a value also removes its id from the maps and the timers. The queue of those
/// with something to send may still name it; then its successor is asked once in vain.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    pub const fn new() -> Self {
        Self { slots: Vec::new(), free: Vec::new() }
    }

    pub const fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub fn insert(&mut self, value: T) -> Id {
        if let Some(index) = self.free.pop() {
            self.slots[index as usize] = Some(value);
            Id(index)
        } else {
            self.slots.push(Some(value));
            Id((self.slots.len() - 1) as u32)
        }
    }

    pub fn remove(&mut self, id: Id) -> Option<T> {
        let value = self.slots.get_mut(id.index())?.take()?;
        self.free.push(id.0);
        Some(value)
    }

    pub fn get(&self, id: Id) -> Option<&T> {
        self.slots.get(id.index())?.as_ref()
    }

    pub fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.slots.get_mut(id.index())?.as_mut()
    }

    /// The ids in use, ascending. Walks everything: for rare events only.
    pub fn ids(&self) -> Vec<Id> {
        self.slots.iter().enumerate().filter(|(_, s)| s.is_some()).map(|(i, _)| Id(i as u32)).collect()
    }
}

/// A four-tuple as a map key: hashed in one go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key(Flow);

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(bytemuck::bytes_of(&self.0));
    }
}

/// Connections by four-tuple.
#[derive(Debug)]
pub(super) struct FlowMap(HashMap<Key, Id, FlowHasher>);

impl FlowMap {
    pub fn new(seed: u64) -> Self {
        Self(HashMap::with_hasher(FlowHasher::new(seed)))
    }

    pub fn get(&self, flow: &Flow) -> Option<Id> {
        self.0.get(&Key(*flow)).copied()
    }

    pub fn contains(&self, flow: &Flow) -> bool {
        self.0.contains_key(&Key(*flow))
    }

    pub fn insert(&mut self, flow: Flow, id: Id) {
        self.0.insert(Key(flow), id);
    }

    /// Removes the entry, unless it names another connection by now.
    pub fn remove(&mut self, flow: &Flow, id: Id) {
        if self.get(flow) == Some(id) {
            self.0.remove(&Key(*flow));
        }
    }
}

/// Keyed, because four-tuples come from outside and must not be chosen to collide; a multiplication per word, because it
/// runs for every segment.
#[derive(Clone, Copy, Debug)]
pub(super) struct FlowHasher {
    state: u64,
    key: u64,
}

impl FlowHasher {
    pub fn new(seed: u64) -> Self {
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

/// A keyed hash of a four-tuple and a number, for initial sequence numbers and ports.
pub(super) fn keyed_hash(seed: u64, flow: &Flow, salt: u64) -> u64 {
    let mut h = FlowHasher::new(seed ^ salt.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    h.write(bytemuck::bytes_of(flow));
    h.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::flow;

    #[test]
    fn an_index_is_used_again_after_removal() {
        let mut slab = Slab::new();
        let a = slab.insert('a');
        let b = slab.insert('b');
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        assert_eq!((slab.len(), slab.get(a), slab.get(b)), (1, None, Some(&'b')));
        assert_eq!(slab.insert('c'), a);
        assert_eq!(slab.ids(), [a, b]);
    }

    #[test]
    fn an_entry_that_was_taken_over_is_not_removed() {
        let mut map = FlowMap::new(1);
        let (old, new) = (Id(1), Id(2));
        map.insert(flow(1), old);
        map.insert(flow(1), new);
        map.remove(&flow(1), old);
        assert_eq!(map.get(&flow(1)), Some(new));
    }

    #[test]
    fn hashes_spread_over_the_low_and_the_high_bits() {
        for seed in 0..4 {
            let mut low = [0u32; 64];
            let mut high = [0u32; 64];
            for port in 0..=u16::MAX {
                let h = keyed_hash(seed, &flow(port), 0);
                low[(h & 63) as usize] += 1;
                high[(h >> 58) as usize] += 1;
            }
            // 1024 expected; six standard deviations are 190.
            assert!(low.iter().chain(&high).all(|n| (834..1214).contains(n)), "{low:?} {high:?}");
        }
    }
}
