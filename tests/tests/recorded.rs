//! S7: what was recorded on the wire is worth nothing seconds later.

use std::{
    io::{Read as _, Write as _},
    net::SocketAddr,
    time::{Duration, Instant},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE,
    http::Server,
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use socket2::{Domain, Socket, Type};

/// Longer than a mark is good, whatever the machine does meanwhile.
const LATER: Duration = Duration::from_secs(5);
/// Octets of the link header.
const ETHERNET: usize = 14;

/// A socket for whole frames of a host's interface.
fn wire(host: &Host) -> Socket {
    let bound = host.run(|| {
        let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
        lab::cable::bind(&socket, &host.interface)?;
        anyhow::Ok(socket)
    });
    let socket = bound.unwrap().unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// The frame of the next SYN from a port to the service under test, as it could be sent again: with the checksum that
/// is left to the interface, and from nobody's link-layer address.
fn record(wire: &mut Socket, port: u16) -> Vec<u8> {
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = wire.read(&mut buffer).unwrap();
        let frame = &buffer[..length];
        let header = if frame[ETHERNET] >> 4 == 4 { 20 } else { 40 };
        let Some(tcp) = frame.get(ETHERNET + header..).filter(|tcp| tcp.len() >= 20) else { continue };
        let ports = [port.to_be_bytes(), TARGET_PORT.to_be_bytes()].concat();
        if tcp[..4] != ports || tcp[13] & 0x12 != 0x02 {
            continue;
        }
        let mut frame = frame.to_vec();
        frame[6..12].copy_from_slice(&[2, 0x7c, 0, 0, 0xee, 0xee]);
        let (ip, tcp) = frame[ETHERNET..].split_at_mut(header);
        let addresses = if header == 20 { &ip[12..20] } else { &ip[8..40] };
        tcp[16..18].fill(0);
        let pseudo = [addresses, &(tcp.len() as u32).to_be_bytes(), &[0, 0, 0, 6]].concat();
        let sum: u32 = [&pseudo, &*tcp].concat().chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let sum = (sum >> 16) + (sum & 0xffff);
        let sum = !((sum + (sum >> 16)) as u16);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        return frame;
    }
}

/// A connection from a given port.
fn connect(from: &Host, address: SocketAddr, to: SocketAddr) -> Socket {
    let connected = from.run(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.connect_timeout(&to.into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok::<_, std::io::Error>(socket)
    });
    connected.unwrap().unwrap()
}

fn ask(socket: &mut Socket) -> std::io::Result<()> {
    socket.write_all(b"GET /size/5?id=1 HTTP/1.1\r\nHost: lab\r\n\r\n")?;
    let (mut answer, mut piece) = (Vec::new(), [0; 1024]);
    while !answer.ends_with(b"xxxxx") {
        match socket.read(&mut piece)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => answer.extend_from_slice(&piece[..n]),
        }
    }
    Ok(())
}

/// Somebody on the way records the SYNs of replayed connections, and sends them again: on the four-tuple of a session
/// that is open, on that of one that is over, and on that of a connection that is the target's own by now.
#[test]
fn a_recorded_syn_is_refused_seconds_later() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut tap = wire(&lab.target);
    let mut attacker = wire(&lab.client);
    let log = || format!("{}\n{}", mirror.intercept().log(), mirror.tcpcopy().log());
    let (mut recorded, mut live, mut own) = (Vec::new(), Vec::new(), Vec::new());
    let mut requests = 0;
    for family in Family::BOTH {
        // Ports that the kernel does not choose.
        for port in [900, 901, 902] {
            let from = SocketAddr::new(lab.client.address(family), port);
            let mut socket = connect(&lab.client, from, lab.source.socket(family, LIVE_PORT));
            ask(&mut socket).unwrap();
            requests += 1;
            recorded.push(record(&mut tap, port));
            assert_eq!(target.wait_for_requests(requests, PATIENCE), requests, "{}", log());
            if port == 900 {
                live.push(socket);
            } else if port == 902 {
                drop(socket);
                let mut socket = connect(&lab.client, from, lab.target.socket(family, TARGET_PORT));
                ask(&mut socket).unwrap();
                requests += 1;
                own.push(socket);
            }
        }
    }
    let then = Instant::now();
    while then.elapsed() < LATER {
        std::thread::sleep(LATER - then.elapsed().min(LATER));
    }
    for frame in &recorded {
        attacker.write_all(frame).unwrap();
    }
    for socket in own.iter_mut().chain(&mut live) {
        ask(socket).unwrap_or_else(|e| panic!("{e}\n{}", log()));
        requests += 1;
    }
    assert_eq!(target.wait_for_requests(requests, PATIENCE), requests, "the replay goes on\n{}", log());
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("made seconds ago")).unwrap();
    let outcome = mirror.stop().unwrap();
    // One of tcpcopy's own may be late on a machine that is busy for seconds.
    assert!(outcome.intercept.count("refused_syns", "syn_stale") >= 6, "{}", outcome.table);
    for socket in &mut own {
        ask(socket).unwrap_or_else(|e| panic!("{e}\n{}", outcome.logs));
    }
    outcome.assert_no_leak_but(&[902]);
}
