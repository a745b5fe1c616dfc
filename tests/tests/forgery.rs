//! Forged packets: what the live server refuses, the target never sees, and nobody takes it for something that was
//! lost.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Shape,
    capture::{End, Packet, Sniffer},
    eventually,
    forge::{ACK, FIN, Forger, PSH, RST, SYN, Segment},
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, Outcome, TARGET_PORT},
};

/// The queue of an interface, or of the host behind it, is full.
const ENOBUFS: i32 = 105;

/// The number of a request that nobody has sent.
const FORGED: u64 = 666_666;

/// An address that nobody has, on a way that all hosts know.
fn nowhere(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from((198 << 24 | 18 << 16) + number % (1 << 17)).into(),
        Family::V6 => Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
    }
}

fn request(id: u64) -> Vec<u8> {
    format!("GET /?id={id} HTTP/1.1\r\nHost: live\r\n\r\n").into_bytes()
}

/// Asks, and reads the answer.
fn ask(stream: &mut TcpStream, id: u64) {
    stream.write_all(&request(id)).unwrap();
    let mut answer = Vec::new();
    loop {
        let mut piece = [0; 4096];
        let length = stream.read(&mut piece).unwrap();
        assert!(length > 0, "the live server has closed the connection");
        answer.extend(&piece[..length]);
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
        if body.len() >= length.and_then(|digits| digits.trim().parse().ok()).unwrap_or(0) {
            return;
        }
    }
}

/// Honest requests, each with a connection of its own.
fn honest(lab: &Lab, family: Family, requests: u64) {
    let load = Load::per_request(lab.source.socket(family, LIVE_PORT), 4, Limit::Requests(requests));
    assert_eq!(load.run(&lab.client).unwrap().failed, Vec::<String>::new());
}

/// Exactly the live server's requests came to the target.
fn assert_alike(live: &Server, target: &Server) {
    let wanted = live.count();
    target.wait_for_requests(wanted, PATIENCE);
    let ids = |server: &Server| {
        let mut ids: Vec<u64> = server.arrivals().iter().map(|arrival| arrival.id).collect();
        ids.sort_unstable();
        ids
    };
    assert_eq!(ids(target), ids(live), "left: at the target, right: at the live server");
}

/// Nothing counts as lost, repeated or given up.
fn assert_nothing_lost(outcome: &Outcome) {
    for (section, name) in [
        ("bytes", "discarded"),
        ("syns", "discarded"),
        ("fins", "discarded"),
        ("sessions", "aborted"),
        ("replay", "duplicate_bytes"),
        ("replay", "missing_bytes"),
    ] {
        assert_eq!(outcome.tcpcopy.count(section, name), 0, "{section} {name}\n{}", outcome.table);
    }
    outcome.assert_no_leak();
}

fn refused(outcome: &Outcome, name: &str) -> u64 {
    outcome.tcpcopy.count("refused_by_live_server", name)
}

#[test]
fn a_forged_handshake_executes_nothing_at_the_target() {
    const FORGERIES: u32 = 30;
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::Stranger).unwrap();
    let live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let forger = Forger::new(lab.other("stranger"), &lab.source).unwrap();
    for family in Family::BOTH {
        let server = lab.source.socket(family, LIVE_PORT);
        let forge = |number: u32| {
            let client = SocketAddr::new(nowhere(family, number), 30_000);
            let payload = request(FORGED);
            let data = Segment { payload, ..Segment::new(client, server, ACK | PSH, 1_001, 77 + number) };
            (Segment::new(client, server, SYN, 1_000, 0), data)
        };
        // Together, so that the live server has had no time to answer; and once more when it has.
        for (syn, data) in (1..=FORGERIES).map(forge) {
            forger.send(&syn).unwrap();
            forger.send(&data).unwrap();
        }
        honest(&lab, family, 50);
        for (_, data) in (1..=FORGERIES).map(forge) {
            forger.send(&data).unwrap();
        }
        // What the forgers have sent was captured before these.
        honest(&lab, family, 50);
    }
    assert_alike(&live, &target);
    let outcome = mirror.stop().unwrap();
    assert_nothing_lost(&outcome);
    assert_eq!(refused(&outcome, "unproven_handshake"), 4 * u64::from(FORGERIES), "{}", outcome.table);
    assert_eq!(refused(&outcome, "unfinished_handshake"), 2 * u64::from(FORGERIES), "{}", outcome.table);
    assert_eq!(outcome.tcpcopy.count("sessions", "seen"), 200, "{}", outcome.table);
}

/// The latest segments of a connection, by which a forger who sees everything knows its numbers.
struct Numbers {
    client: SocketAddr,
    server: SocketAddr,
    seq: u32,
    ack: u32,
    /// Of the client.
    options: Vec<u8>,
}

impl Numbers {
    fn of(packets: &[Packet]) -> Self {
        let last =
            packets.iter().rfind(|packet| packet.destination_port == LIVE_PORT).expect("a segment of the client");
        Self {
            client: SocketAddr::new(last.source, last.source_port),
            server: SocketAddr::new(last.destination, last.destination_port),
            seq: last.seq.wrapping_add(last.payload.len() as u32),
            ack: last.ack,
            options: last.options.clone(),
        }
    }

    fn segment(&self, flags: u8, seq: u32, ack: u32) -> Segment {
        Segment {
            options: self.options.clone(),
            ..Segment::new(self.client, self.server, flags, self.seq.wrapping_add(seq), self.ack.wrapping_add(ack))
        }
    }
}

#[test]
fn what_is_forged_into_an_open_connection_changes_nothing() {
    const ROUNDS: u64 = 5;
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::Stranger).unwrap();
    let live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let stranger = lab.other("stranger");
    let forger = Forger::new(stranger, &lab.source).unwrap();
    let astray = Forger::new(stranger, &lab.source).unwrap().to_nobody();
    let mut id = 0;
    for family in Family::BOTH {
        let sniffer = Sniffer::start(&lab.client, &lab.client, End::Source).unwrap();
        let server = lab.source.socket(family, LIVE_PORT);
        let mut stream = lab.client.run(|| TcpStream::connect(server)).unwrap().unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        id += 1;
        ask(&mut stream, id);
        let mut packets = Vec::new();
        for _ in 0..ROUNDS {
            // Its last segment is the acknowledgement of the answer.
            let settled = eventually(PATIENCE, || {
                packets.extend(sniffer.take());
                packets.last().is_some_and(|packet: &Packet| packet.payload.is_empty() && packet.flags & SYN == 0)
            });
            assert!(settled, "the client acknowledges the answer");
            let numbers = Numbers::of(&packets);
            let data = |seq, ack| Segment { payload: request(FORGED), ..numbers.segment(ACK | PSH, seq, ack) };
            for far in [1 << 28, 1 << 30, 1 << 31, 3 << 30] {
                forger.send(&numbers.segment(RST, far, 0)).unwrap();
                forger.send(&numbers.segment(SYN, far, 0)).unwrap();
                forger.send(&numbers.segment(FIN | ACK, far, 0)).unwrap();
                forger.send(&data(far, 0)).unwrap();
            }
            for near in [1, 2, 1_000, 30_000] {
                forger.send(&numbers.segment(RST, near, 0)).unwrap();
                forger.send(&numbers.segment(RST | ACK, near, 0)).unwrap();
                forger.send(&numbers.segment(SYN, near, 0)).unwrap();
            }
            // The numbers are right from here on.
            forger.send(&data(0, 1 << 31)).unwrap();
            forger.send(&Segment { checksum_error: 1, ..data(0, 0) }).unwrap();
            forger.send(&Segment { checksum_error: 0x55, ..numbers.segment(RST, 0, 0) }).unwrap();
            let stale = stale(&numbers.options);
            forger.send(&Segment { options: stale, ..data(0, 0) }).unwrap();
            astray.send(&data(0, 0)).unwrap();
            astray.send(&numbers.segment(RST, 0, 0)).unwrap();
            astray.send(&numbers.segment(FIN | ACK, 0, 0)).unwrap();
            id += 1;
            ask(&mut stream, id);
        }
        drop(stream);
    }
    assert_alike(&live, &target);
    let sessions_end =
        eventually(PATIENCE, || lab.target.output("ss -Htn state established sport = :8080").unwrap().is_empty());
    assert!(sessions_end, "{}", lab.target.output("ss -Htn sport = :8080").unwrap());
    let mut clients: Vec<_> = target.arrivals().iter().map(|arrival| arrival.client).collect();
    clients.dedup();
    assert_eq!(clients.len(), 2, "each connection is replayed on one: {clients:?}");
    let outcome = mirror.stop().unwrap();
    assert_nothing_lost(&outcome);
    for name in ["out_of_window", "bad_reset", "bad_checksum", "stale_timestamp"] {
        assert!(refused(&outcome, name) >= 2 * ROUNDS, "{name}\n{}", outcome.table);
    }
    assert!(outcome.tcpcopy.count("not_selected", "other_host") >= 6 * ROUNDS, "{}", outcome.table);
}

/// The same options with a timestamp of a while ago.
fn stale(options: &[u8]) -> Vec<u8> {
    assert_eq!(options[..4], [1, 1, 8, 10], "the client sends timestamps");
    let mut stale = options.to_vec();
    let value = u32::from_be_bytes([options[4], options[5], options[6], options[7]]).wrapping_sub(100_000);
    stale[4..8].copy_from_slice(&value.to_be_bytes());
    stale
}

/// Memory of the process, the ring apart.
fn resident_kib(host: &Host, mirror: &Mirror) -> u64 {
    let status = host.output(&format!("cat /proc/{}/status", mirror.tcpcopy().pid())).unwrap();
    let line = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// As fast as the machine forges, at most 50,000 SYNs a second. The ring holds all of them, so that it does not matter
/// how long the worker may have to wait for a processor.
#[test]
fn a_flood_of_syns_costs_no_honest_request_and_opens_nothing() {
    const SECONDS: u64 = 10;
    const RATE: u64 = 50_000;
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::Stranger).unwrap();
    let live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let arguments = ["--ring-size", "256M"].map(str::to_owned).to_vec();
    let mirror = Mirror::start(&lab, MirrorOptions { tcpcopy: arguments, ..MirrorOptions::default() }).unwrap();
    honest(&lab, Family::V4, 20);
    let before = resident_kib(&lab.source, &mirror);
    let cpu = mirror.tcpcopy().cpu_time().unwrap();
    let load = Load::per_request(lab.source.socket(Family::V4, LIVE_PORT), 4, Limit::Stopped);
    let load = Load { rate: Some(100), ..load }.start(&lab.client).unwrap();
    let forger = Forger::new(lab.other("stranger"), &lab.source).unwrap();
    let began = Instant::now();
    let mut sent = 0u64;
    while sent < SECONDS * RATE && began.elapsed() < PATIENCE {
        let due = (began.elapsed().as_micros() as u64) * RATE / 1_000_000;
        while sent < due.min(SECONDS * RATE) {
            let family = if sent % 4 == 3 { Family::V6 } else { Family::V4 };
            let number = (sent as u32).wrapping_mul(0x9e37_79b1);
            let client = SocketAddr::new(nowhere(family, number), 1024 + (number >> 17) as u16);
            let server = lab.source.socket(family, LIVE_PORT);
            let options = vec![2, 4, 5, 180, 1, 3, 3, 7];
            match forger.send(&Segment { options, ..Segment::new(client, server, SYN, number, 0) }) {
                Ok(()) => sent += 1,
                // The source cannot receive so many just now.
                Err(error) if error.raw_os_error() == Some(ENOBUFS) => break,
                Err(error) => panic!("{error}"),
            }
        }
        thread::sleep(Duration::from_millis(1));
    }
    let report = load.stop().unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    let after = resident_kib(&lab.source, &mirror);
    let cpu = mirror.tcpcopy().cpu_time().unwrap() - cpu;
    honest(&lab, Family::V4, 20);
    assert_alike(&live, &target);
    let requests = live.count() as u64;
    let outcome = mirror.stop().unwrap();
    println!(
        "{sent} SYNs, {requests} requests, {before} KiB before and {after} KiB after, {:?} of CPU for each SYN",
        cpu / u32::try_from(sent).unwrap()
    );
    assert!(after < before + 64 * 1024, "{before} KiB before, {after} KiB after");
    assert_eq!(outcome.tcpcopy.count("sessions", "seen"), requests, "{}", outcome.table);
    assert_eq!(outcome.tcpcopy.count("bytes", "discarded"), 0, "{}", outcome.table);
    outcome.assert_no_leak();
}
