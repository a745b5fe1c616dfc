//! One target with its `intercept`: what is reported to the worker, on which channel, by which instance.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    ops::AddAssign,
};

use tcpcopy_common::flow::Flow;
use tcpcopy_replay::{Credentials, Nanos};

use crate::{
    live::{Live, START},
    oracle::Oracle,
    path::Leg,
    random::Random,
    reflector::Reflector,
    scenario::Scenario,
    surroundings::Return,
    target::{HOST, INSTANCE, Response, Target},
    world::{EPOCH, KEY},
};

/// What a target counts of an instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    pub responses: u64,
}

impl AddAssign for Figures {
    fn add_assign(&mut self, more: Self) {
        self.responses += more.responses;
    }
}

/// An established channel: the number of the link.
#[derive(Debug)]
pub struct Link(u32);

/// What comes on a channel.
pub enum Item {
    Response(Response),
    /// Of an instance.
    Figures(u32, Figures),
    Down(&'static str),
}

/// Items of one channel that the worker takes in a turn at most.
const MOST_ITEMS: usize = 64;

/// A target, its `intercept`, the way there and back, and who judges what is sent there.
pub struct Site<'a> {
    pub target: Target,
    pub up: Leg,
    pub down: Leg,
    pub oracle: Oracle<'a>,
    pub reflector: Option<Reflector>,
    /// When the target has something to do.
    pub due: Option<Nanos>,
    /// The sessions that the programs know.
    pub sessions: HashSet<Flow>,
    pub instance: u32,
    figures: Figures,
    links: HashMap<u32, VecDeque<Item>>,
    /// The link that works.
    link: Option<u32>,
    links_made: u32,
    /// The link that the worker has, and the instance that it believes to be at its other end.
    pub attached: Option<(u32, u32)>,
    /// By instance, the last figures that the worker was told.
    pub heard: HashMap<u32, Figures>,
    /// Whether the worker has said that the target acknowledges answers itself.
    pub reflects: bool,
    /// Whether the worker has taken its leave on a channel that was up.
    pub left: bool,
    /// How the channel that is down comes back.
    pub back: Option<Return>,
}

impl<'a> Site<'a> {
    pub fn new(scenario: &'a Scenario, lives: &'a [Live], copy: usize) -> Self {
        let chance = |stream: u64| Random::new(scenario.seed, stream + 10 * copy as u64);
        Self {
            target: Target::new(scenario, HOST + copy as u8, START),
            up: Leg::new(scenario.up.clone(), chance(6100)),
            down: Leg::new(scenario.down.clone(), chance(6101)),
            oracle: Oracle::new(scenario, lives),
            reflector: scenario.reflects.then(Reflector::default),
            due: None,
            sessions: HashSet::new(),
            instance: INSTANCE,
            figures: Figures::default(),
            links: HashMap::new(),
            link: None,
            links_made: 0,
            attached: None,
            heard: HashMap::new(),
            reflects: false,
            left: false,
            back: None,
        }
    }

    /// Establishes a channel; another instance begins with nothing.
    pub fn establish(&mut self, how: Return) -> (Link, Credentials) {
        if how == Return::Afresh {
            self.instance += 1;
            self.figures = Figures::default();
            self.sessions.clear();
            self.reflector = self.reflector.take().map(|_| Reflector::default());
        }
        self.links_made += 1;
        self.link = Some(self.links_made);
        self.links.insert(self.links_made, VecDeque::new());
        (Link(self.links_made), Credentials { instance: self.instance, key: KEY, epoch: EPOCH })
    }

    /// The worker takes an established channel over.
    pub fn connect(&mut self, link: Link) {
        assert!(self.links.contains_key(&link.0), "a link is taken over twice");
        self.attached = Some((link.0, self.instance));
    }

    /// Whether the worker has taken over the channel that is up, if one is.
    pub fn is_taken_over(&self) -> bool {
        self.link.is_none_or(|link| self.attached.is_some_and(|(attached, _)| attached == link))
    }

    /// Breaks the channel; whether it was up.
    pub fn disconnect(&mut self, why: &'static str) -> bool {
        let Some(queue) = self.link.take().and_then(|link| self.links.get_mut(&link)) else { return false };
        queue.push_back(Item::Down(why));
        true
    }

    /// Counts a response, whether or not it can be reported.
    pub const fn count_response(&mut self) {
        self.figures.responses += 1;
    }

    /// A report has arrived at the source's end of the channel; without one it is lost.
    pub fn report(&mut self, response: Response) {
        // A report of a former instance goes to nobody.
        let is_ours = response.report.instance == self.instance;
        if let Some(queue) = self.link.filter(|_| is_ours).and_then(|link| self.links.get_mut(&link)) {
            queue.push_back(Item::Response(response));
        }
    }

    /// Tells the worker what was counted.
    pub fn tell_figures(&mut self) {
        if let Some(queue) = self.link.and_then(|link| self.links.get_mut(&link)) {
            queue.push_back(Item::Figures(self.instance, self.figures));
        }
    }

    /// Whether the worker's end of the channel can be read.
    pub fn is_readable(&self) -> bool {
        self.attached.and_then(|(link, _)| self.links.get(&link)).is_some_and(|queue| !queue.is_empty())
    }

    /// The worker reads: what it gets.
    pub fn receive(&mut self) -> Vec<Item> {
        let Some(queue) = self.attached.and_then(|(link, _)| self.links.get_mut(&link)) else { return Vec::new() };
        let items: Vec<Item> = queue.drain(..queue.len().min(MOST_ITEMS)).collect();
        for item in &items {
            match item {
                Item::Response(response) => self.oracle.told(&response.answers),
                Item::Figures(instance, figures) => {
                    self.heard.insert(*instance, *figures);
                }
                Item::Down(_) => self.attached = None,
            }
        }
        items
    }

    /// What the worker must have counted: the last figures of every instance.
    pub fn expected_figures(&self) -> Figures {
        self.heard.values().fold(Figures::default(), |mut sum, figures| {
            sum += *figures;
            sum
        })
    }
}
