//! Engines, live clients and targets in virtual time, and what must hold after every step.

use std::time::Duration;

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::{Epoch, Judgement, MarkKey},
    response::ResponseHeader,
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};
use tcpcopy_replay::{
    Credentials, Engine, LiveAnswer, LiveOptions, LiveSegment, Multipath, Nanos, Report, TargetId, Transmit,
};

use super::{
    input::{Reflex, Settings, Step, TARGETS},
    live::{CLIENTS, Captured, Client, octet},
    target::Conn,
};

/// A new connection's numbers lie at least so far ahead of the old one's (RFC 6528), which is farther than any segment is
/// displaced: else an octet of the new one could be the next of the old one, to which nobody could see a difference.
const APART: u32 = 0x2_1357;
const EPOCH: Epoch = Epoch(3);
/// Transmissions at a time, of which a session's window allows few.
const MOST_TRANSMISSIONS: usize = 20_000;
/// Rounds of engine and targets without time to speak of. A burst takes tens, a client's ports at a target that takes
/// none some hundreds.
const MOST_ROUNDS: usize = 2_000;
/// Timers that go off for a session which nobody answers: retransmissions, and what ends it.
const TIMERS_OF_A_SESSION: u64 = 500;
/// The largest payload that fits a packet.
const MOST_PAYLOAD: usize = 65_535 - 120;

pub(super) struct World<'a> {
    settings: &'a Settings,
    now: Nanos,
    copies: Vec<Copy>,
    clients: Vec<Client>,
    captured: Captured,
    /// The connections that the targets' programs know.
    conns: Vec<Conn>,
    /// Ids given out so far.
    ids: u8,
    handed: Handed,
}

/// An engine, and its channels.
struct Copy {
    engine: Engine,
    channels: [Option<u32>; 2],
    /// The instance that a channel gets back.
    instances: [u32; 2],
}

/// What every engine was handed.
#[derive(Default)]
struct Handed {
    octets: u64,
    syns: u64,
    fins: u64,
}

impl<'a> World<'a> {
    pub fn new(settings: &'a Settings) -> Self {
        let copies = (0..settings.copies).map(|copy| Copy {
            engine: Engine::new(settings.config(copy), settings.seed + u64::from(copy)),
            channels: [None; 2],
            instances: [u32::from(copy) * 100; 2],
        });
        let mut world = Self {
            settings,
            now: Nanos(1_000_000_000),
            copies: copies.collect(),
            clients: (0..CLIENTS).map(Client::new).collect(),
            captured: Captured::default(),
            conns: Vec::new(),
            ids: CLIENTS,
            handed: Handed::default(),
        };
        for target in 0..2 {
            world.channel_up(target, true);
        }
        world
    }

    pub fn step(&mut self, step: &Step) {
        if crate::tells() {
            eprintln!("{:12.6} {step:?}", self.now.0 as f64 / 1e9);
        }
        // So much passes between any two things.
        self.now = self.now.after(Duration::from_micros(7));
        match *step {
            Step::Timer => {
                if let Some(next) = self.next_timer() {
                    self.pass(next);
                }
            }
            Step::Wait { micros } => self.pass(self.now.after(Duration::from_micros(micros))),
            Step::ChannelDown { target } => self.channel_down(target),
            Step::ChannelUp { target, anew } => self.channel_up(target, anew),
            Step::Honest { answer } => {
                for index in 0..self.conns.len() {
                    if let Some(report) = self.conns[index].honest(self.now, answer, self.settings.timestamps) {
                        self.report(index, &report);
                    }
                }
            }
            Step::SynAck { who, .. }
            | Step::Accept { who, .. }
            | Step::Answer { who, .. }
            | Step::TargetRst { who, .. }
            | Step::Raw { who, .. } => self.target_step(who, step),
            _ => self.live_step(step),
        }
        self.settle();
    }

    /// The end: everybody is told to stop, or nobody says anything any more.
    pub fn end(mut self) {
        if self.settings.shutdown {
            for copy in &mut self.copies {
                copy.engine.handle_shutdown(self.now);
            }
            self.settle();
        } else {
            self.fall_silent();
        }
        for copy in &self.copies {
            let stats = copy.engine.stats();
            let pending = [stats.bytes.pending, stats.syns.pending, stats.fins.pending];
            assert_eq!((stats.sessions.active, pending), (0, [0; 3]), "a session never ends: {stats:?}");
        }
    }

    fn fall_silent(&mut self) {
        let sessions: u64 = self.copies.iter().map(|copy| copy.engine.stats().sessions.seen).sum();
        let most = TIMERS_OF_A_SESSION * (1 + sessions) + 1_000;
        for _ in 0..most {
            let Some(next) = self.next_timer() else { return };
            self.pass(next);
            self.settle();
        }
        panic!("no end after {most} timers of {sessions} sessions");
    }

    fn next_timer(&self) -> Option<Nanos> {
        self.copies.iter().filter_map(|copy| copy.engine.poll_timeout()).min()
    }

    fn pass(&mut self, until: Nanos) {
        self.now = self.now.max(until);
        for copy in &mut self.copies {
            copy.engine.handle_timeout(self.now);
        }
    }

    fn channel_up(&mut self, target: u8, anew: bool) {
        let target = target % 2;
        for (index, copy) in self.copies.iter_mut().enumerate() {
            let instance = &mut copy.instances[usize::from(target)];
            if anew {
                *instance += 1;
                // Its programs start without sessions.
                self.conns.retain(|conn| (conn.copy, conn.target) != (index, target.into()));
            }
            copy.channels[usize::from(target)] = Some(*instance);
            let credentials = Credentials { instance: *instance, key: key(*instance), epoch: EPOCH };
            copy.engine.handle_channel_up(self.now, TargetId(target.into()), credentials);
        }
    }

    fn channel_down(&mut self, target: u8) {
        for copy in &mut self.copies {
            copy.channels[usize::from(target % 2)] = None;
            copy.engine.handle_channel_down(self.now, TargetId(u16::from(target % 2)));
        }
    }

    fn live_step(&mut self, step: &Step) {
        match *step {
            Step::Data { who, length, push, read } => {
                let client = self.client(who);
                client.ack = client.ack.wrapping_add(read.into());
                let seq = client.seq;
                client.seq = seq.wrapping_add(length.into());
                self.capture(who, seq, ACK | PSH.when(push), length.into());
            }
            Step::Displaced { who, by, length, push } => {
                let seq = self.client(who).seq.wrapping_add_signed(by.into());
                self.capture(who, seq, ACK | PSH.when(push), length.into());
                // Who sends so far ahead has sent what lies between.
                let client = self.client(who);
                let end = seq.wrapping_add(length.into());
                if end.wrapping_sub(client.seq) as i32 > 0 && length & 1 != 0 {
                    client.seq = end;
                }
            }
            Step::Missed { who, length } => {
                let client = self.client(who);
                client.seq = client.seq.wrapping_add(length.into());
            }
            Step::Syn { who, isn, length } => {
                let id = self.ids & 0x3f;
                self.ids = self.ids.wrapping_add(1);
                let client = self.client(who);
                client.id = id;
                client.isn = client.seq.wrapping_add(u32::from(isn) << 12).wrapping_add(APART);
                client.seq = client.isn.wrapping_add(1).wrapping_add(length.into());
                let isn = client.isn;
                self.capture(who, isn, SYN, length.into());
                if self.settings.answers {
                    self.answer(who);
                }
            }
            Step::SynAgain { who } => {
                let isn = self.client(who).isn;
                self.capture(who, isn, SYN, 0);
                if self.settings.answers {
                    self.answer(who);
                }
            }
            Step::Fin { who, length, read } => {
                let client = self.client(who);
                client.ack = client.ack.wrapping_add(read.into());
                let seq = client.seq;
                client.seq = seq.wrapping_add(length.into()).wrapping_add(1);
                self.capture(who, seq, ACK | FIN, length.into());
            }
            Step::Rst { who, by, read } => {
                let client = self.client(who);
                client.ack = client.ack.wrapping_add(read.into());
                let seq = client.seq.wrapping_add_signed(by.into());
                self.capture(who, seq, ACK | RST, 0);
            }
            Step::Ack { who, back, read } => {
                let client = self.client(who);
                client.ack = client.ack.wrapping_add(read.into());
                let seq = client.seq.wrapping_sub(back.into());
                self.capture(who, seq, ACK, back.into());
            }
            Step::Nonsense { who, flags, seq, length } => {
                let seq = self.client(who).seq.wrapping_add(u32::from(seq) << 16);
                self.capture(who, seq, flags, length.into());
            }
            Step::NoRule { who } => {
                let client = *self.client(who);
                let stranger = Client { rule: 3, flow: Flow { server_port: [0, 81], ..client.flow }, ..client };
                self.hand_over(&stranger, client.seq, ACK, 20);
            }
            _ => {}
        }
    }

    fn client(&mut self, who: u8) -> &mut Client {
        &mut self.clients[usize::from(who % CLIENTS)]
    }

    /// A segment is captured; `seq` is the one in its header.
    fn capture(&mut self, who: u8, seq: u32, flags: TcpFlags, length: u32) {
        let client = *self.client(who);
        // RSTs explain themselves in what they carry.
        if !flags.contains(RST) {
            let first = seq.wrapping_add(u32::from(flags.contains(SYN)));
            self.captured.add(client.id, first, length, flags.contains(FIN));
        }
        self.hand_over(&client, seq, flags, length);
    }

    /// The live server answers the client's last SYN, and takes what that carried.
    fn answer(&mut self, who: u8) {
        let Client { flow, rule, seq, ack, .. } = *self.client(who);
        let answer = LiveAnswer {
            time: self.now,
            flow,
            rule,
            seq: ack.wrapping_sub(1),
            ack: seq,
            options: LiveOptions { window_scale: Some(7), ..LiveOptions::default() },
            multipath: Multipath::Nothing,
        };
        for copy in &mut self.copies {
            copy.engine.handle_answer(self.now, &answer);
        }
    }

    fn hand_over(&mut self, client: &Client, seq: u32, flags: TcpFlags, length: u32) {
        let first = seq.wrapping_add(u32::from(flags.contains(SYN)));
        let payload: Vec<u8> = (0..length).map(|n| octet(client.id, first.wrapping_add(n))).collect();
        let segment = LiveSegment {
            time: self.now,
            flow: client.flow,
            rule: client.rule,
            seq,
            ack: client.ack,
            flags,
            options: LiveOptions::default(),
            multipath: Multipath::Nothing,
            urgent: None,
            intact: true,
            payload: &payload,
        };
        self.handed.octets += u64::from(length);
        self.handed.syns += u64::from(flags & (SYN | ACK) == SYN);
        self.handed.fins += u64::from(flags.contains(FIN));
        for copy in &mut self.copies {
            copy.engine.handle_live(self.now, &segment);
        }
    }

    fn target_step(&mut self, who: u8, step: &Step) {
        if self.conns.is_empty() {
            return;
        }
        // The latest are the most interesting.
        let index = self.conns.len() - 1 - usize::from(who) % self.conns.len();
        let (now, timestamps) = (self.now, self.settings.timestamps);
        let conn = &mut self.conns[index];
        let report = match *step {
            Step::SynAck { window, scale, mss, .. } => conn.syn_ack(now, window, scale, mss, timestamps),
            Step::Accept { part, window, .. } => conn.accept(now, part, window, timestamps),
            Step::Answer { length, push, fin, reflected, .. } => {
                conn.answer(now, (length, push, fin), reflected, timestamps)
            }
            Step::TargetRst { ack_only, .. } => conn.rst(now, ack_only),
            Step::Raw { kind, flags, seq, ack, length, .. } => conn.raw(now, kind, flags, (seq, ack), length),
            _ => return,
        };
        self.report(index, &report);
    }

    /// A report reaches the engine, if the channel is up.
    fn report(&mut self, index: usize, report: &ResponseHeader) {
        let Conn { copy, target, .. } = self.conns[index];
        let copy = &mut self.copies[copy];
        if copy.channels[usize::from(target)].is_some() {
            // Unknown kinds do not get as far as the engine.
            if let Ok(report) = Report::parse(&(*report).into()) {
                copy.engine.handle_report(self.now, TargetId(target), &report);
            }
        }
    }

    /// Lets the engines send and the targets react until neither has more to say.
    fn settle(&mut self) {
        self.transmit();
        if self.settings.reflex == Reflex::None {
            return;
        }
        for _ in 0..MOST_ROUNDS {
            let mut quiet = true;
            self.now = self.now.after(Duration::from_micros(3));
            for index in 0..self.conns.len() {
                let (now, timestamps) = (self.now, self.settings.timestamps);
                if let Some(report) = self.conns[index].react(now, self.settings.reflex, timestamps) {
                    quiet = false;
                    self.report(index, &report);
                }
            }
            if quiet {
                return;
            }
            self.transmit();
        }
        panic!("engine and targets go on for ever");
    }

    /// Takes everything that the engines want to send, and judges it.
    fn transmit(&mut self) {
        for index in 0..self.copies.len() {
            let mut transmissions = 0;
            let Copy { engine, channels, .. } = &mut self.copies[index];
            while let Some(transmit) = engine.poll_transmit(self.now) {
                if crate::tells() {
                    let Transmit { flow, seq, ack, flags, payload, .. } = &transmit;
                    let port = u16::from_be_bytes(flow.client_port);
                    eprintln!(
                        "    copy {index} port {port} flags {flags:?} seq {seq} ack {ack} length {}",
                        payload.len()
                    );
                }
                judge(self.settings, channels, &mut self.conns, &self.captured, index, &transmit);
                transmissions += 1;
                assert!(transmissions < MOST_TRANSMISSIONS, "the engine does not stop sending");
            }
            self.audit(index);
        }
    }

    fn audit(&self, index: usize) {
        let stats = self.copies[index].engine.stats();
        stats.check().unwrap_or_else(|unbalanced| panic!("{unbalanced}: {stats:?}"));
        let config = &self.settings.config;
        assert!(stats.bytes.pending <= config.max_memory as u64, "{} octets held", stats.bytes.pending);
        assert!(stats.sessions.active <= config.max_sessions as u64 + stats.port_reuses);
        let elsewhere = stats.duplicate_bytes + stats.refused.refused_bytes + stats.half_open_bytes;
        assert_eq!(stats.bytes.captured + elsewhere, self.handed.octets, "octets handed in: {stats:?}");
        assert!(stats.syns.captured <= self.handed.syns && stats.fins.captured <= self.handed.fins);
    }
}

fn key(instance: u32) -> MarkKey {
    MarkKey { k0: u64::from(instance) << 32, k1: !u64::from(instance) }
}

/// What copy `copy` sends: may it?
fn judge(
    settings: &Settings,
    channels: &[Option<u32>; 2],
    conns: &mut Vec<Conn>,
    captured: &Captured,
    copy: usize,
    transmit: &Transmit<'_>,
) {
    let Transmit { flow, flags, payload, segment_size, .. } = *transmit;
    let target = target_of(&flow).expect("a segment for a host that no rule names");
    let instance = channels[usize::from(target)].expect("a segment for a target whose channel is down");
    assert!(payload.len() <= MOST_PAYLOAD && (1..=1_460).contains(&segment_size), "{segment_size}");
    let known = conns.iter().position(|conn| conn.copy == copy && conn.flow == flow);
    if !flags.contains(SYN) {
        let index = known.expect("a segment of a session that the target does not know");
        assert_eq!(conns[index].instance, instance);
        return conns[index].sends(transmit, captured);
    }
    assert!(payload.is_empty() && flags == SYN);
    judge_address(settings, copy, &flow);
    let mark = transmit.options.syn.expect("a SYN has options").mark;
    let judgement = mark.judge(&key(instance), &flow, transmit.seq.to_be_bytes(), EPOCH);
    assert!(
        judgement == Judgement::Valid && mark.instance == instance.to_be_bytes(),
        "a mark that the target would refuse"
    );
    // Once more, perhaps.
    if known.is_some_and(|index| conns[index].isn == transmit.seq && conns[index].instance == instance) {
        return;
    }
    if let Some(index) = known {
        conns.remove(index);
    }
    conns.push(Conn::new(copy, target, instance, transmit));
}

/// Whether the client has an address and a port that it may have.
fn judge_address(settings: &Settings, copy: usize, flow: &Flow) {
    assert_eq!(flow.client.is_v4(), flow.server.is_v4());
    if let Some(pool) = &settings.config.identity.addresses {
        assert!(pool.contains(flow.client.into()), "a client address that -c does not have");
    } else if settings.config.loopback_client.is_some() {
        assert_ne!(flow.client, IpAddress::from_v4([127, 0, 0, 1]));
    }
    if settings.dealt {
        let port = u16::from_be_bytes(flow.client_port);
        assert!(port >= 1024 && usize::from(port) % usize::from(settings.copies) == copy, "a port of another copy");
    }
}

fn target_of(flow: &Flow) -> Option<u16> {
    let here = std::net::SocketAddr::new(flow.server.into(), u16::from_be_bytes(flow.server_port));
    TARGETS.iter().find(|(_, address)| address.parse() == Ok(here)).map(|(target, _)| target.0)
}
