//! Neighbours: the link-layer addresses of hosts on a link.

use std::{
    io,
    net::IpAddr,
    time::{Duration, Instant},
};

use netlink_packet_core::NLM_F_CREATE;
use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
};
use rustix::event::{PollFd, PollFlags};

use super::{
    NetError,
    interface::Mac,
    netlink::{Announcements, Netlink},
};
use crate::poll;

/// An entry of the kernel's neighbour table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The host's address.
    pub address: IpAddr,
    /// Index of the interface.
    pub ifindex: u32,
    /// Its link-layer address, where known.
    pub mac: Option<Mac>,
    /// How much the kernel believes in it.
    pub state: NeighbourState,
}

impl Neighbour {
    fn from_message(message: &NeighbourMessage) -> Option<Self> {
        let mut address = None;
        let mut mac = None;
        for attribute in &message.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => address = Some((*a).into()),
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => address = Some((*a).into()),
                NeighbourAttribute::LinkLayerAddress(octets) => mac = octets.as_slice().try_into().ok(),
                _ => {}
            }
        }
        let NeighbourState::None = message.header.state else {
            return Some(Self { address: address?, ifindex: message.header.ifindex, mac, state: message.header.state });
        };
        None
    }

    /// Returns the link-layer address, when the kernel itself would send to it.
    #[must_use]
    pub fn usable(&self) -> Option<Mac> {
        match self.state {
            NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Noarp
            | NeighbourState::Permanent => self.mac,
            _ => None,
        }
    }
}

/// Returns the entry for `address` on the interface `ifindex`, if there is one.
///
/// # Errors
/// When the kernel cannot be asked.
#[cfg(test)]
pub(crate) fn neighbour(address: IpAddr, ifindex: u32) -> Result<Option<Neighbour>, NetError> {
    lookup(&mut Netlink::route()?, address, ifindex)
}

pub(crate) fn lookup(netlink: &mut Netlink, address: IpAddr, ifindex: u32) -> Result<Option<Neighbour>, NetError> {
    let query = message(address, ifindex);
    let answer = netlink.get(RouteNetlinkMessage::GetNeighbour(query), &[libc::ENOENT], "look up a neighbour")?;
    Ok(match answer {
        Some(RouteNetlinkMessage::NewNeighbour(found)) => Neighbour::from_message(&found),
        _ => None,
    })
}

/// Has the kernel confirm `address`, as if it had a packet to send there: an absent or failed entry is resolved, a
/// stale one becomes reachable again within seconds and stays usable meanwhile. Returns at once.
///
/// A packet socket needs this: it never tells the neighbour table that its packets arrive, so entries that only it uses
/// go stale, and an unresolved one swallows its packets without a word.
///
/// # Errors
/// When the kernel refuses.
pub(crate) fn provoke(netlink: &mut Netlink, address: IpAddr, ifindex: u32) -> Result<(), NetError> {
    // NTF_USE strips a permanent entry of its permanence, so leave alone what needs no confirmation.
    let known = lookup(netlink, address, ifindex)?;
    if known.is_some_and(|n| matches!(n.state, NeighbourState::Permanent | NeighbourState::Noarp)) {
        return Ok(());
    }
    let mut request = message(address, ifindex);
    request.header.flags = NeighbourFlags::Use;
    netlink
        .change(RouteNetlinkMessage::NewNeighbour(request), NLM_F_CREATE)
        .map_err(|source| NetError::Refused { action: format!("resolve the neighbour {address}"), source })
}

/// Returns the link-layer address of `address`; asks for it when it is unknown, and waits for the answer, at most
/// `timeout`. `interface` is the name of `ifindex`.
///
/// # Errors
/// [`NetError::NeighbourSilent`] when nobody answers.
pub fn resolve(address: IpAddr, ifindex: u32, interface: &str, timeout: Duration) -> Result<Mac, NetError> {
    let silent = || NetError::NeighbourSilent { address, interface: interface.into() };
    let deadline = Instant::now() + timeout;
    // Subscribe first: an answer between the look-up and the wait must not be missed.
    let mut announcements = Announcements::subscribe(&[libc::RTNLGRP_NEIGH])?;
    let mut netlink = Netlink::route()?;
    if let Some(mac) = lookup(&mut netlink, address, ifindex)?.and_then(|n| n.usable()) {
        return Ok(mac);
    }
    loop {
        match lookup(&mut netlink, address, ifindex)? {
            Some(found) if found.usable().is_some() => return found.usable().ok_or_else(silent),
            // The kernel gives up after three seconds; on an interface that has just come up it asked too early.
            None | Some(Neighbour { state: NeighbourState::Failed, .. }) => provoke(&mut netlink, address, ifindex)?,
            _ => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(silent());
        }
        poll::ready(&mut [PollFd::from_borrowed_fd(announcements.as_fd(), PollFlags::IN)], left);
        announcements.drain(|_| {}).map_err(|e| refused("wait for a neighbour's answer", e))?;
    }
}

fn refused(action: &str, source: io::Error) -> NetError {
    NetError::Refused { action: action.into(), source }
}

/// Returns the entries that the kernel tries to resolve, or has tried without success: packets to them wait or are
/// dropped.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn unresolved() -> Result<Vec<Neighbour>, NetError> {
    let query = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    let all = Netlink::route()?.dump(query, "list the neighbours")?;
    Ok(all
        .iter()
        .filter_map(|m| if let RouteNetlinkMessage::NewNeighbour(n) = m { Neighbour::from_message(n) } else { None })
        .filter(|n| matches!(n.state, NeighbourState::Incomplete | NeighbourState::Failed))
        .collect())
}

/// Returns the address that a neighbour announcement is about.
pub(crate) fn subject(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => Some(IpAddr::V4(*a)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => Some(IpAddr::V6(*a)),
        _ => None,
    })
}

fn message(address: IpAddr, ifindex: u32) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message.header.ifindex = ifindex;
    message.attributes.push(NeighbourAttribute::Destination(address.into()));
    message
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{
        interface::by_name,
        testing::{PEER_MAC, ip, isolated, veth},
    };

    const WAIT: Duration = Duration::from_secs(5);

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_neighbour_is_resolved_on_demand_and_a_silent_one_is_an_error() {
        isolated(|peer| {
            veth(peer);
            let v0 = by_name("v0").unwrap().index;
            for present in ["10.77.0.2", "fd77::2"] {
                assert_eq!(neighbour(addr(present), v0).unwrap(), None);
                assert_eq!(resolve(addr(present), v0, "v0", WAIT).unwrap(), PEER_MAC);
                assert_eq!(neighbour(addr(present), v0).unwrap().unwrap().usable(), Some(PEER_MAC));
            }
            let silent = resolve(addr("10.77.0.99"), v0, "v0", Duration::from_millis(50)).unwrap_err();
            assert!(silent.to_string().contains("10.77.0.99 does not answer"), "{silent}");
        });
    }

    #[test]
    fn a_probe_revives_a_stale_entry_and_spares_a_permanent_one() {
        isolated(|peer| {
            veth(peer);
            let v0 = by_name("v0").unwrap().index;
            ip("neigh replace 10.77.0.2 lladdr 02:00:00:00:77:02 dev v0 nud stale");
            provoke(&mut Netlink::route().unwrap(), addr("10.77.0.2"), v0).unwrap();
            let state = neighbour(addr("10.77.0.2"), v0).unwrap().unwrap().state;
            assert!(matches!(state, NeighbourState::Delay | NeighbourState::Reachable), "{state:?}");
            ip("neigh replace 10.77.0.9 lladdr 02:00:00:00:00:09 dev v0 nud permanent");
            provoke(&mut Netlink::route().unwrap(), addr("10.77.0.9"), v0).unwrap();
            assert_eq!(neighbour(addr("10.77.0.9"), v0).unwrap().unwrap().state, NeighbourState::Permanent);
        });
    }
}
