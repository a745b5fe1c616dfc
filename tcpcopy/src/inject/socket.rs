//! The sockets that inject. None of them ever receives anything.

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
};

use rustix::net::sockopt;
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::error::InjectError;

/// Octets that may wait in the kernel for the interface, bookkeeping included: some 2,000 full-sized packets, so that
/// the burst of a whole batch fits into what a slow interface has not sent yet.
const SEND_BUFFER: usize = 4 << 20;
/// `IPPROTO_RAW`: the header is included.
const HEADER_INCLUDED: i32 = libc::IPPROTO_RAW;
/// Options of packet sockets (packet(7), and `linux/if_packet.h`).
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;
/// A classic BPF program that accepts no packet: return 0.
const REJECT_ALL: [SockFilter; 1] = [SockFilter::new(0x06, 0, 0, 0)];

/// Opens a packet socket that takes IP packets and adds the link-layer header itself. Its protocol 0 means that it
/// receives nothing.
pub(super) fn packet(bypass_qdisc: bool) -> Result<OwnedFd, InjectError> {
    open("AF_PACKET", || {
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, None)?;
        if bypass_qdisc {
            enable(&socket, PACKET_QDISC_BYPASS)?;
        }
        Ok(socket)
    })
}

/// Opens a packet socket that takes frames, each with orders before it: see [`tcpcopy_wire::EthernetHeader`]. (The
/// kernel allows these orders only where the link-layer header is given too.)
pub(super) fn frame(bypass_qdisc: bool) -> Result<OwnedFd, InjectError> {
    open("AF_PACKET", || {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        enable(&socket, PACKET_VNET_HDR)?;
        if bypass_qdisc {
            enable(&socket, PACKET_QDISC_BYPASS)?;
        }
        Ok(socket)
    })
}

/// Opens a raw socket for IPv4 or IPv6 packets that are complete but for the link layer.
pub(crate) fn raw(v6: bool) -> Result<OwnedFd, InjectError> {
    let (name, domain) = if v6 { ("IPv6 raw", Domain::IPV6) } else { ("IPPROTO_RAW", Domain::IPV4) };
    open(name, || {
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(HEADER_INCLUDED)))?;
        // It would receive packets with protocol number 255, should anybody send such.
        socket.attach_filter(&REJECT_ALL)?;
        // Beyond a known path MTU the kernel would answer each packet with an ICMP error to its source, and that is a
        // live client. With "probe" only the interface's MTU counts, and beyond that the call fails with EMSGSIZE.
        if v6 {
            sockopt::set_ipv6_mtu_discover(&socket, sockopt::Ipv6PathMtuDiscovery::PROBE)?;
        } else {
            sockopt::set_ip_mtu_discover(&socket, sockopt::Ipv4PathMtuDiscovery::PROBE)?;
        }
        Ok(socket)
    })
}

/// Switches an option of a packet socket on.
fn enable(socket: &Socket, option: libc::c_int) -> io::Result<()> {
    let on: libc::c_int = 1;
    // SAFETY: the value is an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            option,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn open(name: &'static str, make: impl FnOnce() -> io::Result<Socket>) -> Result<OwnedFd, InjectError> {
    let socket = make().map_err(|source| match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => InjectError::NotPermitted { socket: name },
        _ => InjectError::Socket { socket: name, source },
    })?;
    // Beyond the system's limit it takes CAP_NET_ADMIN; without, the limit has to do.
    if sockopt::set_socket_send_buffer_size_force(socket.as_fd(), SEND_BUFFER).is_err()
        && let Err(e) = socket.set_send_buffer_size(SEND_BUFFER)
    {
        log::debug!("the send buffer of the {name} socket keeps its default size: {e}");
    }
    Ok(socket.into())
}
