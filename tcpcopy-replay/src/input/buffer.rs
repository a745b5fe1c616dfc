//! Memory for captured octets: taken from a pool while a connection holds some, given back when it holds none, so that
//! an idle connection costs no buffer and a busy one no allocation.

use std::collections::VecDeque;

use crate::{
    input::{
        holders::{Account, Client, Holders, Owner},
        mark::Mark,
        out_of_order::OutOfOrder,
    },
    store::id::Id,
};

/// The octets that a connection holds back.
#[derive(Debug, Default)]
pub(crate) struct Store {
    /// `head` octets that were released, then those from the stream's start to its end.
    pub bytes: Vec<u8>,
    /// Octets at the front that are no longer needed.
    pub head: usize,
    /// The segments that these octets came in, by offset.
    pub marks: VecDeque<Mark>,
    /// What lies behind a gap.
    pub(super) out_of_order: OutOfOrder,
    /// Bytes that the pool has charged for this.
    charged: usize,
    account: Account,
}

impl Store {
    fn footprint(&self) -> usize {
        self.bytes.capacity() + self.marks.capacity() * size_of::<Mark>() + self.out_of_order.footprint()
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
    holders: Holders,
}

/// The pool's limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exhausted;

impl Pool {
    /// Creates an empty pool of at most `limit` bytes. `seed` makes its hashes unpredictable.
    pub(crate) fn new(seed: u64, limit: usize) -> Self {
        Self { unused: Vec::new(), kept: 0, allocated: 0, limit, holders: Holders::new(seed, limit) }
    }

    /// Returns the bytes that all stores take.
    #[cfg(test)]
    pub(crate) const fn allocated(&self) -> usize {
        self.allocated
    }

    /// Returns an empty store.
    pub(crate) fn take(&mut self, owner: Owner) -> Box<Store> {
        let mut store = self.pop().unwrap_or_default();
        if self.holders.are_open() {
            self.account_for(&mut store, owner);
        }
        store
    }

    /// Whether it is known who holds how much. It is from when [`open_books`](Self::open_books) was called and every
    /// store was [accounted for](Self::account_for), until a half of the pool is free.
    pub(crate) const fn has_books(&self) -> bool {
        self.holders.are_open()
    }

    /// Begins to keep books.
    pub(crate) const fn open_books(&mut self) {
        self.holders.begin();
    }

    /// Notes who holds a store.
    pub(crate) fn account_for(&mut self, store: &mut Store, owner: Owner) {
        store.account = self.holders.open(owner, store.charged);
    }

    /// Returns a connection of another client that ought to give way to `client`, which needs so many bytes more than
    /// there are. Room is made when that connection has given its store back.
    pub(crate) fn victim(&self, client: Client, more: usize) -> Option<Id> {
        self.holders.victim(client, more)
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
        // It doubles, so that octets are moved a few times at most; less is enough where that does not fit.
        let plenty = len.max(capacity * 2).max(MIN_CAPACITY);
        let wanted = if self.has_room_for(plenty - capacity) {
            plenty
        } else {
            let enough = (len + len / 8).max(MIN_CAPACITY);
            if !self.has_room_for(enough - capacity) {
                return Err(Exhausted);
            }
            enough
        };
        store.bytes.reserve_exact(wanted - store.bytes.len());
        self.settle(store);
        Ok(())
    }

    /// Returns whether so many bytes can be charged; unused stores yield.
    pub(crate) fn has_room_for(&mut self, bytes: usize) -> bool {
        while self.allocated + bytes > self.limit {
            let Some(unused) = self.pop() else { return false };
            self.allocated -= unused.charged;
        }
        true
    }

    /// Charges what the store takes by now.
    pub(crate) fn settle(&mut self, store: &mut Store) {
        let footprint = store.footprint();
        if footprint != store.charged {
            self.allocated = self.allocated - store.charged + footprint;
            store.charged = footprint;
            if self.holders.are_open() {
                self.holders.charge(store.account, footprint);
            }
        }
    }

    /// Takes a store back.
    pub(crate) fn give_back(&mut self, mut store: Box<Store>) {
        store.out_of_order.clear();
        self.settle(&mut store);
        if self.holders.are_open() {
            self.holders.close(std::mem::take(&mut store.account));
            if self.allocated < self.limit / 2 {
                self.holders.end();
            }
        }
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
        self.kept += store.charged;
        self.unused.push(store);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        input::{offset::LiveOffset, out_of_order::PIECE_OVERHEAD},
        time::Nanos,
    };

    const OWNER: Owner = Owner { client: Client::TEST, connection: Id::new(0) };
    const MARK: Mark = Mark { offset: LiveOffset::START, time: Nanos(0), ack: None, push: false, urgent: None };

    #[test]
    fn a_store_given_back_is_used_again_without_allocating() {
        let mut pool = Pool::new(1, 1 << 20);
        let mut store = pool.take(OWNER);
        pool.reserve(&mut store, 100).unwrap();
        let allocated = pool.allocated();
        assert!(allocated >= MIN_CAPACITY);
        pool.give_back(store);
        let mut store = pool.take(OWNER);
        pool.reserve(&mut store, MIN_CAPACITY).unwrap();
        assert_eq!(pool.allocated(), allocated);
    }

    #[test]
    fn the_limit_holds_and_unused_stores_yield_first() {
        let mut pool = Pool::new(1, 4 * MIN_CAPACITY);
        let (mut a, mut b) = (pool.take(OWNER), pool.take(OWNER));
        pool.reserve(&mut a, 2 * MIN_CAPACITY).unwrap();
        pool.reserve(&mut b, 2 * MIN_CAPACITY).unwrap();
        let mut c = pool.take(OWNER);
        assert_eq!(pool.reserve(&mut c, 1), Err(Exhausted));
        pool.give_back(a);
        assert_eq!(pool.reserve(&mut c, 1), Ok(()));
        assert!(pool.allocated() <= 4 * MIN_CAPACITY);
    }

    #[test]
    fn everything_that_a_store_takes_is_charged_and_given_back() {
        let mut pool = Pool::new(1, 1 << 20);
        let mut store = pool.take(OWNER);
        pool.reserve(&mut store, 2 * MIN_CAPACITY).unwrap();
        store.marks.reserve_exact(10);
        store.out_of_order.insert(MARK, b"abc");
        pool.settle(&mut store);
        let marks = store.marks.capacity() * size_of::<Mark>();
        let out_of_order = PIECE_OVERHEAD + 3;
        assert!(marks > 0);
        assert_eq!(pool.allocated(), 2 * MIN_CAPACITY + marks + out_of_order);
        pool.reserve(&mut store, 2 * MIN_CAPACITY + 1).unwrap();
        assert_eq!(pool.allocated(), 4 * MIN_CAPACITY + marks + out_of_order, "a store that grows doubles");
        pool.give_back(store);
        assert_eq!(pool.allocated(), 4 * MIN_CAPACITY + marks, "pieces are not kept for later use");
    }

    #[test]
    fn large_stores_and_too_many_are_not_kept() {
        let mut pool = Pool::new(1, 1 << 30);
        let mut large = pool.take(OWNER);
        pool.reserve(&mut large, MAX_KEPT_STORE + 1).unwrap();
        pool.give_back(large);
        assert_eq!((pool.allocated(), pool.unused.len()), (0, 0));
        let mut fits = pool.take(OWNER);
        pool.reserve(&mut fits, MAX_KEPT_STORE).unwrap();
        pool.give_back(fits);
        assert_eq!((pool.allocated(), pool.unused.len()), (MAX_KEPT_STORE, 1));
        let stores: Vec<_> = (0..MAX_KEPT + 10)
            .map(|_| {
                let mut store = pool.take(OWNER);
                pool.reserve(&mut store, 1).unwrap();
                store
            })
            .collect();
        stores.into_iter().for_each(|store| pool.give_back(store));
        assert_eq!((pool.allocated(), pool.unused.len()), (MAX_KEPT_STORE + (MAX_KEPT - 1) * MIN_CAPACITY, MAX_KEPT));
    }

    #[test]
    fn large_stores_are_kept_up_to_a_sum() {
        let mut pool = Pool::new(1, 1 << 30);
        let mut stores = |number: usize, size: usize| {
            let stores: Vec<_> = (0..number)
                .map(|_| {
                    let mut store = pool.take(OWNER);
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
        let mut pool = Pool::new(1, 2 * MIN_CAPACITY);
        let mut store = pool.take(OWNER);
        pool.reserve(&mut store, MIN_CAPACITY).unwrap();
        store.bytes.extend_from_slice(&[1; 100]);
        assert_eq!(pool.reserve(&mut store, 2 * MIN_CAPACITY), Ok(()));
        assert_eq!((store.bytes.capacity(), pool.allocated()), (2 * MIN_CAPACITY, 2 * MIN_CAPACITY));
        assert_eq!(pool.reserve(&mut store, 2 * MIN_CAPACITY + 1), Err(Exhausted));
    }

    #[test]
    fn an_unused_store_makes_room_for_one_that_grows() {
        let mut pool = Pool::new(1, 4 * MIN_CAPACITY);
        let (mut a, mut b) = (pool.take(OWNER), pool.take(OWNER));
        pool.reserve(&mut a, MIN_CAPACITY).unwrap();
        pool.reserve(&mut b, MIN_CAPACITY).unwrap();
        pool.give_back(a);
        pool.reserve(&mut b, 4 * MIN_CAPACITY).unwrap();
        assert_eq!((pool.allocated(), pool.unused.len()), (4 * MIN_CAPACITY, 0));
    }
}
