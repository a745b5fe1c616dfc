//! The live client's segments, passed one by one: each goes to the target once what the live client had read before it
//! was answered there, too.

use super::shared::{Context, Newest, Shared};
use crate::{
    causality::{
        answers::Answers,
        frames::{are_unanswered, begin_connection},
        gate::{LATE, Permit},
        greeting::{FirstSpeaker, PROBE},
    },
    input::{
        offset::{LiveOffset, SentOffset},
        stream::Stream,
    },
    store::moment::Moment,
    tcp::seq::LiveAck,
    time::Nanos,
};

/// How far data may go.
pub(super) enum Clearance {
    /// This many octets; `push` when what follows has to wait for an answer, `asks` if there may be one to them.
    Octets { len: usize, push: bool, asks: bool },
    /// Nothing yet.
    Wait,
}

/// Why a segment that the live client sent after it had read something may go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pass {
    /// The target has answered, or the gate is off.
    InTurn,
    /// It has waited as long as it may.
    Early,
}

impl Shared {
    /// Passes the segments that begin in the `len` octets after `from`, until one has to wait for an answer.
    pub(super) fn clear(&mut self, stream: &Stream, from: SentOffset, len: usize, cx: &mut Context<'_>) -> Clearance {
        let end = from.plus(len as u64);
        // What was let through before.
        let first = stream.mark(self.next_mark).map_or(end, |mark| self.adapter.sent_of(mark.offset));
        let mut asks = first > from;
        while let Some(&mark) = stream.mark(self.next_mark) {
            let begin = self.adapter.sent_of(mark.offset);
            if begin >= end {
                break;
            }
            let octets = self.octets_of(stream, mark.offset);
            if are_unanswered(octets) {
                // It waits for nothing, and nothing waits for an answer to it.
                self.next_mark += 1;
                cx.stats.lag.record(cx.now.since(self.gate.ready(mark.time)));
                continue;
            }
            if self.is_reply(mark.ack, cx) {
                if begin > from {
                    return Clearance::Octets { len: begin.since(from) as usize, push: true, asks };
                }
                let Some(pass) = self.permitted(mark.time, cx) else { return Clearance::Wait };
                self.answers.record_request(self.read_by(mark.ack), pass == Pass::Early);
                if stream.begins_request(self.next_mark) && self.newest == Newest::Answered {
                    self.request = mark.offset;
                    self.newest = Newest::Kept;
                }
            }
            if let Some(waited) = self.gate.skip(cx.now, mark.time) {
                // Meanwhile another connection has shown that there is nothing to wait for.
                cx.stats.gate_wait.record(waited);
            }
            asks = true;
            if begin_connection(octets) {
                self.answers.record_concurrency();
            }
            self.note_read(mark.ack);
            if mark.push {
                self.answers.record_write();
            }
            self.next_mark += 1;
            cx.stats.lag.record(cx.now.since(self.gate.ready(mark.time)));
        }
        Clearance::Octets { len, push: false, asks }
    }

    /// The octets of the segment that begins at `offset` and has the next mark.
    fn octets_of<'a>(&self, stream: &'a Stream, offset: LiveOffset) -> &'a [u8] {
        let end = stream.mark(self.next_mark + 1).map_or(stream.end(), |next| next.offset);
        stream.slice(offset, end.since(offset) as usize)
    }

    /// Whether a segment shows that the live client had read something since the one before.
    pub(super) fn is_reply(&self, ack: Option<LiveAck>, cx: &Context<'_>) -> bool {
        match (self.read, ack) {
            (Some(read), Some(ack)) => ack.is_after(read),
            (None, Some(_)) => cx.profile.first_speaker != FirstSpeaker::Client,
            (_, None) => false,
        }
    }

    /// Notes what the live client had read when it sent what we send now.
    pub(super) fn note_read(&mut self, ack: Option<LiveAck>) {
        // Captured out of order, a segment may acknowledge less than the one before it in the stream.
        if let Some(ack) = ack
            && self.read.is_none_or(|read| ack.is_after(read))
        {
            if self.read.is_none() {
                self.base = ack;
            }
            self.read = Some(ack);
        }
    }

    /// How much the live client had read since it sent what we sent last.
    pub(super) fn read_by(&self, ack: Option<LiveAck>) -> u32 {
        self.read.zip(ack).map_or(0, |(read, ack)| ack.distance(read).max(0) as u32)
    }

    /// Whether the target may speak first, and has not yet.
    pub(super) fn may_be_greeted(&self, cx: &Context<'_>) -> bool {
        (self.greeting_due || self.read.is_none()) && cx.profile.first_speaker != FirstSpeaker::Client
    }

    /// Whether the greeting, if the target speaks first on each connection, has been waited for.
    pub(super) fn is_greeted(&mut self, cx: &mut Context<'_>) -> bool {
        if self.greeting_due
            && (cx.profile.first_speaker == FirstSpeaker::Client || self.permitted(cx.now, cx).is_some())
        {
            self.greeting_due = false;
            self.answers = Answers::default();
        }
        !self.greeting_due
    }

    /// Asks the gate for a segment that is a reply; `None`: not yet.
    pub(super) fn permitted(&mut self, captured: Nanos, cx: &mut Context<'_>) -> Option<Pass> {
        let greeting = self.read.is_none() || self.greeting_due;
        let probing = greeting && cx.profile.first_speaker == FirstSpeaker::Unknown;
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
                    cx.profile.first_speaker = FirstSpeaker::Client;
                } else if forced {
                    cx.stats.gate_expired += 1;
                    cx.stats.sessions_ungated += u64::from(self.gate.strike());
                    return Some(Pass::Early);
                }
                Some(Pass::InTurn)
            }
        }
    }
}
