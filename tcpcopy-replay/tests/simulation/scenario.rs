//! What happens in a run: everything follows from the seed, less the parts that were left out.

use std::{collections::BTreeSet, fmt, str::FromStr, time::Duration};

use tcpcopy_replay::{ProxyVersion, RoundTrip};

use crate::{path::Impairment, random::Random, surroundings::Surroundings};

/// A part of a scenario that can be left out, to find out what a failure needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A live connection.
    Connection(u8),
    /// One write of a live connection.
    Write(u8, u8),
    /// What a connection's segments suffer before they are captured.
    Leg(u8),
    /// Loss, duplication, reordering and bandwidth towards the target.
    Up,
    /// Likewise on the way of the reports.
    Down,
    /// Gaps in the capture.
    Gaps,
    /// The target closes early.
    EarlyClose,
    /// The target is slow: its answers, its reading.
    Slowness,
    /// Limits of the engine's memory.
    Limits,
    /// Clients that seem far away.
    Distance,
    /// The target's `intercept` acknowledges answers.
    Reflection,
    /// Target connections begin with a header of the PROXY protocol.
    Header,
    /// Of the worker: several copies.
    Copies,
    /// Of the worker: a small ring, segments captured several times, records that contradict themselves.
    Ring,
    /// Of the worker: a slow machine, and times in which it does not run.
    Machine,
    /// Of the worker: channels that break.
    Breaks,
    /// Of the worker: a sink that is full at times, and loses packets.
    Sink,
    /// Of the worker: its end under load.
    Stop,
}

impl Part {
    /// Those that are of no single connection.
    const GLOBAL: [Self; 15] = [
        Self::Up,
        Self::Down,
        Self::Gaps,
        Self::EarlyClose,
        Self::Slowness,
        Self::Limits,
        Self::Distance,
        Self::Reflection,
        Self::Header,
        Self::Copies,
        Self::Ring,
        Self::Machine,
        Self::Breaks,
        Self::Sink,
        Self::Stop,
    ];

    /// The connection that this is a lesser part of.
    pub const fn connection(self) -> Option<u8> {
        match self {
            Self::Write(c, _) | Self::Leg(c) => Some(c),
            _ => None,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connection(c) => write!(f, "c{c}"),
            Self::Write(c, w) => write!(f, "c{c}w{w}"),
            Self::Leg(c) => write!(f, "c{c}leg"),
            Self::Up => f.write_str("up"),
            Self::Down => f.write_str("down"),
            Self::Gaps => f.write_str("gaps"),
            Self::EarlyClose => f.write_str("close"),
            Self::Slowness => f.write_str("slow"),
            Self::Limits => f.write_str("limits"),
            Self::Distance => f.write_str("distance"),
            Self::Reflection => f.write_str("reflection"),
            Self::Header => f.write_str("header"),
            Self::Copies => f.write_str("copies"),
            Self::Ring => f.write_str("ring"),
            Self::Machine => f.write_str("machine"),
            Self::Breaks => f.write_str("breaks"),
            Self::Sink => f.write_str("sink"),
            Self::Stop => f.write_str("stop"),
        }
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(part) = Self::GLOBAL.into_iter().find(|part| part.to_string() == text) {
            return Ok(part);
        }
        let bad = || format!("`{text}` is not a part of a scenario");
        let of_connection = text.strip_prefix('c').ok_or_else(bad)?;
        let number = |digits: &str| digits.parse::<u8>().map_err(|_| bad());
        if let Some(c) = of_connection.strip_suffix("leg") {
            return Ok(Self::Leg(number(c)?));
        }
        match of_connection.split_once('w') {
            Some((c, w)) => Ok(Self::Write(number(c)?, number(w)?)),
            None => Ok(Self::Connection(number(of_connection)?)),
        }
    }
}

/// How the target ends a connection of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EarlyClose {
    /// FIN right after the last answer; what comes afterwards is read and thrown away.
    Fin,
    /// RST once the last answer has arrived.
    Reset,
    /// FIN in place of the next answer.
    Unanswered,
}

/// A service, live and at the target.
#[derive(Clone, Debug)]
pub struct Service {
    /// Octets that the server says first.
    pub greeting: u32,
    /// The target answers at most so many requests per connection.
    pub limit: Option<(u32, EarlyClose)>,
}

/// The target's TCP and how its application reads.
#[derive(Clone, Debug)]
pub struct TargetSettings {
    pub receive_buffer: usize,
    pub send_buffer: usize,
    pub mtu: usize,
    pub timestamps: bool,
    pub nagle: bool,
    pub delayed_ack: bool,
    /// Octets read at once, and how long until more is read.
    pub slow_reading: Option<(usize, Duration)>,
}

/// How a write is cut into segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Of at most so many octets; PSH on the last.
    Segments(usize),
    /// One octet each, with PSH: a write each.
    Octets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// The live client reads all answers so far, then thinks.
    Answered(Duration),
    /// It does not wait for answers.
    Pipelined(Duration),
}

#[derive(Clone, Debug)]
pub struct Request {
    pub size: usize,
    /// The live server's answer: octets, and how long it takes.
    pub answer: (u32, Duration),
    /// The target's.
    pub reply: Reply,
}

#[derive(Clone, Copy, Debug)]
pub struct Reply {
    pub size: usize,
    pub delay: Duration,
    /// In so many writes.
    pub pieces: usize,
}

/// One write of the live client: some requests in one go.
#[derive(Clone, Debug)]
pub struct Write {
    pub number: u8,
    pub pause: Pause,
    pub cut: Cut,
    pub requests: Vec<Request>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// FIN after all answers.
    Fin,
    /// FIN with the last segment of the last request.
    HalfClose,
    /// RST after all answers.
    Reset,
    /// RST in the middle of the last request.
    ResetEarly,
    /// Nothing more is heard of the client.
    Vanish,
}

/// What happens to segments before and while they are captured. Chances are of a thousand.
#[derive(Clone, Debug, Default)]
pub struct LiveLeg {
    /// Lost before the capture, and sent again.
    pub late: u32,
    /// Sent again although it was captured, perhaps cut differently.
    pub again: u32,
    /// The next one overtakes it.
    pub swapped: u32,
    /// Captured twice.
    pub twice: u32,
    /// Never captured.
    pub gap: u32,
}

#[derive(Clone, Debug)]
pub struct Connection {
    pub id: u8,
    pub host: u8,
    pub port: u16,
    pub v6: bool,
    pub service: usize,
    pub begin: Duration,
    /// Of the live connection.
    pub round_trip: Duration,
    pub isn: u32,
    pub writes: Vec<Write>,
    pub ending: Ending,
    pub leg: LiveLeg,
}

#[derive(Clone, Debug)]
pub struct Scenario {
    pub seed: u64,
    pub up: Impairment,
    pub down: Impairment,
    pub services: [Service; 2],
    pub target: TargetSettings,
    pub session_memory: Option<usize>,
    /// The target's answers are as long as the live server's, so that what it owes can be told.
    pub alike: bool,
    /// How far away the clients are to seem.
    pub round_trip: RoundTrip,
    /// Whether the target's `intercept` acknowledges answers.
    pub reflects: bool,
    /// The header that each target connection begins with, which the service reads before all else.
    pub header: Option<ProxyVersion>,
    /// What a worker meets.
    pub surroundings: Surroundings,
    pub connections: Vec<Connection>,
}

impl Scenario {
    /// The scenario of a seed, without some of its parts.
    pub fn new(seed: u64, without: &BTreeSet<Part>) -> Self {
        let mut scenario = Self::complete(seed);
        for part in without {
            scenario.leave_out(*part);
        }
        scenario
    }

    fn complete(seed: u64) -> Self {
        let mut r = Random::new(seed, 0);
        let calm = r.chance(250);
        let up = impairment(&mut r, calm);
        let down = impairment(&mut r, calm);
        let gaps = if r.chance(250) { r.within(1..=40) as u32 } else { 0 };
        let early = r.chance(350);
        let mut limit = || {
            (early && r.chance(700)).then(|| {
                (r.within(1..=6) as u32, r.pick(&[EarlyClose::Fin, EarlyClose::Reset, EarlyClose::Unanswered]))
            })
        };
        let limits = [limit(), limit()];
        let services = [
            Service { greeting: 0, limit: limits[0] },
            Service { greeting: r.magnitude(1..=3000) as u32, limit: limits[1] },
        ];
        let target = target(&mut r);
        let session_memory = r.chance(60).then(|| r.within(2_000..=40_000) as usize);
        let count = r.magnitude(1..=16) as u8;
        let mut connections: Vec<_> = (0..count).map(|id| connection(seed, id, gaps)).collect();
        let alike = Random::new(seed, 5000).chance(300);
        if alike {
            for request in connections.iter_mut().flat_map(|c| &mut c.writes).flat_map(|w| &mut w.requests) {
                let pieces = request.reply.pieces.min(request.answer.0 as usize);
                request.reply = Reply { pieces, size: request.answer.0 as usize / pieces * pieces, ..request.reply };
            }
        }
        let mut r = Random::new(seed, 5001);
        let round_trip = match r.within(0..=5) {
            0 | 1 => RoundTrip::Live,
            2 => RoundTrip::Same(Duration::from_micros(r.magnitude(100..=300_000))),
            _ => RoundTrip::Near,
        };
        let reflects = r.chance(300);
        let mut r = Random::new(seed, 5002);
        let header = r.chance(300).then(|| r.pick(&[ProxyVersion::V1, ProxyVersion::V2]));
        let surroundings = Surroundings::new(seed);
        Self {
            seed,
            up,
            down,
            services,
            target,
            session_memory,
            alike,
            round_trip,
            reflects,
            header,
            surroundings,
            connections,
        }
    }

    /// What could be left out, the largest parts first.
    pub fn parts(&self) -> Vec<Part> {
        let connections = self.connections.iter().map(|c| Part::Connection(c.id));
        let legs = self.connections.iter().map(|c| Part::Leg(c.id));
        let writes = self.connections.iter().flat_map(|c| c.writes.iter().map(|w| Part::Write(c.id, w.number)));
        connections.chain(Part::GLOBAL).chain(legs).chain(writes).collect()
    }

    fn leave_out(&mut self, part: Part) {
        let connection = |id: u8| move |c: &&mut Connection| c.id == id;
        match part {
            Part::Connection(id) => self.connections.retain(|c| c.id != id),
            Part::Write(id, number) => {
                if let Some(c) = self.connections.iter_mut().find(connection(id)) {
                    c.writes.retain(|w| w.number != number);
                }
            }
            Part::Leg(id) => {
                if let Some(c) = self.connections.iter_mut().find(connection(id)) {
                    c.leg = LiveLeg { gap: c.leg.gap, ..LiveLeg::default() };
                }
            }
            Part::Up => self.up = Impairment::none(self.up.delay),
            Part::Down => self.down = Impairment::none(self.down.delay),
            Part::Gaps => self.connections.iter_mut().for_each(|c| c.leg.gap = 0),
            Part::EarlyClose => self.services.iter_mut().for_each(|s| s.limit = None),
            Part::Slowness => {
                self.target.slow_reading = None;
                for request in self.connections.iter_mut().flat_map(|c| &mut c.writes).flat_map(|w| &mut w.requests) {
                    request.reply = Reply { delay: Duration::ZERO, pieces: 1, ..request.reply };
                }
            }
            Part::Limits => self.session_memory = None,
            Part::Distance => self.round_trip = RoundTrip::Near,
            Part::Reflection => self.reflects = false,
            Part::Header => self.header = None,
            Part::Copies | Part::Ring | Part::Machine | Part::Breaks | Part::Sink | Part::Stop => {
                self.surroundings.leave_out(part);
            }
        }
    }

    /// Whether the target may end connections before their time.
    pub fn closes_early(&self) -> bool {
        self.services.iter().any(|s| s.limit.is_some())
    }
}

fn impairment(r: &mut Random, calm: bool) -> Impairment {
    let delay = Duration::from_micros(r.magnitude(10..=40_000));
    let mut chance = |most: u64| if calm || r.chance(400) { 0 } else { r.within(1..=most) as u32 };
    let (loss, duplication, reordering) = (chance(50), chance(100), chance(200));
    let bandwidth =
        (!calm && r.chance(200)).then(|| (r.magnitude(200_000..=100_000_000), r.magnitude(40_000..=1_000_000)));
    Impairment { loss, duplication, reordering, delay, bandwidth }
}

fn target(r: &mut Random) -> TargetSettings {
    let slow = r.chance(150);
    TargetSettings {
        receive_buffer: r.magnitude(2_000..=500_000) as usize,
        send_buffer: r.magnitude(2_000..=200_000) as usize,
        mtu: r.pick(&[576, 1280, 1500, 1500, 1500, 9000]),
        timestamps: r.chance(500),
        nagle: r.chance(300),
        delayed_ack: r.chance(500),
        slow_reading: slow.then(|| (r.magnitude(500..=20_000) as usize, r.micros(1_000..=50_000))),
    }
}

fn connection(seed: u64, id: u8, gap: u32) -> Connection {
    let mut r = Random::new(seed, 1000 + u64::from(id));
    let damaged = r.chance(400);
    let mut chance = |most: u64| if damaged && r.chance(600) { r.within(1..=most) as u32 } else { 0 };
    let leg = LiveLeg { late: chance(80), again: chance(80), swapped: chance(120), twice: chance(60), gap };
    let short = r.chance(400);
    let count = if short { 1 } else { r.magnitude(1..=24) as u8 };
    let pipelines = r.chance(300);
    let octets = r.chance(60);
    let large = r.chance(80);
    let slow = r.chance(150);
    let writes = (0..count).map(|number| write(&mut r, number, pipelines, octets, large, slow)).collect();
    Connection {
        id,
        // Few addresses and ports, so that they are used again.
        host: r.within(1..=3) as u8,
        port: 40_000 + r.within(0..=5) as u16,
        v6: r.chance(300),
        service: usize::from(r.chance(200)),
        begin: Duration::from_micros(r.magnitude(1..=3_000_000)),
        round_trip: Duration::from_micros(r.magnitude(20..=100_000)),
        isn: r.next() as u32,
        writes,
        ending: r.pick(&[
            Ending::Fin,
            Ending::Fin,
            Ending::Fin,
            Ending::HalfClose,
            Ending::Reset,
            Ending::ResetEarly,
            Ending::Vanish,
        ]),
        leg,
    }
}

fn write(r: &mut Random, number: u8, pipelines: bool, octets: bool, large: bool, slow: bool) -> Write {
    let pause = if pipelines && r.chance(600) {
        Pause::Pipelined(r.micros(0..=2_000))
    } else if r.chance(20) {
        Pause::Answered(Duration::from_secs(r.within(10..=300)))
    } else {
        Pause::Answered(Duration::from_micros(r.magnitude(1..=500_000)))
    };
    let cut = if octets { Cut::Octets } else { Cut::Segments(r.pick(&[1460, 1460, 1448, 536, 4 * 1448, 65_160])) };
    let count = if pipelines && r.chance(300) { r.within(2..=5) } else { 1 };
    let requests = (0..count)
        .map(|_| {
            let most = if cut == Cut::Octets {
                60
            } else if large && r.chance(200) {
                400_000
            } else {
                5_000
            };
            let size = r.magnitude(crate::live::HEADER as u64..=most) as usize;
            let answer = (r.magnitude(1..=50_000) as u32, Duration::from_micros(r.magnitude(10..=100_000)));
            let most_delay = if slow { 3_000_000 } else { 20_000 };
            let delay = if r.chance(500) { 0 } else { r.magnitude(10..=most_delay) };
            let pieces = if r.chance(100) { r.within(2..=4) as usize } else { 1 };
            let reply = Reply { size: r.magnitude(1..=30_000) as usize, delay: Duration::from_micros(delay), pieces };
            Request { size, answer, reply }
        })
        .collect();
    Write { number, pause, cut, requests }
}
