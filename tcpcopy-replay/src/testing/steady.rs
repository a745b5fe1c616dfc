//! Sessions in their steady state: keep-alive connections whose clients ask, are answered, and ask again. Used by the
//! benchmark of the engine and by the test that it allocates nothing.

use std::net::SocketAddr;

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::{Epoch, MarkKey},
    response::{NO_WINDOW_SCALE, ResponseHeader, kind},
    tcp_flags::{ACK, PSH, SYN, TcpFlags},
};

use crate::{
    Config, Credentials, Engine, LiveAnswer, LiveOptions, LiveSegment, Multipath, Nanos, Report, RuleTarget, TargetId,
};

const TARGET: TargetId = TargetId(0);
const INSTANCE: u32 = 1;
const REQUEST: [u8; 100] = [b'r'; 100];
const ANSWER: u32 = 200;
/// As many records as the worker takes from its ring before it does anything else, and as many of them as it looks
/// ahead.
const TURN: usize = 256;
const AHEAD: usize = 32;

/// The next numbers of the client and of the target of a session.
#[derive(Clone, Copy, Default)]
struct Ends {
    live_seq: u32,
    live_ack: u32,
    target_seq: u32,
    target_ack: u32,
}

/// An engine with open sessions, and what surrounds it.
pub struct Steady {
    engine: Engine,
    now: Nanos,
    ends: Vec<Ends>,
    order: u64,
}

impl Steady {
    /// Opens sessions, each of which has had its first request.
    pub fn new(sessions: u32) -> Self {
        let address: SocketAddr = ([10, 0, 0, 3], 80).into();
        let config = Config {
            rules: vec![RuleTarget { target: TARGET, address }],
            max_sessions: sessions as usize + 1,
            max_memory: 1 << 30,
            ..Config::default()
        };
        let mut engine = Engine::new(config, 42);
        let now = Nanos(1_000_000_000);
        let (key, epoch) = (MarkKey { k0: 1, k1: 2 }, Epoch(0));
        engine.handle_channel_up(now, TARGET, Credentials { instance: INSTANCE, key, epoch });
        let mut steady = Self { engine, now, ends: Vec::with_capacity(sessions as usize), order: 1 };
        for session in 0..sessions {
            steady.open(session);
        }
        // The first requests wait for a greeting that does not come, until it is known that none does.
        steady.now.0 += 100_000_000;
        for session in 0..sessions {
            steady.exchange(session);
        }
        // Longer than the quiet after an answer.
        steady.now.0 += 1_000_000;
        steady
    }

    fn open(&mut self, session: u32) {
        let live = segment(session, self.now, 1_000, 0, SYN, &[]);
        self.engine.handle_live(self.now, &live);
        let (time, flow, options) = (self.now, flow(session), LiveOptions::default());
        let multipath = Multipath::Nothing;
        let answer = LiveAnswer { time, flow, rule: 0, seq: 8_999, ack: 1_001, options, multipath };
        self.engine.handle_answer(self.now, &answer);
        let live = segment(session, self.now, 1_001, 9_000, ACK, &[]);
        self.engine.handle_live(self.now, &live);
        let syn = self.engine.poll_transmit(self.now).map(|transmit| transmit.seq);
        let target_ack = syn.expect("a SYN").wrapping_add(1);
        let answer = response(session, 5_000, target_ack, SYN | ACK, 0);
        self.engine.handle_report(self.now, TARGET, &answer);
        self.drain();
        self.ends.push(Ends { live_seq: 1_001, live_ack: 9_000, target_seq: 5_001, target_ack });
    }

    fn drain(&mut self) -> u32 {
        let mut sent = 0;
        while self.engine.poll_transmit(self.now).is_some() {
            sent += 1;
        }
        sent
    }

    /// A request of a session, its replay, the target's answer and the acknowledgement of that.
    fn exchange(&mut self, session: u32) {
        // All have their turn in longer than the quiet after an answer.
        self.now.0 += (1_000_000 / self.ends.len().max(1) as u64).max(1_000);
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
        }
        let ends = self.ends[session as usize];
        let live = segment(session, self.now, ends.live_seq, ends.live_ack, ACK | PSH, &REQUEST);
        self.engine.handle_live(self.now, &live);
        if self.drain() == 0 {
            // Only before it is known who speaks first.
            self.now.0 += 60_000_000;
            self.engine.handle_timeout(self.now);
            self.drain();
        }
        let target_ack = ends.target_ack.wrapping_add(REQUEST.len() as u32);
        let answer = response(session, ends.target_seq, target_ack, ACK | PSH, ANSWER);
        self.engine.handle_report(self.now, TARGET, &answer);
        self.drain();
        self.ends[session as usize] = Ends {
            live_seq: ends.live_seq.wrapping_add(REQUEST.len() as u32),
            live_ack: ends.live_ack.wrapping_add(ANSWER),
            target_seq: ends.target_seq.wrapping_add(ANSWER),
            target_ack,
        };
    }

    /// One turn of a busy worker: as many sessions as it takes from its ring at a time ask, are replayed, answered and
    /// acknowledged, in an order without neighbours: every session has its turn before any has its second. The engine
    /// is told in advance who is next, as the worker tells it. Returns how many segments went in or came out.
    pub fn turn(&mut self) -> u32 {
        /// A prime, so that it shares no factor with the number of sessions.
        const STRIDE: u64 = 982_451_653;
        let sessions = self.ends.len() as u64;
        let mut turn = [0; TURN];
        let turn = &mut turn[..self.exchanges() as usize];
        for session in &mut *turn {
            self.order += 1;
            *session = (self.order * STRIDE % sessions) as u32;
        }
        self.now.0 += (1_000_000 / sessions).max(1_000) * turn.len() as u64;
        for sessions in turn.chunks(AHEAD) {
            // All at once: waiting for our own memory is none of the engine's business.
            let mut ends = [Ends::default(); AHEAD];
            for (ends, &session) in ends.iter_mut().zip(sessions.iter()) {
                *ends = self.ends[session as usize];
            }
            self.engine.expect_live(sessions.iter().map(|&session| flow(session)));
            for (&session, ends) in sessions.iter().zip(ends) {
                let live = segment(session, self.now, ends.live_seq, ends.live_ack, ACK | PSH, &REQUEST);
                self.engine.handle_live(self.now, &live);
            }
        }
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
        }
        let mut segments = turn.len() as u32 + self.drain();
        for sessions in turn.chunks(AHEAD) {
            self.engine.expect_responses(sessions.iter().map(|&session| target_flow(session)));
            for &session in sessions {
                let ends = &mut self.ends[session as usize];
                let target_ack = ends.target_ack.wrapping_add(REQUEST.len() as u32);
                let answer = response(session, ends.target_seq, target_ack, ACK | PSH, ANSWER);
                *ends = Ends {
                    live_seq: ends.live_seq.wrapping_add(REQUEST.len() as u32),
                    live_ack: ends.live_ack.wrapping_add(ANSWER),
                    target_seq: ends.target_seq.wrapping_add(ANSWER),
                    target_ack,
                };
                self.engine.handle_report(self.now, TARGET, &answer);
            }
        }
        segments += turn.len() as u32 + self.drain();
        segments
    }

    /// A segment of a session that is captured while `distance` octets before it are missing; nothing is sent for it.
    pub fn ahead(&mut self, session: u32, distance: u32, octets: &[u8]) {
        let Ends { live_seq, live_ack, .. } = self.ends[session as usize];
        // As after a loss of ours, when a segment may be anywhere ahead.
        self.engine.handle_ring_full(self.now);
        let live = segment(session, self.now, live_seq.wrapping_add(distance), live_ack, ACK | PSH, octets);
        self.engine.handle_live(self.now, &live);
        assert_eq!(self.drain(), 0);
    }

    /// How many exchanges a turn has.
    pub fn exchanges(&self) -> u32 {
        self.ends.len().min(TURN) as u32
    }

    /// Octets of requests that were sent.
    pub fn sent(&self) -> u64 {
        self.engine.stats().bytes.sent
    }
}

fn flow(session: u32) -> Flow {
    let [a, b, c, d] = session.to_be_bytes();
    let client = (IpAddress::from_v4([10 | a, 64 | b, c, d]), 40_000u16.to_be_bytes());
    Flow::tcp(client, (IpAddress::from_v4([10, 0, 0, 2]), 80u16.to_be_bytes()))
}

fn target_flow(session: u32) -> Flow {
    Flow { server: IpAddress::from_v4([10, 0, 0, 3]), ..flow(session) }
}

fn segment(session: u32, time: Nanos, seq: u32, ack: u32, flags: TcpFlags, payload: &[u8]) -> LiveSegment<'_> {
    let options = LiveOptions::default();
    let multipath = Multipath::Nothing;
    LiveSegment {
        time,
        flow: flow(session),
        rule: 0,
        seq,
        ack,
        flags,
        options,
        multipath,
        urgent: None,
        intact: true,
        payload,
    }
}

fn response(session: u32, seq: u32, ack: u32, flags: TcpFlags, payload_len: u32) -> Report<'static> {
    let header = ResponseHeader {
        flow: target_flow(session),
        instance: INSTANCE,
        seq: seq.to_be_bytes(),
        ack: ack.to_be_bytes(),
        window: u16::MAX.to_be_bytes(),
        flags,
        kind: kind::SEGMENT,
        payload_len,
        mss: 1_460u16.to_be_bytes(),
        window_scale: NO_WINDOW_SCALE,
        ..bytemuck::Zeroable::zeroed()
    };
    Report::parse(&header.into()).expect("a known kind")
}
