//! The lab: engine, path and target in virtual time, and live clients that speak into it.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    response::{ResponseHeader, kind, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};

use super::target::{Act, Conn, EPOCH, INSTANCE, KEY, Later, Packet, Target};
use crate::{
    causality::greeting::FirstSpeaker,
    config::{Config, Credentials, RuleTarget, TargetId},
    engine::{Connection, Engine, Flag, Replay, Visibility},
    multipath::Multipath,
    report::Report,
    segment::{LiveAnswer, LiveOptions, LiveSegment, Transmit},
    time::Nanos,
};

pub(crate) const MS: u64 = 1_000_000;
pub(crate) const TARGET: TargetId = TargetId(0);
/// More steps than any test needs: a livelock.
const MAX_STEPS: usize = 400_000;

enum Event {
    ToTarget(Packet),
    ToEngine(ResponseHeader),
    AtTarget(Later),
}

/// Chances, of 1000, that the path does something to a packet; each direction.
#[derive(Clone, Copy, Default)]
pub(crate) struct Weather {
    pub lose: u32,
    pub duplicate: u32,
    pub delay: u32,
}

pub(crate) struct Lab {
    pub now: Nanos,
    pub engine: Engine,
    pub target: Target,
    pub weather: Weather,
    /// Everything the engine sent, lost or not.
    pub sent: Vec<Packet>,
    pub lost: usize,
    /// Responses of connections that the target's programs do not know as replayed: the live clients get them.
    pub leaked: Vec<ResponseHeader>,
    events: BTreeMap<(u64, u64), Event>,
    order: u64,
    random: u64,
    /// One way, in ns.
    pub delay: u64,
    /// The most payload that the path to the target takes in a packet: the injector cuts to what fits.
    pub path: usize,
    /// Octets of the live clients that the engine has been given.
    handed: u64,
    /// Whether [`audit`](Self::audit) is called after every step.
    pub audits: bool,
}

pub(crate) fn config() -> Config {
    let address: SocketAddr = "10.0.0.3:8080".parse().unwrap();
    // With a limit, so that whatever a test does its sessions end.
    let keepalive_timeout = Some(Duration::from_secs(240));
    Config { rules: vec![RuleTarget { target: TARGET, address }], keepalive_timeout, ..Config::default() }
}

pub(crate) const CREDENTIALS: Credentials = Credentials { instance: INSTANCE, key: KEY, epoch: EPOCH };

impl Lab {
    pub(super) fn new() -> Self {
        Self::with(config())
    }

    pub(super) fn with(config: Config) -> Self {
        let mut lab = Self {
            now: Nanos(1_000 * MS),
            engine: Engine::new(config, 42),
            target: Target::new(),
            weather: Weather::default(),
            sent: Vec::new(),
            lost: 0,
            leaked: Vec::new(),
            events: BTreeMap::new(),
            order: 0,
            random: 0x2545_f491_4f6c_dd1d,
            delay: 50_000,
            path: usize::MAX,
            handed: 0,
            audits: true,
        };
        lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
        // Most tests are about protocols where the client speaks first, and need not wait to find out.
        lab.set_first_speaker(FirstSpeaker::Client);
        lab
    }

    /// What is known of who speaks first.
    pub(super) fn set_first_speaker(&mut self, word: FirstSpeaker) {
        for profile in &mut self.engine.profiles {
            profile.first_speaker = word;
        }
    }

    pub(super) fn seed(&mut self, seed: u64) {
        self.random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    }

    fn chance(&mut self, of_thousand: u32) -> bool {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 20) % 1000 < u64::from(of_thousand)
    }

    fn put(&mut self, at: u64, event: Event) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    fn travel(&mut self, make: impl Fn() -> Event) {
        let weather = self.weather;
        if self.chance(weather.lose) {
            self.lost += 1;
            return;
        }
        let late = if self.chance(weather.delay) { 3 * MS } else { 0 };
        self.put(self.now.0 + self.delay + late, make());
        if self.chance(weather.duplicate) {
            self.put(self.now.0 + 2 * self.delay, make());
        }
    }

    pub(super) fn live(&mut self, segment: &LiveSegment<'_>) {
        self.hand(segment);
        self.settle();
    }

    /// The same, before anything can be sent.
    pub(super) fn hand(&mut self, segment: &LiveSegment<'_>) {
        self.handed += segment.payload.len() as u64;
        self.engine.handle_live(self.now, segment);
    }

    /// The live server answers a SYN.
    pub(super) fn answer(&mut self, answer: &LiveAnswer) {
        self.engine.handle_answer(self.now, answer);
        self.settle();
    }

    /// Sends what the engine has to say, cut as the injector cuts it.
    pub(super) fn settle(&mut self) {
        let mut n = 0;
        while let Some(transmit) = self.engine.poll_transmit(self.now) {
            let packets = cut(&transmit, self.path);
            for packet in packets {
                self.sent.push(packet.clone());
                self.travel(|| Event::ToTarget(packet.clone()));
            }
            n += 1;
            assert!(n < MAX_STEPS, "the engine does not stop sending");
        }
        if self.audits {
            self.audit();
        }
    }

    fn respond(&mut self, (responses, later): (Vec<ResponseHeader>, Vec<(u64, Later)>)) {
        for response in responses {
            if response.kind != kind::PROBED && !self.target.sessions.contains(&response.flow) {
                self.leaked.push(response);
                continue;
            }
            self.travel(|| Event::ToEngine(response));
        }
        for (at, work) in later {
            self.put(at, Event::AtTarget(work));
        }
    }

    /// An acknowledgement of nothing but the SYN by the first connection's target, with the number that is expected
    /// next.
    pub(super) fn bare_ack(&self) -> ResponseHeader {
        let mut header: ResponseHeader = bytemuck::Zeroable::zeroed();
        header.flow = self.sent[0].flow;
        header.instance = self.target.instance;
        header.kind = kind::SEGMENT;
        header.flags = ACK;
        header.seq = self.sent.last().unwrap().ack.to_be_bytes();
        header.ack = self.sent[0].seq.wrapping_add(1).to_be_bytes();
        header.window = 400u16.to_be_bytes();
        header.options = option::TIMESTAMPS;
        header.tsval = 99u32.to_be_bytes();
        header
    }

    /// A report that the target's model has nothing to do with.
    pub(super) fn report(&mut self, header: &ResponseHeader) {
        self.hand_over(header);
        self.settle();
    }

    /// Hands a report to the engine, and nothing more.
    pub(super) fn hand_over(&mut self, header: &ResponseHeader) {
        let report = Report::parse(&(*header).into()).expect("a known kind");
        self.engine.handle_report(self.now, TARGET, &report);
    }

    /// What the application of the first connection's target does now.
    pub(super) fn act(&mut self, act: Act) {
        let (flow, isn) = (self.sent[0].flow, self.sent[0].seq);
        let (responses, _) = self.target.later(self.now, Later::Do(flow, isn, act));
        responses.iter().for_each(|response| self.report(response));
    }

    /// The target's `intercept` is killed, and has a successor after `ms`.
    pub(super) fn restart_intercept(&mut self, ms: u64) {
        self.engine.handle_channel_down(self.now, TARGET);
        self.target.sessions.clear();
        self.run_ms(ms);
        self.target.instance += 1;
        let credentials = Credentials { instance: self.target.instance, ..CREDENTIALS };
        self.engine.handle_channel_up(self.now, TARGET, credentials);
        self.settle();
    }

    /// Lets everything happen until `end`.
    pub(super) fn run_until(&mut self, end: u64) {
        for _ in 0..MAX_STEPS {
            let event = self.events.keys().next().map(|k| k.0);
            let timer = self.engine.poll_timeout().map(|t| t.0.max(self.now.0));
            let Some(next) = [event, timer].into_iter().flatten().min().filter(|&t| t <= end) else {
                self.now = Nanos(end);
                return;
            };
            self.now = Nanos(next);
            if timer == Some(next) {
                self.engine.handle_timeout(self.now);
            } else if let Some(((_, _), event)) = self.events.pop_first() {
                match event {
                    Event::ToTarget(packet) => {
                        let responses = self.target.handle(self.now, packet);
                        self.respond(responses);
                    }
                    Event::ToEngine(response) => self.hand_over(&response),
                    Event::AtTarget(work) => {
                        let responses = self.target.later(self.now, work);
                        self.respond(responses);
                    }
                }
            }
            self.settle();
        }
        panic!("no end in sight at {:?}: {:?}", self.now, self.engine.stats());
    }

    pub(super) fn run_ms(&mut self, ms: u64) {
        self.run_until(self.now.0 + ms * MS);
    }

    /// The statistics balance, and agree with what is really held.
    pub(super) fn audit(&self) {
        let engine = &self.engine;
        let stats = engine.stats();
        stats.check().unwrap();
        let elsewhere = stats.duplicate_bytes + stats.refused.refused_bytes + stats.half_open_bytes;
        assert_eq!(stats.bytes.captured + elsewhere, self.handed, "octets handed in: {stats:?}");
        let (mut bytes, mut syns, mut fins, mut active) = (0, 0, 0, 0);
        for id in engine.connections.ids() {
            let connection: &Connection = engine.connections.get(id).unwrap();
            for (timer, deadline) in engine.deadlines(connection) {
                assert!(
                    engine.timers.covers(engine.connections.armed(id), timer, deadline),
                    "{timer:?} of {connection:?}"
                );
            }
            let stream = &connection.stream;
            syns += u64::from(connection.syn == Flag::Pending);
            match &connection.replay {
                Replay::Parked(..) => {
                    bytes += stream.held_from(stream.start());
                    fins += u64::from(connection.fin == Flag::Pending);
                }
                Replay::Active(session) => {
                    bytes += stream.held_from(session.sent());
                    fins += u64::from(connection.fin == Flag::Pending && !session.fin_sent());
                    active += 1;
                }
            }
        }
        let stats = engine.stats();
        assert_eq!((stats.bytes.pending, stats.syns.pending, stats.fins.pending), (bytes, syns, fins), "{stats:?}");
        assert_eq!(stats.sessions.active, active);
        let half_open: usize = engine.half_open.iter().map(|entry| entry.payload_len()).sum();
        let withheld: usize = engine.withheld.iter().map(|withheld| withheld.payload.len()).sum();
        assert_eq!(stats.half_open_bytes, (half_open + withheld) as u64);
        assert_eq!(stats.half_open, engine.half_open.iter().count() as u64);
        let left: usize = engine.orphans.iter().map(|at_target| at_target.len()).sum();
        assert_eq!(stats.orphans, stats.orphans_settled + stats.orphans_given_up + left as u64);
        assert!(engine.pool.allocated() <= engine.config.max_memory);
    }

    /// Nothing is left: no connection, no memory in use, nothing pending.
    pub(super) fn assert_done(&self) {
        assert_eq!(self.engine.connections.len(), 0, "{:?}", self.engine.connections);
        assert_eq!(self.engine.orphans_deadline(), None);
        let stats = self.engine.stats();
        assert_eq!((stats.bytes.pending, stats.fins.pending, stats.sessions.active), (0, 0, 0));
    }

    /// Everything captured was sent, once, and every session ended well.
    pub(super) fn assert_nothing_lost(&self) {
        self.assert_done();
        let stats = self.engine.stats();
        assert_eq!(stats.bytes.discarded.total() + stats.syns.discarded.total() + stats.fins.discarded.total(), 0);
        assert_eq!(stats.sessions.finished, stats.sessions.seen, "{:?}", stats.sessions.aborted);
    }

    /// The target's only connection, present or past.
    pub(super) fn only(&self) -> &Conn {
        let mut all: Vec<&Conn> = self.target.past.iter().map(|(_, c)| c).chain(self.target.conns.values()).collect();
        assert_eq!(all.len(), 1);
        all.remove(0)
    }

    /// The target's only present connection.
    pub(super) fn only_open(&self) -> &Conn {
        assert_eq!(self.target.conns.len(), 1);
        self.target.conns.values().next().unwrap()
    }

    /// Lines that arrived, on all connections in the order of their beginning, sorted.
    pub(super) fn lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self
            .target
            .past
            .iter()
            .map(|(_, c)| c)
            .chain(self.target.conns.values())
            .flat_map(|c| c.received.split_inclusive(|&b| b == b'\n'))
            .map(|line| String::from_utf8_lossy(line).into_owned())
            .collect();
        lines.sort();
        lines
    }
}

fn cut(transmit: &Transmit<'_>, most: usize) -> Vec<Packet> {
    assert!(transmit.segment_size > 0 && transmit.payload.len() <= 65_535 - 40);
    let packet = |offset: usize, payload: &[u8], flags| Packet {
        flow: transmit.flow,
        seq: transmit.seq.wrapping_add(offset as u32),
        ack: transmit.ack,
        flags,
        options: transmit.options,
        payload: payload.to_vec(),
    };
    if transmit.payload.is_empty() {
        return vec![packet(0, &[], transmit.flags)];
    }
    let size = usize::from(transmit.segment_size).min(most);
    let count = transmit.payload.len().div_ceil(size);
    transmit
        .payload
        .chunks(size)
        .enumerate()
        .map(|(i, chunk)| {
            let last = i + 1 == count;
            packet(i * size, chunk, if last { transmit.flags } else { transmit.flags & !(PSH | FIN) })
        })
        .collect()
}

/// A live client: what it sends, and how much it has read.
#[derive(Clone, Copy)]
pub(crate) struct Client {
    pub flow: Flow,
    pub seq: u32,
    pub ack: u32,
    pub rule: u16,
}

impl Client {
    pub(super) fn new(port: u16) -> Self {
        let client = (IpAddress::from_v4([10, 1, 0, 1]), port.to_be_bytes());
        let flow = Flow::tcp(client, (IpAddress::from_v4([10, 0, 0, 2]), 80u16.to_be_bytes()));
        // The live client's numbers wrap early, so that every test meets the wrap.
        Self { flow, seq: u32::MAX - 20, ack: u32::MAX - 70, rule: 0 }
    }

    pub(super) fn segment<'a>(&self, lab: &Lab, flags: TcpFlags, payload: &'a [u8]) -> LiveSegment<'a> {
        LiveSegment {
            time: lab.now,
            flow: self.flow,
            rule: self.rule,
            seq: self.seq,
            ack: self.ack,
            flags,
            options: LiveOptions::default(),
            multipath: Multipath::Nothing,
            urgent: None,
            intact: true,
            payload,
        }
    }

    /// The live server's SYN-ACK, to what this client has sent so far.
    pub(super) fn answer(&self, lab: &Lab) -> LiveAnswer {
        let options = LiveOptions { window_scale: Some(14), ..LiveOptions::default() };
        LiveAnswer {
            time: lab.now,
            flow: self.flow,
            rule: self.rule,
            seq: self.ack.wrapping_sub(1),
            ack: self.seq,
            options,
            multipath: Multipath::Nothing,
        }
    }

    /// Sends a SYN, which the live server answers.
    pub(super) fn knock(&mut self, lab: &mut Lab) {
        let options = LiveOptions { window_scale: Some(14), ..LiveOptions::default() };
        let segment = LiveSegment { options, ..self.segment(lab, SYN, &[]) };
        lab.live(&segment);
        self.seq = self.seq.wrapping_add(1);
        let answer = self.answer(lab);
        lab.answer(&answer);
    }

    /// Sends a SYN where the live server's SYN-ACKs are never seen, and the acknowledgement that ends the handshake is
    /// not captured either: what the client has read before its first octets is not known.
    pub(super) fn syn_alone(&mut self, lab: &mut Lab) {
        lab.engine.visibility.fill(Visibility::Unseen);
        let segment = self.segment(lab, SYN, &[]);
        lab.live(&segment);
        self.seq = self.seq.wrapping_add(1);
    }

    /// Does the whole handshake.
    pub(super) fn syn(&mut self, lab: &mut Lab) {
        self.knock(lab);
        self.acknowledge(lab);
    }

    /// Acknowledges what it has read, and sends nothing.
    pub(super) fn acknowledge(&self, lab: &mut Lab) {
        let segment = self.segment(lab, ACK, &[]);
        lab.live(&segment);
    }

    /// Sends, after having read `read` octets.
    pub(super) fn send(&mut self, lab: &mut Lab, read: u32, payload: &[u8]) {
        self.ack = self.ack.wrapping_add(read);
        let segment = self.segment(lab, ACK | PSH, payload);
        lab.live(&segment);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
    }

    /// The same, without going on from there.
    pub(super) fn send_as_is(&self, lab: &mut Lab, payload: &[u8]) {
        let segment = self.segment(lab, ACK | PSH, payload);
        lab.live(&segment);
    }

    pub(super) fn fin(&mut self, lab: &mut Lab, read: u32) {
        self.ack = self.ack.wrapping_add(read);
        let segment = self.segment(lab, ACK | FIN, &[]);
        lab.live(&segment);
        self.seq = self.seq.wrapping_add(1);
    }

    pub(super) fn rst(&mut self, lab: &mut Lab, read: u32) {
        self.ack = self.ack.wrapping_add(read);
        let segment = self.segment(lab, ACK | RST, &[]);
        lab.live(&segment);
    }
}
