//! A fuse for each target: nothing is sent to where it is not seen, or from where no answer is.
//!
//! What a target answers must be swallowed there, or it reaches the real clients (rule S3). Only the target's programs
//! can do that, so the way to them is proved before anything that could be answered goes: by a *probe*, a SYN from an
//! address of this host whose mark says what it is ([`Stamp::probes`](tcpcopy_common::mark::Stamp::probes)). The
//! programs report it and drop it; where there are none, it is this host that is answered. Afterwards every response
//! shows that all is well, and SYNs that stay without any are looked into.
//!
//! | state | sessions | probes |
//! |---|---|---|
//! | [`State::Probing`] | wait | some, then now and then |
//! | [`State::Whole`] | are replayed; few before the first response | only while SYNs are unanswered ([`watch`]) |
//! | [`State::Blown`] | wait as without a channel; when answers go astray, those that are there are reset | none |
//!
//! A fuse that has found no probe reported is whole when one is. One that has blown over SYNs stays so until a response
//! to what was sent before shows that it was wrong, or the channel comes up anew: trying would mean sending what may be
//! answered to real clients.

mod fault;
mod watch;

use std::{collections::VecDeque, net::SocketAddr, time::Duration};

use tcpcopy_common::flow::{Flow, IpAddress};

pub use self::fault::Fault;
use self::watch::{Watch, tick};
use crate::{
    config::{Config, TargetId},
    secret::{Purpose, Secret},
    store::moment::Moment,
    tcp::seq::ReplaySeq,
    time::Nanos,
};

/// When probes go after the channel has come up: some may be lost, and the way to the target may have to be learned.
const PROBES: [Duration; 8] = [
    Duration::ZERO,
    Duration::from_millis(50),
    Duration::from_millis(150),
    Duration::from_millis(350),
    Duration::from_millis(600),
    Duration::from_millis(900),
    Duration::from_millis(1200),
    Duration::from_millis(1400),
];
/// How long they are waited for.
const PROBING: Duration = Duration::from_millis(1800);
/// Between two probes after that.
const RETRY: Duration = Duration::from_secs(2);
/// The most sessions that are opened before the first response.
const UNCONFIRMED: u32 = 16;
/// Frames of a channel come every second. After a longer pause the network, or a host, has stood still: what was not
/// heard of meanwhile means nothing.
const PAUSE: Duration = Duration::from_millis(1600);
/// A fuse that has had a response so recently does not follow those that blow in other engines.
const RECENT: Duration = Duration::from_secs(1);

/// What has become of a fuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FuseEvent {
    /// The service under test.
    pub target: SocketAddr,
    /// Why nothing is sent there; `None` when something is.
    pub fault: Option<Fault>,
}

/// What a fuse wants of the sessions of its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub target: TargetId,
    /// The service under test.
    pub server: (IpAddress, [u8; 2]),
    /// Those that the target knows are to be reset; otherwise they look anew at what they may send.
    pub reset: bool,
}

/// What `intercept` has found out about an unanswered SYN, or a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing that would explain it.
    Nothing,
    /// The service has no room for another connection until it accepts one, or the client's neighbour is silent.
    Explained,
    /// There is a socket for the connection: it was answered.
    Answered,
}

/// The fuses of all targets; none when they are not wanted.
#[derive(Debug, Default)]
pub(super) struct Fuses {
    all: Box<[Fuse]>,
    /// By rule, an index into `all`.
    of_rule: Box<[usize]>,
    events: VecDeque<FuseEvent>,
    changes: VecDeque<Change>,
}

#[derive(Debug)]
struct Fuse {
    target: TargetId,
    address: SocketAddr,
    /// Of probes: an address of this host, and the port that the secret gives it. Unspecified where none is known: then
    /// nothing can be proved, and only the watch is kept.
    flow: Flow,
    is_up: bool,
    /// When the channel was last heard.
    heard: Nanos,
    /// How many reports of the instance were lost, as far as is known.
    lost: u32,
    state: State,
}

#[derive(Debug)]
enum State {
    Probing {
        /// When the channel came up.
        since: Nanos,
        sent: usize,
        probe_at: Moment,
        /// That it is in vain was told.
        told: bool,
    },
    Whole(Watch),
    Blown,
}

/// A SYN that only asks whether it is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Probe {
    pub target: TargetId,
    pub flow: Flow,
    /// Tells when it was sent: see [`tick`].
    pub seq: ReplaySeq,
}

impl Fuse {
    fn server(&self) -> (IpAddress, [u8; 2]) {
        (self.flow.server, self.flow.server_port)
    }

    fn serves(&self, target: TargetId, flow: &Flow) -> bool {
        self.target == target && self.server() == (flow.server, flow.server_port)
    }

    fn can_probe(&self) -> bool {
        self.flow.client != IpAddress::UNSPECIFIED
    }

    fn probing(&self, now: Nanos) -> State {
        State::Probing { since: now, sent: 0, probe_at: Moment::at(now), told: false }
    }

    fn event(&self, fault: Option<Fault>) -> FuseEvent {
        FuseEvent { target: self.address, fault }
    }

    fn change(&self, reset: bool) -> Change {
        Change { target: self.target, server: self.server(), reset }
    }
}

impl Fuses {
    /// The fuses of the targets of all rules; none unless [`Config::probe_from`] has an address for each rule.
    pub(super) fn new(config: &Config, secret: Secret) -> Self {
        let mut all: Vec<Fuse> = Vec::new();
        let mut of_rule = Vec::new();
        for (rule, from) in config.rules.iter().zip(&config.probe_from) {
            let known = all.iter().position(|fuse| (fuse.target, fuse.address) == (rule.target, rule.address));
            of_rule.push(known.unwrap_or(all.len()));
            if known.is_some() {
                continue;
            }
            let server = (IpAddress::from(rule.address.ip()), rule.address.port().to_be_bytes());
            let from = if from.is_unspecified() { IpAddress::UNSPECIFIED } else { IpAddress::from(*from) };
            let ports = Flow::tcp((from, [0; 2]), server);
            // Of the range that nobody is assigned (RFC 6335, section 6). Should the host itself have a connection
            // there, a SYN does it no harm (RFC 5961, section 4).
            let [.., a, b] = secret.hash(&ports, Purpose::Probe).to_be_bytes();
            let flow = Flow { client_port: [a | 0xc0, b], ..ports };
            let state = State::Probing { since: Nanos::default(), sent: 0, probe_at: Moment::NEVER, told: false };
            let (target, address) = (rule.target, rule.address);
            all.push(Fuse { target, address, flow, is_up: false, heard: Nanos::default(), lost: 0, state });
        }
        Self { all: all.into(), of_rule: of_rule.into(), ..Self::default() }
    }

    /// Returns whether a session of `rule` may send; `is_visible`: the target may know of its connection.
    pub(super) fn lets(&self, rule: u16, is_visible: bool) -> bool {
        let fuse = self.of_rule.get(usize::from(rule)).and_then(|&index| self.all.get(index));
        match fuse.map(|fuse| &fuse.state) {
            None => true,
            Some(State::Whole(watch)) => is_visible || watch.is_confirmed() || watch.opened() < UNCONFIRMED,
            Some(State::Probing { .. } | State::Blown) => false,
        }
    }

    /// Returns whether a segment that could be answered may be sent for no session.
    pub(super) fn lets_to(&self, target: TargetId, flow: &Flow) -> bool {
        self.find(target, flow).is_none_or(|fuse| matches!(fuse.state, State::Whole(_)))
    }

    /// Returns how many there are, and how many let nothing through because something is wrong.
    pub(super) fn stopped(&self) -> u64 {
        let stopped = |fuse: &&Fuse| match fuse.state {
            State::Probing { told, .. } => told,
            State::Whole(_) => false,
            State::Blown => true,
        };
        self.all.iter().filter(stopped).count() as u64
    }

    fn find(&self, target: TargetId, flow: &Flow) -> Option<&Fuse> {
        self.all.iter().find(|fuse| fuse.serves(target, flow))
    }

    fn find_mut(&mut self, target: TargetId, flow: &Flow) -> Option<&mut Fuse> {
        self.all.iter_mut().find(|fuse| fuse.serves(target, flow))
    }

    /// Handles that a channel is up, of another instance than before or of the same: the way is proved, unless it was
    /// under the same.
    pub(super) fn handle_channel_up(&mut self, now: Nanos, target: TargetId, is_new: bool) {
        for fuse in self.all.iter_mut().filter(|fuse| fuse.target == target) {
            (fuse.is_up, fuse.heard, fuse.lost) = (true, now, 0);
            match &mut fuse.state {
                State::Whole(watch) if !is_new => watch.handle_response(),
                State::Probing { told: true, .. } => {
                    let State::Probing { since, sent, probe_at, .. } = &mut fuse.state else { continue };
                    (*since, *sent, *probe_at) = (now, 0, Moment::at(now));
                }
                State::Whole(_) | State::Blown | State::Probing { .. } => fuse.state = fuse.probing(now),
            }
        }
    }

    /// Handles that a channel is down: nothing can be reported.
    pub(super) fn handle_channel_down(&mut self, target: TargetId) {
        for fuse in self.all.iter_mut().filter(|fuse| fuse.target == target) {
            fuse.is_up = false;
            match &mut fuse.state {
                State::Probing { probe_at, .. } => *probe_at = Moment::NEVER,
                State::Whole(watch) => watch.forget(),
                State::Blown => {}
            }
        }
    }

    /// Handles the end of the program: nothing is proved any more.
    pub(super) fn handle_shutdown(&mut self) {
        for target in self.all.iter().map(|fuse| fuse.target).collect::<Vec<_>>() {
            self.handle_channel_down(target);
        }
    }

    /// Handles that a channel was heard, as it is every second.
    pub(super) fn handle_heard(&mut self, now: Nanos, target: TargetId) {
        for fuse in self.all.iter_mut().filter(|fuse| fuse.target == target) {
            if now.since(fuse.heard) > PAUSE
                && let State::Whole(watch) = &mut fuse.state
            {
                watch.start_over(now);
            }
            fuse.heard = now;
        }
    }

    /// Handles that the SYN of a session of `rule` was sent, for the first time or again.
    pub(super) fn handle_syn(&mut self, now: Nanos, rule: u16, flow: &Flow, is_first: bool) {
        let fuse = self.of_rule.get(usize::from(rule)).and_then(|&index| self.all.get_mut(index));
        if let Some(Fuse { state: State::Whole(watch), .. }) = fuse {
            watch.handle_syn(now, flow, is_first);
        }
    }

    /// Handles a response of a target, or another sign that it takes part in a session.
    pub(super) fn handle_response(&mut self, now: Nanos, target: TargetId, flow: &Flow) {
        let Some(fuse) = self.find_mut(target, flow) else { return };
        match &mut fuse.state {
            State::Whole(watch) => {
                let opens = !watch.is_confirmed();
                watch.handle_response();
                watch.confirm(now);
                if opens {
                    let change = fuse.change(false);
                    self.changes.push_back(change);
                }
            }
            // It was only late.
            State::Blown => {
                let (event, change) = (fuse.event(None), fuse.change(false));
                let mut watch = Watch::new();
                watch.confirm(now);
                fuse.state = State::Whole(watch);
                self.events.push_back(event);
                self.changes.push_back(change);
            }
            State::Probing { .. } => {}
        }
    }

    /// Handles that the target's programs have refused a SYN: they see them, and nothing is to be answered.
    pub(super) fn handle_refusal(&mut self, target: TargetId, flow: &Flow) {
        let Some(fuse) = self.find_mut(target, flow) else { return };
        let change = fuse.explain();
        self.changes.extend(change);
    }

    /// Handles that a SYN has come to the target's programs again, without an answer that they have seen.
    pub(super) fn handle_unanswered(&mut self, now: Nanos, target: TargetId, flow: &Flow, found: Found) {
        let Some(fuse) = self.find_mut(target, flow) else { return };
        match (&mut fuse.state, found) {
            (_, Found::Explained) => {
                let change = fuse.explain();
                self.changes.extend(change);
            }
            (State::Whole(watch), Found::Nothing) => watch.handle_unanswered(now, Fault::Unanswered),
            (State::Whole(watch), Found::Answered) => watch.handle_unanswered(now, Fault::AnswersUnseen),
            (State::Probing { .. } | State::Blown, _) => {}
        }
    }

    /// Handles that the target's programs have seen a probe with the sequence number `seq`; they have lost `lost`
    /// reports of the instance so far.
    pub(super) fn handle_probed(
        &mut self,
        now: Nanos,
        target: TargetId,
        flow: &Flow,
        seq: u32,
        found: Found,
        lost: u32,
    ) {
        let Some(fuse) = self.find_mut(target, flow) else { return };
        let seq = ReplaySeq::new(seq);
        if seq.is_after(tick(now)) {
            return;
        }
        let losing = std::mem::replace(&mut fuse.lost, lost) != lost;
        let is_own = fuse.flow == *flow;
        match &mut fuse.state {
            State::Probing { since, .. } if is_own && !tick(*since).is_after(seq) => self.prove(target, *flow),
            State::Whole(watch) if losing => watch.start_over(now),
            State::Whole(_) if found == Found::Explained => {
                let change = fuse.explain();
                self.changes.extend(change);
            }
            State::Whole(watch) => {
                if let Some(fault) = watch.handle_probed(flow, seq, is_own) {
                    self.blow(target, *flow, fault);
                }
            }
            State::Probing { .. } | State::Blown => {}
        }
    }

    /// The way to the target is proved, or cannot be.
    fn prove(&mut self, target: TargetId, flow: Flow) {
        let Some(fuse) = self.find_mut(target, &flow) else { return };
        fuse.state = State::Whole(Watch::new());
        let (event, change) = (fuse.event(None), fuse.change(false));
        self.events.push_back(event);
        self.changes.push_back(change);
    }

    fn blow(&mut self, target: TargetId, flow: Flow, fault: Fault) {
        let Some(fuse) = self.find_mut(target, &flow) else { return };
        let event = fuse.event(Some(fault));
        fuse.stop(fault);
        let change = fuse.change(fault == Fault::AnswersUnseen);
        self.events.push_back(event);
        self.changes.push_back(change);
    }

    /// Handles what has become of the fuse of the same target in another engine.
    pub(super) fn handle_event(&mut self, now: Nanos, event: FuseEvent) {
        let mut events = Vec::new();
        for fuse in self.all.iter_mut().filter(|fuse| fuse.address == event.target) {
            match (&fuse.state, event.fault) {
                (State::Whole(watch), Some(_)) if watch.confirmed_within(now, RECENT) => events.push(fuse.event(None)),
                (State::Whole(_), Some(fault)) if fault != Fault::ProbeUnseen => {
                    fuse.stop(fault);
                    self.changes.push_back(fuse.change(fault == Fault::AnswersUnseen));
                }
                (State::Blown, None) => {
                    fuse.state = State::Whole(Watch::new());
                    self.changes.push_back(fuse.change(false));
                }
                _ => {}
            }
        }
        self.events.extend(events);
    }

    /// Blows fuses whose time is over, and lets those go on that cannot be probed.
    pub(super) fn expire(&mut self, now: Nanos) {
        for index in 0..self.all.len() {
            let fuse = &mut self.all[index];
            let (target, flow, can_probe) = (fuse.target, fuse.flow, fuse.can_probe());
            let is_alive = fuse.is_up && now.since(fuse.heard) <= PAUSE;
            match &mut fuse.state {
                State::Probing { probe_at, .. } if !can_probe && probe_at.is_due(now) => self.prove(target, flow),
                State::Probing { since, told, .. } if !*told && fuse.is_up && now.since(*since) >= PROBING => {
                    *told = true;
                    let event = fuse.event(Some(Fault::ProbeUnseen));
                    self.events.push_back(event);
                }
                State::Whole(watch) => {
                    if let Some(fault) = watch.expire(now, can_probe, is_alive) {
                        self.blow(target, flow, fault);
                    } else if watch.rest(now) {
                        let change = fuse.change(false);
                        self.changes.push_back(change);
                    }
                }
                State::Probing { .. } | State::Blown => {}
            }
        }
    }

    /// Returns when to call [`expire`](Self::expire), or to poll for a probe.
    pub(super) fn deadline(&self) -> Option<Nanos> {
        let deadline = |fuse: &Fuse| match &fuse.state {
            _ if !fuse.is_up => Moment::NEVER,
            State::Probing { since, probe_at, told, .. } => {
                if *told {
                    *probe_at
                } else {
                    (*probe_at).min(Moment::at(since.after(PROBING)))
                }
            }
            State::Whole(watch) => watch.deadline(),
            State::Blown => Moment::NEVER,
        };
        self.all.iter().map(deadline).filter(|deadline| deadline.is_set()).map(Moment::time).min()
    }

    /// Returns the next probe that is due.
    pub(super) fn poll_probe(&mut self, now: Nanos) -> Option<Probe> {
        self.all.iter_mut().filter(|fuse| fuse.is_up).find_map(|fuse| {
            let own = fuse.can_probe().then_some(fuse.flow);
            let flow = match &mut fuse.state {
                State::Probing { since, sent, probe_at, .. } if probe_at.is_due(now) => {
                    *sent += 1;
                    *probe_at = Moment::at(PROBES.get(*sent).map_or(now.after(RETRY), |&wait| since.after(wait)));
                    own?
                }
                State::Whole(watch) => watch.poll_probe(now, own)?,
                State::Probing { .. } | State::Blown => return None,
            };
            Some(Probe { target: fuse.target, flow, seq: tick(now) })
        })
    }

    /// Returns what has become of a fuse since the last call.
    pub(super) fn poll_event(&mut self) -> Option<FuseEvent> {
        self.events.pop_front()
    }

    /// Returns what is to be done about sessions since the last call.
    pub(super) fn poll_change(&mut self) -> Option<Change> {
        self.changes.pop_front()
    }
}

impl Fuse {
    /// Ends the watch over SYNs, whose silence is explained; returns what that means to sessions that wait.
    fn explain(&mut self) -> Option<Change> {
        let State::Whole(watch) = &mut self.state else { return None };
        let waited = !watch.is_confirmed() && watch.opened() >= UNCONFIRMED;
        watch.handle_response();
        waited.then(|| self.change(false))
    }

    /// Lets nothing through any more: where the way itself is lost, until it is proved.
    fn stop(&mut self, fault: Fault) {
        self.state = match fault {
            Fault::ProbeUnseen => State::Probing {
                since: self.heard,
                sent: PROBES.len(),
                probe_at: Moment::at(self.heard.after(RETRY)),
                told: true,
            },
            Fault::SynsUnseen | Fault::Unanswered | Fault::AnswersUnseen => State::Blown,
        };
    }
}
