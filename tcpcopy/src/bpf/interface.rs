//! What attaching needs to know of the interfaces: their index, whether they have an Ethernet header, and which of them
//! carry each other's packets.

use std::io;

use netlink_packet_core::{NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
};
use netlink_sys::{Socket, protocols::NETLINK_ROUTE};

use super::BpfError;

/// A network interface of our network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Interface {
    pub(super) index: u32,
    pub(super) name: String,
    /// Whether its packets start with an Ethernet header; if not, they start with the IP header.
    pub(super) ethernet: bool,
    /// Index of the bridge, bond or VRF that this is a port of: it sees this one's packets too.
    controller: Option<u32>,
    /// Index of the device that this one is made on, whose packets it sees too.
    parent: Option<u32>,
}

/// All interfaces of our network namespace.
pub(super) fn all() -> Result<Vec<Interface>, BpfError> {
    let replies = request(RouteNetlinkMessage::GetLink(LinkMessage::default()), NLM_F_DUMP)
        .map_err(|source| BpfError::Netlink { what: "interfaces", source })?;
    Ok(replies
        .into_iter()
        .filter_map(|reply| match reply {
            RouteNetlinkMessage::NewLink(link) => Interface::parse(&link),
            _ => None,
        })
        .collect())
}

/// The interface of that name.
pub(super) fn by_name<'a>(all: &'a [Interface], name: &str) -> Result<&'a Interface, BpfError> {
    all.iter()
        .find(|interface| interface.name == name)
        .ok_or_else(|| BpfError::UnknownInterface { name: name.to_owned() })
}

/// Refuses `chosen` when a packet would pass two of them: a port and its bridge or bond, a device and its VLAN.
pub(super) fn refuse_stacked(all: &[Interface], chosen: &[&Interface]) -> Result<(), BpfError> {
    for lower in chosen {
        let above = above(all, lower.index);
        if let Some(upper) = chosen.iter().find(|upper| above.contains(&upper.index)) {
            return Err(BpfError::Stacked { lower: lower.name.clone(), upper: upper.name.clone() });
        }
    }
    Ok(())
}

/// Indices of all interfaces that are stacked on the one of index `lower`, however high.
fn above(all: &[Interface], lower: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = Some(lower);
    let mut visited = 0;
    while let Some(lower) = next {
        let controller = all.iter().find(|i| i.index == lower).and_then(|i| i.controller);
        let children = all.iter().filter(|i| i.parent == Some(lower)).map(|i| i.index);
        for index in controller.into_iter().chain(children) {
            if !found.contains(&index) {
                found.push(index);
            }
        }
        next = found.get(visited).copied();
        visited += 1;
    }
    found
}

impl Interface {
    fn parse(link: &LinkMessage) -> Option<Self> {
        let mut name = None;
        let mut controller = None;
        let mut parent = None;
        let mut foreign_parent = false;
        let mut shares_packets = false;
        for attribute in &link.attributes {
            match attribute {
                LinkAttribute::IfName(n) => name = Some(n.clone()),
                LinkAttribute::Controller(index) => controller = Some(*index),
                LinkAttribute::Link(index) => parent = Some(*index),
                LinkAttribute::LinkNetNsId(_) => foreign_parent = true,
                LinkAttribute::LinkInfo(info) => shares_packets = info.iter().any(shares_parents_packets),
                _ => {}
            }
        }
        // IFLA_LINK also names the peer of a veth and the device below a tunnel, which see different packets.
        let parent = parent.filter(|_| shares_packets && !foreign_parent);
        Some(Self {
            index: link.header.index,
            name: name?,
            ethernet: matches!(link.header.link_layer_type, LinkLayerType::Ether | LinkLayerType::Loopback),
            controller,
            parent,
        })
    }
}

/// Whether this kind of device hands on the very packets of the device that it is made on.
fn shares_parents_packets(info: &LinkInfo) -> bool {
    use InfoKind::{Dsa, IpVlan, IpVtap, MacSec, MacVlan, MacVtap, Vlan};
    matches!(info, LinkInfo::Kind(Vlan | MacVlan | MacVtap | IpVlan | IpVtap | MacSec | Dsa))
}

/// Sends one rtnetlink request and collects the replies: those of a dump, or none but the acknowledgement.
pub(super) fn request(message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags | if flags & NLM_F_DUMP == 0 { NLM_F_ACK } else { 0 };
    packet.header.sequence_number = 1;
    packet.finalize();
    let mut buffer = vec![0; packet.buffer_len()];
    packet.serialize(&mut buffer);
    socket.send_to(&buffer, &netlink_sys::SocketAddr::new(0, 0), 0)?;

    let mut replies = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full()?;
        let mut rest = &datagram[..];
        while !rest.is_empty() {
            let reply = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest).map_err(io::Error::other)?;
            match reply.payload {
                NetlinkPayload::Done(_) => return Ok(replies),
                NetlinkPayload::Error(error) => {
                    // Code zero is the acknowledgement.
                    return if error.code.is_none() { Ok(replies) } else { Err(error.to_io()) };
                }
                NetlinkPayload::InnerMessage(message) => replies.push(message),
                _ => {}
            }
            let len = (reply.header.length as usize).next_multiple_of(4);
            rest = rest.get(len..).unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interface(index: u32, name: &str, controller: Option<u32>, parent: Option<u32>) -> Interface {
        Interface { index, name: name.to_owned(), ethernet: true, controller, parent }
    }

    #[test]
    fn interfaces_that_see_the_same_packets_are_refused_together() {
        // eth0 and eth1 in bond0; a VLAN on that in a bridge, and another VLAN; eth2 by itself.
        let all = [
            interface(1, "eth0", Some(4), None),
            interface(2, "eth1", Some(4), None),
            interface(3, "eth2", None, None),
            interface(4, "bond0", None, None),
            interface(5, "bond0.7", Some(6), Some(4)),
            interface(6, "br0", None, None),
            interface(7, "bond0.8", None, Some(4)),
        ];
        let refused = |names: &[&str]| {
            let chosen: Vec<_> = names.iter().map(|name| by_name(&all, name).unwrap()).collect();
            refuse_stacked(&all, &chosen).is_err()
        };
        assert!(refused(&["eth0", "bond0"]));
        assert!(refused(&["bond0", "bond0.7"]));
        assert!(refused(&["bond0.8", "eth1"]));
        assert!(refused(&["eth2", "br0", "eth0"]));
        assert!(!refused(&["eth0", "eth1", "eth2"]));
        assert!(!refused(&["br0", "bond0.8", "eth2"]));
    }

    #[test]
    fn loopback_is_found_and_has_an_ethernet_header() {
        let all = all().unwrap();
        assert!(by_name(&all, "lo").unwrap().ethernet);
        assert!(matches!(by_name(&all, "nonesuch0"), Err(BpfError::UnknownInterface { .. })));
    }
}
