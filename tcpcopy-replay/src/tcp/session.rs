//! One replayed session: the client side of TCP connections to the target, driven by what a live client sent.
//!
//! | | |
//! |---|---|
//! | [`connecting`] | from the SYN to the SYN-ACK |
//! | [`open`] | an established connection: its state and its timers |
//! | [`receive`] | its receive path: acknowledgements, payload, FIN, RST |
//! | [`transmit`] | its send path: data as far as windows and gate allow, FIN, ACKs, probes |
//! | [`pacing`] | the live client's segments, passed one by one as the gate opens |
//! | [`farewell`] | whether the live client's end waits for answers |
//! | [`ending`] | what an early end at the target means |
//! | [`shared`] | what the states have in common, and what they borrow of the engine |
//! | [`outcome`] | what a session asks of the engine |
//! | here | the states, and the session's face |
//!
//! Each state owns its data, and its methods take what the states share ([`Shared`]) beside it: what holds only of an
//! open connection cannot be asked of another. What the live client has sent is counted in [`LiveOffset`]s, what was
//! sent to the target in [`SentOffset`]s; the session's [`Adapter`] converts. Sequence numbers appear only at the edge.

mod connecting;
mod ending;
mod farewell;
mod open;
mod outcome;
mod pacing;
mod receive;
mod shared;
mod transmit;

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{ACK, RST},
};

use self::{
    connecting::Connecting,
    open::Open,
    shared::{Newest, Shared},
};
pub(crate) use self::{
    outcome::{Final, FinalSegment, Outcome, Owed, Plan, Poll},
    shared::Context,
};
use crate::{
    causality::{
        answers::Answers,
        gate::Gate,
        joining::{HEAD, Standing},
    },
    config::{Config, TargetId},
    input::{
        adapter::{Adapter, Rewrite},
        offset::{LiveOffset, SentOffset},
        stream::Stream,
    },
    report::SegmentReport,
    store::moment::Moment,
    tcp::{
        distance::Distance,
        isn::Opening,
        rto::Rto,
        seq::{LiveAck, ReplaySeq},
    },
    time::Nanos,
};

/// Where a session begins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    /// Of the first octet.
    pub offset: LiveOffset,
    /// Number of the mark there.
    pub mark: u64,
    /// What the live client had read by then, if that is known.
    pub read: Option<LiveAck>,
    pub standing: Standing,
}

impl Origin {
    /// The beginning of the live connection.
    pub(crate) const fn whole(read: Option<LiveAck>) -> Self {
        Self { offset: LiveOffset::START, mark: 0, read, standing: Standing::Good }
    }
}

/// One replay of a live connection.
#[derive(Debug)]
pub(crate) struct Session {
    shared: Shared,
    state: State,
}

/// The states of RFC 9293, as far as they differ here: which FINs have passed follows from the offsets and the
/// receiver.
#[derive(Debug)]
enum State {
    /// SYN-SENT, or about to be.
    Connecting(Connecting),
    /// ESTABLISHED and all that follows.
    Open(Open),
    /// CLOSED by the target, while the live connection goes on.
    Resting,
}

impl Session {
    /// A session whose SYN is to be sent. `ports_tried`: how many four-tuples were passed over before `flow`.
    pub(crate) fn new(
        now: Nanos,
        target: TargetId,
        flow: Flow,
        ports_tried: u8,
        opening: Opening,
        origin: Origin,
        rewrite: Rewrite,
    ) -> Self {
        let shared = Shared {
            target,
            flow,
            ports_tried,
            instance: 0,
            opening,
            adapter: Adapter::new(origin.offset, rewrite),
            sent: origin.offset,
            accepted: origin.offset,
            fin_sent: false,
            next_mark: origin.mark,
            read: origin.read,
            base: origin.read.unwrap_or_default(),
            request: origin.offset,
            newest: Newest::Kept,
            standing: origin.standing,
            fruitless: 0,
            answers: Answers::default(),
            greeting_due: origin.offset > LiveOffset::START,
            gate: Gate::new(),
            gate_until: Moment::NEVER,
            rto: Rto::new(),
            retransmit_at: Moment::NEVER,
            last_heard: now,
            last_progress: now,
        };
        Self { shared, state: State::Connecting(Connecting::new(now)) }
    }

    /// Begins another target connection that carries on at `from`.
    pub(crate) fn reconnect(&mut self, now: Nanos, opening: Opening, from: LiveOffset, stream: &Stream) {
        let shared = &mut self.shared;
        if let Some(mark) = stream.mark(shared.next_mark).filter(|m| m.offset == from) {
            // What it replies to was answered on the connection before: nothing to wait for.
            shared.note_read(mark.ack);
        }
        shared.base = shared.read.unwrap_or_default();
        shared.opening = opening;
        shared.adapter.restart(from);
        shared.request = from;
        shared.newest = Newest::Kept;
        shared.standing = Standing::at(from, stream.slice(from, HEAD));
        shared.fruitless = shared.fruitless.saturating_add(1);
        shared.answers = Answers::default();
        shared.greeting_due = true;
        self.begin(now);
    }

    /// Tries another client port; `ports_tried` as in [`new`](Self::new).
    pub(crate) fn remap(&mut self, now: Nanos, flow: Flow, ports_tried: u8, opening: Opening) {
        self.shared.flow = flow;
        self.shared.opening = opening;
        self.shared.ports_tried = ports_tried;
        self.begin(now);
    }

    fn begin(&mut self, now: Nanos) {
        self.shared.gate.reconnect();
        self.shared.gate_until = Moment::NEVER;
        self.shared.rto = Rto::new();
        self.shared.retransmit_at = Moment::NEVER;
        self.state = State::Connecting(Connecting::new(now));
    }

    /// Lets go of the target connection until there is something to send.
    pub(crate) fn rest(&mut self) {
        self.shared.retransmit_at = Moment::NEVER;
        self.shared.gate_until = Moment::NEVER;
        self.state = State::Resting;
    }

    /// The channel that reports what the target sends.
    pub(crate) const fn target(&self) -> TargetId {
        self.shared.target
    }

    /// The four-tuple that the target sees.
    pub(crate) const fn flow(&self) -> &Flow {
        &self.shared.flow
    }

    /// How many client ports were tried.
    pub(crate) const fn ports_tried(&self) -> u8 {
        self.shared.ports_tried
    }

    /// Live octets before this have been sent at least once.
    pub(crate) const fn sent(&self) -> LiveOffset {
        self.shared.sent
    }

    /// Whether nothing of what it began with, or went on with elsewhere, has been sent.
    pub(crate) fn has_sent_nothing(&self) -> bool {
        self.shared.sent == self.shared.adapter.origin()
    }

    /// Whether the target has ended a connection that began in the middle because of that. To be asked when it has
    /// ended; as long as the live client does not go on, an answer cannot be told from a complaint.
    pub(crate) fn is_refused(&self, stream: &Stream) -> bool {
        self.shared.is_refused(stream)
    }

    /// Whether the FIN has been sent at least once.
    pub(crate) const fn fin_sent(&self) -> bool {
        self.shared.fin_sent
    }

    /// When the target last sent or acknowledged something new.
    pub(crate) const fn last_progress(&self) -> Nanos {
        self.shared.last_progress
    }

    /// Whether there is an established target connection.
    pub(crate) const fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    /// Whether the target may know of the present connection.
    pub(crate) const fn is_visible(&self) -> bool {
        match &self.state {
            State::Connecting(connecting) => connecting.is_visible(),
            State::Open(_) => true,
            State::Resting => false,
        }
    }

    /// Whether the SYN that was sent last is the first of its connection.
    pub(crate) const fn is_first_syn(&self) -> bool {
        self.shared.rto.expirations() == 0
    }

    /// The instance that the target knows the present connection by.
    pub(crate) const fn instance(&self) -> Option<u32> {
        if self.is_visible() { Some(self.shared.instance) } else { None }
    }

    /// The sequence number after everything sent on the present connection: of a RST that the target must accept.
    pub(crate) fn reset_seq(&self) -> ReplaySeq {
        match &self.state {
            State::Connecting(_) | State::Resting => self.shared.seq_of(SentOffset::START),
            State::Open(open) => open.reset_seq(&self.shared),
        }
    }

    /// The final segment of the present target connection.
    pub(crate) fn final_segment(&self, kind: Final) -> Option<FinalSegment> {
        let reset = FinalSegment::reset(self.shared.target, self.shared.flow, self.reset_seq());
        match (kind, &self.state) {
            (Final::Reset, _) if self.is_visible() => Some(reset),
            (Final::Acknowledge, State::Open(open)) => {
                let (ack, timestamps) = open.final_ack(&self.shared);
                Some(FinalSegment { ack: ack.get(), flags: ACK, timestamps, ..reset })
            }
            (Final::Nothing | Final::Acknowledge | Final::Reset, _) => None,
        }
    }

    /// Sequence number and timestamp so far, which a new connection on the same four-tuple must exceed.
    pub(crate) fn used(&self) -> Opening {
        Opening { isn: self.reset_seq(), tsval: self.shared.opening.tsval }
    }

    /// Whether what is sent at an offset is of the header that the present target connection begins with.
    pub(crate) fn is_header(&self, from: SentOffset) -> bool {
        from < self.shared.adapter.first()
    }

    /// The octets of a planned segment; `header`: of the header, if [that is it](Self::is_header).
    pub(crate) fn slice<'a>(&'a self, stream: &'a Stream, header: &'a [u8], from: SentOffset, len: usize) -> &'a [u8] {
        self.shared.adapter.slice(stream, header, from, len)
    }

    /// Live octets before this are no longer needed.
    pub(crate) fn needed_from(&self, config: &Config) -> LiveOffset {
        let shared = &self.shared;
        let una = match &self.state {
            State::Open(open) => shared.adapter.live_of(open.una),
            State::Connecting(_) => shared.adapter.origin(),
            State::Resting => shared.sent,
        };
        if shared.may_retry(una, config) { shared.request.min(una) } else { una }
    }

    /// Whether octets are kept only because the target may close without having answered them.
    pub(crate) fn keeps_for_retry(&self, config: &Config) -> bool {
        match &self.state {
            State::Open(open) => {
                let una = self.shared.adapter.live_of(open.una);
                self.shared.request < una && self.shared.may_retry(una, config)
            }
            State::Connecting(_) | State::Resting => false,
        }
    }

    /// Keeps the newest request no longer.
    pub(crate) fn give_up_retry(&mut self) {
        if self.shared.newest == Newest::Kept {
            self.shared.newest = Newest::Forgotten;
        }
    }

    /// Notes that the live client's handshake has ended, which tells how far away it is.
    pub(crate) fn learn_distance(&mut self, distance: Distance) {
        if let State::Open(open) = &mut self.state {
            open.learn_distance(distance);
        }
    }

    /// When the present state has lasted long enough: then [`handle_timeout`](Self::handle_timeout) wants to be called,
    /// as it does at [`soon`](Self::soon) and [`retransmit_at`](Self::retransmit_at).
    pub(crate) fn state_deadline(&self, channel_up: bool) -> Moment {
        match &self.state {
            State::Connecting(connecting) if !channel_up => connecting.channel_deadline(),
            State::Connecting(_) | State::Resting => Moment::NEVER,
            State::Open(open) if channel_up => {
                open.close_wait_deadline(&self.shared).min(open.keepalive_deadline(&self.shared))
            }
            State::Open(open) => open.close_wait_deadline(&self.shared),
        }
    }

    /// When the gate or a delayed acknowledgement wants to be looked at.
    pub(crate) fn soon(&self) -> Moment {
        match &self.state {
            State::Open(open) => self.shared.gate_until.min(open.ack_deadline()),
            State::Connecting(_) | State::Resting => self.shared.gate_until,
        }
    }

    /// When the retransmission timer, or the persist timer, expires. While nothing may be sent it does not run.
    pub(crate) const fn retransmit_at(&self, channel_up: bool) -> Moment {
        if channel_up { self.shared.retransmit_at } else { Moment::NEVER }
    }

    /// Handles that the channel is up again: what was not acknowledged meanwhile may have been, and its report be lost.
    pub(crate) fn handle_channel_up(&mut self, now: Nanos) {
        if self.shared.retransmit_at.is_due(now) {
            self.shared.retransmit_at = Moment::at(now.after(self.shared.rto.current()));
        }
    }

    /// Fires expired timers.
    pub(crate) fn handle_timeout(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Outcome {
        let expired = self.retransmit_at(cx.credentials.is_some()).is_due(cx.now);
        let Self { shared, state } = self;
        if shared.gate_until.is_due(cx.now) {
            shared.gate_until = Moment::NEVER;
        }
        match state {
            State::Connecting(connecting) => connecting.handle_timeout(shared, expired, cx),
            State::Open(open) => open.handle_timeout(shared, expired, stream, cx),
            State::Resting => Outcome::Continue,
        }
    }

    /// Handles a response segment of this session's four-tuple.
    pub(crate) fn handle_segment(&mut self, r: &SegmentReport<'_>, stream: &Stream, cx: &mut Context<'_>) -> Outcome {
        let Self { shared, state } = self;
        match state {
            State::Open(open) => open.handle_segment(shared, r, stream, cx),
            State::Connecting(connecting) if connecting.is_visible() => {
                match connecting.handle_segment(shared, r, cx) {
                    Ok(open) => {
                        *state = State::Open(open);
                        Outcome::Continue
                    }
                    Err(outcome) => outcome,
                }
            }
            State::Connecting(_) | State::Resting => {
                // From a connection that is over for us: a late SYN, or a RST that was lost.
                cx.stats.stale_responses += 1;
                if r.flags & (ACK | RST) == ACK { Outcome::HalfOpen(ReplaySeq::new(r.ack)) } else { Outcome::Continue }
            }
        }
    }

    /// Whether a SYN with this sequence number is on its way.
    pub(crate) const fn awaits(&self, seq: ReplaySeq) -> bool {
        matches!(&self.state, State::Connecting(connecting) if connecting.is_visible())
            && seq.get() == self.shared.opening.isn.get()
    }

    /// Returns what to send now: nothing while the channel is down.
    pub(crate) fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll {
        let Self { shared, state } = self;
        let Some(credentials) = cx.credentials else { return Poll::Idle };
        match state {
            State::Connecting(connecting) => connecting.poll(shared, &credentials, cx),
            State::Open(open) => open.poll(shared, stream, cx),
            State::Resting => Poll::Idle,
        }
    }

    /// Decides anew after the live client sent more: the target may have closed already.
    pub(crate) fn reconsider(&self, stream: &Stream, config: &Config) -> Outcome {
        match &self.state {
            State::Connecting(_) => Outcome::Continue,
            State::Open(open) => match open.acknowledged_at_close() {
                Some(acked) => self.shared.after_fin(acked, stream, config),
                None => Outcome::Continue,
            },
            State::Resting => self.shared.leave_rest(stream, config),
        }
    }
}
