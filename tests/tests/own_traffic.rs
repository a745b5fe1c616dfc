//! S2: the target's own traffic to the same port is answered while responses of replayed connections are swallowed.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::SocketAddr,
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, Server, Style},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use socket2::{Domain, Socket, Type};

#[test]
fn direct_requests_are_answered_during_replay() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    // Ports that the kernel does not choose for the live connections.
    let ports = [1000, 1001];
    let mut expected = BTreeSet::new();
    for family in Family::BOTH {
        let live = Load::keep_alive(lab.source.socket(family, LIVE_PORT), 16, Limit::Stopped);
        let live = Load { rate: Some(5000), ..live }.start(&lab.client).unwrap();
        let running = [Style::KeepAlive, Style::PerRequest].into_iter().zip(ports).map(|(style, port)| {
            let bind = Some(SocketAddr::new(lab.client.address(family), port));
            let direct = Load::keep_alive(lab.target.socket(family, TARGET_PORT), 1, Limit::Requests(300));
            Load { style, bind, rate: Some(100), ..direct }.start(&lab.client).unwrap()
        });
        for load in running.collect::<Vec<_>>() {
            let report = load.join().unwrap();
            assert_eq!(report.failed.first(), None, "{} direct requests failed", report.failed.len());
            expected.extend(report.answered);
        }
        expected.extend(live.stop().unwrap().answered);
    }
    target.wait_for_requests(expected.len(), PATIENCE);
    let arrived: BTreeSet<u64> = target.arrivals().iter().map(|arrival| arrival.id).collect();
    let outcome = mirror.stop().unwrap();
    let lost = expected.difference(&arrived).count();
    assert_eq!(lost, 0, "the replay went on undisturbed\n{}", outcome.table);
    outcome.assert_no_leak_but(&ports);
}

/// One HTTP exchange on a connection from a given port; the connection stays open as long as the socket.
fn exchange(from: SocketAddr, to: SocketAddr) -> std::io::Result<Socket> {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let mut socket = Socket::new(domain, Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&from.into())?;
    socket.connect_timeout(&to.into(), PATIENCE)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.write_all(b"GET /size/5?id=4000000000 HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let mut answer = Vec::new();
    while !answer.ends_with(b"xxxxx") {
        let mut buffer = [0; 1024];
        match socket.read(&mut buffer)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&buffer[..n]),
        }
    }
    Ok(socket)
}

/// The client's own connection has the four-tuple of a session that is being replayed: the session gives way.
#[test]
fn a_direct_connection_on_the_four_tuple_of_a_replayed_session_is_answered() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let from = SocketAddr::new(lab.client.address(family), 1000);
        let live = lab.client.run(|| exchange(from, lab.source.socket(family, LIVE_PORT))).unwrap().unwrap();
        assert_eq!(target.wait_for_requests(2 * round + 1, PATIENCE), 2 * round + 1, "the copy arrived");
        let direct = lab.client.run(|| exchange(from, lab.target.socket(family, TARGET_PORT))).unwrap();
        assert!(direct.is_ok(), "{family:?}: {direct:?}\n{}", mirror.intercept().log());
        drop(live);
    }
    mirror.stop().unwrap().assert_no_leak_but(&[1000]);
}
