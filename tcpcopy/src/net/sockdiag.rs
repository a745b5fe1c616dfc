//! The TCP sockets of this host, and their destruction, over `sock_diag`.

use std::{io, net::SocketAddr};

use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, Parseable as _};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage, TCP_LISTEN,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use tcpcopy_common::flow::Flow;

use super::{NetError, netlink::Netlink};

/// `INET_DIAG_NOCOOKIE`: any socket with these addresses and ports.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// IP versions, as sockets have them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// `AF_INET`.
    V4,
    /// `AF_INET6`: connections of IPv4 that a dual-stack listener accepted are here too.
    V6,
}

/// A TCP socket of this network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpSocket {
    /// Address and port on this side; an IPv4-mapped address is given as IPv4.
    pub local: SocketAddr,
    /// Address and port of the other side; likewise.
    pub remote: SocketAddr,
    /// Its state: one of the kernel's `TCP_*` numbers, see [`netlink_packet_sock_diag::constants`].
    pub state: u8,
    /// What tells it from all other sockets, now and later.
    pub cookie: [u8; 8],
    /// Index of the interface that it is bound to, or 0.
    pub ifindex: u32,
    /// Of a listener: connections that wait to be accepted, and how many may. It takes no more while there are more of
    /// them than may wait.
    pub waiting: (u32, u32),
}

impl TcpSocket {
    fn from_header(header: &InetResponseHeader) -> Self {
        let id = &header.socket_id;
        Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            remote: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            state: header.state,
            cookie: id.cookie,
            ifindex: id.interface_id,
            waiting: (header.recv_queue, header.send_queue),
        }
    }

    /// Returns the connection, if this is its server's end.
    #[must_use]
    pub fn flow(&self) -> Flow {
        let end = |end: SocketAddr| (end.ip().into(), end.port().to_be_bytes());
        Flow::tcp(end(self.remote), end(self.local))
    }

    /// Returns whether this is the server's end of `flow`.
    #[cfg(test)]
    fn serves(&self, flow: &Flow) -> bool {
        self.state != TCP_LISTEN && (self.local, self.remote) == ends(flow)
    }
}

/// What comes in answer to a question about sockets; further attributes are not read.
impl NetlinkDeserializable for TcpSocket {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponseHeader::parse(payload).map(|header| Self::from_header(&header))
    }
}

/// The connections that are listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Those in any state.
    All,
    /// All but those that wait for stray segments only, of which a busy service has tens of thousands.
    NotInTimeWait,
}

/// Whether a socket was destroyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destroyed {
    /// It is gone.
    Yes,
    /// There was none.
    NotFound,
}

/// What a kernel can do with the TCP sockets of other processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Support {
    /// List and destroy them.
    Destroy,
    /// List them: it was built without CONFIG_INET_DIAG_DESTROY.
    List,
    /// Neither: it was built without CONFIG_INET_DIAG, or has no module for TCP.
    Nothing,
}

impl Support {
    /// What a test wants the kernel to be taken for.
    fn pretended(name: std::ffi::OsString) -> Option<Self> {
        match name.to_str() {
            Some("list") => Some(Self::List),
            Some("nothing") => Some(Self::Nothing),
            _ => None,
        }
    }
}

/// A connection to the kernel's `sock_diag`; keep one for many questions.
pub struct SockDiag {
    netlink: Netlink,
}

impl SockDiag {
    /// Opens it.
    ///
    /// # Errors
    /// When no netlink socket can be opened.
    pub fn open() -> Result<Self, NetError> {
        Ok(Self { netlink: Netlink::open(NETLINK_SOCK_DIAG)? })
    }

    /// Asks what the kernel can do with the TCP sockets of others, before something depends on it.
    ///
    /// # Errors
    /// When it cannot be asked.
    pub fn preflight(&mut self) -> Result<Support, NetError> {
        if let Some(support) = std::env::var_os("TCPCOPY_TEST_SOCK_DIAG").and_then(Support::pretended) {
            return Ok(support);
        }
        // No socket has port 0, so a kernel that can, finds nothing (ENOENT); but so answers one that lacks tcp_diag,
        // and only a dump tells these two apart.
        let nobody = request(SocketId { cookie: NO_COOKIE, ..SocketId::new_v4() }, AF_INET, StateFlags::empty());
        let destroys = match self.netlink.change(SockDiagDestroy::new(SockDiagMessage::InetRequest(nobody)), 0) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => true,
            Err(e) if is_unsupported(&e) => false,
            Err(source) => return Err(NetError::Refused { action: "destroy a socket".into(), source }),
        };
        match self.dump(Family::V4, StateFlags::SYN_SENT, drop) {
            Ok(()) => Ok(if destroys { Support::Destroy } else { Support::List }),
            Err(NetError::Refused { source, .. })
                if is_unsupported(&source) || source.raw_os_error() == Some(libc::ENOENT) =>
            {
                Ok(Support::Nothing)
            }
            Err(e) => Err(e),
        }
    }

    /// Returns all TCP sockets of `family` in this network namespace, in every state: half-open ones and those in
    /// TIME-WAIT too.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    #[cfg(test)]
    pub(crate) fn tcp_sockets(&mut self, family: Family) -> Result<Vec<TcpSocket>, NetError> {
        // SYN_RECV here is TCP_SYN_RECV; request sockets of listeners are reported under it. The kernel's own bit for
        // them, TCP_NEW_SYN_RECV (12), and TCP_BOUND_INACTIVE (13) are left out by `all`.
        let mut all = Vec::new();
        self.dump(family, StateFlags::all(), |socket| all.push(socket))?;
        Ok(all)
    }

    /// Hands over every TCP connection of either family that `which` asks for, however many there are; a few may come
    /// twice. One that this host has asked for, and that nobody has granted yet, is none.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn connections(&mut self, which: Connections, mut each: impl FnMut(&TcpSocket)) -> Result<(), NetError> {
        let others = match which {
            Connections::All => StateFlags::LISTEN | StateFlags::SYN_SENT,
            // What is in FIN-WAIT-2 stays in the list when the kernel keeps it in the same short form as what is in
            // TIME-WAIT.
            Connections::NotInTimeWait => StateFlags::LISTEN | StateFlags::SYN_SENT | StateFlags::TIME_WAIT,
        };
        for family in [Family::V4, Family::V6] {
            self.dump(family, StateFlags::all() & !others.clone(), |socket| each(&socket))?;
        }
        Ok(())
    }

    /// Returns the socket that would get a segment of `flow`: its server's end, be it half open, or the listener.
    ///
    /// # Errors
    /// When the kernel cannot be asked.
    pub fn find(&mut self, flow: &Flow) -> Result<Option<TcpSocket>, NetError> {
        let (family, id) =
            if flow.server.is_v4() { (AF_INET, SocketId::new_v4()) } else { (AF_INET6, SocketId::new_v6()) };
        let id = SocketId {
            source_port: u16::from_be_bytes(flow.server_port),
            destination_port: u16::from_be_bytes(flow.client_port),
            source_address: flow.server.into(),
            destination_address: flow.client.into(),
            cookie: NO_COOKIE,
            ..id
        };
        let query = SockDiagMessage::InetRequest(request(id, family, StateFlags::all()));
        self.netlink.get(query, &[libc::ENOENT], "look up a TCP socket")
    }

    fn dump(&mut self, family: Family, states: StateFlags, each: impl FnMut(TcpSocket)) -> Result<(), NetError> {
        let (id, family) = match family {
            Family::V4 => (SocketId::new_v4(), AF_INET),
            Family::V6 => (SocketId::new_v6(), AF_INET6),
        };
        let query = SockDiagMessage::InetRequest(request(id, family, states));
        self.netlink.dump_each(query, "list the TCP sockets", each)
    }

    /// Tears down a socket that was listed, in whatever state it is; refuses a listener. The process that owns it reads
    /// ECONNABORTED; the kernel sends a RST to the client.
    ///
    /// # Errors
    /// When the kernel refuses: without CAP_NET_ADMIN, or without support.
    pub fn destroy_socket(&mut self, socket: &TcpSocket) -> Result<Destroyed, NetError> {
        if socket.state == TCP_LISTEN || socket.cookie == NO_COOKIE {
            return Ok(Destroyed::NotFound);
        }
        match self.netlink.change(SockDiagDestroy::new(SockDiagMessage::InetRequest(socket.request())), 0) {
            Ok(()) => Ok(Destroyed::Yes),
            // ESTALE: another socket by now, or the listener.
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOENT | libc::ESTALE)) => Ok(Destroyed::NotFound),
            Err(e) if is_unsupported(&e) => Err(NetError::DestroyUnsupported),
            Err(source) => Err(NetError::Refused { action: "destroy a socket".into(), source }),
        }
    }
}

impl TcpSocket {
    fn request(&self) -> InetRequest {
        // An IPv4 request finds connections of dual-stack sockets too: the kernel's table of connections is one for
        // both.
        let family = if self.local.is_ipv6() { AF_INET6 } else { AF_INET };
        let id = SocketId {
            source_port: self.local.port(),
            destination_port: self.remote.port(),
            source_address: self.local.ip(),
            destination_address: self.remote.ip(),
            interface_id: self.ifindex,
            cookie: self.cookie,
        };
        request(id, family, StateFlags::all())
    }
}

fn request(socket_id: SocketId, family: u8, states: StateFlags) -> InetRequest {
    InetRequest { family, protocol: IPPROTO_TCP, extensions: ExtensionFlags::empty(), states, socket_id }
}

#[cfg(test)]
fn ends(flow: &Flow) -> (SocketAddr, SocketAddr) {
    let end = |address, port| SocketAddr::new(std::net::IpAddr::from(address), u16::from_be_bytes(port));
    (end(flow.server, flow.server_port), end(flow.client, flow.client_port))
}

fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EPROTONOSUPPORT))
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
    };

    use netlink_packet_sock_diag::{TCP_ESTABLISHED, TCP_FIN_WAIT2, TCP_SYN_RECV, TCP_TIME_WAIT};

    use super::*;
    use crate::net::testing::{eventually, flow, ip, isolated, veth};

    fn destroy(diag: &mut SockDiag, flow: &Flow) -> Destroyed {
        let mut found = None;
        diag.connections(Connections::All, |socket| {
            found = found.take().or(socket.serves(flow).then(|| socket.clone()))
        })
        .unwrap();
        found.map_or(Destroyed::NotFound, |socket| diag.destroy_socket(&socket).unwrap())
    }

    fn states(diag: &mut SockDiag, flow: &Flow) -> Vec<u8> {
        let all = diag.tcp_sockets(Family::V4).unwrap();
        all.iter().filter(|s| s.serves(flow)).map(|s| s.state).collect()
    }

    #[test]
    fn a_connection_is_found_and_destroyed_and_its_listener_lives_on() {
        isolated(|_| {
            let mut diag = SockDiag::open().unwrap();
            assert_eq!(diag.preflight().unwrap(), Support::Destroy);
            // The second: an IPv4 connection of a dual-stack listener. Its socket is one of AF_INET6.
            for (listen, connect, family) in [
                ("127.0.0.1:0", "127.0.0.1", Family::V4),
                ("[::]:0", "127.0.0.1", Family::V6),
                ("[::1]:0", "::1", Family::V6),
            ] {
                let listener = TcpListener::bind(listen).unwrap();
                let port = listener.local_addr().unwrap().port();
                let connect = SocketAddr::new(connect.parse().unwrap(), port);
                let mut client = TcpStream::connect(connect).unwrap();
                let (mut server, _) = listener.accept().unwrap();
                let flow = flow(client.local_addr().unwrap(), connect);
                let listed = diag.tcp_sockets(family).unwrap();
                let found: Vec<_> = listed.iter().filter(|s| s.serves(&flow)).collect();
                assert_eq!(found.len(), 1, "{listen}: {listed:?}");
                assert_eq!(found[0].state, TCP_ESTABLISHED);

                assert_eq!(destroy(&mut diag, &flow), Destroyed::Yes, "{listen}");
                let error = server.read(&mut [0]).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{listen}");
                assert_eq!(client.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
                assert_eq!(destroy(&mut diag, &flow), Destroyed::NotFound, "{listen}");
                // The kernel's look-up ends at the listener now, which must not be taken for the connection.
                assert_eq!(diag.destroy_socket(found[0]).unwrap(), Destroyed::NotFound);
                TcpStream::connect(connect).expect("the listener still listens");
            }
        });
    }

    #[test]
    fn what_would_get_a_segment_is_found_and_whether_it_is_full() {
        isolated(|_| {
            let mut diag = SockDiag::open().unwrap();
            for (listen, connect) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")] {
                let listen: SocketAddr = listen.parse().unwrap();
                let socket =
                    socket2::Socket::new(socket2::Domain::for_address(listen), socket2::Type::STREAM, None).unwrap();
                socket.bind(&listen.into()).unwrap();
                socket.listen(1).unwrap();
                let port = socket.local_addr().unwrap().as_socket().unwrap().port();
                let server = SocketAddr::new(connect.parse().unwrap(), port);
                let stranger = flow(SocketAddr::new(server.ip(), 9), server);
                let mut found = |flow| diag.find(flow).unwrap().map(|socket| (socket.state, socket.waiting));
                assert_eq!(found(&stranger), Some((TCP_LISTEN, (0, 1))), "{listen}");
                let first = TcpStream::connect(server).unwrap();
                let _second = TcpStream::connect(server).unwrap();
                assert_eq!(found(&stranger), Some((TCP_LISTEN, (2, 1))), "{listen}");
                let known = flow(first.local_addr().unwrap(), server);
                assert_eq!(found(&known).map(|(state, _)| state), Some(TCP_ESTABLISHED), "{listen}");
                drop(socket);
                assert_eq!(found(&stranger), None, "{listen}");
            }
        });
    }

    #[test]
    fn a_listener_is_never_destroyed() {
        isolated(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let mut diag = SockDiag::open().unwrap();
            let listed = diag.tcp_sockets(Family::V4).unwrap();
            let entry = listed.iter().find(|s| s.state == TCP_LISTEN).unwrap();
            assert_eq!(diag.destroy_socket(entry).unwrap(), Destroyed::NotFound);
            TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        });
    }

    #[test]
    fn time_wait_is_destroyed_too() {
        isolated(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut client = TcpStream::connect(address).unwrap();
            let (server, _) = listener.accept().unwrap();
            let flow = flow(client.local_addr().unwrap(), address);
            // The server closes first, so the wait is on its side.
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            drop(client);
            let mut diag = SockDiag::open().unwrap();
            eventually(|| states(&mut diag, &flow) == [TCP_TIME_WAIT]);
            assert_eq!(destroy(&mut diag, &flow), Destroyed::Yes);
            assert!(states(&mut diag, &flow).is_empty());
        });
    }

    #[test]
    fn what_waits_for_stray_segments_is_left_out_but_nothing_else() {
        isolated(|_| {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let mut diag = SockDiag::open().unwrap();
            let connect = || {
                let client = TcpStream::connect(address).unwrap();
                let (server, _) = listener.accept().unwrap();
                let flow = flow(client.local_addr().unwrap(), address);
                (client, server, flow)
            };
            let (_open, _served, established) = connect();
            let (_client, server, half_closed) = connect();
            drop(server);
            let (mut client, server, closed) = connect();
            drop(server);
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            drop(client);
            eventually(|| states(&mut diag, &closed) == [TCP_TIME_WAIT]);
            eventually(|| states(&mut diag, &half_closed) == [TCP_FIN_WAIT2]);

            let mut listed = |which| {
                let mut flows = Vec::new();
                diag.connections(which, |socket| flows.push(socket.flow())).unwrap();
                [established, half_closed, closed].map(|flow| flows.contains(&flow))
            };
            assert_eq!(listed(Connections::All), [true; 3]);
            assert_eq!(listed(Connections::NotInTimeWait), [true, true, false]);
        });
    }

    #[test]
    fn a_half_open_connection_is_destroyed_too() {
        isolated(|peer| {
            veth(peer);
            // SYN-ACKs go to a link-layer address that nobody has.
            ip("neigh replace 10.77.0.2 lladdr 02:00:00:00:00:09 dev v0 nud permanent");
            let listener = TcpListener::bind("10.77.0.1:0").unwrap();
            let server = listener.local_addr().unwrap();
            let client = peer.run(move || {
                ip("neigh replace 10.77.0.1 lladdr 02:00:00:00:77:01 dev v1 nud permanent");
                let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let _ = socket.connect(&server.into());
                (socket.local_addr().unwrap().as_socket().unwrap(), socket)
            });
            let flow = flow(client.0, server);
            let mut diag = SockDiag::open().unwrap();
            eventually(|| states(&mut diag, &flow) == [TCP_SYN_RECV]);
            assert_eq!(destroy(&mut diag, &flow), Destroyed::Yes);
            assert!(states(&mut diag, &flow).is_empty());
        });
    }
}
