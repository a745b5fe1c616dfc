//! Live clients and servers, as the capture sees them: the segments of one connection, from its script.

use std::{fmt, net::IpAddr, time::Duration};

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};
use tcpcopy_replay::{LiveAnswer, LiveOptions, LiveRecord, LiveSegment, Multipath, Nanos};

use crate::{
    random::Random,
    scenario::{Connection, Cut, Ending, Pause, Scenario, Write},
    wire,
};

/// What every request goes on with after its first three octets, which name the connection and the request: it stands for
/// itself, so that a connection may be joined there, however little the target's answers resemble the live server's.
const REQUEST_LINE: [u8; 11] = *b" / HTTP/1.\n";
/// After that a request has the number of its connection, its own number, and its length in three octets.
pub const HEADER: usize = 3 + REQUEST_LINE.len() + 5;
/// The window scale of clients and servers: a window of 8 MB, more than any connection sends.
const SCALE: u8 = 7;
/// Where virtual time begins.
pub const START: Nanos = Nanos(1_000_000_000_000);

/// A captured segment.
#[derive(Clone, Debug)]
pub struct Captured {
    pub time: Nanos,
    pub connection: usize,
    /// Offset in the stream of the first octet.
    pub offset: usize,
    pub flow: Flow,
    pub rule: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: TcpFlags,
    pub payload: Vec<u8>,
}

impl Captured {
    /// Whether the live server has sent it: its SYN-ACK.
    pub fn is_answer(&self) -> bool {
        self.flags.contains(SYN | ACK)
    }

    /// The record of it, under a rule of another numbering perhaps.
    pub fn record(&self, rule: u16) -> LiveRecord<'_> {
        let Self { time, flow, seq, ack, flags, ref payload, .. } = *self;
        let window_scale = flags.contains(SYN).then_some(SCALE);
        // Both clocks tell the time of the capture in ms.
        let clock = (time.0 / 1_000_000) as u32;
        let options = LiveOptions { window_scale, timestamps: Some((clock, clock)) };
        let multipath = Multipath::Nothing;
        if self.is_answer() {
            return LiveRecord::Answer(LiveAnswer { time, flow, rule, seq, ack, options, multipath });
        }
        let (urgent, intact) = (None, true);
        LiveRecord::Segment(LiveSegment {
            time,
            flow,
            rule,
            seq,
            ack,
            flags,
            options,
            multipath,
            urgent,
            intact,
            payload,
        })
    }
}

impl fmt::Display for Captured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (port, flags) = (u16::from_be_bytes(self.flow.client_port), wire::letters(self.flags));
        let Self { connection, offset, ack, payload, .. } = self;
        write!(
            f,
            "captured connection {connection} port {port} {flags} offset {offset} ack {ack} length {}",
            payload.len()
        )
    }
}

/// What a live client did.
#[derive(Debug)]
pub struct Live {
    pub id: u8,
    pub flow: Flow,
    /// Everything that it sent.
    pub stream: Vec<u8>,
    /// Where its requests begin.
    pub starts: Vec<usize>,
    pub ending: Ending,
    /// Something of it was never captured.
    pub gap: bool,
    /// It was silent for longer than sessions live.
    pub slept: bool,
    /// Requests that waited for the answers to all before, each in a segment train of its own.
    pub closed_loop: bool,
    pub service: usize,
    /// Octets of the largest answer that the target gives, or more than any if one comes in pieces.
    pub largest_reply: usize,
}

impl Live {
    /// The number of the request that an offset belongs to.
    pub fn request_at(&self, offset: usize) -> usize {
        self.starts.partition_point(|&start| start <= offset).saturating_sub(1)
    }
}

/// Plays all connections; what is captured, in the order of the capture.
pub fn play(scenario: &Scenario) -> (Vec<Live>, Vec<Captured>) {
    let mut all = Vec::new();
    let mut lives = Vec::new();
    // When each client port is free again.
    let mut free: Vec<(Flow, Nanos)> = Vec::new();
    for (index, connection) in scenario.connections.iter().enumerate() {
        let flow = flow(connection);
        let begin = START.after(connection.begin);
        let free_at = free.iter().rev().find(|(f, _)| *f == flow).map_or(begin, |(_, at)| begin.max(*at));
        let mut player = Player::new(scenario, connection, index, flow, free_at);
        player.play();
        let mut pause = Random::new(scenario.seed, 3000 + u64::from(connection.id));
        let end = player.segments.iter().map(|s| s.time).max().unwrap_or(free_at);
        free.push((flow, end.after(Duration::from_micros(pause.magnitude(100..=2_000_000)))));
        player.hurry_repetitions();
        all.append(&mut player.segments);
        lives.push(player.live);
    }
    // Stable: what was captured at the same moment stays in order.
    all.sort_by_key(|segment| segment.time);
    (lives, all)
}

fn flow(connection: &Connection) -> Flow {
    let address = |net: u8, host: u8| -> IpAddr {
        if connection.v6 {
            [0xfd, net, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host].into()
        } else {
            [10, net, 0, host].into()
        }
    };
    let client = (address(1, connection.host).into(), connection.port.to_be_bytes());
    Flow::tcp(client, (address(0, 2).into(), [0, 80 + connection.service as u8]))
}

struct Player<'a> {
    connection: &'a Connection,
    greeting: u32,
    index: usize,
    flow: Flow,
    random: Random,
    now: Nanos,
    /// Everything sent so far has been captured, or never will be.
    received: Nanos,
    /// When answers have arrived at the client, and the acknowledgement number after them.
    arrivals: Vec<(Nanos, u32)>,
    server_next: u32,
    ack: u32,
    pushed: bool,
    segments: Vec<Captured>,
    live: Live,
}

impl<'a> Player<'a> {
    fn new(scenario: &Scenario, connection: &'a Connection, index: usize, flow: Flow, now: Nanos) -> Self {
        let mut random = Random::new(scenario.seed, 2000 + u64::from(connection.id));
        let server_next = random.next() as u32;
        let live = Live {
            id: connection.id,
            flow,
            stream: Vec::new(),
            starts: Vec::new(),
            ending: connection.ending,
            gap: false,
            slept: false,
            closed_loop: true,
            service: connection.service,
            largest_reply: 0,
        };
        Self {
            connection,
            greeting: scenario.services[connection.service].greeting,
            index,
            flow,
            random,
            now,
            received: now,
            arrivals: Vec::new(),
            server_next,
            ack: server_next,
            pushed: true,
            segments: Vec::new(),
            live,
        }
    }

    fn play(&mut self) {
        self.handshake();
        let last = self.connection.writes.len().wrapping_sub(1);
        for (number, write) in self.connection.writes.iter().enumerate() {
            self.write(write, number == last);
        }
        self.end();
    }

    fn capture(&mut self, time: Nanos, flags: TcpFlags, offset: usize, payload: Vec<u8>) {
        let ack = if flags.contains(ACK) { self.ack } else { 0 };
        let syn = flags.contains(SYN);
        let seq = self.connection.isn.wrapping_add(u32::from(!syn)).wrapping_add(offset as u32);
        let rule = self.connection.service as u16 + if self.connection.v6 { 2 } else { 0 };
        let (connection, flow) = (self.index, self.flow);
        self.segments.push(Captured { time, connection, offset, flow, rule, seq, ack, flags, payload });
        self.received = self.received.max(time);
    }

    /// The live server's SYN-ACK leaves.
    fn answer(&mut self) {
        let seen = self.segments.len();
        self.capture(self.now, SYN | ACK, 0, Vec::new());
        if let Some(answer) = self.segments.get_mut(seen) {
            answer.seq = self.server_next.wrapping_sub(1);
            answer.ack = self.connection.isn.wrapping_add(1);
        }
    }

    fn handshake(&mut self) {
        self.capture(self.now, SYN, 0, Vec::new());
        self.answer();
        if self.random.chance(self.connection.leg.again) {
            self.now = self.now.after(Duration::from_secs(1));
            self.capture(self.now, SYN, 0, Vec::new());
            self.answer();
        }
        self.now = self.now.after(self.connection.round_trip);
        if self.random.chance(300) {
            self.capture(self.now, ACK, 0, Vec::new());
        }
        if self.greeting > 0 {
            self.server_next = self.server_next.wrapping_add(self.greeting);
            let arrival = self.now.after(self.random.micros(1..=20_000)).after(self.connection.round_trip);
            self.arrivals.push((arrival, self.server_next));
        }
    }

    /// What the client has read by now.
    fn read_so_far(&self) -> u32 {
        self.arrivals.iter().rev().find(|(at, _)| *at <= self.now).map_or(self.ack, |&(_, ack)| ack)
    }

    fn write(&mut self, write: &Write, last: bool) {
        match write.pause {
            Pause::Answered(think) => {
                let arrived = self.arrivals.last().map_or(self.now, |&(at, _)| at);
                self.now = self.now.max(arrived);
                self.probe_while_idle(think);
                self.now = self.now.after(think);
                self.live.slept |= think >= Duration::from_secs(60);
            }
            Pause::Pipelined(wait) => {
                self.now = self.now.after(wait);
                self.live.closed_loop &= self.live.stream.is_empty();
            }
        }
        self.live.closed_loop &= write.requests.len() == 1;
        self.ack = self.read_so_far();
        let begin = self.live.stream.len();
        for request in &write.requests {
            self.live.starts.push(self.live.stream.len());
            request_octets(&mut self.live.stream, self.connection.id, self.live.starts.len() - 1, request.size);
        }
        if last && self.connection.ending == Ending::ResetEarly {
            let length = self.live.stream.len() - begin;
            self.live.stream.truncate(begin + self.random.within(0..=length as u64 - 1) as usize);
            while self.live.starts.last().is_some_and(|&start| start >= self.live.stream.len()) {
                self.live.starts.pop();
            }
        }
        let fin = last && self.connection.ending == Ending::HalfClose;
        self.send(begin, write.cut, fin);
        for request in &write.requests {
            let whole = if request.reply.pieces > 1 { usize::MAX } else { request.reply.size };
            self.live.largest_reply = self.live.largest_reply.max(whole);
            self.server_next = self.server_next.wrapping_add(request.answer.0);
            let before = self.arrivals.last().map_or(self.received, |&(at, _)| at.max(self.received));
            self.arrivals.push((before.after(request.answer.1).after(self.connection.round_trip), self.server_next));
        }
    }

    /// Sends what was written from `begin` on.
    fn send(&mut self, begin: usize, cut: Cut, fin: bool) {
        let end = self.live.stream.len();
        let size = match cut {
            Cut::Segments(size) => size,
            Cut::Octets => 1,
        };
        let mut offset = begin;
        while offset < end {
            let length = size.min(end - offset);
            let ends = offset + length == end;
            let push = ends || cut == Cut::Octets;
            self.now = self.now.after(self.random.micros(0..=30));
            if !self.pushed {
                // In the midst of a write an acknowledgement says nothing about requests.
                self.ack = self.read_so_far();
            }
            self.pushed = push;
            let flags = ACK | PSH.when(push) | FIN.when(ends && fin);
            // After a write of one octet, a segment that acknowledges more than that looks like another request.
            let oldest = if cut == Cut::Octets { begin } else { 0 };
            self.pass_leg(flags, offset, length, oldest);
            offset += length;
        }
    }

    /// What becomes of a segment on its way to the capture. What is sent again with it begins at `oldest` or later.
    fn pass_leg(&mut self, flags: TcpFlags, offset: usize, length: usize, oldest: usize) {
        let leg = &self.connection.leg;
        let octets = self.live.stream[offset..offset + length].to_vec();
        if self.random.chance(leg.gap) {
            self.live.gap = true;
            return;
        }
        let mut time = self.now;
        if self.random.chance(leg.late) {
            time = time.after(self.random.micros(1_000..=400_000));
        } else if self.random.chance(leg.swapped) {
            time = time.after(self.random.micros(1..=100));
        }
        self.capture(time, flags, offset, octets.clone());
        if self.random.chance(leg.twice) {
            self.capture(time, flags, offset, octets);
        }
        if self.random.chance(leg.again) {
            // Cut anew, from somewhere before to somewhere before the end.
            let from = offset.saturating_sub(self.random.within(0..=3000) as usize).max(oldest);
            let to = offset + self.random.within(1..=length as u64) as usize;
            let time = time.after(self.random.micros(1_000..=300_000));
            self.capture(time, ACK, from, self.live.stream[from..to].to_vec());
        }
    }

    /// No octets are sent again once all of them and the FIN have been captured: by then the session may be over, and
    /// nobody could tell what they belong to.
    fn hurry_repetitions(&mut self) {
        self.segments.sort_by_key(|segment| segment.time);
        let mut missing = vec![true; self.live.stream.len()];
        let mut fin = false;
        let complete = self.segments.iter().find(|segment| {
            missing[segment.offset..segment.offset + segment.payload.len()].fill(false);
            fin |= segment.flags.contains(FIN);
            fin && !missing.contains(&true)
        });
        let Some(at) = complete.map(|segment| segment.time) else { return };
        for late in self.segments.iter_mut().filter(|s| !s.flags.contains(FIN)) {
            late.time = late.time.min(at);
        }
    }

    /// Keep-alive probes in long pauses: one octet that was sent before.
    fn probe_while_idle(&mut self, pause: Duration) {
        let sent = self.live.stream.len();
        let chance = self.random.chance(500);
        // The probe would pass for a request of its own if the octet had not been captured before.
        if pause < Duration::from_secs(30) || sent == 0 || self.connection.leg.gap > 0 || !chance {
            return;
        }
        let mut at = self.now;
        while at.after(Duration::from_secs(25)) < self.now.after(pause) {
            at = at.after(Duration::from_secs(25));
            self.ack = self.server_next;
            let octet = self.live.stream[sent - 1..].to_vec();
            self.capture(at, ACK, sent - 1, octet);
        }
    }

    fn end(&mut self) {
        let sent = self.live.stream.len();
        match self.connection.ending {
            Ending::Vanish => return,
            Ending::Fin | Ending::Reset => {
                let arrived = self.arrivals.last().map_or(self.now, |&(at, _)| at);
                self.now = self.now.max(arrived).after(self.random.micros(0..=5_000));
            }
            Ending::HalfClose | Ending::ResetEarly => self.now = self.now.after(self.random.micros(0..=50)),
        }
        // Retransmissions are over by then.
        self.now = self.now.max(self.received.after(Duration::from_micros(1)));
        self.ack = self.read_so_far();
        match self.connection.ending {
            Ending::HalfClose if self.segments.iter().any(|s| s.flags.contains(FIN)) => {}
            Ending::Fin | Ending::HalfClose => {
                self.capture(self.now, FIN | ACK, sent, Vec::new());
                if self.random.chance(self.connection.leg.again) {
                    self.capture(self.now.after(Duration::from_millis(200)), FIN | ACK, sent, Vec::new());
                }
            }
            Ending::Reset | Ending::ResetEarly => self.capture(self.now, RST | ACK, sent, Vec::new()),
            Ending::Vanish => {}
        }
    }
}

/// A number as a letter: that of a connection is the first octet of its requests.
pub const fn method(number: u8) -> u8 {
    b'A' + number % 26
}

/// Appends a request: its header, then octets that differ from place to place and from connection to connection.
fn request_octets(stream: &mut Vec<u8>, connection: u8, number: usize, size: usize) {
    let begin = stream.len();
    let length = (size as u32).to_be_bytes();
    stream.extend([connection, number as u8, (number / 26) as u8].map(method));
    stream.extend_from_slice(&REQUEST_LINE);
    stream.extend_from_slice(&[connection, number as u8, length[1], length[2], length[3]]);
    let mut octets = Random::new(u64::from(connection) << 8 | number as u64, 4000);
    while stream.len() < begin + size {
        stream.extend_from_slice(&octets.next().to_be_bytes());
    }
    stream.truncate(begin + size);
}
