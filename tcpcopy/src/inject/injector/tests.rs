//! Privileged tests: packets over a veth pair, as they arrive at its other end.

use std::{
    io::{self, Read as _},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use netlink_packet_route::neighbour::NeighbourState;
use socket2::{Domain, Protocol, Socket, Type};
use tcpcopy_common::{
    flow::Flow,
    mark::{Mark, MarkKey, Stamp},
    tcp_flags,
};
use tcpcopy_replay::{SynOptions, TransmitOptions};

use super::*;
use crate::net::{
    interface::by_name,
    neighbour::neighbour,
    testing::{NEAR_MAC, PEER_MAC, Peer, eventually, ip, isolated, veth},
};

/// A client that nobody is.
const CLIENT: [&str; 2] = ["203.0.113.7", "2001:db8:cccc::7"];

fn addr(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// Everything that arrives on an interface.
struct Tap(Socket);

impl Tap {
    fn open(interface: &str) -> Self {
        let every = (libc::ETH_P_ALL as u16).to_be();
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(i32::from(every)))).unwrap();
        let only = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: every,
            sll_ifindex: by_name(interface).unwrap().index as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address is valid for the length given; the kernel only reads it.
        let bound =
            unsafe { libc::bind(socket.as_raw_fd(), (&raw const only).cast(), size_of_val(&only) as libc::socklen_t) };
        assert_eq!(bound, 0);
        socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        Self(socket)
    }

    /// Returns the next frame that carries TCP.
    fn tcp(&mut self) -> Vec<u8> {
        let mut frame = [0; 70_000];
        loop {
            let length = self.0.read(&mut frame).expect("a frame arrives within five seconds");
            let frame = &frame[..length];
            let tcp = match frame[12..] {
                [0x08, 0x00, ..] => frame[14 + 9] == 6,
                [0x86, 0xdd, ..] => frame[14 + 6] == 6,
                _ => false,
            };
            if tcp {
                return frame.to_vec();
            }
        }
    }
}

/// Returns a tap on the far end of the veth pair.
fn far_tap(peer: &Peer) -> Tap {
    peer.run(|| Tap::open("v1"))
}

fn flow(target: &str) -> Flow {
    let server = addr(target);
    let client = addr(CLIENT[usize::from(server.is_ipv6())]);
    Flow::tcp((client.into(), 40_000u16.to_be_bytes()), (server.into(), 80u16.to_be_bytes()))
}

fn data<'a>(target: &str, payload: &'a [u8]) -> Transmit<'a> {
    Transmit {
        flow: flow(target),
        seq: 1000,
        ack: 2000,
        window: 500,
        flags: tcp_flags::ACK | tcp_flags::PSH,
        options: TransmitOptions { syn: None, timestamps: Some((1, 2)) },
        segment_size: 1400,
        payload,
    }
}

fn syn(target: &str) -> Transmit<'static> {
    let flow = flow(target);
    let mark = Mark::new(&MarkKey { k0: 1, k1: 2 }, 3, Stamp::default(), &flow, 1000u32.to_be_bytes());
    let options =
        TransmitOptions { syn: Some(SynOptions { mss: 1400, window_scale: Some(7), mark }), timestamps: Some((1, 0)) };
    Transmit { flags: tcp_flags::SYN, options, ..data(target, b"") }
}

const SENDING: Sending = Sending { batch: 64, bypass_qdisc: false };

fn injector(backend: Backend, targets: &[&str]) -> Result<Injector, InjectError> {
    injector_with(backend, targets, SENDING)
}

fn injector_with(backend: Backend, targets: &[&str], sending: Sending) -> Result<Injector, InjectError> {
    let targets: Vec<_> = targets.iter().map(|t| addr(t)).collect();
    Injector::open(Arc::new(Paths::open(backend, &targets)?), sending)
}

/// Makes an interface one that neither computes checksums nor cuts super-packets up: the kernel does both for it.
fn without_offloads(interface: &str) {
    /// `ETHTOOL_STXCSUM` of `linux/ethtool.h`. Without checksums there is no segmentation either.
    const SET_TX_CHECKSUMS: u32 = 0x17;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
    let off = [SET_TX_CHECKSUMS, 0];
    // SAFETY: all zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = (&raw const off).cast_mut().cast();
    // SAFETY: SIOCETHTOOL reads an ifreq, and behind its pointer the two numbers of this command.
    let set = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as libc::Ioctl, &mut request) };
    assert_eq!(set, 0, "{}", io::Error::last_os_error());
}

/// Returns the packets that a fresh injector makes of `transmits`.
fn expected(transmits: &[Transmit<'_>], mtu: u16) -> Vec<Vec<u8>> {
    let mut built = Vec::new();
    for transmit in transmits {
        let mut packets = Packets::new(transmit, mtu, Form::Packets);
        while packets.peek().is_some() {
            let mut packet = Vec::new();
            packets.write(built.len() as u16 + 1, &mut packet);
            built.push(packet);
        }
    }
    built
}

#[test]
fn packets_arrive_as_built_by_each_backend_and_ip_version() {
    isolated(|peer| {
        veth(peer);
        without_offloads("v0");
        for backend in [Backend::Packet, Backend::Raw, Backend::Auto] {
            for target in ["10.77.0.2", "fd77::2"] {
                let mut tap = far_tap(peer);
                let mut injector = injector(backend, &[target]).unwrap();
                let payload: Vec<u8> = (0..4000u32).map(|n| n as u8).collect();
                let transmits = [syn(target), data(target, &payload)];
                transmits.iter().for_each(|transmit| injector.push(transmit));
                let super_packet = backend != Backend::Raw;
                assert_eq!(injector.pending(), if super_packet { 2 } else { 4 });
                injector.flush();
                let expected = expected(&transmits, 1500);
                assert_eq!(expected.len(), 4);
                for packet in &expected {
                    let frame = tap.tcp();
                    assert_eq!((&frame[..6], &frame[6..12]), (&PEER_MAC[..], &NEAR_MAC[..]));
                    assert_eq!(&frame[14..], packet, "{backend:?} to {target}");
                }
                let bytes = expected.iter().map(|p| p.len() as u64).sum();
                assert_eq!(*injector.stats(), InjectStats { packets: 4, bytes, ..InjectStats::default() });
            }
        }
    });
}

#[test]
fn a_large_payload_stays_one_packet_as_long_as_the_interface_lets_it() {
    isolated(|peer| {
        veth(peer);
        for (target, headers) in [("10.77.0.2", 20 + 32), ("fd77::2", 40 + 32)] {
            let mut tap = far_tap(peer);
            let mut injector = injector(Backend::Packet, &[target]).unwrap();
            for size in [4000usize, 60_000, 65_500] {
                let payload: Vec<u8> = (0..size).map(|n| n as u8).collect();
                injector.push(&data(target, &payload));
                injector.flush();
                // 1400 octets each: as many as an IP packet holds, and the rest.
                let first = size.min((65_535 - headers) / 1400 * 1400);
                for piece in [&payload[..first], &payload[first..]].into_iter().filter(|piece| !piece.is_empty()) {
                    let frame = tap.tcp();
                    assert!(&frame[14 + headers..] == piece, "{size} octets to {target}");
                }
            }
            let segments: usize = [4000usize, 60_000, 65_500].iter().map(|size| size.div_ceil(1400)).sum();
            let stats = injector.stats();
            assert_eq!(stats.packets, segments as u64);
            assert_eq!(stats.bytes, (129_500 + segments * headers) as u64);
        }
    });
}

#[test]
fn past_the_queueing_discipline_nothing_is_left_to_cut_up() {
    isolated(|peer| {
        veth(peer);
        without_offloads("v0");
        let mut tap = far_tap(peer);
        let sending = Sending { bypass_qdisc: true, ..SENDING };
        let mut injector = injector_with(Backend::Packet, &["10.77.0.2"], sending).unwrap();
        let payload = [7; 30_000];
        let transmit = data("10.77.0.2", &payload);
        injector.push(&transmit);
        injector.flush();
        for packet in expected(&[transmit], 1500) {
            assert_eq!(tap.tcp()[14..], packet);
        }
        assert_eq!((injector.stats().packets, injector.stats().discarded()), (22, 0));
    });
}

#[test]
fn a_listener_accepts_the_bytes_of_an_injected_connection() {
    isolated(|peer| {
        veth(peer);
        for target in ["10.77.0.2", "fd77::2"] {
            let prefix = if addr(target).is_ipv6() { "2001:db8:cccc::/64" } else { "203.0.113.0/24" };
            let listener = peer.run(move || {
                // The answers need a route, or the far end does not even accept the SYN.
                ip(&format!("route add {prefix} dev v1"));
                let listener = std::net::TcpListener::bind((addr(target), 80)).unwrap();
                listener.set_nonblocking(true).unwrap();
                listener
            });
            let mut tap = Tap::open("v0");
            peer.run(move || {
                let client = CLIENT[usize::from(addr(target).is_ipv6())];
                ip(&format!("neigh replace {client} lladdr 02:00:00:00:77:01 dev v1 nud permanent"));
            });
            let mut injector = injector(Backend::Auto, &[target]).unwrap();
            injector.push(&syn(target));
            injector.flush();
            // The SYN-ACK: the far end's TCP checked our checksums.
            let tcp = if addr(target).is_ipv6() { 54 } else { 34 };
            let syn_ack = loop {
                let frame = tap.tcp();
                let version = if addr(target).is_ipv6() { 0x60 } else { 0x45 };
                if frame[6..12] == PEER_MAC
                    && frame[14] == version
                    && frame[tcp + 13] == (tcp_flags::SYN | tcp_flags::ACK).octet()
                {
                    break frame[tcp..].to_vec();
                }
            };
            let number = |at: usize| u32::from_be_bytes(syn_ack[at..at + 4].try_into().unwrap());
            // Since 6.15 the kernel drops an ACK that does not echo the SYN-ACK's own timestamp.
            let tsval = number(22 + syn_ack[20..].windows(2).position(|w| w == [8, 10]).unwrap());
            let payload: Vec<u8> = (0..10_000u32).map(|n| (n * 7) as u8).collect();
            let options = TransmitOptions { syn: None, timestamps: Some((1, tsval)) };
            injector.push(&Transmit { seq: 1001, ack: number(4).wrapping_add(1), options, ..data(target, &payload) });
            injector.flush();
            let mut accepted = None;
            eventually(|| {
                accepted = listener.accept().ok();
                accepted.is_some()
            });
            let (mut connection, from) = accepted.unwrap();
            connection.set_nonblocking(false).unwrap();
            connection.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            assert_eq!(from.ip(), addr(CLIENT[usize::from(addr(target).is_ipv6())]));
            let mut received = vec![0; payload.len()];
            connection.read_exact(&mut received).unwrap();
            assert!(received == payload, "the bytes differ");
        }
    });
}

#[test]
fn a_local_target_takes_the_raw_backend_through_lo() {
    isolated(|peer| {
        veth(peer);
        for target in ["10.77.0.1", "fd77::1"] {
            let refused = injector(Backend::Packet, &[target]).err().unwrap();
            assert!(matches!(refused, InjectError::TargetIsLocal { .. }), "{refused}");
            let mut tap = Tap::open("lo");
            let mut injector = injector(Backend::Auto, &[target]).unwrap();
            injector.push(&data(target, b"hello"));
            injector.flush();
            assert_eq!(tap.tcp()[14..], expected(&[data(target, b"hello")], u16::MAX)[0][..]);
        }
    });
}

#[test]
fn a_link_without_addresses_takes_packets_as_they_are() {
    isolated(|_| {
        let mut tun = tun("t0");
        ip("addr add 10.78.0.1/24 dev t0");
        ip("link set t0 up");
        let transmit = data("10.78.0.2", b"through a tunnel");
        for backend in [Backend::Packet, Backend::Auto] {
            let mut injector = injector(backend, &["10.78.0.2"]).unwrap();
            injector.push(&transmit);
            injector.flush();
            let mut packet = [0; 2000];
            // IPv6 of the host itself (router solicitations) may come first.
            let length = loop {
                let length = tun.read(&mut packet).unwrap();
                if packet[0] == 0x45 {
                    break length;
                }
            };
            assert_eq!(packet[..length], expected(&[transmit], 1500)[0], "{backend:?}");
        }
    });
}

fn tun(name: &str) -> std::fs::File {
    let file = std::fs::File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    // SAFETY: all zeros are a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which `request` is.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &mut request) };
    assert_eq!(made, 0, "{}", io::Error::last_os_error());
    OwnedFd::from(file).into()
}

#[test]
fn changes_of_route_neighbour_and_mtu_are_followed() {
    isolated(|peer| {
        veth(peer);
        let target = "192.0.2.80";
        ip("neigh replace 10.77.0.3 lladdr 02:00:00:00:00:03 dev v0 nud permanent");
        ip("route add 192.0.2.0/24 via 10.77.0.2 mtu 1400");
        let mut tap = far_tap(peer);
        let mut injector = injector(Backend::Packet, &[target]).unwrap();
        assert_eq!(injector.path_mtu(addr(target)), 1400);
        let mut receiver = |injector: &mut Injector| {
            injector.push(&data(target, b"x"));
            injector.flush();
            <[u8; 6]>::try_from(&tap.tcp()[..6]).unwrap()
        };
        assert_eq!(receiver(&mut injector), PEER_MAC);

        ip("route replace 192.0.2.0/24 via 10.77.0.3 mtu 1300");
        eventually(|| receiver(&mut injector) == [2, 0, 0, 0, 0, 3]);
        assert_eq!(injector.path_mtu(addr(target)), 1300);

        ip("neigh replace 10.77.0.3 lladdr 02:00:00:00:00:33 dev v0 nud permanent");
        eventually(|| receiver(&mut injector) == [2, 0, 0, 0, 0, 0x33]);

        ip("route del 192.0.2.0/24");
        let mut pushed = 0;
        eventually(|| {
            injector.push(&data(target, &[0; 2000]));
            injector.flush();
            pushed += 2;
            injector.stats().unresolved > 0
        });
        let stats = *injector.stats();
        assert!(stats.unresolved == 2 && stats.discarded() == 2, "{stats:?}");

        ip("route add 192.0.2.0/24 via 10.77.0.2");
        eventually(|| {
            injector.refresh();
            injector.path_mtu(addr(target)) == 1500
        });
        assert!(injector.current.iter().all(|path| matches!(path.way, Way::Frame(..))));
    });
}

#[test]
fn a_stale_neighbour_is_confirmed_and_one_that_is_removed_is_resolved_again() {
    isolated(|peer| {
        veth(peer);
        let _injector = injector(Backend::Packet, &["10.77.0.2"]).unwrap();
        let v0 = by_name("v0").unwrap().index;
        let state = || neighbour(addr("10.77.0.2"), v0).unwrap().map(|n| n.state);
        ip("neigh replace 10.77.0.2 lladdr 02:00:00:00:77:02 dev v0 nud stale");
        eventually(|| {
            matches!(state(), Some(NeighbourState::Delay | NeighbourState::Probe | NeighbourState::Reachable))
        });
        ip("neigh del 10.77.0.2 dev v0");
        eventually(|| matches!(state(), Some(NeighbourState::Reachable)));
    });
}

#[test]
fn an_interface_that_goes_down_costs_packets_but_not_the_injector() {
    isolated(|peer| {
        veth(peer);
        let mut tap = far_tap(peer);
        for backend in [Backend::Packet, Backend::Raw] {
            let mut injector = injector(backend, &["10.77.0.2"]).unwrap();
            ip("link set v0 down");
            let mut pushed = 0;
            eventually(|| {
                injector.push(&data("10.77.0.2", b"x"));
                injector.flush();
                pushed += 1;
                injector.stats().unresolved > 0
            });
            let stats = *injector.stats();
            assert_eq!(stats.packets + stats.discarded(), pushed, "{stats:?}");
            ip("link set v0 up");
            let before = stats.packets;
            eventually(|| {
                injector.push(&data("10.77.0.2", b"x"));
                injector.flush();
                injector.stats().packets > before
            });
            tap.tcp();
        }
    });
}

#[test]
fn a_silent_next_hop_is_an_error_for_packet_sockets_and_raw_for_auto() {
    isolated(|peer| {
        veth(peer);
        let silent = "10.77.0.99";
        let refused = injector(Backend::Packet, &[silent]).err().unwrap().to_string();
        assert!(refused.contains("does not answer") && refused.contains("v0"), "{refused}");
        let mut injector = injector(Backend::Auto, &[silent]).unwrap();
        assert!(matches!(injector.current[0].way, Way::Raw(_)));
        // As soon as it answers, packet sockets take over.
        peer.run(|| ip("addr add 10.77.0.99/24 dev v1"));
        ip("neigh replace 10.77.0.99 lladdr 02:00:00:00:77:02 dev v0 nud reachable");
        eventually(|| {
            injector.refresh();
            matches!(injector.current[0].way, Way::Frame(..))
        });
    });
}

#[test]
fn targets_that_cannot_be_reached_are_refused_with_the_reason() {
    isolated(|peer| {
        veth(peer);
        for (target, reason) in [
            ("8.8.8.8", "no route to 8.8.8.8"),
            ("2001:db8::1", "no route to 2001:db8::1"),
            ("10.77.0.255", "broadcast"),
            ("127.255.255.255", "broadcast"),
        ] {
            for backend in [Backend::Auto, Backend::Packet, Backend::Raw] {
                let refused = injector(backend, &["10.77.0.2", target]).err().map(|e| e.to_string());
                assert!(refused.as_ref().is_some_and(|e| e.contains(reason)), "{target}: {refused:?}");
            }
        }
    });
}

#[test]
fn injectors_move_to_worker_threads_and_share_their_paths() {
    isolated(|peer| {
        veth(peer);
        let paths = Arc::new(Paths::open(Backend::Auto, &[addr("10.77.0.2")]).unwrap());
        let injectors = [0, 1].map(|_| Injector::open(Arc::clone(&paths), Sending { batch: 16, ..SENDING }).unwrap());
        let sent = injectors.map(|mut injector| {
            std::thread::spawn(move || {
                (0..100).for_each(|_| injector.push(&data("10.77.0.2", b"x")));
                injector.flush();
                injector.stats().packets
            })
        });
        assert_eq!(sent.map(|thread| thread.join().unwrap()), [100, 100]);
    });
}

#[test]
fn an_address_that_is_no_target_is_counted() {
    isolated(|peer| {
        veth(peer);
        let mut injector = injector(Backend::Auto, &["10.77.0.2"]).unwrap();
        injector.push(&data("10.77.0.3", b"x"));
        injector.push(&data("fd77::3", b"x"));
        assert_eq!((injector.stats().unresolved, injector.pending()), (2, 0));
        assert_eq!((injector.path_mtu(addr("10.77.0.3")), injector.path_mtu(addr("fd77::3"))), (576, 1280));
    });
}
