//! Routes: where packets to an address leave, and which interfaces face the world.

use std::net::IpAddr;

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressMessage},
    route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia},
};

use super::{NetError, interface, netlink::Netlink};

/// How the kernel would send a packet to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Index of the interface it leaves by.
    pub oif: u32,
    /// That interface's name.
    pub interface: String,
    /// The router it goes to, or `None` when the destination is on the link.
    pub gateway: Option<IpAddr>,
    /// The largest IP packet, in octets: the route's own limit, what path MTU discovery learned, or the interface's.
    pub mtu: u32,
    /// What kind of destination it is.
    pub kind: RouteKind,
}

/// Kinds of destinations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteKind {
    /// Another host.
    Unicast,
    /// This host itself.
    Local,
    /// A broadcast, multicast or anycast address.
    Shared,
}

impl Route {
    /// Returns the neighbour that a packet to `destination` is handed to.
    #[must_use]
    pub fn next_hop(&self, destination: IpAddr) -> IpAddr {
        self.gateway.unwrap_or(destination)
    }
}

/// Returns the route to `destination`.
///
/// # Errors
/// [`NetError::NoRoute`] when there is none, or one that says unreachable, prohibited or black hole.
#[cfg(test)]
pub(crate) fn route_to(destination: IpAddr) -> Result<Route, NetError> {
    lookup(&mut Netlink::route()?, destination)
}

pub(crate) fn lookup(netlink: &mut Netlink, destination: IpAddr) -> Result<Route, NetError> {
    let no_route = || NetError::NoRoute { destination };
    let mut query = message(destination.is_ipv6());
    query.header.destination_prefix_length = if destination.is_ipv6() { 128 } else { 32 };
    query.attributes.push(RouteAttribute::Destination(destination.into()));
    // Unreachable, prohibited and black-hole routes of IPv4 are reported as the errors that they cause.
    let absent = [libc::ENETUNREACH, libc::EHOSTUNREACH, libc::EACCES, libc::EINVAL];
    let answer = netlink.get(RouteNetlinkMessage::GetRoute(query), &absent, "look up a route")?;
    let Some(RouteNetlinkMessage::NewRoute(found)) = answer else { return Err(no_route()) };
    let kind = match found.header.kind {
        RouteType::Unicast => RouteKind::Unicast,
        RouteType::Local => RouteKind::Local,
        RouteType::Broadcast | RouteType::Multicast | RouteType::Anycast => RouteKind::Shared,
        _ => return Err(no_route()),
    };
    let mut oif = None;
    let mut gateway = None;
    let mut mtu = None;
    for attribute in &found.attributes {
        match attribute {
            RouteAttribute::Oif(index) => oif = Some(*index),
            RouteAttribute::Gateway(RouteAddress::Inet(a)) => gateway = Some((*a).into()),
            RouteAttribute::Gateway(RouteAddress::Inet6(a)) => gateway = Some((*a).into()),
            RouteAttribute::Via(RouteVia::Inet6(a)) => gateway = Some((*a).into()),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|m| if let RouteMetric::Mtu(mtu) = m { Some(*mtu) } else { None });
            }
            _ => {}
        }
    }
    let out = interface::get(netlink, oif.ok_or_else(no_route)?)?;
    Ok(Route { oif: out.index, interface: out.name, gateway, mtu: mtu.unwrap_or(out.mtu).min(out.mtu), kind })
}

/// Returns the interfaces that face the world: those of the default routes of IPv4 and IPv6, best first, else the only
/// one that is up, is not a loopback and has an address.
///
/// # Errors
/// [`NetError::NoDefaultInterface`] when there is no default route, and not exactly one other candidate.
pub fn default_interfaces() -> Result<Vec<String>, NetError> {
    let mut netlink = Netlink::route()?;
    let interfaces = interface::list(&mut netlink)?;
    let usable = |index: u32| interfaces.iter().find(|i| i.index == index && i.up && !i.loopback);

    let mut routes: Vec<_> = main_routes(&mut netlink)?
        .into_iter()
        .filter(|route| route.header.destination_prefix_length == 0 && matches!(route.header.kind, RouteType::Unicast))
        .map(|route| (metric(&route), route))
        .collect();
    routes.sort_by_key(|(metric, _)| *metric);
    let mut names: Vec<String> = Vec::new();
    for interface in routes.iter().flat_map(|(_, route)| exits(route)).filter_map(usable) {
        if !names.contains(&interface.name) {
            names.push(interface.name.clone());
        }
    }
    if !names.is_empty() {
        return Ok(names);
    }

    let query = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    let addresses: Vec<RouteNetlinkMessage> = netlink.dump(query, "list the addresses")?;
    let mut found: Vec<String> = Vec::new();
    for message in &addresses {
        if let RouteNetlinkMessage::NewAddress(address) = message
            && address.attributes.iter().any(|a| matches!(a, AddressAttribute::Address(_)))
            && let Some(interface) = usable(address.header.index)
            && !found.contains(&interface.name)
        {
            found.push(interface.name.clone());
        }
    }
    if found.len() == 1 { Ok(found) } else { Err(NetError::NoDefaultInterface { found }) }
}

fn message(v6: bool) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    message
}

/// Returns the routes of the main table, of both IP versions. Other tables hold what this host owns itself, or policy.
fn main_routes(netlink: &mut Netlink) -> Result<Vec<RouteMessage>, NetError> {
    let mut routes = Vec::new();
    for v6 in [false, true] {
        let all = netlink.dump(RouteNetlinkMessage::GetRoute(message(v6)), "list the routes")?;
        routes.extend(all.into_iter().filter_map(|m| match m {
            RouteNetlinkMessage::NewRoute(route) if table(&route) == u32::from(RouteHeader::RT_TABLE_MAIN) => {
                Some(route)
            }
            _ => None,
        }));
    }
    Ok(routes)
}

fn table(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|a| if let RouteAttribute::Table(t) = a { Some(*t) } else { None });
    named.unwrap_or_else(|| route.header.table.into())
}

fn metric(route: &RouteMessage) -> u32 {
    let named = route.attributes.iter().find_map(|a| if let RouteAttribute::Priority(p) = a { Some(*p) } else { None });
    named.unwrap_or(0)
}

/// Indices of the interfaces that a route can use: more than one with multipath.
fn exits(route: &RouteMessage) -> Vec<u32> {
    route
        .attributes
        .iter()
        .flat_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => vec![*index],
            RouteAttribute::MultiPath(hops) => hops.iter().map(|hop| hop.interface_index).collect(),
            _ => vec![],
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, isolated, veth};

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn routes_name_their_interface_gateway_mtu_and_kind() {
        isolated(|peer| {
            veth(peer);
            ip("route add 192.0.2.0/24 via 10.77.0.2 mtu 1280");
            ip("route add 198.51.100.0/24 via inet6 fd77::2");
            ip("-6 route add 2001:db8::/64 via fd77::2");
            ip("route add unreachable 203.0.113.0/24");
            ip("-6 route add blackhole 2001:db8:1::/64");
            let on_link = route_to(addr("10.77.0.9")).unwrap();
            assert_eq!((on_link.interface.as_str(), on_link.gateway, on_link.mtu), ("v0", None, 1500));
            assert_eq!(on_link.next_hop(addr("10.77.0.9")), addr("10.77.0.9"));
            let routed = route_to(addr("192.0.2.7")).unwrap();
            assert_eq!((routed.gateway, routed.mtu, routed.kind), (Some(addr("10.77.0.2")), 1280, RouteKind::Unicast));
            assert_eq!(route_to(addr("198.51.100.1")).unwrap().gateway, Some(addr("fd77::2")));
            assert_eq!(route_to(addr("2001:db8::1")).unwrap().gateway, Some(addr("fd77::2")));
            for own in ["127.0.0.1", "10.77.0.1", "::1", "fd77::1"] {
                assert_eq!(route_to(addr(own)).unwrap().kind, RouteKind::Local, "{own}");
            }
            assert_eq!(route_to(addr("10.77.0.255")).unwrap().kind, RouteKind::Shared);
            for nowhere in ["8.8.8.8", "203.0.113.1", "2001:db8:1::1", "2001:db8:2::1"] {
                assert!(matches!(route_to(addr(nowhere)), Err(NetError::NoRoute { .. })), "{nowhere}");
            }
        });
    }

    #[test]
    fn default_interfaces_follow_the_routes_by_metric_and_fall_back_to_the_only_candidate() {
        isolated(|peer| {
            let lonely = default_interfaces().unwrap_err();
            assert!(lonely.to_string().ends_with("; name one"), "{lonely}");
            veth(peer);
            assert_eq!(default_interfaces().unwrap(), ["v0"]);
            ip("link add w0 type veth peer name w1");
            ip("link set w0 up");
            ip("link set w1 up");
            ip("addr add 10.78.0.1/24 dev w0");
            let undecided = default_interfaces().unwrap_err().to_string();
            assert!(undecided.contains("v0") && undecided.contains("w0"), "{undecided}");
            ip("route add default via 10.77.0.2 metric 200");
            assert_eq!(default_interfaces().unwrap(), ["v0"]);
            ip("route add default via 10.78.0.2 metric 100");
            assert_eq!(default_interfaces().unwrap(), ["w0", "v0"]);
        });
    }
}
