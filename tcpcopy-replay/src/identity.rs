//! The identity of replayed clients: the address and port of each session, as the target sees them.
//!
//! Clients keep their own, so that the target's log reads like the live server's. Where that is not possible, because
//! one connection is replayed several times or all clients are to have other addresses, ports are dealt out: each
//! engine has a slot, and engines with different slots share no port, so their sessions never collide at a target.
//! Within an engine the map of its sessions tells what is free.

use std::net::IpAddr;

use tcpcopy_common::flow::{Flow, IpAddress};

use crate::secret::{Purpose, Secret};

/// The lowest port of clients; those below are for services.
const FIRST_PORT: u32 = 1024;
/// From [`FIRST_PORT`] to 65535.
const PORTS: u32 = (1 << 16) - FIRST_PORT;
/// Maximum other ports that are tried when the client's own is taken.
const MAX_OTHERS: u8 = 32;
/// Ports that are tried of one address of a pool; the next address has its turn when this one is almost full.
const PER_ADDRESS: u8 = 60;
/// How many of those are at random places; the others follow the last of them one by one, as a full slot is not hit by
/// chance.
const SCATTERED: u8 = 40;
/// Maximum addresses of a pool that are tried.
const MAX_ADDRESSES: u8 = 4;
/// Regions that a slot is divided into by [`Ports::Dealt`]'s `region`: as many as tcpcopy 1.0 has values of `-f`.
const REGIONS: u32 = 1024;
/// Ports that are tried in the region before the rest of the slot.
const IN_REGION: u8 = 12;

/// Who the sessions of an engine are at its targets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Addresses that clients have in place of their own; with `None` they keep theirs.
    pub addresses: Option<AddressPool>,
    /// Ports that clients have.
    pub ports: Ports,
}

/// Where client ports come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ports {
    /// The client's own, as long as it is free.
    #[default]
    Own,
    /// Those of a slot.
    Dealt {
        /// No two engines that reach the same target may have the same.
        slot: Slot,
        /// Where in the slot the search for a free port begins, modulo 1024: programs that do not know of each other
        /// and have different ones rarely ask for the same port.
        region: Option<u16>,
    },
}

/// The ports that leave the same remainder when they are divided by the number of slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The remainder; less than `of`.
    number: u16,
    /// How many slots there are, 1 to [`MAX`](Self::MAX).
    of: u16,
}

impl Slot {
    /// The most slots that the ports of an address are divided into: each then has a dozen.
    pub const MAX: u16 = 4096;

    /// The `number`th slot, from 0 on, of `of`; `None` unless `number < of <= MAX`.
    #[must_use]
    pub const fn new(number: u16, of: u16) -> Option<Self> {
        if number < of && of <= Self::MAX { Some(Self { number, of }) } else { None }
    }

    /// Returns the lowest of its ports that is no service's, and how many there are from there on.
    const fn first_and_count(self) -> (u32, u32) {
        let (number, of) = (self.number as u32, self.of as u32);
        let first = FIRST_PORT + (number + of - FIRST_PORT % of) % of;
        (first, (PORTS + FIRST_PORT - first).div_ceil(of))
    }
}

/// Addresses that stand in for those of the clients.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressPool {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

/// Adjacent addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    /// IPv4 addresses in the lowest 32 bits.
    first: u128,
    /// At least one.
    count: u128,
}

impl AddressPool {
    /// Adds `count` addresses from `first` on, up to the last possible address.
    pub fn add(&mut self, first: IpAddr, count: u128) {
        let (ranges, first, most) = match first {
            IpAddr::V4(v4) => (&mut self.v4, u128::from(v4.to_bits()), (1 << 32) - u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&mut self.v6, v6.to_bits(), (u128::MAX - v6.to_bits()).saturating_add(1)),
        };
        let count = count.min(most);
        if count > 0 {
            ranges.push(Range { first, count });
        }
    }

    /// Whether it has addresses of this IP version.
    #[must_use]
    pub const fn has(&self, ipv4: bool) -> bool {
        !(if ipv4 { &self.v4 } else { &self.v6 }).is_empty()
    }

    /// Whether this is one of its addresses.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        let (ranges, bits) = match address {
            IpAddr::V4(v4) => (&self.v4, u128::from(v4.to_bits())),
            IpAddr::V6(v6) => (&self.v6, v6.to_bits()),
        };
        ranges.iter().any(|range| bits.checked_sub(range.first).is_some_and(|offset| offset < range.count))
    }

    /// Returns the address that a client has at its `attempt`th try, chosen by a hash.
    fn pick(&self, ipv4: bool, hash: u64, attempt: u8) -> Option<IpAddress> {
        let ranges = if ipv4 { &self.v4 } else { &self.v6 };
        let total = ranges.iter().fold(0u128, |sum, range| sum.saturating_add(range.count));
        let mut index = (u128::from(hash) % total.max(1) + u128::from(attempt)) % total.max(1);
        for range in ranges {
            if index < range.count {
                let bits = range.first + index;
                let address = if ipv4 { IpAddr::V4((bits as u32).into()) } else { IpAddr::V6(bits.into()) };
                return Some(address.into());
            }
            index -= range.count;
        }
        None
    }
}

/// Returns the four-tuples to try for a session, from the `first`th on, each with its number. `own` is the one with the
/// client's own address and port.
pub(crate) fn candidates<'a>(
    identity: &'a Identity,
    secret: Secret,
    own: &'a Flow,
    first: u8,
) -> impl Iterator<Item = (Flow, u8)> + 'a {
    let most = match (&identity.addresses, identity.ports) {
        (Some(_), _) => PER_ADDRESS * MAX_ADDRESSES,
        (None, Ports::Dealt { .. }) => PER_ADDRESS,
        (None, Ports::Own) => MAX_OTHERS,
    };
    (first..most).filter_map(move |attempt| Some((candidate(identity, secret, own, attempt)?, attempt)))
}

fn candidate(identity: &Identity, secret: Secret, own: &Flow, attempt: u8) -> Option<Flow> {
    let client = match &identity.addresses {
        None => own.client,
        Some(pool) => {
            // Of the address alone, so that all connections of a client come from one.
            let client = Flow { server: IpAddress::UNSPECIFIED, client_port: [0; 2], server_port: [0; 2], ..*own };
            pool.pick(own.server.is_v4(), secret.hash(&client, Purpose::PoolAddress), attempt / PER_ADDRESS)?
        }
    };
    let port = match identity.ports {
        Ports::Own => own_or_other(secret, own, attempt),
        Ports::Dealt { slot, region } => Some(dealt(secret, own, attempt % PER_ADDRESS, slot, region)),
    };
    Some(Flow { client, client_port: port.map_or(own.client_port, u16::to_be_bytes), ..*own })
}

/// Returns another port than the client's own, unless it is the first attempt.
fn own_or_other(secret: Secret, own: &Flow, attempt: u8) -> Option<u16> {
    let other = || FIRST_PORT + scale(secret.hash(own, Purpose::OtherPort(attempt)), PORTS);
    (attempt > 0).then(|| other() as u16)
}

/// Returns a port of a slot.
fn dealt(secret: Secret, own: &Flow, attempt: u8, slot: Slot, region: Option<u16>) -> u16 {
    let (first, places) = slot.first_and_count();
    let hash = |n: u8| secret.hash(own, Purpose::DealtPort(n));
    let place = match region {
        Some(region) if attempt < IN_REGION => {
            let size = (places / REGIONS).max(1);
            u32::from(region) % REGIONS * places / REGIONS + (scale(hash(0), size) + u32::from(attempt)) % size
        }
        _ if attempt < SCATTERED => scale(hash(attempt), places),
        _ => scale(hash(SCATTERED), places) + u32::from(attempt - SCATTERED),
    };
    (first + place % places * u32::from(slot.of)) as u16
}

/// Maps a hash evenly to `0..span`.
fn scale(hash: u64, span: u32) -> u32 {
    ((u128::from(hash) * u128::from(span)) >> 64) as u32
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use super::*;
    use crate::engine::tests::flow;

    fn identity(addresses: &[(&str, u128)], ports: Ports) -> Identity {
        let mut pool = AddressPool::default();
        addresses.iter().for_each(|(first, count)| pool.add(first.parse().unwrap(), *count));
        Identity { addresses: (!addresses.is_empty()).then_some(pool), ports }
    }

    fn all(identity: &Identity, own: &Flow) -> Vec<Flow> {
        candidates(identity, Secret::new(3), own, 0).map(|(flow, _)| flow).collect()
    }

    fn dealt_ports(slot: u16, slots: u16, region: Option<u16>) -> Ports {
        Ports::Dealt { slot: Slot::new(slot, slots).unwrap(), region }
    }

    fn port(flow: &Flow) -> u16 {
        u16::from_be_bytes(flow.client_port)
    }

    #[test]
    fn the_own_port_comes_first_and_others_are_no_service_ports() {
        let flows = all(&identity(&[], Ports::Own), &flow(40_000));
        assert_eq!(flows[0], flow(40_000));
        assert!(flows.iter().all(|flow| u32::from(port(flow)) >= FIRST_PORT));
        let ports: HashSet<u16> = flows.iter().map(port).collect();
        assert!(ports.len() > usize::from(MAX_OTHERS) - 2);
    }

    #[test]
    fn there_is_no_slot_outside_the_others_and_none_without_ports() {
        let exists = |number, of| Slot::new(number, of).is_some();
        assert!(exists(0, 1) && exists(4095, 4096));
        assert!(!exists(0, 0) && !exists(1, 1) && !exists(4096, 4096) && !exists(0, 4097) && !exists(u16::MAX, 8));
        for number in 0..Slot::MAX {
            let (first, count) = Slot::new(number, Slot::MAX).unwrap().first_and_count();
            let last = first + (count - 1) * u32::from(Slot::MAX);
            assert!(first >= FIRST_PORT && last < 1 << 16 && count >= 15, "slot {number}: {count} ports from {first}");
        }
    }

    #[test]
    fn a_region_of_any_number_is_in_the_slot() {
        for region in [1023, 1024, u16::MAX] {
            let flows = all(&identity(&[], dealt_ports(3, 8, Some(region))), &flow(9));
            assert!(flows.iter().all(|flow| port(flow) % 8 == 3 && u32::from(port(flow)) >= FIRST_PORT), "{region}");
        }
    }

    #[test]
    fn slots_share_no_port_and_use_all_of_them() {
        for slots in [1, 3, 64, 4096] {
            let mut seen = HashMap::new();
            for slot in 0..slots {
                let identity = identity(&[], dealt_ports(slot, slots, None));
                for own in 0..=5_000 / slots {
                    for flow in all(&identity, &flow(own)) {
                        assert!(u32::from(port(&flow)) >= FIRST_PORT);
                        assert_eq!(*seen.entry(port(&flow)).or_insert(slot), slot, "slots {slots}");
                    }
                }
            }
            assert!(seen.len() as u32 > PORTS * 98 / 100, "{slots} slots use {} ports", seen.len());
        }
    }

    #[test]
    fn a_slot_can_be_filled_nearly_to_the_last_port() {
        let slots = 8;
        let identity = identity(&[("10.9.0.1", 1)], dealt_ports(5, slots, None));
        let mut taken = HashSet::new();
        let mut refused = 0;
        for own in 0..(PORTS / u32::from(slots)) as u16 {
            match candidates(&identity, Secret::new(3), &flow(own), 0).find(|(flow, _)| !taken.contains(flow)) {
                Some((flow, _)) => assert!(taken.insert(flow)),
                None => refused += 1,
            }
        }
        assert!(refused * 20 < taken.len(), "{refused} refused, {} taken", taken.len());
    }

    #[test]
    fn regions_keep_programs_apart_that_do_not_know_of_each_other() {
        // 63 places a region: of a few connections of a client each finds one there.
        let place = |region| {
            let identity = identity(&[], dealt_ports(0, 1, Some(region)));
            let mut taken = HashSet::new();
            for own in 40_000..40_020 {
                let free =
                    candidates(&identity, Secret::new(region.into()), &flow(own), 0).find(|(f, _)| !taken.contains(f));
                taken.insert(free.unwrap().0);
            }
            taken
        };
        let all: Vec<_> = [0, 1, 2, 511, 1023].into_iter().map(place).collect();
        for (i, a) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|b| a.is_disjoint(b)), "region {i}");
        }
    }

    #[test]
    fn a_client_keeps_its_address_of_the_pool_until_that_is_full() {
        let identity = identity(&[("10.9.0.1", 3), ("10.10.0.0", 1)], dealt_ports(0, 1, None));
        let wanted =
            ["10.9.0.1", "10.9.0.2", "10.9.0.3", "10.10.0.0"].map(|a| IpAddress::from(a.parse::<IpAddr>().unwrap()));
        let mut first = HashSet::new();
        for own in 1..100 {
            let flows = all(&identity, &flow(own));
            first.insert(flows[0].client);
            let addresses: HashSet<_> = flows.iter().map(|flow| flow.client).collect();
            assert_eq!(addresses, wanted.into());
            assert!(flows[..usize::from(PER_ADDRESS)].iter().all(|flow| flow.client == flows[0].client));
        }
        assert_eq!(first.len(), 1, "connections of one client come from different addresses");
    }

    #[test]
    fn a_pool_ends_where_addresses_end() {
        let mut pool = AddressPool::default();
        pool.add("255.255.255.254".parse().unwrap(), 10);
        pool.add("::".parse().unwrap(), u128::MAX);
        assert!(pool.contains("255.255.255.255".parse().unwrap()) && !pool.contains("0.0.0.0".parse().unwrap()));
        assert!((0..20).all(|n| pool.pick(true, u64::MAX, n).is_some() && pool.pick(false, u64::MAX, n).is_some()));
        assert!(!AddressPool::default().has(true) && AddressPool::default().pick(true, 1, 0).is_none());
    }

    #[test]
    fn a_pool_has_what_was_added_and_no_more() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut pool = AddressPool::default();
        pool.add(address("10.0.0.1"), 0);
        assert!(!pool.has(true) && !pool.has(false));
        pool.add(address("10.9.0.1"), 3);
        pool.add(address("255.255.255.255"), 9);
        pool.add(address("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe"), 9);
        assert!(pool.has(true) && pool.has(false));
        let inside = ["10.9.0.1", "10.9.0.3", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
        assert!(inside.iter().all(|a| pool.contains(address(a))));
        assert!(
            ["10.9.0.0", "10.9.0.4", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffd"]
                .iter()
                .all(|a| !pool.contains(address(a)))
        );
        // Each in turn, from the one that the hash names on.
        let v4: Vec<_> = (0..5).map(|n| pool.pick(true, 7, n).unwrap()).collect();
        let expected = ["255.255.255.255", "10.9.0.1", "10.9.0.2", "10.9.0.3", "255.255.255.255"];
        assert_eq!(v4, expected.map(|a| IpAddress::from(address(a))));
        let v6: HashSet<_> = (0..5).map(|n| pool.pick(false, 7, n).unwrap()).collect();
        assert_eq!(v6.len(), 2);
    }

    #[test]
    fn a_client_has_one_address_whatever_it_connects_to() {
        let identity = identity(&[("10.9.0.0", 60_000)], Ports::Own);
        let first = |own: Flow| all(&identity, &own)[0].client;
        let expected = first(flow(40_000));
        let other = IpAddress::from_v4([10, 0, 0, 77]);
        assert_eq!(first(Flow { server: other, ..flow(40_000) }), expected);
        assert_eq!(first(Flow { server_port: [1, 1], ..flow(40_000) }), expected);
        assert_ne!(first(Flow { client: other, ..flow(40_000) }), expected);
    }

    #[test]
    fn ports_leave_the_remainder_of_their_slot() {
        for (slot, slots) in [(0, 1), (0, 3), (2, 3), (5, 8), (4095, 4096)] {
            let identity = identity(&[], dealt_ports(slot, slots, None));
            assert!((0..50).flat_map(|own| all(&identity, &flow(own))).all(|flow| port(&flow) % slots == slot));
        }
    }

    #[test]
    fn a_search_begins_in_the_region_is_then_scattered_and_ends_in_a_row() {
        let ports = |own, region| {
            let identity = identity(&[], dealt_ports(0, 1, region));
            all(&identity, &flow(own)).iter().map(|flow| u32::from(port(flow))).collect::<Vec<_>>()
        };
        let (in_region, scattered) = (usize::from(IN_REGION), usize::from(SCATTERED));
        let size = PORTS / REGIONS;
        for own in 0..200 {
            let (within, without) = (ports(own, Some(100)), ports(own, None));
            let begin = FIRST_PORT + 100 * size;
            assert!(within[..in_region].iter().all(|port| (begin..begin + size).contains(port)), "{within:?}");
            assert!(within[..in_region].windows(2).all(|two| (two[0] + 1 - begin) % size == two[1] - begin));
            assert_eq!(within[in_region..], without[in_region..]);
            let in_a_row =
                |ports: &[u32]| ports.windows(2).all(|two| (two[0] + 1 - FIRST_PORT) % PORTS == two[1] - FIRST_PORT);
            assert!(in_a_row(&without[scattered..]) && !in_a_row(&without[..=scattered]), "{without:?}");
        }
    }
}
