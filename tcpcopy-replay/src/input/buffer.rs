//! Memory for captured octets: taken from a pool while a connection holds some, given back when it holds none, so that an
//! idle connection costs no buffer and a busy one no allocation.

use std::collections::VecDeque;

use crate::{input::offset::LiveOffset, tcp::seq::LiveAck, time::Nanos};

/// Where a captured segment begins in its stream, and what is needed to replay it at the right moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Stream offset of its first octet that was new.
    pub offset: LiveOffset,
    /// When it was captured.
    pub time: Nanos,
    /// How much of the live server's answers the live client had received when it sent this.
    pub ack: Option<LiveAck>,
    /// Whether it ended with PSH: the live client had nothing more to send just then.
    pub push: bool,
}

/// What a connection holds back.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// The octets, from the stream's start on, after `head` that were released.
    pub bytes: Vec<u8>,
    /// How many octets at the front are no longer needed.
    pub head: usize,
    /// The segments that the octets came in, by offset.
    pub marks: VecDeque<Mark>,
    /// Ranges of offsets that are there although octets before them are missing: sorted, disjoint, not adjacent.
    pub islands: Vec<(u64, u64)>,
    /// What the pool believes this takes.
    charged: usize,
}

impl Store {
    fn footprint(&self) -> usize {
        self.bytes.capacity()
            + self.marks.capacity() * size_of::<Mark>()
            + self.islands.capacity() * size_of::<(u64, u64)>()
    }
}

/// A store holds at least this much, so that small requests of different length use the same memory again.
const SMALLEST: usize = 1024;
/// Larger ones are not kept for later use. An upload's request in flight fits: fresh memory costs a page fault for each page,
/// which is dearer than everything else that is done with it.
const LARGEST_KEPT: usize = 1 << 20;
/// How many unused ones are kept,
const MOST_KEPT: usize = 4096;
/// and how many octets of them, beyond which only those of [`SMALLEST`] are.
const MOST_KEPT_OCTETS: usize = 16 << 20;

/// The stores of all connections, in use or not.
#[derive(Debug)]
pub(crate) struct Pool {
    #[expect(clippy::vec_box, reason = "a connection holds its store in a box, which moves here and back")]
    unused: Vec<Box<Store>>,
    /// Octets that those take.
    kept: usize,
    allocated: usize,
    limit: usize,
}

/// The pool's limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Pool {
    pub const fn new(limit: usize) -> Self {
        Self { unused: Vec::new(), kept: 0, allocated: 0, limit }
    }

    /// Octets that all stores take.
    #[cfg(test)]
    pub const fn allocated(&self) -> usize {
        self.allocated
    }

    /// An empty store.
    pub fn take(&mut self) -> Box<Store> {
        self.pop().unwrap_or_default()
    }

    fn pop(&mut self) -> Option<Box<Store>> {
        let store = self.unused.pop()?;
        self.kept -= store.charged;
        Some(store)
    }

    /// Makes room for `len` octets in total, counted from the start of the store's memory.
    pub fn reserve(&mut self, store: &mut Store, len: usize) -> Result<(), Exhausted> {
        let capacity = store.bytes.capacity();
        if len <= capacity {
            return Ok(());
        }
        let wanted = len.max(capacity * 2).max(SMALLEST);
        while self.allocated + (wanted - capacity) > self.limit {
            let Some(unused) = self.pop() else { return Err(Exhausted) };
            self.allocated -= unused.charged;
        }
        store.bytes.reserve_exact(wanted - store.bytes.len());
        self.settle(store);
        Ok(())
    }

    /// Notes what the store takes by now.
    pub fn settle(&mut self, store: &mut Store) {
        let footprint = store.footprint();
        self.allocated = self.allocated - store.charged + footprint;
        store.charged = footprint;
    }

    /// Takes a store back.
    pub fn give_back(&mut self, mut store: Box<Store>) {
        self.settle(&mut store);
        let most = if store.bytes.capacity() <= SMALLEST {
            usize::MAX
        } else {
            MOST_KEPT_OCTETS - store.charged.min(MOST_KEPT_OCTETS)
        };
        if store.charged > LARGEST_KEPT || self.unused.len() >= MOST_KEPT || self.kept > most {
            self.allocated -= store.charged;
            return;
        }
        store.bytes.clear();
        store.head = 0;
        store.marks.clear();
        store.islands.clear();
        self.kept += store.charged;
        self.unused.push(store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_given_back_is_used_again_without_allocating() {
        let mut pool = Pool::new(1 << 20);
        let mut store = pool.take();
        pool.reserve(&mut store, 100).unwrap();
        let allocated = pool.allocated();
        assert!(allocated >= SMALLEST);
        pool.give_back(store);
        let mut store = pool.take();
        pool.reserve(&mut store, SMALLEST).unwrap();
        assert_eq!(pool.allocated(), allocated);
    }

    #[test]
    fn the_limit_holds_and_unused_stores_yield_first() {
        let mut pool = Pool::new(4 * SMALLEST);
        let (mut a, mut b) = (pool.take(), pool.take());
        pool.reserve(&mut a, 2 * SMALLEST).unwrap();
        pool.reserve(&mut b, 2 * SMALLEST).unwrap();
        let mut c = pool.take();
        assert_eq!(pool.reserve(&mut c, 1), Err(Exhausted));
        pool.give_back(a);
        assert_eq!(pool.reserve(&mut c, 1), Ok(()));
        assert!(pool.allocated() <= 4 * SMALLEST);
    }

    #[test]
    fn everything_that_a_store_takes_is_charged_and_given_back() {
        let mut pool = Pool::new(1 << 20);
        let mut store = pool.take();
        pool.reserve(&mut store, 2 * SMALLEST).unwrap();
        store.marks.reserve_exact(10);
        store.islands.reserve_exact(3);
        pool.settle(&mut store);
        let marks = store.marks.capacity() * size_of::<Mark>();
        let islands = store.islands.capacity() * size_of::<(u64, u64)>();
        assert!(marks > 0 && islands > 0);
        assert_eq!(pool.allocated(), 2 * SMALLEST + marks + islands);
        pool.reserve(&mut store, 2 * SMALLEST + 1).unwrap();
        assert_eq!(pool.allocated(), 4 * SMALLEST + marks + islands, "a store that grows doubles");
    }

    #[test]
    fn large_stores_and_too_many_are_not_kept() {
        let mut pool = Pool::new(1 << 30);
        let mut large = pool.take();
        pool.reserve(&mut large, LARGEST_KEPT + 1).unwrap();
        pool.give_back(large);
        assert_eq!((pool.allocated(), pool.unused.len()), (0, 0));
        let mut fits = pool.take();
        pool.reserve(&mut fits, LARGEST_KEPT).unwrap();
        pool.give_back(fits);
        assert_eq!((pool.allocated(), pool.unused.len()), (LARGEST_KEPT, 1));
        let stores: Vec<_> = (0..MOST_KEPT + 10)
            .map(|_| {
                let mut store = pool.take();
                pool.reserve(&mut store, 1).unwrap();
                store
            })
            .collect();
        stores.into_iter().for_each(|store| pool.give_back(store));
        assert_eq!((pool.allocated(), pool.unused.len()), (LARGEST_KEPT + (MOST_KEPT - 1) * SMALLEST, MOST_KEPT));
    }

    #[test]
    fn large_stores_are_kept_up_to_a_sum() {
        let mut pool = Pool::new(1 << 30);
        let mut stores = |number: usize, size: usize| {
            let stores: Vec<_> = (0..number)
                .map(|_| {
                    let mut store = pool.take();
                    pool.reserve(&mut store, size).unwrap();
                    store
                })
                .collect();
            stores.into_iter().for_each(|store| pool.give_back(store));
            (pool.kept, pool.unused.len())
        };
        let most = MOST_KEPT_OCTETS / LARGEST_KEPT;
        assert_eq!(stores(most + 10, LARGEST_KEPT), (MOST_KEPT_OCTETS, most));
        assert_eq!(stores(most + 10, 1), (MOST_KEPT_OCTETS + 10 * SMALLEST, most + 10));
    }

    #[test]
    fn a_store_grows_up_to_the_very_limit() {
        let mut pool = Pool::new(2 * SMALLEST);
        let mut store = pool.take();
        pool.reserve(&mut store, SMALLEST).unwrap();
        store.bytes.extend_from_slice(&[1; 100]);
        assert_eq!(pool.reserve(&mut store, 2 * SMALLEST), Ok(()));
        assert_eq!((store.bytes.capacity(), pool.allocated()), (2 * SMALLEST, 2 * SMALLEST));
        assert_eq!(pool.reserve(&mut store, 2 * SMALLEST + 1), Err(Exhausted));
    }

    #[test]
    fn an_unused_store_makes_room_for_one_that_grows() {
        let mut pool = Pool::new(4 * SMALLEST);
        let (mut a, mut b) = (pool.take(), pool.take());
        pool.reserve(&mut a, SMALLEST).unwrap();
        pool.reserve(&mut b, SMALLEST).unwrap();
        pool.give_back(a);
        pool.reserve(&mut b, 4 * SMALLEST).unwrap();
        assert_eq!((pool.allocated(), pool.unused.len()), (4 * SMALLEST, 0));
    }
}
