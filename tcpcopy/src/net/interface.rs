//! Network interfaces: which there are, and their coming and going.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
};

use netlink_packet_route::{
    RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage},
};

use super::{
    NetError,
    netlink::{Announcements, Drained, Netlink},
};

/// A link-layer address of Ethernet.
pub type Mac = [u8; 6];

/// `ARPHRD_ETHER`.
pub const ETHERNET: u16 = libc::ARPHRD_ETHER;

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it is a loopback interface.
    pub loopback: bool,
    /// Whether it resolves neighbours (ARP or neighbour discovery).
    pub resolves: bool,
    /// Its MTU in octets, link-layer header excluded.
    pub mtu: u32,
    /// Its link type, one of the `ARPHRD_*` numbers.
    pub link_type: u16,
    /// Its link-layer address, if that has six octets.
    pub mac: Option<Mac>,
    /// What kind of virtual device it is ("veth", "bridge", "bond", "vlan", …); `None` for hardware.
    pub kind: Option<String>,
    /// The bridge, bond or VRF that it is a port of, by index: a packet that it receives is received by that one too.
    pub master: Option<u32>,
    /// The interface that it is stacked on, as a VLAN is on its parent, by index: a packet that it receives was
    /// received by that one first. Not the peer of a veth, nor what a tunnel goes through.
    pub lower: Option<u32>,
}

impl Interface {
    /// Returns whether its packets start with an Ethernet header; if not, they start with the IP header.
    #[must_use]
    pub const fn has_ethernet_header(&self) -> bool {
        matches!(self.link_type, ETHERNET | libc::ARPHRD_LOOPBACK)
    }

    /// Whether it is a network card, whose packets have all been on a wire. The paravirtual ones of virtual machines
    /// are none: they hand over packets of the machine's host, and of its neighbours, as those have left them.
    #[must_use]
    pub fn is_network_card(&self) -> bool {
        let bus = std::fs::read_link(format!("/sys/class/net/{}/device/subsystem", self.name));
        let bus = bus.ok().and_then(|bus| Some(bus.file_name()?.to_string_lossy().into_owned()));
        self.kind.is_none() && bus.is_some_and(|bus| matches!(bus.as_str(), "pci" | "usb" | "platform" | "mdio_bus"))
    }

    fn from_message(message: &LinkMessage) -> Option<Self> {
        let flags = message.header.flags;
        let mut interface = Self {
            index: message.header.index,
            name: String::new(),
            up: flags.contains(LinkFlags::Up),
            loopback: flags.contains(LinkFlags::Loopback),
            resolves: !flags.intersects(LinkFlags::Noarp | LinkFlags::Loopback),
            mtu: 0,
            link_type: message.header.link_layer_type.into(),
            mac: None,
            kind: None,
            master: None,
            lower: None,
        };
        let mut elsewhere = false;
        let mut shares_packets = false;
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => interface.name.clone_from(name),
                LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
                LinkAttribute::Address(address) => interface.mac = address.as_slice().try_into().ok(),
                LinkAttribute::Controller(index) => interface.master = Some(*index),
                LinkAttribute::Link(index) => interface.lower = Some(*index),
                LinkAttribute::LinkNetNsId(_) => elsewhere = true,
                LinkAttribute::LinkInfo(infos) => {
                    shares_packets = infos.iter().any(shares_lower_packets);
                    interface.kind = infos.iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        // IFLA_LINK also names the peer of a veth and the device below a tunnel, which see different packets.
        interface.lower = interface.lower.filter(|&i| i != 0 && shares_packets && !elsewhere);
        (!interface.name.is_empty()).then_some(interface)
    }
}

/// Returns whether this kind of device hands on the very packets of the device that it is made on.
fn shares_lower_packets(info: &LinkInfo) -> bool {
    use InfoKind::{Dsa, IpVlan, IpVtap, MacSec, MacVlan, MacVtap, Vlan};
    matches!(info, LinkInfo::Kind(Vlan | MacVlan | MacVtap | IpVlan | IpVtap | MacSec | Dsa))
}

/// Returns all interfaces of this network namespace.
///
/// # Errors
/// When the kernel cannot be asked.
pub fn interfaces() -> Result<Vec<Interface>, NetError> {
    list(&mut Netlink::route()?)
}

pub(super) fn list(netlink: &mut Netlink) -> Result<Vec<Interface>, NetError> {
    let all = netlink.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), "list the interfaces")?;
    Ok(all
        .iter()
        .filter_map(|message| match message {
            RouteNetlinkMessage::NewLink(link) => Interface::from_message(link),
            _ => None,
        })
        .collect())
}

/// Returns the interface called `name`.
///
/// # Errors
/// [`NetError::NoInterface`] when there is none.
pub fn by_name(name: &str) -> Result<Interface, NetError> {
    named(&interfaces()?, name).cloned()
}

/// Returns the interface called `name` among `all`.
///
/// # Errors
/// [`NetError::NoInterface`] when there is none.
pub fn named<'a>(all: &'a [Interface], name: &str) -> Result<&'a Interface, NetError> {
    all.iter().find(|interface| interface.name == name).ok_or_else(|| NetError::NoInterface { name: name.into() })
}

/// Returns the interface with `index`.
///
/// # Errors
/// [`NetError::NoInterface`] when there is none.
pub fn by_index(index: u32) -> Result<Interface, NetError> {
    get(&mut Netlink::route()?, index)
}

pub(crate) fn get(netlink: &mut Netlink, index: u32) -> Result<Interface, NetError> {
    let mut query = LinkMessage::default();
    query.header.index = index;
    let answer = netlink.get(RouteNetlinkMessage::GetLink(query), &[libc::ENODEV], "look up an interface")?;
    match answer {
        Some(RouteNetlinkMessage::NewLink(link)) => Interface::from_message(&link),
        _ => None,
    }
    .ok_or_else(|| NetError::NoInterface { name: format!("number {index}") })
}

/// Something that happened to an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It is new, or something about it changed; the same state may be announced more than once.
    Present(Interface),
    /// It is gone from this network namespace.
    Removed {
        /// The index it had.
        index: u32,
        /// The name it had.
        name: String,
    },
    /// Announcements were lost: compare with [`interfaces`].
    Missed,
}

/// Announces interfaces that come, change and go. Readable, for poll, when there is something to
/// [`read`](Self::changes); never blocks.
#[derive(Debug)]
pub struct LinkMonitor {
    announcements: Announcements,
}

impl LinkMonitor {
    /// Starts to listen. Call this before [`interfaces`], so that nothing falls between the two.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self { announcements: Announcements::subscribe(&[libc::RTNLGRP_LINK])? })
    }

    /// Returns what has happened since the last call.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub fn changes(&mut self) -> io::Result<Vec<LinkChange>> {
        let mut changes = Vec::new();
        // Bridges announce their ports in the same form but with their own family, and with less in it.
        let whole = |link: &LinkMessage| u8::from(link.header.interface_family) == libc::AF_UNSPEC as u8;
        let drained = self.announcements.drain(|message| match message {
            RouteNetlinkMessage::NewLink(link) if whole(&link) => {
                changes.extend(Interface::from_message(&link).map(LinkChange::Present))
            }
            RouteNetlinkMessage::DelLink(link) if whole(&link) => changes
                .extend(Interface::from_message(&link).map(|i| LinkChange::Removed { index: i.index, name: i.name })),
            _ => {}
        })?;
        if drained == Drained::Gap {
            changes.push(LinkChange::Missed);
        }
        Ok(changes)
    }
}

impl AsRawFd for LinkMonitor {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl AsFd for LinkMonitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.announcements.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, isolated, readable};

    #[test]
    fn a_vlan_is_stacked_on_its_parent_but_a_veth_is_not_on_its_peer() {
        let link = |kind, netns: Option<i32>| {
            let mut message = LinkMessage::default();
            message.header.index = 7;
            message.attributes = vec![
                LinkAttribute::IfName("x".into()),
                LinkAttribute::Link(3),
                LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]),
            ];
            message.attributes.extend(netns.map(LinkAttribute::LinkNetNsId));
            Interface::from_message(&message).unwrap()
        };
        assert_eq!(link(InfoKind::Vlan, None).lower, Some(3));
        assert_eq!(link(InfoKind::Vlan, Some(0)).lower, None, "its parent is in another namespace");
        assert_eq!(link(InfoKind::Veth, None).lower, None);
        assert_eq!(Interface::from_message(&LinkMessage::default()), None, "nameless");
    }

    #[test]
    fn interfaces_are_listed_with_their_properties() {
        isolated(|_| {
            ip("link add v0 mtu 1400 type veth peer name v1");
            ip("link add br0 type bridge");
            ip("link set v1 master br0 up");
            let v0 = by_name("v0").unwrap();
            assert_eq!((v0.mtu, v0.link_type, v0.up, v0.lower), (1400, ETHERNET, false, None));
            assert_eq!((v0.kind.as_deref(), v0.resolves), (Some("veth"), true));
            let v1 = by_name("v1").unwrap();
            assert_eq!((v1.up, v1.master), (true, Some(by_name("br0").unwrap().index)));
            let lo = by_index(1).unwrap();
            assert!(lo.has_ethernet_header());
            assert!(lo.loopback && !lo.resolves && lo.link_type == libc::ARPHRD_LOOPBACK);
            assert!(matches!(by_name("nope"), Err(NetError::NoInterface { .. })));
            assert!(matches!(by_index(4711), Err(NetError::NoInterface { .. })));
        });
    }

    #[test]
    fn interfaces_that_come_and_go_are_announced() {
        isolated(|_| {
            let mut monitor = LinkMonitor::open().unwrap();
            assert_eq!(monitor.changes().unwrap(), []);
            ip("link add v0 type veth peer name v1");
            assert!(readable(&monitor));
            let came = monitor.changes().unwrap();
            assert!(came.iter().any(|c| matches!(c, LinkChange::Present(i) if i.name == "v0")), "{came:?}");
            let index = by_name("v0").unwrap().index;
            ip("link del v0");
            assert!(readable(&monitor));
            let went = monitor.changes().unwrap();
            assert!(went.contains(&LinkChange::Removed { index, name: "v0".into() }), "{went:?}");
        });
    }
}
