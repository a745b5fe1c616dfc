//! All connections of one worker: entry points, look-up, life cycle.
//!
//! | | |
//! |---|---|
//! | [`live`] | handles segments captured from live clients |
//! | [`handshake`], [`half_open`], [`visibility`] | handshakes of live clients, until the live server has accepted them |
//! | [`response`] | handles responses reported by targets |
//! | [`fuse`], [`stopping`] | stops what is sent to a target that does not see it, or whose answers are not seen |
//! | [`lifecycle`] | how sessions begin, move, end; the timers of connections |
//! | [`eviction`], [`candidates`] | which connection ends when there are as many as allowed |
//! | [`joining`] | which connections are joined in the middle |
//! | [`orphans`], [`orphan_table`] | removes connections that were left open at a target |
//! | [`lookup`] | from a four-tuple to a connection |

mod candidates;
mod eviction;
mod fuse;
mod half_open;
mod handshake;
mod joining;
mod lifecycle;
mod live;
mod lookup;
mod orphan_table;
mod orphans;
mod response;
mod stopping;
#[cfg(test)]
pub(crate) mod tests;
mod visibility;

use std::collections::VecDeque;

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::Epoch,
    tcp_flags::{RST, SYN},
};

pub use self::fuse::{Fault, FuseEvent};
use self::{
    candidates::Candidates,
    fuse::Fuses,
    half_open::HalfOpens,
    orphan_table::Orphans,
    visibility::{Visibility, Withheld},
};
use crate::{
    config::{Config, Credentials, TargetId},
    input::{buffer::Pool, proxy_protocol::Header, stream::Stream},
    secret::Secret,
    segment::Transmit,
    stats::{Reason, Stats},
    store::{
        id::Id,
        slab::Slab,
        table::FlowTable,
        timers::{Entry, Timers},
    },
    tcp::{
        RoundTrip,
        acceptance::Acceptance,
        distance::Distance,
        isn::Opening,
        seq::LiveSeq,
        server_profile::ServerProfile,
        session::{Context, Final, FinalSegment, Outcome, Plan, Poll, Session},
    },
    time::Nanos,
};

/// How many connections ahead of the one whose timers are due are prefetched.
const AHEAD: usize = 8;

/// Maximum due timers that memory is kept for.
const MAX_KEPT_DUE: usize = 1 << 12;

/// All connections of one worker: their sessions, timers and statistics.
///
/// Its methods are of four kinds: `handle_*` takes input; `poll_*` yields output; `expect_*` are hints, which make what
/// follows faster and change nothing; the others look. After any `handle_*`, call
/// [`poll_transmit`](Self::poll_transmit) until it yields `None`, then sleep until [`poll_timeout`](Self::poll_timeout)
/// or the next input.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    secret: Secret,
    connections: Slab<Connection>,
    /// Connections by the four-tuple of live client and live server.
    by_live: FlowTable,
    /// Connections by the four-tuple that the target sees.
    by_target: FlowTable,
    timers: Timers,
    /// Connections that may have something to send.
    ready: VecDeque<Id>,
    /// The header that was sent last; kept because what is sent is borrowed.
    header: Header,
    /// Final segments of target connections that sessions have left.
    final_segments: VecDeque<FinalSegment>,
    /// Indexed by [`TargetId`]; `None` while the channel is down.
    channels: Vec<Option<Credentials>>,
    /// One entry per channel.
    orphans: Vec<Orphans>,
    fuses: Fuses,
    /// Indexed by rule.
    profiles: Box<[ServerProfile]>,
    pool: Pool,
    stats: Stats,
    /// Timers that are due; kept for its memory.
    due: Vec<Entry>,
    /// The last time that the ring was full.
    ring_full: Option<Nanos>,
    half_open: HalfOpens,
    candidates: Candidates,
    /// Indexed by rule.
    visibility: Box<[Visibility]>,
    withheld: Vec<Withheld>,
    withheld_until: Option<Nanos>,
    /// Rules without SYN-ACKs, which nobody has asked about yet.
    unseen_rules: Vec<u16>,
    /// Rules whose connections are not joined any more, which nobody has asked about yet.
    unjoinable_rules: Vec<u16>,
}

/// A live client's connection.
#[derive(Debug)]
struct Connection {
    live: FourTuple,
    rule: u16,
    stream: Stream,
    /// `None` if the connection was open when the capture began.
    handshake: Option<Handshake>,
    /// When its last segment was captured: the last activity of the live client.
    last_activity: Nanos,
    syn: Flag,
    fin: Flag,
    acceptance: Acceptance,
    replay: Replay,
}

/// The four-tuple of a live connection: a [`Flow`] without the protocol, which is TCP for all of them, because every octet of
/// a connection counts.
#[derive(Clone, Copy, Debug)]
struct FourTuple {
    client: IpAddress,
    server: IpAddress,
    client_port: [u8; 2],
    server_port: [u8; 2],
}

impl FourTuple {
    const fn new(flow: &Flow) -> Self {
        let Flow { client, server, client_port, server_port, .. } = *flow;
        Self { client, server, client_port, server_port }
    }

    const fn flow(&self) -> Flow {
        Flow::tcp((self.client, self.client_port), (self.server, self.server_port))
    }
}

/// A live client's handshake.
#[derive(Clone, Copy, Debug)]
struct Handshake {
    isn: LiveSeq,
    /// `None` until its end has shown it.
    distance: Option<Distance>,
}

/// The account of a captured SYN or FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flag {
    /// There was none, or it has been accounted for.
    Settled,
    /// Captured, and still to be sent.
    Pending,
}

/// The replay of a connection.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are active, and a box would cost a cache miss per segment")]
enum Replay {
    /// There is none: octets are discarded for this reason until a request begins. With the sequence number and
    /// timestamp that the session before had reached, if there was one: the next one begins above.
    Parked(Reason, Option<Opening>),
    Active(Session),
}

impl Connection {
    /// The emulated distance of the client; `None` while its handshake is to show it.
    fn distance(&self, wanted: RoundTrip) -> Option<Distance> {
        self.handshake.map_or_else(|| Some(Distance::of_joined(wanted)), |handshake| handshake.distance)
    }

    /// Whether it began with this sequence number.
    fn has_isn(&self, isn: LiveSeq) -> bool {
        self.handshake.is_some_and(|handshake| handshake.isn == isn)
    }

    /// Whether the segment that ends the client's handshake is still to come.
    fn is_in_handshake(&self) -> bool {
        self.handshake.is_some_and(|handshake| handshake.distance.is_none())
    }

    /// Notes that the client's handshake has ended, and the distance that it has shown.
    fn end_handshake(&mut self, distance: Distance) {
        if let Some(handshake) = &mut self.handshake {
            handshake.distance = Some(distance);
        }
        if let Replay::Active(session) = &mut self.replay {
            session.learn_distance(distance);
        }
    }
}

impl Engine {
    /// Creates an engine without connections. `seed` makes sequence numbers, ports and hashes unpredictable from
    /// outside; the same seed and the same inputs give the same outputs.
    #[must_use]
    pub fn new(config: Config, seed: u64) -> Self {
        let half_open = HalfOpens::new(seed ^ 2, config.max_memory);
        Self {
            secret: Secret::new(seed),
            connections: Slab::new(),
            by_live: FlowTable::new(seed),
            by_target: FlowTable::new(seed ^ 1),
            timers: Timers::new(),
            ready: VecDeque::new(),
            header: Header::EMPTY,
            final_segments: VecDeque::new(),
            channels: Vec::new(),
            orphans: Vec::new(),
            fuses: Fuses::new(&config, Secret::new(seed)),
            profiles: vec![ServerProfile::default(); config.rules.len()].into(),
            pool: Pool::new(seed ^ 3, config.max_memory.saturating_sub(half_open.budget())),
            stats: Stats::default(),
            due: Vec::new(),
            ring_full: None,
            half_open,
            candidates: Candidates::default(),
            visibility: vec![Visibility::default(); config.rules.len()].into(),
            withheld: Vec::new(),
            withheld_until: None,
            unseen_rules: Vec::new(),
            unjoinable_rules: Vec::new(),
            config,
        }
    }

    /// Returns the counters so far.
    #[must_use]
    pub const fn stats(&self) -> &Stats {
        &self.stats
    }

    /// Handles that the channel to a target is up: sessions may be opened there. It may come again after a reconnect;
    /// with another instance the target's programs have forgotten all sessions, which are given up, and what is left of
    /// them at the target is removed.
    pub fn handle_channel_up(&mut self, now: Nanos, target: TargetId, credentials: Credentials) {
        let index = usize::from(target.0);
        if self.channels.len() <= index {
            self.channels.resize(index + 1, None);
            self.orphans.resize_with(index + 1, Orphans::default);
        }
        let known = self.channels[index].replace(credentials);
        self.fuse_channel_up(now, target, known.is_none_or(|known| known.instance != credentials.instance));
        self.ask_for_orphans(target);
        for id in self.sessions_of(target) {
            let Some(Connection { replay: Replay::Active(session), .. }) = self.connections.get_mut(id) else {
                continue;
            };
            if session.instance().is_some_and(|known| known != credentials.instance) {
                let (flow, last) = (*session.flow(), session.reset_seq());
                self.leave_orphan(now, target, flow, last);
                self.conclude(now, id, Outcome::Aborted(Reason::ChannelLost, Final::Nothing));
            } else {
                session.handle_channel_up(now);
                self.enqueue(id);
            }
        }
    }

    /// Handles that another epoch has begun at a target whose channel is up: marks show it from now on.
    pub fn handle_epoch(&mut self, target: TargetId, epoch: Epoch) {
        if let Some(Some(credentials)) = self.channels.get_mut(usize::from(target.0)) {
            credentials.epoch = epoch;
        }
    }

    /// Handles that the channel to a target is down: nothing is sent there until it is up again (rule S3).
    pub fn handle_channel_down(&mut self, now: Nanos, target: TargetId) {
        if let Some(channel) = self.channels.get_mut(usize::from(target.0)) {
            *channel = None;
        }
        self.fuses.handle_channel_down(target);
        for segment in std::mem::take(&mut self.final_segments) {
            if segment.target == target {
                self.leave_orphan(now, segment.target, segment.flow, segment.seq);
            } else {
                self.final_segments.push_back(segment);
            }
        }
        // Their deadlines differ while the channel is down.
        for id in self.sessions_of(target) {
            self.enqueue(id);
        }
    }

    /// Handles that the ring was full just now, so that segments may have been lost: gaps in what is captured at about
    /// this time are not filled by a retransmission, because the live server has received what is missing here.
    pub const fn handle_ring_full(&mut self, now: Nanos) {
        self.ring_full = Some(now);
    }

    /// Fires expired timers; to be called when [`poll_timeout`](Self::poll_timeout) has passed (earlier does no harm).
    pub fn handle_timeout(&mut self, now: Nanos) {
        let mut due = std::mem::take(&mut self.due);
        self.timers.expire(now, &mut due);
        for index in 0..due.len() {
            if let Some(ahead) = due.get(index + AHEAD) {
                self.connections.prefetch(ahead.id);
            }
            let Entry { id, tick } = due[index];
            if self.connections.armed_mut(id).is_some_and(|armed| armed.fired(tick)) {
                self.handle_connection_timer(now, id);
            }
        }
        due.clear();
        // Many connections that were opened at once are due at once, but only once.
        due.shrink_to(MAX_KEPT_DUE);
        self.due = due;
        self.expire_orphans(now);
        self.expire_handshakes(now);
        self.expire_fuses(now);
    }

    /// Resets every open replayed connection, and counts it as aborted by the shutdown.
    pub fn handle_shutdown(&mut self, _now: Nanos) {
        self.end_handshakes();
        self.fuses.handle_shutdown();
        for id in self.connections.ids() {
            self.abandon(id, Reason::Shutdown, Final::Reset);
            self.forget(id, Reason::Shutdown);
        }
    }

    /// Returns when to call [`handle_timeout`](Self::handle_timeout), if nothing else happens.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Nanos> {
        [self.timers.next(), self.orphans_deadline(), self.handshake_deadline(), self.fuses.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Returns the next segment to send to a target. Its payload, at most 64 KiB less headers, is borrowed from the
    /// session.
    pub fn poll_transmit(&mut self, now: Nanos) -> Option<Transmit<'_>> {
        let (id, plan) = loop {
            // First of all, because a RST makes room for the SYN of the connection that follows.
            if let Some(segment) = self.final_segments.pop_front() {
                if self.credentials(segment.target).is_some() && self.lets_final(&segment) {
                    self.stats.resets_sent += u64::from(segment.flags.contains(RST));
                    return Some(segment.transmit());
                }
                self.leave_orphan(now, segment.target, segment.flow, segment.seq);
                continue;
            }
            if let Some(probe) = self.poll_probe(now) {
                return Some(probe);
            }
            if let Some(syn) = self.poll_orphans(now) {
                return Some(syn);
            }
            let id = self.ready.pop_front()?;
            if let Some(plan) = self.poll_connection(now, id) {
                // To the end of the queue, so that a bulk upload does not hold up the others.
                self.enqueue(id);
                break (id, plan);
            }
        };
        let connection = self.connections.get(id)?;
        let Replay::Active(session) = &connection.replay else { return None };
        // It is the same on each target connection of a live one, so that sessions need not hold it.
        if let Some(version) = self.config.proxy_protocol.filter(|_| plan.len > 0 && session.is_header(plan.offset)) {
            self.header = Header::new(version, &connection.live.flow());
        }
        Some(Transmit {
            flow: *session.flow(),
            seq: plan.seq,
            ack: plan.ack,
            window: plan.window,
            flags: plan.flags,
            options: plan.options,
            segment_size: plan.segment_size,
            payload: session.slice(&connection.stream, self.header.as_slice(), plan.offset, plan.len),
        })
    }

    fn poll_connection(&mut self, now: Nanos, id: Id) -> Option<Plan> {
        self.connections.set_queued(id, false);
        match self.with_session(now, id, Session::poll)? {
            Poll::Transmit(plan) => {
                if plan.flags.contains(SYN) {
                    self.settle_syn(now, id);
                }
                Some(plan)
            }
            Poll::Idle => {
                self.arm(id);
                None
            }
            Poll::End(outcome) => {
                self.conclude(now, id, outcome);
                None
            }
        }
    }

    /// Accounts for the live client's SYN, which is replayed just now or was before.
    fn settle_syn(&mut self, now: Nanos, id: Id) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        if let Replay::Active(session) = &connection.replay {
            self.fuses.handle_syn(now, connection.rule, session.flow(), session.is_first_syn());
        }
        if connection.syn == Flag::Pending {
            connection.syn = Flag::Settled;
            self.stats.syns.send(1);
        }
    }

    /// Calls a session with its stream and what it borrows of the engine; `None` when the connection has no session.
    fn with_session<T>(
        &mut self,
        now: Nanos,
        id: Id,
        call: impl FnOnce(&mut Session, &Stream, &mut Context<'_>) -> T,
    ) -> Option<T> {
        let connection = self.connections.get_mut(id)?;
        let distance = connection.distance(self.config.round_trip);
        let Replay::Active(session) = &mut connection.replay else { return None };
        let lets = self.fuses.lets(connection.rule, session.is_visible());
        let credentials = self.channels.get(usize::from(session.target().0)).copied().flatten();
        let mut cx = Context {
            now,
            config: &self.config,
            stats: &mut self.stats,
            profile: &mut self.profiles[usize::from(connection.rule)],
            distance,
            credentials: credentials.filter(|_| lets),
            withheld: if credentials.is_some() { Reason::TargetStopped } else { Reason::NoChannel },
        };
        Some(call(session, &connection.stream, &mut cx))
    }

    /// Returns the credentials of a target's channel, while that is up.
    fn credentials(&self, target: TargetId) -> Option<Credentials> {
        self.channels.get(usize::from(target.0)).copied().flatten()
    }

    fn enqueue(&mut self, id: Id) {
        if !self.connections.set_queued(id, true) {
            self.ready.push_back(id);
        }
    }
}

// Memory is sized for a million connections: what a session seldom needs is in a box of its own.
#[cfg(target_pointer_width = "64")]
const _: () = assert!(size_of::<Connection>() <= 480);
