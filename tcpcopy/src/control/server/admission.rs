//! Who may shake hands: bounded, and so that strangers cannot keep an honest peer out.
//!
//! A handshake is in one of three phases, each with room of its own, so that what has got further never has to go for
//! what has just come. When a phase is full, the oldest handshake of the network that has most of them there gives way:
//! an honest peer, who needs a round trip for a phase, stays as long as one network has two in it, and otherwise until
//! as many others as there is room for have come after it.

use std::{
    cmp::Reverse,
    collections::HashMap,
    net::{IpAddr, Ipv6Addr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;

use crate::control::parameters::HANDSHAKE_DEADLINE;

/// Handshakes at a time in one phase from one IPv4 address or IPv6 /64: as many as a source has workers.
const MOST_OF_NETWORK: usize = tcpcopy_common::capture::MAX_WORKERS as usize;

/// How far a handshake has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Connected: no octet has come.
    Silent,
    /// The first octet was right; what follows, up to the proof of the key, is under way.
    Greeting,
    /// The key is proved, if perhaps by a recording; Hello is under way.
    Proved,
}

impl Phase {
    const ALL: [Self; 3] = [Self::Silent, Self::Greeting, Self::Proved];

    /// Returns how long it may take. An honest peer needs a round trip, or, if a packet is lost, a retransmission
    /// time-out (RFC 6298: at least 0.2 s on Linux, three round trips when only the handshake's was measured).
    pub(super) const fn limit(self) -> Duration {
        match self {
            Self::Silent => Duration::from_secs(1),
            Self::Greeting | Self::Proved => Duration::from_secs(2),
        }
    }

    /// Returns what has not come when the time is over.
    pub(super) const fn awaited(self) -> &'static str {
        match self {
            Self::Silent => "nothing was said",
            Self::Greeting => "no key was proved",
            Self::Proved => "no Hello came",
        }
    }

    /// Returns how many handshakes may be in it. Nobody has proved anything in the first; each holds a descriptor.
    const fn room(self) -> usize {
        match self {
            Self::Silent => 256,
            Self::Greeting | Self::Proved => 128,
        }
    }
}

/// All of it is what a client waits for.
const _: () = {
    let phases = Phase::Silent.limit().as_millis() + Phase::Greeting.limit().as_millis();
    assert!(phases + Phase::Proved.limit().as_millis() == HANDSHAKE_DEADLINE.as_millis());
};

/// The handshakes under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Pending(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    /// By phase, in the order in which they have come into it.
    phases: [Vec<Entry>; Phase::ALL.len()],
}

#[derive(Debug)]
struct Entry {
    id: u64,
    network: IpAddr,
    /// Told when it is taken out to make room.
    gives_way: Arc<Notify>,
}

/// The right to one handshake; given back when dropped.
#[derive(Debug)]
pub(super) struct Admission {
    pending: Pending,
    id: u64,
    gives_way: Arc<Notify>,
}

impl Pending {
    /// Admits a handshake, for which another may have to give way.
    pub(super) fn admit(&self, peer: IpAddr) -> Admission {
        let gives_way = Arc::<Notify>::default();
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        table.enter(Phase::Silent, Entry { id, network: network(peer), gives_way: Arc::clone(&gives_way) });
        Admission { pending: self.clone(), id, gives_way }
    }

    /// Ends the handshake that would have to give way next among those from which nothing was heard; returns whether
    /// there was one.
    pub(super) fn make_room(&self) -> bool {
        self.lock().evict(Phase::Silent)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// Moves the handshake to the next phase, unless it has had to give way.
    pub(super) fn advance(&self, to: Phase) {
        let mut table = self.pending.lock();
        if let Some(entry) = table.remove(self.id) {
            table.enter(to, entry);
        }
    }

    /// Waits until the handshake has to give way.
    pub(super) async fn lost(&self) {
        self.gives_way.notified().await;
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.pending.lock().remove(self.id);
    }
}

impl Table {
    fn enter(&mut self, phase: Phase, entry: Entry) {
        let entries = &self.phases[phase as usize];
        let of_network = |entries: &[Entry]| entries.iter().filter(|e| e.network == entry.network).count();
        if of_network(entries) >= MOST_OF_NETWORK {
            let oldest = entries.iter().position(|other| other.network == entry.network);
            oldest.into_iter().for_each(|index| self.give_way(phase, index));
        } else if entries.len() >= phase.room() {
            self.evict(phase);
        }
        self.phases[phase as usize].push(entry);
    }

    /// Takes out the oldest handshake of the network that has most in this phase; of several such networks, of the one
    /// whose is older. Returns whether there was one.
    fn evict(&mut self, phase: Phase) -> bool {
        let entries = &self.phases[phase as usize];
        let mut networks = HashMap::<IpAddr, (usize, usize)>::new();
        for (index, entry) in entries.iter().enumerate() {
            networks.entry(entry.network).or_insert((0, index)).0 += 1;
        }
        let oldest = networks.into_values().max_by_key(|&(count, oldest)| (count, Reverse(oldest)));
        oldest.iter().for_each(|&(_, index)| self.give_way(phase, index));
        oldest.is_some()
    }

    fn give_way(&mut self, phase: Phase, index: usize) {
        self.phases[phase as usize].remove(index).gives_way.notify_one();
    }

    fn remove(&mut self, id: u64) -> Option<Entry> {
        self.phases.iter_mut().find_map(|entries| {
            let index = entries.iter().position(|entry| entry.id == id)?;
            Some(entries.remove(index))
        })
    }
}

/// What counts as one stranger: an IPv4 address, or the /64 that an IPv6 host commonly has for itself.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(peer) => Ipv6Addr::from_bits(peer.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stays(admission: &Admission) -> bool {
        let table = admission.pending.lock();
        table.phases.iter().flatten().any(|entry| entry.id == admission.id)
    }

    fn v4(n: usize) -> IpAddr {
        std::net::Ipv4Addr::from_bits(0xc633_6400 + n as u32).into()
    }

    fn counts(pending: &Pending) -> [usize; 3] {
        pending.lock().phases.each_ref().map(Vec::len)
    }

    #[test]
    fn the_oldest_of_a_network_gives_way_to_its_own_newest() {
        let pending = Pending::default();
        let held: Vec<_> =
            (0..MOST_OF_NETWORK).map(|i| pending.admit(format!("2001:db8::{i:x}").parse().unwrap())).collect();
        let other = pending.admit("2001:db8:0:1::1".parse().unwrap());
        assert!(held.iter().all(stays));
        let newest = pending.admit("2001:db8::ffff".parse().unwrap());
        assert!(!stays(&held[0]) && held[1..].iter().all(stays), "the same /64");
        assert!(stays(&other) && stays(&newest));
        assert_eq!(counts(&pending), [MOST_OF_NETWORK + 1, 0, 0]);
    }

    #[test]
    fn those_who_crowd_give_way_and_not_the_one_who_came_first() {
        let pending = Pending::default();
        let honest = pending.admit(v4(0));
        // Five strangers, who keep coming.
        let strangers: Vec<_> = (0..10_000).map(|i| pending.admit(v4(1 + i % 5))).collect();
        assert!(stays(&honest));
        assert_eq!(strangers.iter().filter(|s| stays(s)).count(), Phase::Silent.room() - 1);
        drop(strangers);
        // Of those who come once each, as many as there is room for.
        let _many: Vec<_> = (1..Phase::Silent.room()).map(|i| pending.admit(v4(100 + i))).collect();
        assert!(stays(&honest));
        let _one_more = pending.admit(v4(99));
        assert!(!stays(&honest));
    }

    #[test]
    fn what_has_got_further_does_not_give_way_to_what_has_just_come() {
        let pending = Pending::default();
        let (greeting, proved) = (pending.admit(v4(0)), pending.admit(v4(1)));
        greeting.advance(Phase::Greeting);
        proved.advance(Phase::Greeting);
        proved.advance(Phase::Proved);
        let _others: Vec<_> = (0..1000).map(|i| pending.admit(v4(2 + i))).collect();
        assert!(stays(&greeting) && stays(&proved));
        assert_eq!(counts(&pending), [Phase::Silent.room(), 1, 1]);
        // Nor can those who say something crowd out who is silent for a moment.
        let silent = pending.admit(v4(5000));
        let talkers: Vec<_> = (0..1000).map(|_| pending.admit(v4(6000))).collect();
        talkers.iter().for_each(|talker| talker.advance(Phase::Greeting));
        assert!(stays(&silent) && stays(&greeting));
        drop((silent, greeting, proved, talkers, _others));
        assert_eq!(counts(&pending), [0; 3], "given back");
    }

    #[test]
    fn one_that_had_to_give_way_cannot_come_back() {
        let pending = Pending::default();
        let silent = pending.admit(v4(0));
        assert!(pending.make_room() && !pending.make_room());
        assert!(!stays(&silent));
        silent.advance(Phase::Greeting);
        assert_eq!(counts(&pending), [0; 3]);
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_network() {
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), network("192.0.2.1".parse().unwrap()));
        assert_ne!(network("192.0.2.1".parse().unwrap()), network("192.0.2.2".parse().unwrap()));
    }
}
