//! The slab: connections at stable indices, which tables and timers name.

use crate::store::{id::Id, prefetch::prefetch, timers::Armed};

/// Octets of a chunk: a huge page, where the program's allocator asks for huge pages.
const CHUNK: usize = 2 << 20;

/// One index.
#[derive(Debug)]
struct Slot<T> {
    /// Outlives the value: entries in the timing wheel are not searched for when a value is removed, but found stale
    /// when they expire. So the next value finds them armed and needs no others, however fast values come and go.
    armed: Armed,
    /// Outlives the value for the same reason.
    queued: bool,
    value: Option<T>,
}

/// Values at stable indices; a freed index is used again. They are in chunks: a million of them never have to move to
/// larger memory, and little is spare.
///
/// Ids carry no generation: the engine removes the id of a removed value from its tables. Timers, and the queue of
/// connections with something to send, may still name it; then its successor is polled once in vain.
#[derive(Debug)]
pub(crate) struct Slab<T> {
    /// Each holds [`PER_CHUNK`](Self::PER_CHUNK); the last may have fewer.
    chunks: Vec<Vec<Slot<T>>>,
    /// Indices that have been given out.
    slots: u32,
    free: Vec<u32>,
}

impl<T> Slab<T> {
    const PER_CHUNK: usize = CHUNK / size_of::<Slot<T>>();

    pub(crate) const fn new() -> Self {
        Self { chunks: Vec::new(), slots: 0, free: Vec::new() }
    }

    pub(crate) const fn len(&self) -> usize {
        self.slots as usize - self.free.len()
    }

    pub(crate) fn insert(&mut self, value: T) -> Id {
        if let Some(index) = self.free.pop() {
            let id = Id::new(index);
            if let Some(slot) = self.slot_mut(id) {
                slot.value = Some(value);
            }
            return id;
        }
        if self.chunks.last().is_none_or(|chunk| chunk.len() == Self::PER_CHUNK) {
            // The first chunk grows on demand; later chunks are allocated in full.
            let capacity = if self.chunks.is_empty() { 0 } else { Self::PER_CHUNK };
            self.chunks.push(Vec::with_capacity(capacity));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(Slot { armed: Armed::default(), queued: false, value: Some(value) });
        }
        self.slots += 1;
        Id::new(self.slots - 1)
    }

    pub(crate) fn remove(&mut self, id: Id) -> Option<T> {
        let value = self.slot_mut(id)?.value.take()?;
        self.free.push(id.get());
        Some(value)
    }

    pub(crate) fn get(&self, id: Id) -> Option<&T> {
        self.slot(id)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: Id) -> Option<&mut T> {
        self.slot_mut(id)?.value.as_mut()
    }

    /// Returns the armed timers of an index.
    pub(crate) fn armed_mut(&mut self, id: Id) -> Option<&mut Armed> {
        self.slot_mut(id).map(|slot| &mut slot.armed)
    }

    #[cfg(test)]
    pub(crate) fn armed(&self, id: Id) -> Armed {
        self.slot(id).map(|slot| slot.armed).unwrap_or_default()
    }

    /// Notes whether an index is in the queue of those with something to send; returns whether it was before.
    pub(crate) fn set_queued(&mut self, id: Id, queued: bool) -> bool {
        self.slot_mut(id).is_none_or(|slot| std::mem::replace(&mut slot.queued, queued))
    }

    /// Prefetches a value.
    pub(crate) fn prefetch(&self, id: Id) {
        if let Some(slot) = self.slot(id) {
            prefetch(slot);
        }
    }

    /// Returns the ids in use, ascending. Visits all indices: for rare events only.
    pub(crate) fn ids(&self) -> Vec<Id> {
        (0..self.slots).map(Id::new).filter(|&id| self.get(id).is_some()).collect()
    }

    fn slot(&self, id: Id) -> Option<&Slot<T>> {
        let index = id.get() as usize;
        self.chunks.get(index / Self::PER_CHUNK)?.get(index % Self::PER_CHUNK)
    }

    fn slot_mut(&mut self, id: Id) -> Option<&mut Slot<T>> {
        let index = id.get() as usize;
        self.chunks.get_mut(index / Self::PER_CHUNK)?.get_mut(index % Self::PER_CHUNK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
    fn values_beyond_a_chunk_are_where_their_ids_say() {
        let mut slab = Slab::new();
        assert!(Slab::<usize>::PER_CHUNK * size_of::<Slot<usize>>() <= CHUNK);
        let many = 3 * Slab::<usize>::PER_CHUNK + 1;
        let ids: Vec<_> = (0..many).map(|value| slab.insert(value)).collect();
        assert_eq!((slab.chunks.len(), slab.len()), (4, many));
        assert!(ids.iter().enumerate().all(|(value, &id)| slab.get(id) == Some(&value)));
        assert_eq!(slab.get(Id::new(many as u32)), None);
    }
}
