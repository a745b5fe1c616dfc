//! SYNs with a mark that meet a socket of the target.

use std::{
    io::Read as _,
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd as _,
};

use socket2::{Domain, Socket, Type};
use tcpcopy_common::{counters::TargetCounter::*, mark::Stamp, response::kind};

use super::{
    TC_ACT_SHOT, TCX_NEXT,
    learn::{Fixture, fresh, stamped_syn},
    packets::{Packet, packet},
    privileged,
};
use crate::net::testing::{eventually, ip, isolated};

const ISN: u32 = 77;

/// A connection of the target, or what is left of it.
struct Connection {
    what: &'static str,
    /// Whether a SYN on its four-tuple would disturb somebody.
    open: bool,
    /// The four-tuple as the SYN of a replayed client has it.
    client: SocketAddr,
    server: SocketAddr,
    sockets: Vec<Socket>,
}

/// A listener, and a client that it has accepted.
fn connect(listen: &str, to: IpAddr) -> (TcpListener, TcpStream, TcpStream) {
    let listener = TcpListener::bind(listen).unwrap();
    let client = TcpStream::connect((to, listener.local_addr().unwrap().port())).unwrap();
    let (server, _) = listener.accept().unwrap();
    (listener, client, server)
}

/// Lets a listener wait for data before it lets go of a connection request.
fn defer_accept(listener: &TcpListener) {
    let seconds: libc::c_int = 60;
    // SAFETY: the pointer and the length are those of a local variable.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    assert_eq!(result, 0);
}

/// Connections in every state that lasts, by a listener at `listen` that is reached as `to`.
fn connections(listen: &str, to: &str) -> Vec<Connection> {
    let to: IpAddr = to.parse().unwrap();
    let (mut made, mut ends) = (Vec::new(), Vec::new());
    for what in ["established", "opened by the target", "closed by the client", "closed by the target", "TIME-WAIT"] {
        let (listener, mut client, server) = connect(listen, to);
        let (from, at) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        match what {
            "closed by the client" => client.shutdown(Shutdown::Write).unwrap(),
            "closed by the target" => server.shutdown(Shutdown::Write).unwrap(),
            "TIME-WAIT" => {
                server.shutdown(Shutdown::Write).unwrap();
                assert_eq!(client.read(&mut [0]).unwrap(), 0);
                client.shutdown(Shutdown::Write).unwrap();
            }
            _ => {}
        }
        let (client_end, server_end) = if what == "opened by the target" { (at, from) } else { (from, at) };
        made.push((what, what != "TIME-WAIT", client_end, server_end));
        ends.push(vec![Socket::from(listener), client.into(), server.into()]);
    }
    // The client believes that it is connected.
    let listener = TcpListener::bind(listen).unwrap();
    defer_accept(&listener);
    let client = TcpStream::connect((to, listener.local_addr().unwrap().port())).unwrap();
    made.push(("half open", true, client.local_addr().unwrap(), client.peer_addr().unwrap()));
    ends.push(vec![listener.into(), client.into()]);
    // What goes there comes back, and is dropped as it is for nobody.
    let away: SocketAddr = if to.is_ipv4() { "198.51.100.9:80" } else { "[2001:db8:9::9]:80" }.parse().unwrap();
    let socket = Socket::new(Domain::for_address(away), Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(to, 0).into()).unwrap();
    socket.set_nonblocking(true).unwrap();
    let begun = socket.connect(&away.into()).unwrap_err();
    assert_eq!(begun.raw_os_error(), Some(libc::EINPROGRESS));
    made.push(("asked for by the target", true, away, socket.local_addr().unwrap().as_socket().unwrap()));
    ends.push(vec![socket]);
    // Nobody is there, or a listener only.
    let listener = TcpListener::bind(listen).unwrap();
    let port = listener.local_addr().unwrap().port();
    made.push(("a listener", false, SocketAddr::new(to, 999), SocketAddr::new(to, port)));
    ends.push(vec![listener.into()]);
    made.push(("nothing", false, SocketAddr::new(to, 999), SocketAddr::new(to, 998)));
    ends.push(vec![]);
    let with_sockets = made.into_iter().zip(ends);
    with_sockets
        .map(|((what, open, client, server), sockets)| Connection { what, open, client, server, sockets })
        .collect()
}

fn syn(connection: &Connection, meets: bool) -> Packet {
    let packet = packet(&connection.client.to_string(), &connection.server.to_string());
    stamped_syn(packet, 1, Stamp { meets, ..fresh() }, ISN)
}

/// On one four-tuple with one of the target's own connections a replayed one would take that over, and then reset it.
#[test]
fn a_connection_of_the_target_s_own_is_not_taken_over() {
    if !privileged() {
        return;
    }
    isolated(|_| {
        ip("route add 198.51.100.9/32 dev lo");
        ip("route add 2001:db8:9::9/128 dev lo");
        let mut fixture = Fixture::new(64, 1 << 16);
        // The second: connections of IPv4 whose sockets are of AF_INET6.
        for (listen, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::]:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            for connection in connections(listen, to) {
                let what = format!("{} at {listen}", connection.what);
                let syn = syn(&connection, false);
                if !connection.open {
                    // It comes about a moment after the other side has closed.
                    eventually(|| fixture.run("learn", &syn) == TCX_NEXT);
                    fixture.reports();
                    continue;
                }
                fixture.expect(&what, &syn, TC_ACT_SHOT, Some(Collision));
                assert_eq!(fixture.sessions.get(&syn.flow()).unwrap(), None, "{what}");
                let [report] = fixture.reports()[..] else { panic!("{what}: one report") };
                let told = (report.kind, report.instance, report.seq, report.flow);
                assert_eq!(told, (kind::COLLISION, 1, ISN.to_be_bytes(), syn.flow()), "{what}");
                drop(connection.sockets);
            }
        }
        // "Nothing" is the same twice.
        assert_eq!((fixture.count(Learned), fixture.count(SynRepeated)), (8, 1));
    });
}

/// What an earlier session has left is met on purpose, and a session that is known has the socket.
#[test]
fn a_socket_of_the_replay_s_own_is_met() {
    if !privileged() {
        return;
    }
    isolated(|_| {
        let mut fixture = Fixture::new(16, 1 << 16);
        for (listen, to) in [("127.0.0.1:0", "127.0.0.1"), ("[::1]:0", "::1")] {
            let (_listener, client, _server) = connect(listen, to.parse().unwrap());
            let packet = packet(&client.local_addr().unwrap().to_string(), &client.peer_addr().unwrap().to_string());
            let syn = |meets, isn| stamped_syn(packet.clone(), 1, Stamp { meets, ..fresh() }, isn);
            fixture.expect("it may be met", &syn(true, ISN), TCX_NEXT, Some(Learned));
            fixture.expect("sent again", &syn(true, ISN), TCX_NEXT, Some(SynRepeated));
            fixture.expect("another session of its owner", &syn(false, ISN + 1), TCX_NEXT, Some(Learned));
            fixture.expect("sent again", &syn(false, ISN + 1), TCX_NEXT, Some(SynRepeated));
        }
    });
}
