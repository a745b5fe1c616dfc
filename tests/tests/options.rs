//! The letters of tcpcopy 1.0, each by something at the target that would be otherwise without it. (`-r -g --clients
//! --exclude` are in `selection`, `-n -c -f -s` in `copies`, `-O` in `mid_stream`, `-H` in `topologies`.)

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    net::{IpAddr, Ipv4Addr, TcpListener},
    time::Duration,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Shape,
    bad_path::{BadPath, Weather},
    capture::{End, Packet, Sniffer, TCP},
    eventually,
    http::{Client, Limit, Load, Method, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};

const SYN: u8 = 0x02;
const RST: u8 = 0x04;

fn options(tcpcopy: &str) -> MirrorOptions {
    MirrorOptions::arguments(tcpcopy, "")
}

/// A server that does only what a test does with its connections.
fn listen(host: &Host) -> TcpListener {
    host.run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT))).unwrap().unwrap()
}

fn connect(lab: &Lab) -> Client {
    Client::connect(&lab.client, lab.source.socket(Family::V4, LIVE_PORT)).unwrap()
}

#[test]
fn with_no_wait_a_request_does_not_wait_for_an_answer() {
    let _guard = laboratory!();
    for (letter, waits) in [("", true), ("-W", false)] {
        let lab = Lab::bridge().unwrap();
        let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = listen(&lab.target);
        let mirror = Mirror::start(&lab, options(letter)).unwrap();
        let mut client = connect(&lab);
        client.ask().unwrap();
        client.ask().unwrap();
        // It reads, but never answers.
        let (mut replayed, _) = target.accept().unwrap();
        replayed.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut heard: Vec<u8> = Vec::new();
        while heard.windows(4).filter(|w| w == b"GET ").count() < 2 {
            let mut piece = [0; 512];
            let length = replayed.read(&mut piece).unwrap();
            assert!(length > 0, "closed");
            heard.extend(&piece[..length]);
        }
        let outcome = mirror.stop().unwrap();
        let expired = outcome.tcpcopy.count("replay", "gate_expired");
        assert_eq!(expired > 0, waits, "{letter:?}: {}", outcome.table);
        outcome.assert_no_leak();
    }
}

#[test]
fn a_round_trip_time_delays_acknowledgements() {
    let _guard = laboratory!();
    const ROUND_TRIP: Duration = Duration::from_millis(300);
    let lab = Lab::bridge().unwrap();
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, options("-R 300")).unwrap();
    let sniffer = Sniffer::start(&lab.target, &lab.target, End::Destination).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(1));
    let report = Load { method: Method::Get("/size/100000".into()), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    target.wait_for_requests(1, PATIENCE);
    let mut seen: Vec<Packet> = Vec::new();
    let replayed = |packet: &&Packet| packet.protocol == TCP && packet.destination_port == TARGET_PORT;
    // The first pure acknowledgement after the request; that of the handshake comes before it.
    let times = |seen: &[Packet]| {
        let packets: Vec<&Packet> = seen.iter().filter(replayed).collect();
        let request = packets.iter().position(|packet| !packet.payload.is_empty())?;
        let pure = |packet: &&&Packet| packet.payload.is_empty() && packet.flags & (SYN | RST) == 0;
        let answer = packets[request..].iter().find(pure)?;
        Some(Duration::from_nanos(answer.time_ns - packets[request].time_ns))
    };
    let acknowledged = eventually(PATIENCE, || {
        seen.extend(sniffer.take());
        times(&seen).is_some()
    });
    let outcome = mirror.stop().unwrap();
    drop(sniffer);
    assert!(acknowledged, "{}", outcome.table);
    let time = times(&seen).unwrap();
    // The kernel's times, between which the target has answered: what comes late, comes later still.
    assert!(time > ROUND_TRIP - Duration::from_millis(10), "{time:?}\n{}", outcome.table);
    outcome.assert_no_leak();
}

/// What the target has got from a client, by when it came: all times since its SYN.
#[derive(Debug)]
struct Seen {
    /// The end of the handshake.
    opened: Duration,
    /// From the request to the last acknowledgement of the answer.
    answered: Duration,
}

impl Seen {
    /// `None` before there was a request, and acknowledgements after it.
    fn of(client: &Host, packets: &[Packet]) -> Option<Self> {
        let own = |packet: &&Packet| packet.protocol == TCP && packet.source == IpAddr::from(client.v4);
        let own = packets.iter().filter(own).filter(|packet| packet.destination_port == TARGET_PORT);
        let since = |later: &Packet, earlier: &Packet| Duration::from_nanos(later.time_ns - earlier.time_ns);
        let mut own = own.skip_while(|packet| packet.flags & SYN == 0).peekable();
        let syn = own.next()?;
        // Perhaps with the request.
        let opened = own.peek()?;
        let opened = since(opened, syn);
        let request = own.find(|packet| !packet.payload.is_empty())?;
        let last = own.last()?;
        Some(Self { opened, answered: since(last, request) })
    }
}

impl Seen {
    /// Whether a client at this distance looks like that. A SYN that waits for the worker shortens what follows it.
    fn fits(&self, round_trip: Duration) -> bool {
        let (least, late) = (round_trip - Duration::from_millis(50), Duration::from_millis(400));
        let opened = (least..round_trip + late).contains(&self.opened);
        opened && (3 * least..4 * round_trip + late).contains(&self.answered)
    }
}

/// Two clients at different distances, who ask at the same time. An answer of 100 KB takes three flights: 10 segments
/// (RFC 6928), 20, and the rest; or a fourth, where the congestion window grows by less.
#[test]
fn with_live_round_trips_the_target_sees_each_client_at_its_own_distance() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let clients = [(&lab.client, Duration::from_millis(100)), (lab.other("target2"), Duration::from_millis(600))];
    let paths = clients.map(|(client, round_trip)| {
        BadPath::to(&lab, client, Weather { delay: round_trip / 2, ..Weather::default() }).unwrap()
    });
    // Its answers must not wait until the other end of the long path has said who it is; they do not get there anyway.
    let neighbour = format!("neighbour replace {} dev eth0 lladdr 02:00:00:00:00:05 nud permanent", clients[1].0.v4);
    lab.target.ip(&[neighbour]).unwrap();
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, options("-R live")).unwrap();
    let sniffer = Sniffer::start(&lab.target, &lab.target, End::Destination).unwrap();
    // How early something comes is ours, how late is the machine's, too: a client that is taken for another is so every
    // time, a machine that is late by 400 ms is not five times in a row.
    let mut wrong = Vec::new();
    let right = (0..5).any(|_| {
        drop(sniffer.take());
        let before = target.count();
        let loads = clients.map(|(client, _)| {
            let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(1));
            Load { method: Method::Get("/size/100000".into()), ..load }.start(client).unwrap()
        });
        for load in loads {
            assert_eq!(load.join().unwrap().failed, Vec::<String>::new());
        }
        assert_eq!(target.wait_for_requests(before + 2, PATIENCE), before + 2);
        // The clients have closed, and the target does once its answer is acknowledged.
        let closed = || {
            let filter = format!("exclude listening exclude time-wait sport = :{TARGET_PORT}");
            lab.target.output(&format!("ss -tanH {filter}")).unwrap().is_empty()
        };
        assert!(eventually(PATIENCE, closed));
        let mut packets = Vec::new();
        let seen = |packets: &[Packet]| clients.map(|(client, _)| Seen::of(client, packets));
        // The sniffer may trail.
        assert!(eventually(PATIENCE, || {
            packets.extend(sniffer.take());
            seen(&packets).iter().all(|seen| seen.as_ref().is_some_and(|seen| !seen.answered.is_zero()))
        }));
        let seen = seen(&packets).into_iter().flatten().zip(clients.map(|(_, round_trip)| round_trip));
        let mistakes = seen.filter(|(seen, round_trip)| !seen.fits(*round_trip)).collect::<Vec<_>>();
        let fits = mistakes.is_empty();
        wrong.extend(mistakes);
        fits
    });
    let outcome = mirror.stop().unwrap();
    drop((sniffer, paths));
    assert!(right, "{wrong:?}\n{}", outcome.table);
    let distant = outcome.tcpcopy.count("replay", "distant_clients");
    assert_eq!(distant, target.count() as u64, "{}", outcome.table);
    outcome.assert_no_leak();
}

#[test]
fn a_round_trip_time_that_the_target_cannot_see_is_warned_of_once() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::arguments("-R 30 -w 2", "--ack reflect")).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 8, Limit::Requests(8));
    let report = Load { method: Method::Get("/size/5000000".into()), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    assert_eq!(target.wait_for_requests(8, PATIENCE), 8);
    let is_warning = |line: &str| line.contains("-R has no effect");
    let warned = mirror.tcpcopy().wait_log(PATIENCE, is_warning);
    let outcome = mirror.stop().unwrap();
    assert!(warned.is_ok(), "{}", outcome.table);
    assert_eq!(outcome.logs.lines().filter(|line| is_warning(line)).count(), 1, "{}", outcome.logs);
    outcome.assert_no_leak();
}

/// One connection that never asks anything, and one that is idle after its request: which of them is given up first?
#[test]
fn sessions_without_a_request_and_between_two_have_time_outs_of_their_own() {
    let _guard = laboratory!();
    for (letters, keep_alive_first) in [("-t 2 -k 9", false), ("-t 9 -k 2", true)] {
        let lab = Lab::bridge().unwrap();
        let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, options(letters)).unwrap();
        let sniffer = Sniffer::start(&lab.target, &lab.target, End::Destination).unwrap();
        let (silent, mut idle) = (connect(&lab), connect(&lab));
        idle.ask().unwrap();
        // Who is given up is reset. Seven seconds lie between the two.
        let mut given_up = Vec::new();
        let both_went = eventually(PATIENCE, || {
            let resets = sniffer.take().into_iter().filter(|packet| packet.protocol == TCP && packet.flags & RST != 0);
            given_up.extend(resets.map(|packet| packet.source_port));
            given_up.dedup();
            given_up.len() == 2
        });
        let (silent, idle) = (silent.port(), idle.port());
        let expected = if keep_alive_first { [idle, silent] } else { [silent, idle] };
        assert!(both_went && given_up == expected, "{letters}: {given_up:?} were given up, not {expected:?}");
        let gone = eventually(PATIENCE, || lab.target.connections(TARGET_PORT).unwrap() == 0);
        assert!(gone, "{letters}: what was given up stays open");
        let outcome = mirror.stop().unwrap();
        assert_eq!(outcome.tcpcopy.count("aborted", "idle_timeout"), 2, "{letters}: {}", outcome.table);
        outcome.assert_no_leak();
    }
}

/// Uploads to a target that takes nothing have to be kept, as far as there is memory.
#[test]
fn the_memory_limit_holds_and_what_it_costs_is_counted() {
    let _guard = laboratory!();
    const UPLOADS: u64 = 8;
    for (letters, enough) in [("-m 1", false), ("", true)] {
        let lab = Lab::bridge().unwrap();
        let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = listen(&lab.target);
        let mirror = Mirror::start(&lab, options(letters)).unwrap();
        let load =
            Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), UPLOADS as usize, Limit::Requests(UPLOADS));
        let report = Load { method: Method::Post(1 << 20), ..load }.run(&lab.client).unwrap();
        assert_eq!(report.failed, Vec::<String>::new());
        let outcome = mirror.stop().unwrap();
        drop(target);
        let discarded = outcome.tcpcopy.count("discarded", "total_memory");
        assert_eq!(discarded == 0, enough, "{letters:?}: {}", outcome.table);
        outcome.assert_no_leak();
    }
}

#[test]
fn packets_to_the_target_are_no_larger_than_asked_for() {
    let _guard = laboratory!();
    for (letters, sizes) in [("", 1_400..1_461), ("-D 500", 400..501), ("-M 700", 600..661)] {
        let lab = Lab::bridge().unwrap();
        let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, options(letters)).unwrap();
        let mut client = connect(&lab);
        let body = "x".repeat(100_000);
        let head = format!("POST /upload?id=1 HTTP/1.1\r\nHost: lab\r\nContent-Length: {}\r\n\r\n", body.len());
        client.send(&(head + &body)).unwrap();
        assert_eq!(target.wait_for_uploads(1, PATIENCE), 1, "{letters:?}");
        // What the target sends, by what it was told, and what it has received, however many segments came in one
        // piece.
        let info = lab.target.output(&format!("ss -tinH state established sport = :{TARGET_PORT}")).unwrap();
        let outcome = mirror.stop().unwrap();
        for name in ["mss:", "rcvmss:"] {
            let value = info.split_ascii_whitespace().find_map(|word| word.strip_prefix(name)?.parse().ok());
            let size: u32 = value.unwrap_or_else(|| panic!("no {name} in {info}"));
            assert!(sizes.contains(&size), "{letters:?}: {name}{size}\n{}", outcome.table);
        }
        outcome.assert_no_leak();
    }
}

#[test]
fn connections_to_intercept_are_workers() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::start(&lab, options("-C 3")).unwrap();
    let tasks = fs::read_dir(format!("/proc/{}/task", mirror.tcpcopy().pid())).unwrap();
    let names = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    let workers: BTreeSet<String> = names.filter(|name| name.starts_with("worker-")).collect();
    assert_eq!(workers.len(), 3, "{workers:?}");
    let channels = || lab.target.connections(36524).unwrap();
    assert!(eventually(PATIENCE, || channels() == 3), "{} channels", channels());
    mirror.stop().unwrap().assert_no_leak();
}

/// In one list, and in several options.
#[test]
fn several_services_go_where_their_rules_say() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let ports = [(80, 8080), (81, 8081), (82, 8082)];
    let servers = ports
        .map(|(live, test)| (Server::start(&lab.source, live).unwrap(), Server::start(&lab.target, test).unwrap()));
    let rule = |i: usize| format!("{}-{}:{}", ports[i].0, lab.target.v4, ports[i].1);
    let rules = Some(format!("{},{}", rule(0), rule(1)));
    let mirror = Mirror::start(&lab, MirrorOptions { rules, ..options(&format!("-x {}", rule(2))) }).unwrap();
    let asked: Vec<BTreeSet<u64>> = ports
        .iter()
        .map(|&(live, _)| {
            let report = Load::keep_alive(lab.source.socket(Family::V4, live), 4, Limit::Requests(50)).run(&lab.client);
            report.unwrap().answered.into_iter().collect()
        })
        .collect();
    for ((_, test), asked) in servers.iter().zip(&asked) {
        test.wait_for_requests(50, PATIENCE);
        let arrived: BTreeSet<u64> = test.arrivals().iter().map(|arrival| arrival.id).collect();
        assert_eq!(arrived, *asked);
    }
    mirror.stop().unwrap().assert_no_leak();
}

/// One target is done long before the other takes its first octet.
#[test]
fn what_waits_for_the_slower_of_two_targets_is_kept_for_it() {
    let _guard = laboratory!();
    const OCTETS: usize = 3_000_000;
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let slow = lab.other("target2");
    let live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let fast = Server::start(&lab.target, TARGET_PORT).unwrap();
    let listener = listen(slow);
    let rules = [&lab.target, slow].map(|target| mirror::rule(&lab.source, target, Family::V4)).join(",");
    let options = MirrorOptions { rules: Some(rules), ..options(&format!("-s {}", slow.v4)) };
    let mut mirror = Mirror::prepare(&lab, options).unwrap();
    mirror.start_intercept().unwrap();
    let other = lab::Program::start("intercept on target2", &mut mirror.intercept_on(slow).unwrap()).unwrap();
    other.wait_ready().unwrap();
    mirror.start_tcpcopy().unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(1));
    let report = Load { method: Method::Post(OCTETS), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    assert_eq!(fast.wait_for_uploads(1, PATIENCE), 1);
    assert_eq!(fast.uploads(), live.uploads());
    // Until here the slow one has read nothing; its kernel has taken what fits the window.
    let (mut replayed, _) = listener.accept().unwrap();
    replayed.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut taken = 0;
    let mut piece = vec![0; 1 << 16];
    while taken < OCTETS {
        let length = replayed.read(&mut piece).unwrap();
        assert!(length > 0, "closed after {taken} octets");
        taken += length;
    }
    drop(replayed);
    drop(other);
    let outcome = mirror.stop().unwrap();
    let discarded = ["session_memory", "total_memory"].map(|reason| outcome.tcpcopy.count("discarded", reason));
    assert_eq!(discarded, [0, 0], "{}", outcome.table);
}
