//! What surrounds the worker, in virtual time, and what it must keep to.

mod ring;
mod sink;
mod thread;
mod verdict;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tcpcopy_replay::{
    Nanos, TargetId,
    worker::{Notice, Order, Snapshot},
};

pub use self::ring::Record;
use self::ring::Ring;
use super::site::{Figures, Item, Link, Site};
use crate::{
    live::{Captured, Live, START},
    random::Random,
    scenario::Scenario,
    surroundings::Return,
    target::Response,
    wire,
    world::AFTERMATH,
};

// What the worker promises: see tcpcopy_replay::worker.
/// Between two looks at the channels: records, and octets of them less the last record.
const MOST_RECORDS: usize = 256 + 32;
const MOST_CAPTURED: usize = 1 << 20;
/// Octets sent for each turn, less the last segment.
const MOST_SENT: usize = 256 << 10;
/// A whole segment as it can be captured or sent.
const SEGMENT: usize = 65_536;

/// Packets that wait for a sink that is full; the others are lost.
const SINK_ROOM: usize = 64;
/// What each record and each packet costs on a good machine, in ns.
const RECORD_COST: u64 = 2_000;
const PACKET_COST: u64 = 3_000;

/// What a run of the worker was like.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub breaks: u64,
    pub resumed: u64,
    pub ring_full: u64,
    pub stopped_with_sessions: u64,
    pub waited_in_the_sink: u64,
    pub sleeps: u64,
    pub naps: u64,
    /// Turns that took as much as they may.
    pub crowded_turns: u64,
}

enum Event {
    Captured(Captured),
    /// A producer wakes the reader of the ring.
    Woken,
    ToTarget(usize, Vec<u8>),
    ToSource(usize, Response),
    /// Every target tells its figures.
    Figures,
    Break(usize, Duration, Return),
    Established(usize, Return),
    Bye(usize),
    Stop,
}

pub struct World<'a> {
    pub now: Nanos,
    scenario: &'a Scenario,
    random: Random,
    trace: bool,
    /// By time, then by order.
    events: BTreeMap<(Nanos, u64), Event>,
    order: u64,
    /// Segments that are still to be captured.
    to_come: usize,
    end: Nanos,
    pub ring: Ring,
    pub sites: Vec<Site<'a>>,
    orders: VecDeque<Order<Link>>,
    stopping: bool,
    left: bool,
    /// How long each channel that has broken stays down.
    down_for: Vec<Duration>,
    /// Packets that wait in the sink, and since when the first does.
    pub waiting: VecDeque<(usize, Vec<u8>)>,
    waiting_since: Nanos,
    pub departed: u64,
    refused: u64,
    // Since the channels were looked at last.
    records: usize,
    captured: usize,
    sent: usize,
    // Since the last turn.
    cost: u64,
    progress: bool,
    idle_turns: u32,
    snapshot: Option<Snapshot<u64, Figures>>,
    outcome: Outcome,
}

impl<'a> World<'a> {
    pub fn new(scenario: &'a Scenario, lives: &'a [Live], captured: Vec<Captured>, trace: bool) -> Self {
        let surroundings = &scenario.surroundings;
        let mut world = Self {
            now: START,
            scenario,
            random: Random::new(scenario.seed, 6001),
            trace,
            events: BTreeMap::new(),
            order: 0,
            to_come: 0,
            end: Nanos(captured.last().map_or(START, |segment| segment.time).0 + AFTERMATH),
            ring: Ring::new(surroundings.ring),
            sites: (0..surroundings.copies).map(|copy| Site::new(scenario, lives, copy)).collect(),
            orders: VecDeque::new(),
            stopping: false,
            left: false,
            down_for: vec![Duration::ZERO; surroundings.copies],
            waiting: VecDeque::new(),
            waiting_since: START,
            departed: 0,
            refused: 0,
            records: 0,
            captured: 0,
            sent: 0,
            cost: 0,
            progress: true,
            idle_turns: 0,
            snapshot: None,
            outcome: Outcome::default(),
        };
        for site in 0..world.sites.len() {
            world.establish(site, Return::Resumed);
        }
        for segment in captured {
            let echoes = if segment.payload.is_empty() { 0 } else { surroundings.echoes };
            for _ in 0..=echoes {
                world.to_come += 1;
                world.put(segment.time, Event::Captured(segment.clone()));
            }
        }
        for one in &surroundings.breaks {
            world.put(START.after(one.at), Event::Break(one.copy, one.down, one.how));
        }
        if let Some(stop) = surroundings.stop {
            world.put(START.after(stop), Event::Stop);
        }
        world.put(START.after(Duration::from_secs(1)), Event::Figures);
        world
    }

    fn put(&mut self, at: Nanos, event: Event) {
        self.order += 1;
        self.events.insert((at, self.order), event);
    }

    fn tell(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:11.6} {}", self.now.since(START).as_secs_f64(), what());
        }
    }

    fn require(&self, holds: bool, what: impl FnOnce() -> String) {
        assert!(holds, "{:.6} s: {}", self.now.since(START).as_secs_f64(), what());
    }

    // Time.

    /// When something happens next.
    fn next_due(&self) -> Option<Nanos> {
        let event = self.events.keys().next().map(|&(at, _)| at);
        self.sites.iter().filter_map(|site| site.due).chain(event).min()
    }

    /// Does what is due first, at its time.
    fn happen(&mut self, at: Nanos) {
        self.now = self.now.max(at);
        if let Some(index) = self.sites.iter().position(|site| site.due == Some(at)) {
            let responses = self.sites[index].target.poll(self.now);
            self.respond(index, responses);
            return;
        }
        let Some((_, event)) = self.events.pop_first() else { return };
        match event {
            Event::Captured(segment) => {
                self.to_come -= 1;
                self.capture(segment);
            }
            Event::Woken => self.ring.wake(),
            Event::ToTarget(index, packet) => {
                let responses = self.sites[index].target.handle(self.now, packet);
                self.respond(index, responses);
            }
            Event::ToSource(index, response) => {
                self.tell(|| format!("report   {index} {}", wire::described(&response.report, &response.answers)));
                self.sites[index].report(response);
            }
            Event::Figures => {
                self.sites.iter_mut().for_each(Site::tell_figures);
                self.put(self.now.after(Duration::from_secs(1)), Event::Figures);
            }
            Event::Break(index, down, how) => {
                // One that is down already, or over, does not break.
                if !self.left && self.sites[index].disconnect("broken") {
                    self.tell(|| format!("channel {index} breaks for {down:?}: {how:?}"));
                    self.sites[index].back = Some(how);
                    self.down_for[index] = down;
                    self.sites[index].oracle.disturb();
                    self.outcome.breaks += 1;
                }
            }
            Event::Established(index, how) => {
                if !self.stopping {
                    self.establish(index, how);
                }
            }
            Event::Bye(index) => {
                self.sites[index].tell_figures();
                self.sites[index].disconnect("closed");
            }
            Event::Stop if self.stopping => {}
            Event::Stop => {
                self.outcome.stopped_with_sessions +=
                    u64::from(self.sites.iter().any(|site| !site.target.established().is_empty()));
                for site in &mut self.sites {
                    site.oracle.disturb();
                }
                self.stop();
            }
        }
    }

    /// Lets time pass while the worker is busy.
    fn elapse(&mut self, time: Duration) {
        let until = self.now.after(time);
        while let Some(at) = self.next_due().filter(|at| *at <= until) {
            self.happen(at);
        }
        self.now = until;
    }

    // The targets and their reports.

    fn respond(&mut self, index: usize, responses: Vec<Response>) {
        let now = self.now;
        for mut response in responses {
            let site = &mut self.sites[index];
            // A response of a session that the programs do not know goes to the live client.
            if !site.sessions.contains(&response.report.flow) {
                continue;
            }
            response.report.instance = site.instance;
            site.count_response();
            let arrivals = site.down.carry(now, 80);
            let reported = arrivals.iter().flatten().next().is_some();
            let reflected =
                site.reflector.as_mut().and_then(|r| r.reflect(&mut response.report, response.timestamps, reported));
            if let Some(acknowledgement) = reflected {
                self.put(now, Event::ToTarget(index, acknowledgement));
            }
            for at in arrivals.into_iter().flatten() {
                let copy = Response { answers: response.answers.clone(), ..response };
                self.put(at, Event::ToSource(index, copy));
            }
        }
        let site = &mut self.sites[index];
        site.due = site.target.due(now);
    }

    /// The worker looks at its channels: what it has done since the last time must have an end.
    pub fn begin_receiving(&mut self) {
        let (records, captured, sent) = (self.records, self.captured, self.sent);
        let copies = self.sites.len();
        self.require(records <= MOST_RECORDS && captured <= MOST_CAPTURED + SEGMENT, || {
            format!("{records} records of {captured} octets are handled before the channels have their turn")
        });
        self.require(sent <= MOST_SENT + copies * SEGMENT, || {
            format!("{sent} octets are sent before the channels have their turn")
        });
        self.outcome.crowded_turns += u64::from(records >= 256 || captured >= MOST_CAPTURED || sent >= MOST_SENT);
        (self.records, self.captured, self.sent) = (0, 0, 0);
    }

    pub fn receive(&mut self, index: usize) -> Vec<Item> {
        let items = self.sites[index].receive();
        self.progress |= !items.is_empty();
        items
    }

    fn establish(&mut self, index: usize, how: Return) {
        self.outcome.resumed += u64::from(how == Return::Resumed && self.outcome.breaks > 0);
        let (link, credentials) = self.sites[index].establish(how);
        self.tell(|| format!("channel {index} is up: {how:?}"));
        self.orders.push_back(Order::LinkUp(TargetId(index as u16), link, credentials));
    }

    // The main thread.

    fn stop(&mut self) {
        self.tell(|| "stop".to_owned());
        self.stopping = true;
        self.orders.push_back(Order::Stop);
    }

    pub fn next_order(&mut self) -> Option<Order<Link>> {
        let order = self.orders.pop_front();
        self.progress |= order.is_some();
        order
    }

    pub fn notice(&mut self, notice: Notice<&'static str>) {
        match notice {
            Notice::LinkDown { target, .. } => {
                let index = usize::from(target.0);
                self.tell(|| format!("the worker knows that channel {index} is down"));
                let back = self.sites[index].back.take();
                self.require(back.is_some() || self.left, || "a channel is said to be down that is not".to_owned());
                if let Some(how) = back {
                    self.put(self.now.after(self.down_for[index]), Event::Established(index, how));
                }
            }
            Notice::AnswersUnseen { .. } | Notice::Unjoinable { .. } | Notice::Fuse { .. } => {}
            Notice::Reflects { target } => {
                let site = &mut self.sites[usize::from(target.0)];
                assert!(!std::mem::replace(&mut site.reflects, true), "a target's reflection is told twice");
            }
        }
    }

    pub fn publish(&mut self, snapshot: Snapshot<u64, Figures>) {
        let mut over = self.to_come == 0 && self.ring.is_empty();
        for copy in &snapshot.copies {
            let balanced = copy.engine.check();
            self.require(balanced.is_ok(), || format!("{balanced:?}"));
            over &= copy.engine.sessions.active == 0 && copy.engine.bytes.pending == 0;
        }
        self.require(self.now <= self.end, || format!("no end in sight: {snapshot:?}"));
        self.snapshot = Some(snapshot);
        if over && !self.stopping {
            self.stop();
        }
    }

    pub fn leave(&mut self) {
        self.tell(|| "farewell".to_owned());
        self.require(self.waiting.is_empty(), || {
            "the worker takes its leave while packets wait for room in the sink".to_owned()
        });
        self.left = true;
        for site in &mut self.sites {
            site.left = site.attached.is_some() && site.is_taken_over();
        }
        if self.scenario.surroundings.answers_farewell {
            let round_trip = self.scenario.up.delay + self.scenario.down.delay;
            for index in 0..self.sites.len() {
                self.put(self.now.after(round_trip), Event::Bye(index));
            }
        }
    }
}
