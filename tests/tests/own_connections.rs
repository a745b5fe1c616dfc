//! S2: connections of the target's own with a client whose live connections have the same ports. A four-tuple that
//! somebody holds at the target is not replayed on: the copy has another port there.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicU64, Ordering},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE,
    capture::{End, Packet, Sniffer},
    eventually,
    http::Server,
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use socket2::{Domain, Socket, Type};

/// Control bits of TCP.
const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A client that keeps its connection.
struct Visitor(TcpStream);

impl Visitor {
    /// From a port that the kernel chooses.
    fn connect(from: &Host, server: SocketAddr) -> Self {
        Self::new(from.run(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap().unwrap())
    }

    fn new(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        Self(stream)
    }

    fn port(&self) -> u16 {
        self.0.local_addr().unwrap().port()
    }

    /// Makes a request and reads the answer.
    fn ask(&mut self) -> std::io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        write!(self.0, "GET /size/5?id={id} HTTP/1.1\r\nHost: lab\r\n\r\n")?;
        let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
        while !answer.ends_with(b"xxxxx") {
            match self.0.read(&mut piece)? {
                0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                n => answer.extend_from_slice(&piece[..n]),
            }
        }
        Ok(())
    }
}

/// Asserts that each is answered.
fn ask_all(visitors: &mut [Visitor], what: &str, log: impl Fn() -> String) {
    let failed: Vec<String> = visitors
        .iter_mut()
        .filter_map(|visitor| visitor.ask().err().map(|error| format!("port {}: {error}", visitor.port())))
        .collect();
    assert!(failed.is_empty(), "{} of {} {what} failed: {failed:?}\n{}", failed.len(), visitors.len(), log());
}

/// The client has 64 ports. By the pigeonhole principle at least 8 of 32 own connections have the port of one of 40
/// live ones.
#[test]
fn connections_of_the_target_s_own_outlive_live_ones_with_the_same_port() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    lab.client.set_sysctls(&[("ipv4/ip_local_port_range", "40000 40063")]).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let connect = |server: &Host, port: u16, count: usize| -> Vec<Visitor> {
        let families = Family::BOTH.into_iter().flat_map(|family| std::iter::repeat_n(family, count));
        families.map(|family| Visitor::connect(&lab.client, server.socket(family, port))).collect()
    };
    let mut own = connect(&lab.target, TARGET_PORT, 32);
    ask_all(&mut own, "own connections", String::new);
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let log = || format!("{}\n{}", mirror.intercept().log(), mirror.tcpcopy().log());
    let mut live = connect(&lab.source, LIVE_PORT, 40);
    ask_all(&mut live, "live connections", log);
    let mut expected = own.len() + live.len();
    assert_eq!(target.wait_for_requests(expected, PATIENCE), expected, "every copy has arrived\n{}", log());
    ask_all(&mut own, "own connections", log);
    // And some on the four-tuples of sessions that are open: these give way.
    let later = connect(&lab.target, TARGET_PORT, 20);
    expected += own.len();
    own.extend(later);
    ask_all(&mut own, "own connections", log);
    ask_all(&mut live, "live connections", log);
    expected += own.len() + live.len();
    assert_eq!(target.wait_for_requests(expected, PATIENCE), expected, "the replay goes on\n{}", log());
    ask_all(&mut own, "own connections", log);

    let ports: Vec<u16> = own.iter().map(Visitor::port).collect();
    let outcome = mirror.stop().unwrap();
    assert!(outcome.intercept.count("refused_syns", "collision") >= 16, "{}", outcome.table);
    // The programs that end destroy the sockets of sessions, and no others.
    ask_all(&mut own, "own connections", || outcome.logs.clone());
    outcome.assert_no_leak_but(&ports);
}

/// A socket whose address others may have as well, as one that listens there.
fn shared(address: SocketAddr) -> Socket {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.set_reuse_port(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket
}

fn say(from: &mut TcpStream, to: &mut TcpStream) -> std::io::Result<()> {
    from.write_all(b"hello")?;
    to.set_read_timeout(Some(PATIENCE))?;
    to.read_exact(&mut [0; 5])
}

/// Says something each way.
fn talk(a: &mut TcpStream, b: &mut TcpStream) -> std::io::Result<()> {
    for _ in 0..3 {
        say(a, b)?;
        say(b, a)?;
    }
    Ok(())
}

/// The target is the client: its port is the one that the kernel has chosen, and for which there is a rule, but no
/// service.
#[test]
fn connections_that_the_target_opens_to_a_client_are_its_own() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let port = TARGET_PORT.to_string();
    lab.target.set_sysctls(&[("ipv4/ip_local_port_range", &format!("{port} {port}"))]).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let sniffer = Sniffer::start(&lab.target, &lab.client, End::Source).unwrap();
    let mut ports = Vec::new();
    for family in Family::BOTH {
        for target_first in [true, false] {
            let what = format!("{family:?}, {}", if target_first { "before the copy" } else { "after the copy" });
            let listener = lab.client.run(|| shared(SocketAddr::new(lab.client.address(family), 0))).unwrap();
            listener.listen(8).unwrap();
            let listener = TcpListener::from(listener);
            let address = listener.local_addr().unwrap();
            ports.push(address.port());
            let call = || {
                let stream = lab.target.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap();
                let stream = stream.unwrap_or_else(|e| panic!("{what}: {e}\n{}", mirror.intercept().log()));
                assert_eq!(stream.local_addr().unwrap().port(), TARGET_PORT);
                (stream, listener.accept().unwrap().0)
            };
            let early = target_first.then(call);
            let live = lab.client.run(|| {
                let socket = shared(address);
                socket.connect(&lab.source.socket(family, LIVE_PORT).into()).map(|()| socket)
            });
            let mut live = Visitor::new(live.unwrap().unwrap().into());
            live.ask().unwrap();
            // A packet socket sees it just before our program does.
            let is_copy = |p: &Packet| {
                (p.source_port, p.destination_port, p.flags & (SYN | ACK)) == (address.port(), TARGET_PORT, SYN)
            };
            assert!(eventually(PATIENCE, || sniffer.take().iter().any(is_copy)), "{what}: there is no copy");
            drop(live);
            let (mut near, mut far) = early.unwrap_or_else(call);
            talk(&mut near, &mut far).unwrap_or_else(|e| panic!("{what}: {e}\n{}", mirror.intercept().log()));
        }
    }
    drop(sniffer);
    let outcome = mirror.stop().unwrap();
    assert!(outcome.intercept.count("refused_syns", "collision") >= 2, "{}", outcome.table);
    assert!(outcome.intercept.count("sessions", "reclaimed") >= 2, "{}", outcome.table);
    outcome.assert_no_leak_but(&ports);
}
