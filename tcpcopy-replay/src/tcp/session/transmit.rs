//! What to say to the target next.

use std::num::NonZeroU64;

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, SYN, TcpFlags};

use super::{Answers, Context, Farewell, Open, Outcome, Session, State};
use crate::{
    causality::gate::{FirstWord, LATE, PROBE, Permit},
    input::stream::Stream,
    segment::TransmitOptions,
    store::moment::Moment,
    tcp::{isn, receiver::WINDOW, seq::LiveAck},
    time::Nanos,
};

/// An IP packet holds 65,535 octets with its headers: at most 60 of IP, 60 of TCP.
const LARGEST_PAYLOAD: usize = 65_535 - 120;

/// A segment to be sent, but for the octets themselves, which are the stream's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: TcpFlags,
    pub options: TransmitOptions,
    pub segment_size: u16,
    /// Stream offset of the first octet, and how many.
    pub offset: u64,
    pub len: usize,
}

/// The answer to "what now?".
#[derive(Clone, Copy, Debug)]
pub(crate) enum Poll {
    /// Send this, and ask again.
    Transmit(Plan),
    /// Nothing until something happens.
    Idle,
    /// The session ends or moves.
    End(Outcome),
}

/// How far data may go.
enum Clearance {
    /// So many octets; `push` when what follows has to wait for an answer.
    Octets { len: usize, push: bool },
    /// Nothing yet.
    Wait,
}

/// Why a segment that the live client sent after it had read something may go.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pass {
    /// The target has answered, or nobody asks.
    InTurn,
    /// It has waited as long as it may.
    Early,
}

impl Session {
    /// What to send now. The channel must be up.
    pub fn poll(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll {
        match &mut self.state {
            State::Connecting { due: false, .. } | State::Resting => Poll::Idle,
            State::Connecting { .. } => self.poll_syn(cx),
            State::Open(_) => self.poll_open(stream, cx),
        }
    }

    fn poll_syn(&mut self, cx: &mut Context<'_>) -> Poll {
        let (State::Connecting { since, transmitted, due, .. }, Some(credentials)) = (&mut self.state, cx.credentials)
        else {
            return Poll::Idle;
        };
        *due = false;
        self.instance = credentials.instance;
        if *transmitted {
            cx.stats.retransmitted_segments += 1;
        } else {
            *transmitted = true;
            *since = cx.now;
        }
        self.retransmit_at = Moment::at(cx.now.after(self.rto.current()));
        let options = isn::syn_options(cx.config, &credentials, &self.flow, self.opening);
        Poll::Transmit(Plan {
            seq: self.opening.isn.get(),
            ack: 0,
            window: WINDOW,
            flags: SYN,
            options,
            segment_size: 1,
            offset: self.origin,
            len: 0,
        })
    }

    fn poll_open(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Poll {
        let State::Open(open) = &mut self.state else { return Poll::Idle };
        open.release(cx);
        if open.acknowledger.number(&open.receiver).is_none() {
            return Poll::Idle;
        }
        if open.resend {
            open.resend = false;
            if let Some(plan) = self.plan_resend(stream, cx) {
                return Poll::Transmit(plan);
            }
        }
        if let Some(plan) = self.plan_data(stream, cx) {
            return Poll::Transmit(plan);
        }
        if let Some(plan) = self.plan_fin(stream, cx) {
            return Poll::Transmit(plan);
        }
        if self.live_reset_is_due(stream, cx) {
            return Poll::End(Outcome::Finished(Farewell::Reset));
        }
        let State::Open(open) = &mut self.state else { return Poll::Idle };
        if open.probe {
            open.probe = false;
            cx.stats.window_probes += 1;
            // An octet that the target has already acknowledged, left out: it answers with its window, and nothing is
            // sent that it has no room for (as Linux does; RFC 9293, section 3.8.6.1 asks for an octet of new data).
            let offset = open.una.wrapping_sub(1);
            return Poll::Transmit(self.plan(offset, 0, ACK));
        }
        if open.acknowledger.is_due() {
            cx.stats.pure_acks += 1;
            let high = open.high;
            let plan = self.plan(high, 0, ACK);
            if let State::Open(open) = &mut self.state {
                open.acknowledger.told_alone(cx.now, &open.receiver);
            }
            return Poll::Transmit(plan);
        }
        Poll::Idle
    }

    /// A segment of the present connection; whatever it is, it acknowledges.
    fn plan(&mut self, offset: u64, len: usize, flags: TcpFlags) -> Plan {
        let seq = self.seq_of(offset).get();
        let tsval = self.opening.tsval;
        let (ack, echo, segment_size) = match &mut self.state {
            State::Open(open) => {
                open.acknowledger.told(&open.receiver);
                let number = open.acknowledger.number(&open.receiver).unwrap_or(open.receiver.next());
                (number.get(), open.echo, open.segment_size)
            }
            State::Connecting { .. } | State::Resting => (0, None, 1),
        };
        Plan {
            seq,
            ack,
            window: WINDOW,
            flags: ACK | flags,
            options: TransmitOptions { syn: None, timestamps: echo.map(|echo| (tsval, echo)) },
            segment_size,
            offset,
            len,
        }
    }

    /// Fast retransmit: one segment from SND.UNA.
    fn plan_resend(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Option<Plan> {
        let State::Open(open) = &mut self.state else { return None };
        if open.una >= open.high {
            return None;
        }
        let una = open.una;
        let len = (open.high.min(stream.end()).saturating_sub(una)).min(u64::from(open.segment_size)) as usize;
        let fin = FIN.when(len == 0);
        open.timed = None;
        self.retransmit_at = Moment::at(cx.now.after(self.rto.current()));
        cx.stats.retransmitted_segments += 1;
        cx.stats.retransmitted_bytes += len as u64;
        Some(self.plan(una, len, fin))
    }

    /// As much from SND.NXT as the windows and the gate allow.
    fn plan_data(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Option<Plan> {
        let State::Open(open) = &self.state else { return None };
        let from = open.nxt;
        let available = stream.end().saturating_sub(from);
        if available == 0 {
            return None;
        }
        let segment = usize::from(open.segment_size);
        let usable = open.usable();
        if usable == 0 || (usable < available && usable < segment as u64 && open.flight() > 0) {
            // Closed, or open by less than a segment while more will be acknowledged: wait (RFC 9293, section 3.8.6.2.1).
            if open.flight() == 0 && !self.retransmit_at.is_set() {
                self.retransmit_at = Moment::at(cx.now.after(self.rto.current()));
            }
            return None;
        }
        if !self.is_greeted(cx) {
            return None;
        }
        let mut len = available.min(usable).min(LARGEST_PAYLOAD as u64) as usize;
        if len as u64 != available && len >= segment {
            // What does not fill a segment goes with what follows it.
            len -= len % segment;
        }
        let again = from < self.sent;
        let mut push = false;
        if again {
            len = len.min((self.sent - from) as usize);
        } else {
            match self.clear(stream, from, len, cx) {
                Clearance::Octets { len: cleared, push: last } => (len, push) = (cleared, last),
                Clearance::Wait => return None,
            }
        }
        push |= from + len as u64 == stream.end();

        let State::Open(open) = &mut self.state else { return None };
        open.nxt = from + len as u64;
        open.high = open.high.max(open.nxt);
        self.sent = self.sent.max(open.nxt);
        if again {
            cx.stats.retransmitted_segments += 1;
            cx.stats.retransmitted_bytes += len as u64;
        } else {
            cx.stats.sent_segments += 1;
            cx.stats.bytes.send(len as u64);
            self.gate.sent(cx.now);
            open.timed = open.timed.or_else(|| NonZeroU64::new(open.nxt).map(|offset| (offset, cx.now)));
        }
        self.retransmit_at.set_once(cx.now.after(self.rto.current()));
        Some(self.plan(from, len, PSH.when(push)))
    }

    /// Passes the segments that begin in `from..from + len`, until one has to wait for an answer.
    fn clear(&mut self, stream: &Stream, from: u64, len: usize, cx: &mut Context<'_>) -> Clearance {
        let end = from + len as u64;
        while let Some(&mark) = stream.mark(self.next_mark).filter(|m| m.offset < end) {
            if self.is_reply(mark.ack, cx) {
                if mark.offset > from {
                    return Clearance::Octets { len: (mark.offset - from) as usize, push: true };
                }
                let Some(pass) = self.permitted(mark.time, cx) else { return Clearance::Wait };
                self.answers.request(self.read_by(mark.ack), pass == Pass::Early);
                if stream.begins_request(self.next_mark) && self.answered {
                    self.request = mark.offset;
                    self.answered = false;
                }
            }
            if let Some(waited) = self.gate.pass(cx.now, mark.time) {
                // Meanwhile another connection has shown that there is nothing to wait for.
                cx.stats.gate_wait.record(waited);
            }
            self.note_read(mark.ack);
            if mark.push {
                self.answers.write();
            }
            self.next_mark += 1;
            cx.stats.lag.record(cx.now.since(self.gate.ready(mark.time)));
        }
        Clearance::Octets { len, push: false }
    }

    /// Whether a segment shows that the live client had read something since the one before.
    fn is_reply(&self, ack: Option<LiveAck>, cx: &Context<'_>) -> bool {
        match (self.read, ack) {
            (Some(read), Some(ack)) => ack.is_after(read),
            (None, Some(_)) => cx.manners.first_word != FirstWord::Client,
            (_, None) => false,
        }
    }

    /// Notes what the live client had read when it sent what we send now.
    pub(crate) fn note_read(&mut self, ack: Option<LiveAck>) {
        // Captured out of order, a segment may acknowledge less than the one before it in the stream.
        if let Some(ack) = ack
            && self.read.is_none_or(|read| ack.is_after(read))
        {
            self.read = Some(ack);
        }
    }

    /// How much the live client had read since it sent what we sent last.
    pub(crate) fn read_by(&self, ack: Option<LiveAck>) -> u32 {
        self.read.zip(ack).map_or(0, |(read, ack)| ack.distance(read).max(0) as u32)
    }

    /// Whether the greeting, if the target speaks first on each connection, has been waited for.
    fn is_greeted(&mut self, cx: &mut Context<'_>) -> bool {
        if self.greeting_due && (cx.manners.first_word == FirstWord::Client || self.permitted(cx.now, cx).is_some()) {
            self.greeting_due = false;
            self.answers = Answers::default();
        }
        !self.greeting_due
    }

    /// Asks the gate for a segment that is a reply; `None`: not yet.
    fn permitted(&mut self, captured: Nanos, cx: &mut Context<'_>) -> Option<Pass> {
        let greeting = self.read.is_none() || self.greeting_due;
        let probing = greeting && cx.manners.first_word == FirstWord::Unknown;
        let limit = if probing { PROBE.min(cx.config.gate_limit) } else { cx.config.gate_limit };
        match self.gate.ask(cx.now, captured, self.rto.shortest(), limit, cx.config) {
            Permit::Wait(until) => {
                self.gate_until = Moment::at(until);
                None
            }
            Permit::Granted { waited, forced } => {
                self.gate_until = Moment::NEVER;
                cx.stats.gate_wait.record(waited);
                cx.stats.gate_late += u64::from(!forced && waited > LATE);
                if forced && greeting {
                    // No greeting came.
                    cx.manners.first_word = FirstWord::Client;
                } else if forced {
                    cx.stats.gate_expired += 1;
                    cx.stats.sessions_ungated += u64::from(self.gate.strike());
                    return Some(Pass::Early);
                }
                Some(Pass::InTurn)
            }
        }
    }

    fn plan_fin(&mut self, stream: &Stream, cx: &mut Context<'_>) -> Option<Plan> {
        let fin = stream.fin()?;
        let State::Open(open) = &self.state else { return None };
        if open.nxt != fin.offset {
            return None;
        }
        let offset = open.nxt;
        if !self.fin_sent && self.is_reply(fin.ack, cx) && self.permitted(cx.now, cx).is_none() {
            return None;
        }
        let State::Open(open) = &mut self.state else { return None };
        open.nxt = offset + 1;
        open.high = open.high.max(open.nxt);
        if self.fin_sent {
            cx.stats.retransmitted_segments += 1;
        } else {
            self.fin_sent = true;
            cx.stats.fins.send(1);
        }
        self.retransmit_at.set_once(cx.now.after(self.rto.current()));
        Some(self.plan(offset, 0, FIN))
    }

    /// Whether everything before the live client's RST has arrived, so that the RST may follow.
    fn live_reset_is_due(&mut self, stream: &Stream, cx: &mut Context<'_>) -> bool {
        let Some(reset) = stream.reset() else { return false };
        let State::Open(open) = &self.state else { return false };
        let (end, read) = stream.fin().map_or((stream.end(), None), |fin| (fin.offset + 1, fin.ack));
        // The FIN has already waited for what it replies to.
        let is_news = reset.ack.zip(read).is_none_or(|(ack, read)| ack.is_after(read));
        open.una >= end && (!(is_news && self.is_reply(reset.ack, cx)) || self.permitted(cx.now, cx).is_some())
    }
}

impl Open {
    /// How many octets may be sent from SND.NXT on.
    fn usable(&self) -> u64 {
        // In fast recovery each duplicate tells that a segment has left the network (RFC 6582, section 3.2).
        let inflated = match self.rare().recover {
            Some(_) => u64::from(self.duplicates) * u64::from(self.segment_size),
            None => 0,
        };
        let congestion_end = self.una + u64::from(self.congestion.window()) + inflated;
        congestion_end.min(self.window_end).saturating_sub(self.nxt)
    }
}
