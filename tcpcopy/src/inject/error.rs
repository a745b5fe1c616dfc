//! By which sockets packets leave, and why they cannot.

use std::{io, net::IpAddr};

use crate::net::NetError;

/// The kind of socket that packets leave by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// For each target the packet socket where the way there is an Ethernet link whose next hop answers, else the raw
    /// socket.
    Auto,
    /// AF_PACKET.
    Packet,
    /// IPPROTO_RAW, for IPv4 and IPv6.
    Raw,
}

/// Why packets cannot be injected.
#[derive(Debug, thiserror::Error)]
pub enum InjectError {
    /// Raw sockets are privileged.
    #[error("not permitted to open the {socket} socket that sends packets: run as root, or with CAP_NET_RAW")]
    NotPermitted {
        /// The kind of socket.
        socket: &'static str,
    },
    /// The socket is not to be had.
    #[error("cannot open the {socket} socket that sends packets: {source}")]
    Socket {
        /// The kind of socket.
        socket: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A packet socket cannot send to its own host.
    #[error(
        "the target {target} is an address of this host, where packet sockets cannot deliver: use the raw backend, or \
         let it be chosen"
    )]
    TargetIsLocal {
        /// The target.
        target: IpAddr,
    },
    /// There can be no TCP connection to it.
    #[error("the target {target} is a broadcast, multicast or anycast address: name the address of one host")]
    TargetNotUnicast {
        /// The target.
        target: IpAddr,
    },
    /// The link's addresses do not fit.
    #[error("packet sockets cannot use {interface} (link type {link_type}): use the raw backend, or let it be chosen")]
    LinkUnsupported {
        /// Name of the interface.
        interface: String,
        /// Its link type, an `ARPHRD_*` number.
        link_type: u16,
    },
    /// The way to a target is not known.
    #[error(transparent)]
    Net(#[from] NetError),
    /// No thread or event to watch the paths with.
    #[error("cannot watch the routes to the targets: {0}; check the limits on threads and open files (ulimit -u, -n)")]
    Watch(#[source] io::Error),
}
