//! S7: nobody unauthenticated can register, read feedback or make the target swallow anything, and trying does not
//! disturb the running replay.

use std::{
    collections::VecDeque,
    fs,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program,
    capture::{End, Sniffer},
    eventually, figure,
    http::{Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;
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

/// Strangers who hold connections to the control port open, and make new ones all the time.
struct Crowd {
    stop: Arc<AtomicBool>,
    made: Arc<AtomicUsize>,
    threads: Vec<JoinHandle<anyhow::Result<()>>>,
}

impl Crowd {
    /// Each address opens a connection every few milliseconds, says `says`, and lets go only of the oldest of 300: more
    /// than there is room for.
    fn gather(from: &Host, addresses: &[IpAddr], to: SocketAddr, says: &'static [u8]) -> Self {
        let (stop, made) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = addresses.iter().map(|&address| {
            let (stop, made) = (Arc::clone(&stop), Arc::clone(&made));
            from.spawn("stranger", move || {
                let mut held = VecDeque::new();
                while !stop.load(Ordering::Relaxed) {
                    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
                    socket.bind(&SocketAddr::new(address, 0).into())?;
                    socket.connect_timeout(&to.into(), PATIENCE)?;
                    // It may have been closed already.
                    let _ = socket.send(says);
                    held.push_back(socket);
                    held.drain(..held.len().saturating_sub(300));
                    made.fetch_add(1, Ordering::Relaxed);
                    thread::sleep(Duration::from_millis(5));
                }
                Ok(())
            })
        });
        let threads = threads.collect::<Result<_, _>>().unwrap();
        Self { stop, made, threads }
    }

    fn wait_for(&self, connections: usize) {
        let wanted = self.made.load(Ordering::Relaxed) + connections;
        assert!(eventually(PATIENCE, || self.made.load(Ordering::Relaxed) >= wanted), "strangers cannot connect");
    }

    fn disperse(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().for_each(|thread| thread.join().unwrap().unwrap());
    }
}

/// Five addresses are as many as were enough to take every place for as long as they liked.
#[test]
fn strangers_who_stay_silent_or_say_half_of_it_keep_no_tcpcopy_out() {
    // Five times 300 connections.
    let _guard = laboratory!(1_700);
    for (family, says) in [(Family::V4, &b""[..]), (Family::V6, b""), (Family::V4, b"\x93tcp"), (Family::V6, b"\x93")] {
        let lab = Lab::bridge().unwrap();
        let addresses: Vec<IpAddr> = match family {
            Family::V4 => (101..106).map(|host| Ipv4Addr::new(10, 77, 0, host).into()).collect(),
            // Of five networks.
            Family::V6 => (1..6).map(|net| format!("fd66:0:0:{net}::1").parse().unwrap()).collect(),
        };
        let length = if family == Family::V4 { 24 } else { 64 };
        let lines = addresses.iter().map(|address| {
            let nodad = if family == Family::V6 { " nodad" } else { "" };
            format!("address add {address}/{length} dev eth0{nodad}")
        });
        lab.client.ip(&lines.collect::<Vec<_>>()).unwrap();
        lab.target.ip(&["route add fd66::/16 dev eth0"]).unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::arguments("-w 4", "")).unwrap();
        mirror.start_intercept().unwrap();
        let crowd = Crowd::gather(&lab.client, &addresses, lab.target.socket(family, CONTROL_PORT), says);
        // By now they have taken whatever they can, and go on.
        crowd.wait_for(1_000);
        for round in 1..=3 {
            mirror.start_tcpcopy().unwrap_or_else(|error| panic!("{family:?}, {says:?}, {round}: {error:#}"));
            let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 4, Limit::Requests(100));
            load.run(&lab.client).unwrap();
            assert_eq!(target.wait_for_requests(round * 100, PATIENCE), round * 100);
            mirror.tcpcopy.take().unwrap().stop().unwrap();
        }
        crowd.disperse();
        let ended = mirror.intercept.take().unwrap().stop().unwrap();
        let lines = ended.stderr.lines().filter(|line| line.contains("control connection from")).count();
        // Two kinds of lines, ten of each in ten seconds: thousands were refused.
        assert!(lines <= 20 * (1 + PATIENCE.as_secs() as usize / 10), "{lines} lines");
        let refused = ["too many", "timeout"].map(|name| figure(&ended.stdout, name).unwrap_or(0));
        assert!(refused.iter().sum::<u64>() >= 300, "{}", ended.stdout);
        assert!(ended.stderr.contains("were suppressed"), "{}", ended.stderr);
    }
}

/// Breaks the channels, and waits until they are up again.
fn break_channels(replay: &Replay, times: usize) {
    replay.lab.target.output(&format!("ss -K sport = :{CONTROL_PORT}")).unwrap();
    let up = |log: &str| log.lines().filter(|line| line.contains("36524 is up again")).count();
    let log = || replay.mirror.tcpcopy().log();
    assert!(eventually(PATIENCE, || up(&log()) == times), "the channel is not up again\n{}", log());
}

fn reload(program: &Program, says: &str) {
    program.signal(Signal::HUP).unwrap();
    program.wait_log(PATIENCE, |line| line.contains(says)).unwrap();
}

#[test]
fn keys_are_rotated_while_the_replay_goes_on() {
    let _guard = laboratory!();
    let replay = Replay::start();
    let file = replay.mirror.key();
    let old = fs::read_to_string(&file).unwrap();
    let new = fs::read_to_string(mirror::make_key(replay.mirror.directory(), "new").unwrap()).unwrap();
    let (intercept, tcpcopy) = (replay.mirror.intercept(), replay.mirror.tcpcopy());
    // Whoever still has the old key only, or the new one only.
    let dial = |key: &str| {
        let other = replay.mirror.directory().join("other");
        fs::write(&other, key).unwrap();
        fs::set_permissions(&other, fs::Permissions::from_mode(0o600)).unwrap();
        let mut command = replay.lab.client.command(mirror::program("tcpcopy").unwrap());
        command.args(["-x", "8888-10.77.0.3:8080", "-s", "10.77.0.3", "-i", "eth0", "--psk-file", text(&other)]);
        Program::start("tcpcopy", &mut command).unwrap()
    };
    let admitted = |key: &str| {
        let program = dial(key);
        program.wait_ready().unwrap();
        program.stop().unwrap();
    };
    let refused = |key: &str| {
        let ended = dial(key).wait(PATIENCE).unwrap();
        assert!(ended.status.code() == Some(1) && ended.stderr.contains("a different key"), "{}", ended.stderr);
    };
    refused(&new);

    fs::write(&file, format!("{old}\n  {new}")).unwrap();
    reload(intercept, "2 keys");
    admitted(&old);
    admitted(&new);
    fs::write(&file, &new).unwrap();
    reload(tcpcopy, "1 key");
    assert!(!tcpcopy.log().contains("broke"), "{}", tcpcopy.log());
    // A new channel is made with the new key, which is what the other side has from here on.
    reload(intercept, "1 key");
    break_channels(&replay, 1);
    refused(&old);
    admitted(&new);

    // A file that is no key file is said, and changes nothing.
    fs::write(&file, format!("{old}\nnonsense\n")).unwrap();
    for program in [intercept, tcpcopy] {
        reload(program, "stay in use");
        program.wait_log(PATIENCE, |line| line.contains("WARN") && line.contains("in line 3")).unwrap();
    }
    fs::remove_file(&file).unwrap();
    for program in [intercept, tcpcopy] {
        reload(program, "there is no key file");
    }
    break_channels(&replay, 2);
    refused(&old);
    // What was under way when a channel broke is lost; what comes now is not.
    let arrived = replay.target.count();
    assert!(replay.target.wait_for_requests(arrived + 1_000, PATIENCE) >= arrived + 1_000, "nothing is replayed");
    replay.load.stop().unwrap();
    let outcome = replay.mirror.stop().unwrap();
    assert_eq!(outcome.intercept.count("control_connections", "bad_key"), 3, "{}", outcome.logs);
    // Control connections are this client's own here.
    outcome.assert_no_leak_but(&[]);
}
