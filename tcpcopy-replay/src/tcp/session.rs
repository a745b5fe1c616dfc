//! One replayed session: the client side of a TCP connection to the target, driven by what a live client sent.
//!
//! | | |
//! |---|---|
//! | [`respond`] | what the target said: acknowledgements, payload, FIN, RST |
//! | [`transmit`] | what to say next: SYN, data as far as windows and gate allow, FIN, ACKs, probes |
//! | here | the states, the timers, and what an early end at the target means |
//!
//! Everything is counted in offsets of the live client's [`Stream`]; sequence numbers appear only at the edge.

mod ending;
mod receive;
mod transmit;

use std::{num::NonZeroU64, time::Duration};

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{ACK, RST, TcpFlags},
};

use crate::{
    causality::{
        answers::Answers,
        gate::{FirstWord, Gate},
    },
    config::{Config, Credentials, TargetId},
    input::stream::Stream,
    segment::{Transmit, TransmitOptions},
    stats::{Reason, Stats},
    store::moment::Moment,
    tcp::{
        delayed_ack::Acknowledger,
        isn::Opening,
        nagle::Nagle,
        receiver::{Receiver, WINDOW},
        recovery::{Congestion, Rto},
        round_trip::Distance,
        seq::{LiveAck, ReplaySeq},
    },
    time::Nanos,
};

pub(crate) use transmit::{Plan, Poll};

/// Retransmissions of a SYN in a row: with the back-off, about a minute.
const MOST_SYN_RETRIES: u8 = 5;
/// SYNs sent again at once, between two that the timer sends, because the target spoke of an earlier connection.
const MOST_PROVOKED: u8 = 3;
/// Of anything else: from the shortest time-out on, about a hundred seconds.
const MOST_RETRIES: u8 = 8;
/// Octets that the target has acknowledged but not answered are kept up to this much, to be sent again if it closes.
const KEPT_FOR_RETRY: u64 = 256 << 10;
/// How long a session waits for a channel before its SYN was sent.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(5);
/// After the target's FIN: well before the target forgets its half of the connection (60 s, `tcp_fin_timeout`) and would
/// answer our FIN with a RST that nobody there recognises as ours.
const CLOSE_WAIT_LIMIT: Duration = Duration::from_secs(20);

/// What the surroundings lend a session while it works.
pub(crate) struct Context<'a> {
    pub now: Nanos,
    pub config: &'a Config,
    pub stats: &'a mut Stats,
    /// What this rule's servers are like.
    pub manners: &'a mut Manners,
    /// Of the live client.
    pub distance: Distance,
    /// Of the target's channel; `None` while it is down.
    pub credentials: Option<Credentials>,
}

/// What the servers of a rule are like, which their connections find out for each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Manners {
    /// Who speaks first.
    pub first_word: FirstWord,
    /// Whether they wait for acknowledgements.
    pub nagle: Nagle,
}

/// What is to become of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    Continue,
    /// It ended as the live connection did.
    Finished(Farewell),
    /// It ended early.
    Aborted(Reason, Farewell),
    /// Another target connection is to carry it on, from this offset.
    Reconnect(u64, Farewell),
    /// The target closed and owes nothing; the next request needs another connection.
    Rest(Farewell),
    /// Its four-tuple is taken at the target.
    Collided,
    /// The target holds an old connection on the same four-tuple, which a RST with this number ends.
    HalfOpen(ReplaySeq),
}

/// How a target connection is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Farewell {
    Nothing,
    Acknowledge,
    Reset,
}

/// The last segment on a target connection, without payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Last {
    pub target: TargetId,
    pub flow: Flow,
    pub seq: ReplaySeq,
    pub ack: u32,
    pub flags: TcpFlags,
    pub timestamps: Option<(u32, u32)>,
}

impl Last {
    /// A RST that stands alone.
    pub const fn reset(target: TargetId, flow: Flow, seq: ReplaySeq) -> Self {
        Self { target, flow, seq, ack: 0, flags: RST, timestamps: None }
    }

    /// As it goes on the wire.
    pub fn transmit(self) -> Transmit<'static> {
        Transmit {
            flow: self.flow,
            seq: self.seq.get(),
            ack: self.ack,
            window: if self.flags.contains(RST) { 0 } else { WINDOW },
            flags: self.flags,
            options: TransmitOptions { syn: None, timestamps: self.timestamps },
            segment_size: 1,
            payload: &[],
        }
    }
}

/// Where a session begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Stream offset of the first octet.
    pub offset: u64,
    /// Number of the mark there.
    pub mark: u64,
    /// What the live client had read by then, if that is known.
    pub read: Option<LiveAck>,
}

#[derive(Debug)]
pub(crate) struct Session {
    pub target: TargetId,
    /// As the target sees it.
    pub flow: Flow,
    /// How many client ports were tried.
    pub ports_tried: u8,
    /// Under which instance the SYN was sent.
    instance: u32,
    opening: Opening,
    /// Stream offset of the first octet on this target connection.
    origin: u64,
    /// Octets before this have been sent, be it on an earlier target connection.
    sent: u64,
    /// Octets before this have been acknowledged, likewise.
    accepted: u64,
    fin_sent: bool,
    /// The first mark whose octets have not been sent.
    next_mark: u64,
    /// What the live client had read when it sent the last octets that we sent.
    read: Option<LiveAck>,
    /// Where the newest request begins.
    request: u64,
    /// Whether the target has said anything since.
    answered: bool,
    /// Target connections in a row without an answer.
    fruitless: u8,
    answers: Answers,
    /// This target connection carries on something: a server that speaks first does so once more, which is no answer.
    greeting_due: bool,
    gate: Gate,
    gate_until: Moment,
    rto: Rto,
    /// When the retransmission timer, or the persist timer, expires.
    retransmit_at: Moment,
    /// When the target last said anything.
    heard: Nanos,
    /// When it last said something new.
    progress: Nanos,
    state: State,
}

/// The states of RFC 9293, as far as they differ here: which FINs have passed follows from the offsets and the receiver.
#[derive(Debug)]
enum State {
    /// SYN-SENT, or about to be.
    Connecting { since: Nanos, transmitted: bool, due: bool, provoked: u8 },
    /// ESTABLISHED and all that follows.
    Open(Open),
    /// CLOSED by the target, while the live connection goes on.
    Resting,
}

/// An established target connection.
#[derive(Debug)]
struct Open {
    receiver: Receiver,
    /// Octets (and the FIN, the offset after the last octet) before this are acknowledged: SND.UNA.
    una: u64,
    /// What to send next: SND.NXT; goes back to `una` when the timer expires.
    nxt: u64,
    /// The highest `nxt` so far.
    high: u64,
    /// The target's window ends here; it never shrinks (RFC 9293, section 3.8.6).
    window_end: u64,
    /// Shift count of the target's window field.
    scale: u8,
    /// The target's newest TSval (RFC 7323, section 4.3), if it agreed to timestamps.
    echo: Option<u32>,
    segment_size: u16,
    congestion: Congestion,
    duplicates: u8,
    /// The segment at `una` is to be sent again.
    resend: bool,
    acknowledger: Acknowledger,
    probe: bool,
    /// An offset whose acknowledgement yields a round-trip time, and when it was sent.
    timed: Option<(NonZeroU64, Nanos)>,
    since: Nanos,
    rare: Option<Box<Rare>>,
}

/// What a target connection has only after a loss or near its end: most are idle most of the time, and are to be small then.
#[derive(Clone, Copy, Debug, Default)]
struct Rare {
    /// In fast recovery until this is acknowledged (RFC 6582).
    recover: Option<NonZeroU64>,
    /// No fast retransmit before this is acknowledged: duplicates may come from our own retransmissions.
    guard: u64,
    /// When the target's FIN came, and what it acknowledged.
    closed: Option<(Nanos, u64)>,
}

impl Session {
    /// A session whose SYN is to be sent.
    pub fn new(now: Nanos, target: TargetId, flow: Flow, opening: Opening, origin: Origin) -> Self {
        Self {
            target,
            flow,
            ports_tried: 0,
            instance: 0,
            opening,
            origin: origin.offset,
            sent: origin.offset,
            accepted: origin.offset,
            fin_sent: false,
            next_mark: origin.mark,
            read: origin.read,
            request: origin.offset,
            answered: false,
            fruitless: 0,
            answers: Answers::default(),
            greeting_due: origin.offset > 0,
            gate: Gate::new(),
            gate_until: Moment::NEVER,
            rto: Rto::new(),
            retransmit_at: Moment::NEVER,
            heard: now,
            progress: now,
            state: State::Connecting { since: now, transmitted: false, due: true, provoked: 0 },
        }
    }

    /// Begins another target connection that carries on at `from`.
    pub fn reconnect(&mut self, now: Nanos, opening: Opening, from: u64, stream: &Stream) {
        if let Some(mark) = stream.mark(self.next_mark).filter(|m| m.offset == from) {
            // What it replies to was answered on the connection before: nothing to wait for.
            self.note_read(mark.ack);
        }
        self.opening = opening;
        self.origin = from;
        self.request = from;
        self.answered = false;
        self.fruitless = self.fruitless.saturating_add(1);
        self.answers = Answers::default();
        self.greeting_due = true;
        self.begin(now);
    }

    /// Tries another client port.
    pub fn remap(&mut self, now: Nanos, flow: Flow, opening: Opening) {
        self.flow = flow;
        self.opening = opening;
        self.ports_tried = self.ports_tried.saturating_add(1);
        self.begin(now);
    }

    fn begin(&mut self, now: Nanos) {
        self.gate.reconnect();
        self.gate_until = Moment::NEVER;
        self.rto = Rto::new();
        self.retransmit_at = Moment::NEVER;
        self.state = State::Connecting { since: now, transmitted: false, due: true, provoked: 0 };
    }

    /// Lets go of the target connection until there is something to send.
    pub fn rest(&mut self) {
        self.retransmit_at = Moment::NEVER;
        self.gate_until = Moment::NEVER;
        self.state = State::Resting;
    }

    /// Octets before this have been sent at least once.
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// Whether nothing of what it began with, or went on with elsewhere, has been sent.
    pub const fn has_sent_nothing(&self) -> bool {
        self.sent == self.origin
    }

    /// Whether the FIN has been sent at least once.
    pub const fn fin_sent(&self) -> bool {
        self.fin_sent
    }

    /// When the target last said something new.
    pub const fn progress(&self) -> Nanos {
        self.progress
    }

    /// Whether there is an established target connection.
    pub const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether the target may know of the present connection.
    pub const fn is_visible(&self) -> bool {
        match self.state {
            State::Connecting { transmitted, .. } => transmitted,
            State::Open(_) => true,
            State::Resting => false,
        }
    }

    /// The instance that the target knows the present connection by.
    pub const fn instance(&self) -> Option<u32> {
        if self.is_visible() { Some(self.instance) } else { None }
    }

    /// The sequence number after everything sent on the present connection: of a RST that the target must accept.
    pub fn reset_seq(&self) -> ReplaySeq {
        match &self.state {
            State::Connecting { .. } | State::Resting => self.seq_of(self.origin),
            // The target accepts a RST only at exactly the number that it expects next (RFC 5961, section 3.2): when
            // nothing was lost on the way, that is the highest sent.
            State::Open(open) => self.seq_of(open.high),
        }
    }

    /// The last segment of the present target connection.
    pub fn last(&self, farewell: Farewell) -> Option<Last> {
        let last = Last::reset(self.target, self.flow, self.reset_seq());
        match (farewell, &self.state) {
            (Farewell::Reset, _) if self.is_visible() => Some(last),
            (Farewell::Acknowledge, State::Open(open)) => Some(Last {
                ack: open.receiver.next().get(),
                flags: ACK,
                timestamps: open.echo.map(|echo| (self.opening.tsval, echo)),
                ..last
            }),
            _ => None,
        }
    }

    /// Sequence number and timestamp so far, which a new connection on the same four-tuple must exceed.
    pub fn used(&self) -> Opening {
        Opening { isn: self.reset_seq(), tsval: self.opening.tsval }
    }

    fn seq_of(&self, offset: u64) -> ReplaySeq {
        self.opening.isn.plus(1).plus(offset.wrapping_sub(self.origin) as u32)
    }

    /// Octets before this are no longer needed.
    pub fn needed_from(&self, config: &Config) -> u64 {
        let una = match &self.state {
            State::Open(open) => open.una,
            State::Connecting { .. } => self.origin,
            State::Resting => self.sent,
        };
        let retry = config.rejoin && !self.answered && una.saturating_sub(self.request) <= KEPT_FOR_RETRY;
        if retry { self.request.min(una) } else { una }
    }

    /// The live client's handshake ended with this acknowledgement: the live server's first octet has that number.
    pub fn learn_live_iss(&mut self, ack: LiveAck) {
        if self.next_mark == 0 {
            self.read.get_or_insert(ack);
        }
    }

    /// The live client's handshake has ended, which tells how far away it is.
    pub fn learn_distance(&mut self, distance: Distance) {
        if let State::Open(open) = &mut self.state {
            open.acknowledger.learn(distance);
        }
    }

    /// When the present state has lasted long enough: then [`handle_timeout`](Self::handle_timeout) wants to be called, as it
    /// does at [`soon`](Self::soon) and [`retransmit_at`](Self::retransmit_at).
    pub fn state_deadline(&self, channel_up: bool) -> Moment {
        match &self.state {
            State::Connecting { since, transmitted: false, .. } if !channel_up => {
                Moment::at(since.after(CHANNEL_PATIENCE))
            }
            State::Connecting { .. } | State::Resting => Moment::NEVER,
            State::Open(open) => open.rare().closed.map(|(at, _)| at.after(CLOSE_WAIT_LIMIT)).into(),
        }
    }

    /// When the gate or a delayed acknowledgement wants to be looked at.
    pub fn soon(&self) -> Moment {
        match &self.state {
            State::Open(open) => self.gate_until.min(open.acknowledger.deadline()),
            State::Connecting { .. } | State::Resting => self.gate_until,
        }
    }

    /// When the retransmission timer, or the persist timer, expires. While nothing may be sent it does not run.
    pub const fn retransmit_at(&self, channel_up: bool) -> Moment {
        if channel_up { self.retransmit_at } else { Moment::NEVER }
    }

    /// The channel is up again: what was not acknowledged meanwhile may have been, and its report be lost.
    pub fn handle_channel_up(&mut self, now: Nanos) {
        if self.retransmit_at.is_due(now) {
            self.retransmit_at = Moment::at(now.after(self.rto.current()));
        }
    }

    /// Does what is due.
    pub fn handle_timeout(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Outcome {
        let now = cx.now;
        if self.gate_until.is_due(now) {
            self.gate_until = Moment::NEVER;
        }
        let up = cx.credentials.is_some();
        let expired = self.retransmit_at(up).is_due(now);
        match &mut self.state {
            // Only while the channel is down: otherwise it has nothing that is due.
            State::Connecting { since, transmitted: false, .. } => {
                if now.since(*since) >= CHANNEL_PATIENCE {
                    return Outcome::Aborted(Reason::NoChannel, Farewell::Nothing);
                }
            }
            State::Connecting { due, provoked, .. } => {
                if expired {
                    if self.rto.expirations() >= MOST_SYN_RETRIES {
                        return Outcome::Aborted(Reason::TargetSilent, Farewell::Reset);
                    }
                    self.rto.expire();
                    self.retransmit_at = Moment::NEVER;
                    (*due, *provoked) = (true, 0);
                    cx.stats.timeouts += 1;
                }
            }
            State::Open(open) => {
                // Also while the channel is down: a deadline that has passed must go.
                open.release(cx);
                if expired {
                    let probing = open.una == open.high;
                    // A target whose window stays closed may answer probes for ever; the session timeout is for that.
                    let silent = !probing || now.since(self.heard) >= self.rto.current();
                    if self.rto.expirations() >= MOST_RETRIES && silent {
                        return Outcome::Aborted(Reason::TargetSilent, Farewell::Reset);
                    }
                    self.rto.expire();
                    self.retransmit_at = Moment::NEVER;
                    if probing {
                        open.probe = true;
                    } else {
                        open.time_out();
                        cx.stats.timeouts += 1;
                    }
                }
                if open.rare().closed.is_some_and(|(at, _)| now.since(at) >= CLOSE_WAIT_LIMIT) {
                    return if self.sent == stream.end() && !stream.is_over() && cx.config.rejoin {
                        Outcome::Rest(Farewell::Reset)
                    } else {
                        Outcome::Aborted(Reason::TargetClosed, Farewell::Reset)
                    };
                }
            }
            State::Resting => {}
        }
        Outcome::Continue
    }
}

impl Open {
    fn rare(&self) -> Rare {
        self.rare.as_deref().copied().unwrap_or_default()
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Lets acknowledgements out that are due.
    fn release(&mut self, cx: &mut Context<'_>) {
        let awaited = self.acknowledger.is_awaited();
        self.acknowledger.release(cx.now);
        cx.stats.handshakes_unseen += u64::from(awaited && !self.acknowledger.is_awaited());
    }

    /// How much is under way.
    const fn flight(&self) -> u32 {
        self.nxt.saturating_sub(self.una) as u32
    }

    /// The retransmission timer expired: everything unacknowledged is sent again, slowly (RFC 5681, section 3.1).
    fn time_out(&mut self) {
        self.congestion.collapse(self.high.saturating_sub(self.una) as u32, self.segment_size);
        self.nxt = self.una;
        let guard = self.high;
        let rare = self.rare_mut();
        rare.guard = guard;
        rare.recover = None;
        self.duplicates = 0;
        self.resend = false;
        self.timed = None;
    }
}
