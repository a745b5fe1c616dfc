//! `intercept` without its main thread: the programs on a real interface, the registry, the report thread and a control
//! channel. At the other end an engine replays connections through raw sockets.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener},
    sync::{Arc, Mutex},
    thread,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tcpcopy_common::{
    counters::TargetCounter,
    prefix::Prefix,
    response::kind,
    tcp_flags::{ACK, PSH, SYN, TcpFlags},
};
use tcpcopy_replay::{
    Config, Credentials, Engine, LiveAnswer, LiveOptions, LiveSegment, Multipath, Report, RuleTarget, TargetId,
};

use super::{
    registry::Instances,
    reporter::{ReportCounts, Reporter},
};
use crate::{
    bpf::{Intercept, InterceptSetup, Interceptor, TargetCounters, TcAttach},
    clock::now,
    control::{Established, Frame, Hello, Listener, Psk, Resume, Security, ServerCounters, connect},
    inject::{Backend, Injector, Paths, Sending},
    mailbox::mailbox,
    net::testing::{Peer, flow, ip, isolated, veth},
};

const TARGET: TargetId = TargetId(0);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\n\r\n";
/// More than the stack puts into one packet.
const ANSWER: usize = 200_000;

/// The octets of every answer, each of which tells its place.
fn answer() -> Vec<u8> {
    (0..ANSWER).map(|at| (at * 31 + at / 256) as u8).collect()
}

/// Answers one request on each connection, and closes.
fn serve(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            stream.read_exact(&mut [0; REQUEST.len()]).unwrap();
            stream.write_all(&answer()).unwrap();
        }
    });
}

/// A payload that was reported: its length, and its first octets.
type Piece = (usize, Vec<u8>);

/// Replays a connection with one request, and returns what was reported of the answer, by its place in it.
fn replay(peer: &Peer, channel: &mut Established, client: SocketAddr, target: SocketAddr) -> BTreeMap<usize, Piece> {
    let mut injector = peer.run(move || {
        let paths = Paths::open(Backend::Raw, &[target.ip()]).unwrap();
        Injector::open(Arc::new(paths), Sending { batch: 64, bypass_qdisc: false }).unwrap()
    });
    let rules = vec![RuleTarget { target: TARGET, address: target }];
    let mut engine = Engine::new(Config { rules, ..Config::default() }, 7);
    let welcome = channel.welcome;
    engine.handle_channel_up(
        now(),
        TARGET,
        Credentials { instance: welcome.instance, key: welcome.key, epoch: welcome.epoch },
    );
    // A live service of the same IP version.
    let live = flow(client, SocketAddr::new(client.ip(), 80));
    let options = LiveOptions::default();
    let segment = |seq, ack, flags: TcpFlags, payload| LiveSegment {
        time: now(),
        flow: live,
        rule: 0,
        seq,
        ack,
        flags,
        options,
        multipath: Multipath::Nothing,
        urgent: None,
        intact: true,
        payload,
    };
    engine.handle_live(now(), &segment(1000, 0, SYN, &[]));
    let multipath = Multipath::Nothing;
    let answer = LiveAnswer { time: now(), flow: live, rule: 0, seq: 5000, ack: 1001, options, multipath };
    engine.handle_answer(now(), &answer);
    engine.handle_live(now(), &segment(1001, 5001, ACK | PSH, REQUEST));

    let mut start = None;
    let mut pieces = BTreeMap::new();
    let end_of = |(at, (len, _)): (&usize, &Piece)| at + len;
    while pieces.iter().map(end_of).max().unwrap_or(0) < ANSWER {
        if engine.poll_timeout().is_some_and(|at| at <= now()) {
            engine.handle_timeout(now());
        }
        while let Some(transmit) = engine.poll_transmit(now()) {
            injector.push(&transmit);
        }
        injector.flush();
        // What the engine waits for comes earlier, or the test fails: a tick is all that it needs to see to its timers.
        let tick = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        poll(&mut [PollFd::new(&channel.link, PollFlags::IN)], Some(&tick)).unwrap();
        let received = channel.link.receive(|frame| {
            let Frame::Responses(responses) = frame else { return };
            for response in responses.iter() {
                let header = response.header();
                assert_eq!((header.kind, header.instance), (kind::SEGMENT, welcome.instance));
                if header.flow != flow(client, target) {
                    // Of a connection before, whose end nobody has waited for.
                    continue;
                }
                let seq = u32::from_be_bytes(header.seq);
                let start = *start.get_or_insert(seq.wrapping_add(1));
                let report = Report::parse(&response).unwrap();
                if let Report::Segment(segment) = report
                    && segment.payload_len > 0
                {
                    let piece = (segment.payload_len as usize, segment.payload.to_vec());
                    pieces.insert(seq.wrapping_sub(start) as usize, piece);
                }
                engine.handle_report(now(), TARGET, &report);
            }
        });
        received.unwrap();
    }
    pieces
}

/// Whether every piece of an answer has come, each with its first octets, as many as were asked for.
fn check(pieces: &BTreeMap<usize, Piece>, asked: Prefix, what: &str) {
    let answer = answer();
    let mut covered = 0;
    for (&at, (len, octets)) in pieces {
        assert!(at <= covered, "{what}: octets {covered} to {at} were not reported");
        covered = covered.max(at + len);
        assert_eq!(octets[..], answer[at..at + (*len).min(asked.octets().into())], "{what}: {len} octets at {at}");
    }
    assert_eq!(covered, ANSWER, "{what}");
    // Where the payload is not in one piece of memory. The stack cuts nothing up for a veth, and puts together at least
    // two segments of what is written at once.
    let longest = pieces.values().map(|(len, _)| *len).max();
    assert!(longest > Some(2000), "{what}: the longest segment had {longest:?} octets");
}

#[test]
fn the_first_octets_of_real_answers_come_to_the_worker_that_asked_for_them() {
    isolated(|peer| {
        veth(peer);
        let targets: [SocketAddr; 2] = ["10.77.0.1:80".parse().unwrap(), "[fd77::1]:80".parse().unwrap()];
        // Clients that nobody is: their answers leave by the interface, or would.
        let clients: [IpAddr; 2] = ["10.77.0.99".parse().unwrap(), "fd77::99".parse().unwrap()];
        for client in clients {
            ip(&format!("neigh add {client} lladdr 02:00:00:00:77:02 dev v0 nud permanent"));
        }
        targets.into_iter().for_each(serve);

        let setup = InterceptSetup {
            attach: TcAttach::Auto,
            max_sessions: 64,
            ring_bytes: 4 << 20,
            reflect: false,
            debug: false,
        };
        let Intercept { mut programs, instances, counters, reports: ring, sessions: _sessions } =
            Interceptor::load(&setup).unwrap();
        if !instances.can_report_prefixes() {
            return crate::net::testing::skip("reports have prefixes from Linux 6.6 on");
        }
        programs.attach_swallow("v0").unwrap();
        programs.attach_learn("v0").unwrap();
        let (orders, inbox) = mailbox().unwrap();
        let instances = Arc::new(Instances::new(instances, orders));
        let counts = Arc::new(Mutex::new(ReportCounts::default()));
        let reporter = Reporter::new(ring, inbox, Arc::clone(&instances), Arc::clone(&counts));
        let reporter = thread::spawn(move || reporter.run());

        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let security = Security::from(Psk::generate().unwrap());
        let (address, serving) = runtime.block_on(async {
            let listener = Listener::bind(&["127.0.0.1:0".parse().unwrap()], security.clone()).unwrap();
            let address = listener.local_addresses().unwrap()[0];
            (address, tokio::spawn(listener.run(Arc::clone(&instances), Arc::<ServerCounters>::default())))
        });
        let mut resume = None;
        let mut port = 40_000;
        // The same instance, which comes back each time and asks for something else.
        for asked in [0, 16, 2048, 0, 1024].map(|octets| Prefix::new(octets).unwrap()) {
            let prefixes = targets.map(|target| (target, asked)).to_vec();
            let hello = Hello::new(0, resume, "test").with_prefixes(prefixes);
            let mut channel = runtime.block_on(connect(address, &security, &hello)).unwrap();
            assert!(resume.is_none_or(|before: Resume| before.instance == channel.welcome.instance));
            resume = Some(Resume { instance: channel.welcome.instance, token: channel.welcome.token });
            for (client, target) in clients.into_iter().zip(targets) {
                port += 1;
                let pieces = replay(peer, &mut channel, SocketAddr::new(client, port), target);
                check(&pieces, asked, &format!("{} octets of {target}", asked.octets()));
            }
        }
        serving.abort();
        instances.stop_reporting();
        reporter.join().unwrap();
        assert_nothing_lost(&counters, &counts.lock().unwrap());
        drop(programs);
    });
}

fn assert_nothing_lost(counters: &TargetCounters, counts: &ReportCounts) {
    let counters = counters.read().unwrap();
    assert_eq!(counters.get(TargetCounter::Learned), 10);
    for counter in [TargetCounter::PrefixLost, TargetCounter::ReportLost] {
        assert_eq!(counters.get(counter), 0, "{}", counter.family().name);
    }
    assert_eq!((counts.bad_records, counts.dropped), (0, 0));
    assert!(counts.reported > 0);
}
