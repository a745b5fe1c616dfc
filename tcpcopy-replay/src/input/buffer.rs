//! Memory for captured octets: taken from a pool while a connection holds some, given back when it holds none, so that
//! an idle connection costs no buffer and a busy one no allocation.

use std::collections::VecDeque;

use crate::{input::offset::LiveOffset, tcp::seq::LiveAck, time::Nanos};

/// Marks where a captured segment begins in its stream, with what is needed to replay it at the right moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Stream offset of its first octet that was new.
    pub offset: LiveOffset,
    /// When it was captured.
    pub time: Nanos,
    /// The live client's cumulative acknowledgement: how much of the live server's answers it had received.
    pub ack: Option<LiveAck>,
    /// Whether it ended with PSH: the live client had nothing more to send just then.
    pub push: bool,
}

/// The octets that a connection holds back.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// `head` octets that were released, then those from the stream's start on.
    pub bytes: Vec<u8>,
    /// Octets at the front that are no longer needed.
    pub head: usize,
    /// The segments that the octets came in, by offset.
    pub marks: VecDeque<Mark>,
    /// The out-of-order queue: ranges of offsets behind a gap; sorted, disjoint, not adjacent.
    pub out_of_order: Vec<(u64, u64)>,
    /// Bytes that the pool has charged for this.
    charged: usize,
}

impl Store {
    fn footprint(&self) -> usize {
        self.bytes.capacity()
            + self.marks.capacity() * size_of::<Mark>()
            + self.out_of_order.capacity() * size_of::<(u64, u64)>()
    }
}

/// Minimum bytes of a store, so that small requests of different length use the same memory again.
const MIN_CAPACITY: usize = 1024;
/// Maximum bytes of a store that is kept for later use. An upload's request in flight fits: fresh memory costs a page
/// fault for each page, which is dearer than everything else that is done with it.
const MAX_KEPT_STORE: usize = 1 << 20;
/// Maximum unused stores that are kept.
const MAX_KEPT: usize = 4096;
/// Bytes of unused stores above which only those of [`MIN_CAPACITY`] are kept.
const MAX_KEPT_BYTES: usize = 16 << 20;

/// The stores of all connections, in use or not.
#[derive(Debug)]
pub(crate) struct Pool {
    #[expect(clippy::vec_box, reason = "a connection holds its store in a box, which moves here and back")]
    unused: Vec<Box<Store>>,
    /// Bytes that the unused stores take.
    kept: usize,
    allocated: usize,
    limit: usize,
}

/// The pool's limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Pool {
    pub(crate) const fn new(limit: usize) -> Self {
        Self { unused: Vec::new(), kept: 0, allocated: 0, limit }
    }

    /// Returns the bytes that all stores take.
    #[cfg(test)]
    pub(crate) const fn allocated(&self) -> usize {
        self.allocated
    }

    /// Returns an empty store.
    pub(crate) fn take(&mut self) -> Box<Store> {
        self.pop().unwrap_or_default()
    }

    fn pop(&mut self) -> Option<Box<Store>> {
        let store = self.unused.pop()?;
        self.kept -= store.charged;
        Some(store)
    }

    /// Makes room for `len` bytes in total, counted from the start of the store's memory.
    ///
    /// # Errors
    /// [`Exhausted`] when the pool's limit does not allow it.
    pub(crate) fn reserve(&mut self, store: &mut Store, len: usize) -> Result<(), Exhausted> {
        let capacity = store.bytes.capacity();
        if len <= capacity {
            return Ok(());
        }
        let wanted = len.max(capacity * 2).max(MIN_CAPACITY);
        while self.allocated + (wanted - capacity) > self.limit {
            let Some(unused) = self.pop() else { return Err(Exhausted) };
            self.allocated -= unused.charged;
        }
        store.bytes.reserve_exact(wanted - store.bytes.len());
        self.settle(store);
        Ok(())
    }

    /// Charges what the store takes by now.
    pub(crate) fn settle(&mut self, store: &mut Store) {
        let footprint = store.footprint();
        self.allocated = self.allocated - store.charged + footprint;
        store.charged = footprint;
    }

    /// Takes a store back.
    pub(crate) fn give_back(&mut self, mut store: Box<Store>) {
        self.settle(&mut store);
        let most = if store.bytes.capacity() <= MIN_CAPACITY {
            usize::MAX
        } else {
            MAX_KEPT_BYTES - store.charged.min(MAX_KEPT_BYTES)
        };
        if store.charged > MAX_KEPT_STORE || self.unused.len() >= MAX_KEPT || self.kept > most {
            self.allocated -= store.charged;
            return;
        }
        store.bytes.clear();
        store.head = 0;
        store.marks.clear();
        store.out_of_order.clear();
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
        assert!(allocated >= MIN_CAPACITY);
        pool.give_back(store);
        let mut store = pool.take();
        pool.reserve(&mut store, MIN_CAPACITY).unwrap();
        assert_eq!(pool.allocated(), allocated);
    }

    #[test]
    fn the_limit_holds_and_unused_stores_yield_first() {
        let mut pool = Pool::new(4 * MIN_CAPACITY);
        let (mut a, mut b) = (pool.take(), pool.take());
        pool.reserve(&mut a, 2 * MIN_CAPACITY).unwrap();
        pool.reserve(&mut b, 2 * MIN_CAPACITY).unwrap();
        let mut c = pool.take();
        assert_eq!(pool.reserve(&mut c, 1), Err(Exhausted));
        pool.give_back(a);
        assert_eq!(pool.reserve(&mut c, 1), Ok(()));
        assert!(pool.allocated() <= 4 * MIN_CAPACITY);
    }

    #[test]
    fn everything_that_a_store_takes_is_charged_and_given_back() {
        let mut pool = Pool::new(1 << 20);
        let mut store = pool.take();
        pool.reserve(&mut store, 2 * MIN_CAPACITY).unwrap();
        store.marks.reserve_exact(10);
        store.out_of_order.reserve_exact(3);
        pool.settle(&mut store);
        let marks = store.marks.capacity() * size_of::<Mark>();
        let out_of_order = store.out_of_order.capacity() * size_of::<(u64, u64)>();
        assert!(marks > 0 && out_of_order > 0);
        assert_eq!(pool.allocated(), 2 * MIN_CAPACITY + marks + out_of_order);
        pool.reserve(&mut store, 2 * MIN_CAPACITY + 1).unwrap();
        assert_eq!(pool.allocated(), 4 * MIN_CAPACITY + marks + out_of_order, "a store that grows doubles");
    }

    #[test]
    fn large_stores_and_too_many_are_not_kept() {
        let mut pool = Pool::new(1 << 30);
        let mut large = pool.take();
        pool.reserve(&mut large, MAX_KEPT_STORE + 1).unwrap();
        pool.give_back(large);
        assert_eq!((pool.allocated(), pool.unused.len()), (0, 0));
        let mut fits = pool.take();
        pool.reserve(&mut fits, MAX_KEPT_STORE).unwrap();
        pool.give_back(fits);
        assert_eq!((pool.allocated(), pool.unused.len()), (MAX_KEPT_STORE, 1));
        let stores: Vec<_> = (0..MAX_KEPT + 10)
            .map(|_| {
                let mut store = pool.take();
                pool.reserve(&mut store, 1).unwrap();
                store
            })
            .collect();
        stores.into_iter().for_each(|store| pool.give_back(store));
        assert_eq!((pool.allocated(), pool.unused.len()), (MAX_KEPT_STORE + (MAX_KEPT - 1) * MIN_CAPACITY, MAX_KEPT));
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
        let most = MAX_KEPT_BYTES / MAX_KEPT_STORE;
        assert_eq!(stores(most + 10, MAX_KEPT_STORE), (MAX_KEPT_BYTES, most));
        assert_eq!(stores(most + 10, 1), (MAX_KEPT_BYTES + 10 * MIN_CAPACITY, most + 10));
    }

    #[test]
    fn a_store_grows_up_to_the_very_limit() {
        let mut pool = Pool::new(2 * MIN_CAPACITY);
        let mut store = pool.take();
        pool.reserve(&mut store, MIN_CAPACITY).unwrap();
        store.bytes.extend_from_slice(&[1; 100]);
        assert_eq!(pool.reserve(&mut store, 2 * MIN_CAPACITY), Ok(()));
        assert_eq!((store.bytes.capacity(), pool.allocated()), (2 * MIN_CAPACITY, 2 * MIN_CAPACITY));
        assert_eq!(pool.reserve(&mut store, 2 * MIN_CAPACITY + 1), Err(Exhausted));
    }

    #[test]
    fn an_unused_store_makes_room_for_one_that_grows() {
        let mut pool = Pool::new(4 * MIN_CAPACITY);
        let (mut a, mut b) = (pool.take(), pool.take());
        pool.reserve(&mut a, MIN_CAPACITY).unwrap();
        pool.reserve(&mut b, MIN_CAPACITY).unwrap();
        pool.give_back(a);
        pool.reserve(&mut b, 4 * MIN_CAPACITY).unwrap();
        assert_eq!((pool.allocated(), pool.unused.len()), (4 * MIN_CAPACITY, 0));
    }
}
