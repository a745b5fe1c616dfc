//! Routes and policies by which this host wraps packets up after the last program that could see them as they are:
//! SRv6, MPLS, IPsec. What a tunnel's interface wraps up is not among them: programs on that see the packets before.
//!
//! The messages are read here, octet by octet, so that none is left out that somebody else could not read.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use netlink_packet_route::{RouteNetlinkMessage, route::RouteAttribute};
use netlink_sys::protocols::{NETLINK_ROUTE, NETLINK_XFRM};

use super::{
    NetError,
    netlink::{Announcements, Drained, Netlink},
};

/// A way out on which packets are wrapped up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encapsulation {
    /// Where to: a prefix, or what else the kernel has for it.
    pub to: String,
    /// How: "SRv6", "IPsec" …
    pub how: &'static str,
}

impl fmt::Display for Encapsulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.how, self.to)
    }
}

/// Returns the first way out that is found on which packets are wrapped up; `None` when there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn encapsulation() -> Result<Option<Encapsulation>, NetError> {
    for (query, read) in [
        (Query::family(GET_ROUTE, libc::AF_INET as u8, 12), route as Read),
        (Query::family(GET_ROUTE, libc::AF_INET6 as u8, 12), route),
        (Query::family(GET_NEXTHOP, libc::AF_UNSPEC as u8, 8), next_hop),
    ] {
        if let Some(found) = first(&mut Netlink::open(NETLINK_ROUTE)?, query, read, &[libc::EOPNOTSUPP])? {
            return Ok(Some(found));
        }
    }
    ipsec()
}

/// Tells when packets may be wrapped up that were not before.
#[derive(Debug)]
pub struct Watch {
    announcements: Announcements,
}

impl Watch {
    /// Starts to listen. Call this before [`encapsulation`], so that nothing falls between the two.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn open() -> Result<Self, NetError> {
        let groups = [libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE, RTNLGRP_NEXTHOP];
        Ok(Self { announcements: Announcements::subscribe(&groups)? })
    }

    /// Looks whether a way out that wraps packets up has come since the last call. Never blocks.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn look(&mut self) -> Result<Option<Encapsulation>, NetError> {
        let mut wraps = false;
        let drained = self.announcements.drain(|message| {
            // Of nexthops nothing is read.
            wraps |= match message {
                RouteNetlinkMessage::NewRoute(route) => may_wrap(&route.attributes),
                RouteNetlinkMessage::DelRoute(_) => false,
                _ => true,
            };
        });
        let missed = drained.map_err(NetError::Open)? == Drained::Gap;
        if wraps || missed { encapsulation() } else { ipsec() }
    }
}

/// Whether a route or a next hop may wrap packets up.
fn may_wrap(attributes: &[RouteAttribute]) -> bool {
    attributes.iter().any(|attribute| match attribute {
        RouteAttribute::EncapType(_) | RouteAttribute::Encap(_) => true,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| may_wrap(&hop.attributes)),
        _ => false,
    })
}

/// Returns the first IPsec policy that wraps up TCP without an interface of its own; `None` when there is none.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn ipsec() -> Result<Option<Encapsulation>, NetError> {
    let mut netlink = match Netlink::open(NETLINK_XFRM) {
        // The kernel has no IPsec.
        Err(NetError::Open(e)) if e.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        opened => opened?,
    };
    // `struct xfrm_userpolicy_id`.
    first(&mut netlink, Query { kind: GET_POLICY, payload: vec![0; 64] }, policy, &[])
}

/// Returns what `read` finds in the first message in which it finds something; errors among `absent` mean that there is
/// nothing of the kind.
fn first(netlink: &mut Netlink, query: Query, read: Read, absent: &[i32]) -> Result<Option<Encapsulation>, NetError> {
    let mut found = None;
    let each = |Octets(message): Octets| found = found.take().or_else(|| read(&message));
    match netlink.dump_each(query, "list the ways out", each) {
        Err(NetError::Refused { source, .. }) if source.raw_os_error().is_some_and(|e| absent.contains(&e)) => {}
        result => result?,
    }
    Ok(found)
}

type Read = fn(&[u8]) -> Option<Encapsulation>;

// Of `linux/rtnetlink.h`, `linux/nexthop.h` and `linux/xfrm.h`.
const GET_ROUTE: u16 = 26;
const GET_NEXTHOP: u16 = 106;
const GET_POLICY: u16 = 21;
const RTA_DST: u16 = 1;
const RTA_MULTIPATH: u16 = 9;
const RTA_ENCAP_TYPE: u16 = 21;
const NHA_ID: u16 = 1;
const NHA_ENCAP_TYPE: u16 = 7;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;
const XFRM_POLICY_OUT: u8 = 1;
const RTNLGRP_NEXTHOP: u32 = 32;

/// Names what a kind of `LWTUNNEL_ENCAP_*` does to a packet that leaves; `None` for those that hand it to the interface
/// of a tunnel, and for those that are about packets that come in.
fn wrapping(kind: u16) -> Option<&'static str> {
    match kind {
        // None; IP and IPv6 tunnels; local segments; XFRM interfaces.
        0 | 2 | 4 | 7 | 10 => None,
        1 => Some("MPLS"),
        3 => Some("ILA"),
        5 => Some("SRv6"),
        6 => Some("a BPF program of a route"),
        8 => Some("RPL"),
        9 => Some("IOAM"),
        _ => Some("an encapsulation"),
    }
}

/// Reads a route (`struct rtmsg`).
fn route(message: &[u8]) -> Option<Encapsulation> {
    let (header, attributes) = message.split_at_checked(12)?;
    let how = Attributes(attributes).find_map(|(kind, value)| match kind {
        RTA_ENCAP_TYPE => wrapping(u16_of(value)?),
        RTA_MULTIPATH => NextHops(value).find_map(|hop| {
            Attributes(hop).find(|(kind, _)| *kind == RTA_ENCAP_TYPE).and_then(|(_, value)| wrapping(u16_of(value)?))
        }),
        _ => None,
    })?;
    let destination = Attributes(attributes).find(|(kind, _)| *kind == RTA_DST).and_then(|(_, value)| address(value));
    let to = destination.map_or_else(|| "everywhere".to_owned(), |address| format!("{address}/{}", header[1]));
    Some(Encapsulation { to, how })
}

/// Reads a nexthop object (`struct nhmsg`), which routes use by its number.
fn next_hop(message: &[u8]) -> Option<Encapsulation> {
    let (_, attributes) = message.split_at_checked(8)?;
    let find = |wanted| Attributes(attributes).find(move |(kind, _)| *kind == wanted).map(|(_, value)| value);
    let how = wrapping(u16_of(find(NHA_ENCAP_TYPE)?)?)?;
    let id = find(NHA_ID).and_then(|value| Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?)));
    Some(Encapsulation { to: format!("the nexthop {}", id.unwrap_or_default()), how })
}

/// Reads an IPsec policy (`struct xfrm_userpolicy_info`).
fn policy(message: &[u8]) -> Option<Encapsulation> {
    const LENGTH: usize = 168;
    let (info, attributes) = message.split_at_checked(LENGTH)?;
    let (family, prefix, protocol) = (u16_of(&info[40..])?, info[42], info[44]);
    let (direction, action) = (info[160], info[161]);
    let concerns_tcp = [0, libc::IPPROTO_TCP as u8].contains(&protocol);
    let has =
        |wanted| Attributes(attributes).any(|(kind, value)| kind == wanted && value.iter().any(|octet| *octet != 0));
    if direction != XFRM_POLICY_OUT || action != 0 || !concerns_tcp || !has(XFRMA_TMPL) || has(XFRMA_IF_ID) {
        return None;
    }
    let octets = if i32::from(family) == libc::AF_INET { 4 } else { 16 };
    let to = address(info.get(..octets)?)?;
    Some(Encapsulation { to: format!("{to}/{prefix}"), how: "IPsec" })
}

fn address(octets: &[u8]) -> Option<IpAddr> {
    let v4 = || <[u8; 4]>::try_from(octets).ok().map(|octets| Ipv4Addr::from(octets).into());
    let v6 = || <[u8; 16]>::try_from(octets).ok().map(|octets| Ipv6Addr::from(octets).into());
    v4().or_else(v6)
}

fn u16_of(octets: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(octets.get(..2)?.try_into().ok()?))
}

/// Splits off what its first two octets say the length of, in host order; the next begins at a multiple of four. `None`
/// at the end, and when lengths contradict each other.
fn split<'a>(rest: &mut &'a [u8], header: usize) -> Option<&'a [u8]> {
    let length = usize::from(u16_of(rest)?);
    if length < header {
        return None;
    }
    let whole = rest.get(..length)?;
    *rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    Some(whole)
}

/// The attributes of a message, by number.
struct Attributes<'a>(&'a [u8]);

impl<'a> Iterator for Attributes<'a> {
    type Item = (u16, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        /// Attributes in it, and an order of octets, are said by the upper bits.
        const KIND: u16 = 0x3fff;
        let whole = split(&mut self.0, 4)?;
        Some((u16_of(&whole[2..])? & KIND, &whole[4..]))
    }
}

/// The attributes of each of several next hops (`struct rtnexthop`).
struct NextHops<'a>(&'a [u8]);

impl<'a> Iterator for NextHops<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        split(&mut self.0, 8).map(|whole| &whole[8..])
    }
}

/// A question.
#[derive(Clone)]
struct Query {
    kind: u16,
    payload: Vec<u8>,
}

impl Query {
    /// A question about a family, which its first octet names.
    fn family(kind: u16, family: u8, length: usize) -> Self {
        let mut payload = vec![0; length];
        payload[0] = family;
        Self { kind, payload }
    }
}

impl NetlinkSerializable for Query {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.payload.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.payload);
    }
}

/// An answer as it came.
struct Octets(Vec<u8>);

impl NetlinkDeserializable for Octets {
    type Error = std::convert::Infallible;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self(payload.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, isolated, veth};

    fn found() -> Option<String> {
        encapsulation().unwrap().map(|encapsulation| encapsulation.to_string())
    }

    #[test]
    fn routes_that_wrap_packets_up_are_found() {
        isolated(|peer| {
            veth(peer);
            assert_eq!(found(), None);
            ip("route add 192.0.2.0/24 via 10.77.0.2");
            ip("route add 192.0.3.0/24 encap ip id 7 dst 10.77.0.2 dev v0");
            assert_eq!(found(), None, "what the interface of a tunnel wraps up is seen there");
            for (route, expected) in [
                ("198.51.100.0/24 encap seg6 mode encap segs fd77::2 dev v0", "SRv6 to 198.51.100.0/24"),
                ("2001:db8::/64 encap seg6 mode inline segs fd77::2 dev v0", "SRv6 to 2001:db8::/64"),
                ("default encap seg6 mode encap segs fd77::2 dev v0", "SRv6 to everywhere"),
                (
                    "198.51.100.0/24 nexthop via 10.77.0.2 \
                     nexthop encap seg6 mode encap segs fd77::2 via 10.77.0.3 dev v0",
                    "SRv6 to 198.51.100.0/24",
                ),
                ("198.51.100.0/24 table 77 encap seg6 mode encap segs fd77::2 dev v0", "SRv6 to 198.51.100.0/24"),
            ] {
                ip(&format!("route add {route}"));
                assert_eq!(found().as_deref(), Some(expected), "{route}");
                ip(&format!("route del {route}"));
                assert_eq!(found(), None);
            }
            ip("nexthop add id 9 encap seg6 mode encap segs fd77::2 dev v0");
            assert_eq!(found().as_deref(), Some("SRv6 to the nexthop 9"));
        });
    }

    #[test]
    fn a_route_that_comes_later_is_noticed() {
        isolated(|peer| {
            veth(peer);
            let mut watch = Watch::open().unwrap();
            let mut look = || watch.look().unwrap().map(|encapsulation| encapsulation.to_string());
            ip("route add 192.0.2.0/24 via 10.77.0.2");
            assert_eq!(look(), None);
            for route in ["198.51.100.0/24", "2001:db8::/64"] {
                ip(&format!("route add {route} encap seg6 mode encap segs fd77::2 dev v0"));
                assert_eq!(look(), Some(format!("SRv6 to {route}")));
                ip(&format!("route del {route}"));
                assert_eq!(look(), None);
            }
            ip("nexthop add id 9 encap seg6 mode encap segs fd77::2 dev v0");
            assert_eq!(look().as_deref(), Some("SRv6 to the nexthop 9"));
        });
    }

    #[test]
    fn policies_of_ipsec_without_an_interface_are_found() {
        isolated(|_| {
            let ends = "tmpl src 10.77.0.1 dst 10.77.0.2 proto esp mode tunnel";
            for harmless in [
                format!("src 0.0.0.0/0 dst 0.0.0.0/0 dir in {ends}"),
                format!("src 0.0.0.0/0 dst 192.0.2.0/24 proto udp dir out {ends}"),
                format!("src 0.0.0.0/0 dst 192.0.2.0/24 dir out if_id 7 {ends}"),
                "src 0.0.0.0/0 dst 192.0.2.0/24 dir out".to_owned(),
                "src 0.0.0.0/0 dst 192.0.2.0/24 dir out action block".to_owned(),
            ] {
                ip(&format!("xfrm policy add {harmless}"));
                assert_eq!(found(), None, "{harmless}");
                ip("xfrm policy flush");
            }
            for (policy, expected) in [
                (format!("src 0.0.0.0/0 dst 192.0.2.0/24 dir out {ends}"), "IPsec to 192.0.2.0/24"),
                (
                    format!("src ::/0 dst 2001:db8::/32 proto tcp dir out {}", ends.replace("10.77.0.", "fd77::")),
                    "IPsec to 2001:db8::/32",
                ),
            ] {
                ip(&format!("xfrm policy add {policy}"));
                assert_eq!(found().as_deref(), Some(expected), "{policy}");
                ip("xfrm policy flush");
            }
        });
    }

    #[test]
    fn octets_that_contradict_each_other_are_no_attributes() {
        for octets in [&[][..], &[4], &[3, 0, 1, 0], &[9, 0, 1, 0, 1], &[0; 8]] {
            assert_eq!(Attributes(octets).count(), 0, "{octets:?}");
        }
        assert_eq!(Attributes(&[5, 0, 1, 0x80, 7]).collect::<Vec<_>>(), [(1, &[7][..])], "without its padding");
        for short in 0..168 {
            assert_eq!((route(&vec![0; short]), policy(&vec![0; short])), (None, None));
        }
    }
}
