//! Sessions in their steady state: keep-alive connections whose clients ask, are answered, and ask again. Used by the
//! benchmark of the engine and by the test that it allocates nothing.

use std::net::SocketAddr;

use tcpcopy::{
    engine::{Config, Credentials, Engine, RuleTarget, TargetId},
    segment::LiveSegment,
    time::Nanos,
};
use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::MarkKey,
    response::{NO_WINDOW_SCALE, ResponseHeader, kind},
    tcp_flags::{ACK, PSH, SYN},
};

const TARGET: TargetId = TargetId(0);
const INSTANCE: u32 = 1;
const REQUEST: [u8; 100] = [b'r'; 100];
const ANSWER: u32 = 200;

/// What the client and the target of a session say next.
#[derive(Clone, Copy)]
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
    /// Opens so many sessions, each of which has had its first request.
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
        engine.handle_channel_up(now, TARGET, Credentials { instance: INSTANCE, key: MarkKey { k0: 1, k1: 2 } });
        let mut steady = Self { engine, now, ends: Vec::with_capacity(sessions as usize), order: 1 };
        for session in 0..sessions {
            steady.open(session);
        }
        // The first requests wait for a greeting that does not come, until it is known that none does.
        steady.now.0 += 100_000_000;
        for session in 0..sessions {
            steady.exchange(session);
        }
        steady
    }

    fn open(&mut self, session: u32) {
        let live = segment(session, self.now, 1_000, 0, SYN, &[]);
        self.engine.handle_live(self.now, &live);
        let syn = self.engine.poll_transmit(self.now).map(|transmit| transmit.seq);
        let target_ack = syn.expect("a SYN").wrapping_add(1);
        let answer = response(session, 5_000, target_ack, SYN | ACK, 0);
        self.engine.handle_response(self.now, TARGET, &answer);
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

    /// A request of a session, its replay, the target's answer and the acknowledgement of that; how many segments went in or
    /// came out.
    pub fn exchange(&mut self, session: u32) -> u32 {
        // All have their turn in longer than the quiet after an answer.
        self.now.0 += (1_000_000 / self.ends.len().max(1) as u64).max(1_000);
        if self.engine.poll_timeout().is_some_and(|at| at <= self.now) {
            self.engine.handle_timeout(self.now);
        }
        let ends = self.ends[session as usize];
        let live = segment(session, self.now, ends.live_seq, ends.live_ack, ACK | PSH, &REQUEST);
        self.engine.handle_live(self.now, &live);
        let mut segments = 1 + self.drain();
        if segments == 1 {
            // Only before it is known who speaks first.
            self.now.0 += 60_000_000;
            self.engine.handle_timeout(self.now);
            segments += self.drain();
        }
        let target_ack = ends.target_ack.wrapping_add(REQUEST.len() as u32);
        let answer = response(session, ends.target_seq, target_ack, ACK | PSH, ANSWER);
        self.engine.handle_response(self.now, TARGET, &answer);
        segments += 1 + self.drain();
        self.ends[session as usize] = Ends {
            live_seq: ends.live_seq.wrapping_add(REQUEST.len() as u32),
            live_ack: ends.live_ack.wrapping_add(ANSWER),
            target_seq: ends.target_seq.wrapping_add(ANSWER),
            target_ack,
        };
        segments
    }

    /// The same for the next in an order without neighbours: every session has its turn before any has its second.
    pub fn exchange_any(&mut self) -> u32 {
        /// A prime, so that it shares no factor with the number of sessions.
        const STRIDE: u64 = 982_451_653;
        self.order += 1;
        self.exchange((self.order * STRIDE % self.ends.len() as u64) as u32)
    }

    /// Octets of requests that were sent.
    pub fn sent(&self) -> u64 {
        self.engine.stats().bytes.sent
    }
}

fn flow(session: u32) -> Flow {
    let [a, b, c, d] = session.to_be_bytes();
    Flow {
        client: IpAddress::from_v4([10 | a, 64 | b, c, d]),
        server: IpAddress::from_v4([10, 0, 0, 2]),
        client_port: 40_000u16.to_be_bytes(),
        server_port: 80u16.to_be_bytes(),
    }
}

fn segment(session: u32, time: Nanos, seq: u32, ack: u32, flags: u8, payload: &[u8]) -> LiveSegment<'_> {
    LiveSegment { time, flow: flow(session), rule: 0, seq, ack, window: 1_000, flags, options: &[], payload }
}

fn response(session: u32, seq: u32, ack: u32, flags: u8, payload_len: u32) -> ResponseHeader {
    let mut flow = flow(session);
    flow.server = IpAddress::from_v4([10, 0, 0, 3]);
    ResponseHeader {
        flow,
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
    }
}
