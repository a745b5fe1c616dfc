//! The loop of virtual time: whatever is due next happens next.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    time::Duration,
};

use tcpcopy_common::{
    flow::Flow,
    mark::{Epoch, MarkKey},
    tcp_flags::SYN,
};
use tcpcopy_replay::{Config, Credentials, Engine, LiveRecord, Nanos, Report, RuleTarget, TargetId};

use crate::{
    live::{self, Captured, START},
    oracle::Oracle,
    path::Leg,
    random::Random,
    reflector::Reflector,
    scenario::Scenario,
    target::{HOST, INSTANCE, PORTS, Response, Target, addresses_of},
    wire, worker,
};

const TARGET: TargetId = TargetId(0);
pub const KEY: MarkKey = MarkKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
pub const EPOCH: Epoch = Epoch(5);
/// Virtual time after the last captured segment by which all must be over, in ns.
pub const AFTERMATH: u64 = 3_600_000_000_000;

enum Event {
    Captured(Captured),
    ToTarget(Vec<u8>),
    ToEngine(Response),
}

/// What a run was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    /// Packets and reports lost on the path.
    pub lost: u64,
    /// Octets replayed.
    pub octets: u64,
    pub discarded: u64,
    pub reconnects: u64,
    pub retransmissions: u64,
    /// Clients at a distance of their own.
    pub distant: u64,
    /// Response segments that the target's `intercept` acknowledged.
    pub reflected: u64,
    /// Octets of headers of the PROXY protocol.
    pub inserted: u64,
    /// Of a run of the worker.
    pub worker: worker::Outcome,
}

struct World<'a> {
    now: Nanos,
    engine: Engine,
    target: Target,
    up: Leg,
    down: Leg,
    oracle: Oracle<'a>,
    /// By time, then by order.
    events: BTreeMap<(Nanos, u64), Event>,
    order: u64,
    /// The sessions that the programs at the target know, with their ISNs.
    sessions: HashMap<Flow, u32>,
    reflector: Option<Reflector>,
    limit: usize,
    /// Whether to tell what happens.
    trace: bool,
}

/// Runs a scenario; `trace`: tells on standard error what happens.
///
/// # Errors
/// What went wrong, and when.
pub fn run(scenario: &Scenario, trace: bool) -> Result<Outcome, String> {
    let (lives, captured) = live::play(scenario);
    let octets: usize = captured.iter().map(|segment| segment.payload.len()).sum();
    let end = captured.last().map_or(START, |segment| segment.time).0 + AFTERMATH;
    let most_steps = 20_000 + 200 * captured.len() as u64 + octets as u64 / 4;
    let config = config(scenario, TARGET, HOST);
    let mut world = World {
        now: START,
        limit: config.max_memory,
        engine: Engine::new(config, scenario.seed),
        target: Target::new(scenario, HOST, START),
        up: Leg::new(scenario.up.clone(), Random::new(scenario.seed, 1)),
        down: Leg::new(scenario.down.clone(), Random::new(scenario.seed, 2)),
        oracle: Oracle::new(scenario, &lives),
        events: BTreeMap::new(),
        order: 0,
        sessions: HashMap::new(),
        reflector: scenario.reflects.then(Reflector::default),
        trace,
    };
    world.engine.handle_channel_up(START, TARGET, Credentials { instance: INSTANCE, key: KEY, epoch: EPOCH });
    for segment in captured {
        world.put(segment.time, Event::Captured(segment));
    }
    let mut steps = 0;
    let blame = |now: Nanos, why: String| format!("{:.6} s: {why}", now.since(START).as_secs_f64());
    while world.step(end).map_err(|why| blame(world.now, why))? {
        steps += 1;
        if steps > most_steps {
            return Err(blame(world.now, format!("no end in sight after {steps} steps: {:?}", world.engine.stats())));
        }
    }
    let World { now, engine, target, up, down, oracle, .. } = world;
    let stats = engine.stats();
    oracle.verdict(stats, &target.received()).map_err(|why| blame(now, why))?;
    Ok(Outcome {
        discarded: stats.bytes.discarded.total(),
        retransmissions: stats.retransmitted_segments,
        lost: up.lost + down.lost,
        octets: stats.bytes.sent,
        reconnects: stats.reconnects,
        distant: stats.distant_clients,
        reflected: stats.reflected_segments,
        inserted: stats.inserted_bytes,
        worker: worker::Outcome::default(),
    })
}

/// The settings of an engine that replays to the services of the target with this host number.
pub fn config(scenario: &Scenario, target: TargetId, host: u8) -> Config {
    let rule = |address: IpAddr, port: u16| RuleTarget { target, address: (address, port).into() };
    let rules = addresses_of(host).into_iter().flat_map(|a| PORTS.map(|port| rule(a, port))).collect();
    let mut config = Config {
        rules,
        round_trip: scenario.round_trip,
        proxy_protocol: scenario.header,
        max_memory: 64 << 20,
        // Live clients vanish, and every session is to end.
        keepalive_timeout: Some(Duration::from_secs(240)),
        ..Config::default()
    };
    if let Some(limit) = scenario.session_memory {
        config.max_session_memory = limit;
        config.max_memory = 8 * limit;
    }
    config
}

impl World<'_> {
    fn put(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    /// Does what is due next; whether there was anything.
    fn step(&mut self, end: u64) -> Result<bool, String> {
        let event = self.events.keys().next().map(|&(at, _)| at);
        let timer = self.engine.poll_timeout().map(|at| at.max(self.now));
        let target = self.target.due(self.now);
        let Some(next) = [event, timer, target].into_iter().flatten().min() else { return Ok(false) };
        if next.0 > end {
            return Ok(false);
        }
        self.now = self.now.max(next);
        if timer == Some(next) {
            self.engine.handle_timeout(self.now);
        } else if target == Some(next) {
            let responses = self.target.poll(self.now);
            self.respond(responses);
        } else if let Some((_, event)) = self.events.pop_first() {
            self.happen(event);
        }
        self.settle()?;
        Ok(true)
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:11.6} {}", self.now.since(START).as_secs_f64(), what());
        }
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Captured(segment) => {
                self.tell(|| segment.to_string());
                self.oracle.captured(&segment);
                match segment.record(segment.rule) {
                    LiveRecord::Segment(segment) => self.engine.handle_live(self.now, &segment),
                    LiveRecord::Answer(answer) => self.engine.handle_answer(self.now, &answer),
                }
            }
            Event::ToTarget(packet) => {
                let responses = self.target.handle(self.now, packet);
                self.respond(responses);
            }
            Event::ToEngine(response) => {
                self.tell(|| format!("report   {}", wire::described(&response.report, &response.answers)));
                self.oracle.told(&response.answers);
                let report = Report::parse(&response.report.into()).expect("a known kind");
                self.engine.handle_report(self.now, TARGET, &report);
            }
        }
    }

    /// Sends everything that the engine has to say, and checks it.
    fn settle(&mut self) -> Result<(), String> {
        let mut transmissions = 0;
        while let Some(transmit) = self.engine.poll_transmit(self.now) {
            if self.trace {
                eprintln!("{:11.6} send     {}", self.now.since(START).as_secs_f64(), wire::shown(&transmit));
            }
            self.oracle.sends(&transmit)?;
            if transmit.flags.contains(SYN) {
                let mark = transmit.options.syn.ok_or("a SYN without options")?.mark;
                if !wire::is_valid(&mark, INSTANCE, &transmit) {
                    return Err("a SYN whose mark the target would refuse".to_owned());
                }
                self.sessions.insert(transmit.flow, transmit.seq);
            } else if !self.sessions.contains_key(&transmit.flow) {
                return Err("a segment of a session that the target does not know".to_owned());
            }
            for packet in wire::packets(&transmit) {
                let arrivals = self.up.carry(self.now, packet.len());
                for at in arrivals.into_iter().flatten() {
                    self.order += 1;
                    self.events.insert((at, self.order), Event::ToTarget(packet.clone()));
                }
            }
            transmissions += 1;
            if transmissions > 100_000 {
                return Err("the engine does not stop sending".to_owned());
            }
        }
        let stats = self.engine.stats();
        stats.check().map_err(|unbalanced| unbalanced.to_string())?;
        if stats.bytes.pending > self.limit as u64 {
            return Err(format!("{} octets held, of at most {}", stats.bytes.pending, self.limit));
        }
        Ok(())
    }

    fn respond(&mut self, responses: Vec<Response>) {
        for mut response in responses {
            let arrivals = self.down.carry(self.now, 80);
            let reported = arrivals.iter().flatten().next().is_some();
            if let Some(reflector) = &mut self.reflector
                && let Some(acknowledgement) = reflector.reflect(&mut response.report, response.timestamps, reported)
            {
                self.put(self.now, Event::ToTarget(acknowledgement));
            }
            for at in arrivals.into_iter().flatten() {
                let copy = Response { answers: response.answers.clone(), ..response };
                self.put(at, Event::ToEngine(copy));
            }
        }
    }
}
