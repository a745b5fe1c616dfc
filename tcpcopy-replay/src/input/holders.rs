//! Which live clients hold how much of the pool, so that one that holds much gives way when another needs room.
//!
//! A client is an IPv4 address, or a /64 of IPv6: the smallest network that a single host is given. It costs nothing to
//! hold much as long as there is room; a balancer, which is one address for all clients behind it, may take everything.
//! When there is none, whoever needs less than the client that holds most is served at that client's expense
//! (max-min fairness), connection by connection.
//!
//! Books are kept only while there is want: a segment in the steady state does not pay for them. They are opened when the
//! pool is found full, which takes a look at every connection, and closed when a half of it is free again.

use std::collections::HashMap;

use tcpcopy_common::flow::IpAddress;

use crate::store::{id::Id, table::FlowHasher};

/// A client that holds less than this part of the pool is not looked at when room is needed. So there are few who are.
const FAT_PART: usize = 256;
/// How many of a client's connections, those that have held something for longest, are compared for the one to give up.
const COMPARED: usize = 8;
/// No index.
const NONE: u32 = u32::MAX;

/// Who holds a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub client: Client,
    /// Its connection.
    pub connection: Id,
}

/// A live client, for the purpose of sharing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Client(u64);

impl Client {
    #[cfg(test)]
    pub(super) const TEST: Self = Self(7);

    /// Returns the client that an address belongs to.
    pub(crate) fn of(address: &IpAddress) -> Self {
        let [network, host] = bytemuck::cast::<_, [u64; 2]>(address.0);
        // The networks that an IPv4-mapped address looks like, ffff:a.b.c.d as the upper half, are not assigned (RFC
        // 4291, section 2.4).
        Self(if address.is_v4() { host } else { network })
    }
}

/// A store that is held: a place in the list of its client's.
#[derive(Clone, Copy, Debug)]
struct Holding {
    holder: u32,
    connection: Id,
    bytes: usize,
    newer: u32,
    older: u32,
}

/// A client that holds something.
#[derive(Clone, Copy, Debug)]
struct Holder {
    client: Client,
    bytes: usize,
    newest: u32,
    oldest: u32,
    /// Its place among those that hold much.
    fat: u32,
}

/// The clients that hold something, and what each of their connections holds.
#[derive(Debug)]
pub(super) struct Holders {
    by_client: HashMap<Client, u32, FlowHasher>,
    holders: Vec<Holder>,
    free_holders: Vec<u32>,
    holdings: Vec<Holding>,
    free_holdings: Vec<u32>,
    /// Those that hold more than `much`.
    fat: Vec<u32>,
    much: usize,
    /// How often books were opened and closed: odd while they are open.
    round: u64,
}

/// Names what a store is charged to: the default, nobody.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Account {
    /// The round of the books that it is in.
    round: u64,
    index: u32,
}

impl Holders {
    /// Creates closed books; `limit` is that of the pool, in bytes.
    pub(super) fn new(seed: u64, limit: usize) -> Self {
        Self {
            by_client: HashMap::with_hasher(FlowHasher::new(seed)),
            holders: Vec::new(),
            free_holders: Vec::new(),
            holdings: Vec::new(),
            free_holdings: Vec::new(),
            fat: Vec::new(),
            much: limit / FAT_PART,
            round: 0,
        }
    }

    /// Whether books are kept.
    pub(super) const fn are_open(&self) -> bool {
        self.round % 2 == 1
    }

    /// Opens the books, which are empty.
    pub(super) const fn begin(&mut self) {
        self.round += 1;
    }

    /// Closes the books: accounts in them mean nothing from now on.
    pub(super) fn end(&mut self) {
        self.round += 1;
        self.by_client.clear();
        self.holders.clear();
        self.free_holders.clear();
        self.holdings.clear();
        self.free_holdings.clear();
        self.fat.clear();
    }

    /// Whether an account is in the books.
    pub(super) const fn knows(&self, account: Account) -> bool {
        account.round == self.round && self.are_open()
    }

    /// Notes that a connection holds a store of so many bytes.
    pub(super) fn open(&mut self, owner: Owner, bytes: usize) -> Account {
        let holders = &mut self.holders;
        let free = &mut self.free_holders;
        let index = *self.by_client.entry(owner.client).or_insert_with(|| {
            let new = Holder { client: owner.client, bytes: 0, newest: NONE, oldest: NONE, fat: NONE };
            place(holders, free, new)
        });
        let older = self.holders[index as usize].newest;
        let holding = Holding { holder: index, connection: owner.connection, bytes: 0, newer: NONE, older };
        let account = place(&mut self.holdings, &mut self.free_holdings, holding);
        self.holders[index as usize].newest = account;
        match self.holdings.get_mut(older as usize) {
            Some(older) => older.newer = account,
            None => self.holders[index as usize].oldest = account,
        }
        let account = Account { round: self.round, index: account };
        self.charge(account, bytes);
        account
    }

    /// Notes what a store takes by now.
    pub(super) fn charge(&mut self, account: Account, bytes: usize) {
        if !self.knows(account) {
            return;
        }
        let Some(holding) = self.holdings.get_mut(account.index as usize) else { return };
        let before = std::mem::replace(&mut holding.bytes, bytes);
        let index = holding.holder;
        let holder = &mut self.holders[index as usize];
        holder.bytes = holder.bytes - before + bytes;
        if (holder.bytes > self.much) == (holder.fat == NONE) {
            self.weigh(index);
        }
    }

    /// Notes that a store is held by nobody.
    pub(super) fn close(&mut self, account: Account) {
        if !self.knows(account) {
            return;
        }
        self.charge(account, 0);
        let Some(&Holding { holder, newer, older, .. }) = self.holdings.get(account.index as usize) else { return };
        self.free_holdings.push(account.index);
        match self.holdings.get_mut(older as usize) {
            Some(older) => older.newer = newer,
            None => self.holders[holder as usize].oldest = newer,
        }
        match self.holdings.get_mut(newer as usize) {
            Some(newer) => newer.older = older,
            None => self.holders[holder as usize].newest = older,
        }
        let Holder { client, newest, .. } = self.holders[holder as usize];
        if newest == NONE {
            self.by_client.remove(&client);
            self.free_holders.push(holder);
        }
    }

    /// Adds a holder to those that hold much, or takes it out.
    fn weigh(&mut self, index: u32) {
        let place = self.holders[index as usize].fat;
        if place == NONE {
            self.holders[index as usize].fat = self.fat.len() as u32;
            self.fat.push(index);
            return;
        }
        self.holders[index as usize].fat = NONE;
        self.fat.swap_remove(place as usize);
        if let Some(&moved) = self.fat.get(place as usize) {
            self.holders[moved as usize].fat = place;
        }
    }

    /// Returns a connection to give up so that `client` can hold so many bytes more: of the client that holds most, if
    /// that still holds more than `client` then.
    pub(super) fn victim(&self, client: Client, more: usize) -> Option<Id> {
        let mine = self.by_client.get(&client).map_or(0, |&index| self.holders[index as usize].bytes);
        let most = self.fat.iter().map(|&index| &self.holders[index as usize]).max_by_key(|holder| holder.bytes)?;
        if most.client == client || most.bytes <= mine + more {
            return None;
        }
        let held = |at: &u32| self.holdings.get(*at as usize);
        let oldest = std::iter::successors(Some(most.oldest), |at| held(at).map(|holding| holding.newer));
        let compared = oldest.map_while(|at| held(&at)).take(COMPARED);
        compared.max_by_key(|holding| holding.bytes).map(|holding| holding.connection)
    }
}

/// Puts a value where there is a place for it, and returns that.
fn place<T>(values: &mut Vec<T>, free: &mut Vec<u32>, value: T) -> u32 {
    match free.pop() {
        Some(index) => {
            values[index as usize] = value;
            index
        }
        None => {
            values.push(value);
            values.len() as u32 - 1
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;

    use super::*;

    fn client(address: &str) -> Client {
        Client::of(&address.parse::<IpAddr>().unwrap().into())
    }

    fn open(limit: usize) -> Holders {
        let mut holders = Holders::new(1, limit);
        holders.begin();
        holders
    }

    const fn owner(client: u64, connection: u32) -> Owner {
        Owner { client: Client(client), connection: Id::new(connection) }
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_a_network_of_64_bits() {
        assert_eq!(client("2001:db8::1"), client("2001:db8::ffff:1:2:3"));
        assert_ne!(client("2001:db8::1"), client("2001:db8:0:1::1"));
        assert_ne!(client("10.0.0.1"), client("10.0.0.2"));
        assert_ne!(client("10.0.0.1"), client("::1"));
    }

    #[test]
    fn the_client_that_holds_most_gives_way_with_the_connection_that_does() {
        let mut holders = open(1 << 20);
        for (client, connection, bytes) in [(1, 10, 50_000), (2, 20, 30_000), (2, 21, 40_000), (2, 22, 10_000)] {
            holders.open(owner(client, connection), bytes);
        }
        assert_eq!(holders.victim(Client(1), 20_000), Some(Id::new(21)));
        assert_eq!(holders.victim(Client(1), 30_000), None, "then both hold as much");
        assert_eq!(holders.victim(Client(2), 1), None, "its own");
        assert_eq!(holders.victim(Client(3), 79_999), Some(Id::new(21)), "one that holds nothing yet");
    }

    #[test]
    fn only_those_that_have_held_for_longest_are_compared() {
        let mut holders = open(1 << 20);
        for connection in 0..20 {
            holders.open(owner(1, connection), if connection == 15 { 9_000 } else { 1_000 + connection as usize });
        }
        assert_eq!(holders.victim(Client(2), 1), Some(Id::new(COMPARED as u32 - 1)));
    }

    #[test]
    fn clients_that_hold_little_give_way_to_nobody() {
        let mut holders = open(1 << 20);
        let account = holders.open(owner(1, 10), (1 << 20) / FAT_PART);
        assert_eq!(holders.victim(Client(2), 1), None);
        holders.charge(account, (1 << 20) / FAT_PART + 1);
        assert_eq!(holders.victim(Client(2), 1), Some(Id::new(10)));
        holders.charge(account, 1);
        assert_eq!(holders.victim(Client(2), 1), None);
    }

    #[test]
    fn accounts_of_books_that_were_closed_mean_nothing() {
        let mut holders = open(1 << 20);
        let old = holders.open(owner(1, 10), 50_000);
        holders.end();
        assert!(!holders.are_open() && !holders.knows(old) && !holders.knows(Account::default()));
        holders.begin();
        assert_eq!(holders.victim(Client(2), 1), None);
        holders.open(owner(1, 11), 20_000);
        holders.charge(old, 0);
        holders.close(old);
        assert_eq!(holders.victim(Client(2), 1), Some(Id::new(11)));
    }

    proptest! {
        /// Whoever comes, grows and goes: sums and lists are those of a plain map, and nothing is left in the end.
        #[test]
        fn what_is_held_is_what_a_map_says(steps in prop::collection::vec((0u32..40, 0usize..9_000), 0..300)) {
            const LIMIT: usize = 64 << 10;
            let mut holders = open(LIMIT);
            let mut model: Vec<Option<(Account, usize)>> = vec![None; 40];
            for (connection, bytes) in steps {
                let slot = &mut model[connection as usize];
                *slot = match *slot {
                    None => Some((holders.open(owner(u64::from(connection % 5), connection), bytes), bytes)),
                    Some((account, _)) if bytes < 3_000 => {
                        holders.close(account);
                        None
                    }
                    Some((account, _)) => {
                        holders.charge(account, bytes);
                        Some((account, bytes))
                    }
                };
                let sum = |client: usize| -> usize {
                    model.iter().skip(client).step_by(5).flatten().map(|(_, bytes)| bytes).sum()
                };
                let most = (0..5).map(sum).max().unwrap_or(0);
                let victim = holders.victim(Client(99), 0);
                prop_assert_eq!(victim.is_some(), most > LIMIT / FAT_PART, "{}", most);
                if let Some(victim) = victim {
                    prop_assert_eq!(sum(victim.get() as usize % 5), most);
                    prop_assert!(model[victim.get() as usize].is_some());
                }
                for client in 0..5 {
                    let index = holders.by_client.get(&Client(client as u64));
                    let held = index.map_or(0, |&index| holders.holders[index as usize].bytes);
                    prop_assert_eq!(held, sum(client));
                }
            }
            for (account, _) in model.into_iter().flatten() {
                holders.close(account);
            }
            prop_assert!(holders.by_client.is_empty() && holders.fat.is_empty());
            prop_assert_eq!(holders.free_holdings.len(), holders.holdings.len());
            prop_assert_eq!(holders.free_holders.len(), holders.holders.len());
        }
    }
}
