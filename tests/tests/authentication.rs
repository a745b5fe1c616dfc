//! S7: nobody unauthenticated can register, read feedback or make the target swallow anything, and trying does not
//! disturb the running replay.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddrV4, TcpStream},
    path::Path,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program,
    capture::{End, Sniffer},
    http::{Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};
use socket2::{Domain, Protocol, Socket, Type};

/// The control channel's port.
const CONTROL_PORT: u16 = 36524;

struct Replay {
    lab: Lab,
    mirror: Mirror,
    load: RunningLoad,
    target: Server,
    _source: Server,
}

impl Replay {
    /// A mirror with live traffic until it is finished.
    fn start() -> Self {
        let lab = Lab::bridge().unwrap();
        let source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
        let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 8, Limit::Stopped);
        let load = Load { rate: Some(2000), ..load }.start(&lab.client).unwrap();
        Self { lab, mirror, load, target, _source: source }
    }

    /// Goes on for a thousand requests, and asserts that every one has arrived; returns intercept's summary and log.
    fn finish(self) -> (lab::Summary, String) {
        self.load.wait_for_answers(1_000).unwrap();
        let report = self.load.stop().unwrap();
        assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
        let arrived = self.target.wait_for_requests(report.answered.len(), PATIENCE);
        let outcome = self.mirror.stop().unwrap();
        assert_eq!(arrived, report.answered.len(), "the replay was disturbed\n{}\n{}", outcome.table, outcome.logs);
        (outcome.intercept, outcome.logs)
    }

    /// A second tcpcopy with other credentials must give up; what it says.
    fn refused_tcpcopy(&self, security: &[&str]) -> String {
        let mut command = self.lab.client.command(mirror::program("tcpcopy").unwrap());
        command.args(["-x", "8888-10.77.0.3:8080", "-s", "10.77.0.3", "-i", "eth0"]).args(security);
        let ended = Program::start("tcpcopy", &mut command).unwrap().wait(PATIENCE).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
        assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
        ended.stderr
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_wrong_key_or_none_is_refused() {
    let _guard = laboratory!();
    let replay = Replay::start();
    let other = mirror::make_key(replay.mirror.directory(), "other").unwrap();
    let said = replay.refused_tcpcopy(&["--psk-file", text(&other)]);
    assert!(said.contains("key"), "{said}");
    let said = replay.refused_tcpcopy(&["--insecure"]);
    assert!(said.contains("insecure"), "{said}");
    let (summary, log) = replay.finish();
    assert_eq!(summary.count("control_connections", "bad_key"), 1, "{log}");
    assert_eq!(summary.count("control_connections", "insecure_mismatch"), 1, "{log}");
    assert!(log.contains("10.77.0.1"), "the log names the peer\n{log}");
}

/// Connects from a host to the control channel.
fn dial(from: &Host, lab: &Lab) -> TcpStream {
    let address = lab.target.socket(Family::V4, CONTROL_PORT);
    let stream = from.run(|| TcpStream::connect_timeout(&address, PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Asserts that the other side closes the connection.
fn assert_closed(mut stream: TcpStream, what: &str) {
    let mut buffer = [0; 4096];
    let mut total = 0;
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return,
            Ok(n) => total += n,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return,
            Err(error) => panic!("{what}: the connection is still open: {error}"),
        }
        assert!(total < 4096, "{what}: intercept tells a stranger a lot");
    }
}

#[test]
fn garbage_and_unfinished_handshakes_are_refused() {
    let _guard = laboratory!();
    let replay = Replay::start();
    // Of many silent connections at a time all are closed, sooner when they are too many.
    let silent: Vec<TcpStream> = (0..100).map(|_| dial(&replay.lab.client, &replay.lab)).collect();
    let mut garbage = dial(&replay.lab.client, &replay.lab);
    // It may be refused while it is still being written.
    let _ = garbage.write_all(&[0x5a; 5000]);
    assert_closed(garbage, "garbage");
    let mut http = dial(&replay.lab.client, &replay.lab);
    let _ = http.write_all(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n");
    assert_closed(http, "a web browser");
    for stream in silent {
        assert_closed(stream, "a silent connection");
    }
    // The port is open for others again.
    let mut again = dial(&replay.lab.client, &replay.lab);
    let _ = again.write_all(&[0x5a; 100]);
    assert_closed(again, "garbage after the silent ones");
    let (summary, log) = replay.finish();
    assert!(summary.count("control_connections", "garbage") >= 1, "{log}");
    let said =
        |reason: &str| log.lines().any(|l| l.contains("control connection from 10.77.0.1") && l.contains(reason));
    assert!(said("does not speak tcpcopy") && said("did not finish"), "{log}");
    assert!(
        summary.count("control_connections", "timeout") + summary.count("control_connections", "too_many") >= 100,
        "{log}"
    );
}

fn checksum(parts: &[&[u8]]) -> [u8; 2] {
    let octets = parts.concat();
    let words = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

/// A SYN with the mark's option, whose instance and tag are as given.
fn marked_syn(from: SocketAddrV4, to: SocketAddrV4, instance: u32, tag: u64) -> Vec<u8> {
    let mut tcp = Vec::new();
    tcp.extend(from.port().to_be_bytes());
    tcp.extend(to.port().to_be_bytes());
    tcp.extend(0x1234_5678_u32.to_be_bytes());
    tcp.extend([0; 4]);
    // Nine words of header, SYN, window.
    tcp.extend([9 << 4, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.extend([253, 16]);
    tcp.extend(b"tc");
    tcp.extend(instance.to_be_bytes());
    tcp.extend(tag.to_le_bytes());
    let pseudo_header = [&from.ip().octets()[..], &to.ip().octets()[..], &[0, 6], &(tcp.len() as u16).to_be_bytes()];
    let sum = checksum(&[&pseudo_header.concat(), &tcp]);
    tcp[16..18].copy_from_slice(&sum);
    let mut packet = vec![0x45, 0];
    packet.extend((20 + tcp.len() as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
    packet.extend(from.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(tcp);
    packet
}

#[test]
fn a_syn_with_a_forged_mark_is_dropped_and_counted() {
    let _guard = laboratory!();
    let replay = Replay::start();
    let sniffer = Sniffer::start(&replay.lab.client, &replay.lab.target, End::Source).unwrap();
    let to = SocketAddrV4::new(replay.lab.target.v4, TARGET_PORT);
    // Instances near those that exist, and far ones; ports below those that the kernel chooses.
    let forged: Vec<(u16, u32)> = (0..20).map(|i| (900 + i, if i < 10 { u32::from(i) } else { 0xdead_0000 })).collect();
    replay
        .lab
        .client
        .run(|| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap();
            for (port, instance) in &forged {
                let from = SocketAddrV4::new(Ipv4Addr::new(10, 77, 0, 1), *port);
                let packet = marked_syn(from, to, *instance, 0x0123_4567_89ab_cdef);
                socket.send_to(&packet, &to.into()).unwrap();
            }
            // After them on the same way an honest SYN, which shows that the forged ones have been through.
            TcpStream::connect_timeout(&to.into(), PATIENCE).unwrap();
        })
        .unwrap();
    let answers = sniffer.stop().unwrap();
    let answered = answers.iter().filter(|packet| packet.destination_port < 1000).map(|p| p.describe());
    assert_eq!(answered.collect::<Vec<_>>(), Vec::<String>::new(), "a forged SYN was answered");
    let told = |line: &str| line.contains("SYNs with an invalid mark were dropped");
    replay.mirror.intercept().wait_log(PATIENCE, told).unwrap();
    let (summary, log) = replay.finish();
    assert_eq!(
        summary.count("refused_syns", "syn_bad_tag") + summary.count("refused_syns", "syn_unknown_instance"),
        20,
        "{log}"
    );
}
