//! What an early end at the target means: what goes to another connection, and which requests stay without an answer.

use super::{
    outcome::{Final, Outcome, Owed},
    shared::{Newest, Shared},
};
use crate::{
    causality::joining::Standing,
    config::Config,
    input::{
        offset::{LiveOffset, SentOffset},
        stream::Stream,
    },
    stats::Reason,
};

/// Maximum target connections in a row that end without an answer; then the session is given up.
const MAX_FRUITLESS: u8 = 2;

impl Shared {
    /// Decides what the live client's last segment means to a session that rests.
    pub(super) fn leave_rest(&self, stream: &Stream, config: &Config) -> Outcome {
        if let Some(from) = self.carry_on_at(stream, config) {
            Outcome::Reconnect(from, Final::Nothing, self.owed_on_reconnect(from, None, stream))
        } else if stream.end() > self.sent {
            Outcome::Aborted(Reason::TargetClosed, Final::Nothing)
        } else if stream.fin().is_some() || stream.reset().is_some() {
            Outcome::Finished(Final::Nothing, self.owed_at_end(Final::Nothing, None, stream))
        } else {
            Outcome::Continue
        }
    }

    /// Handles that the target has closed its direction, having acknowledged what lies before `acked`. It may still
    /// read, so only what it cannot answer any more is moved to another connection.
    ///
    /// A request that the target acknowledged before it closed may have reached an application that had closed already,
    /// or its answer may be the close (`quit`). What the live server did decides.
    pub(super) fn after_fin(&self, acked: SentOffset, stream: &Stream, config: &Config) -> Outcome {
        let read_to_the_end = self.fin_sent && stream.fin().is_some() && acked > self.adapter.end(stream);
        if read_to_the_end {
            return Outcome::Continue;
        }
        let crossed = if self.adapter.live_of(acked) < self.sent { self.repeat_from(stream, config) } else { None };
        match crossed.or_else(|| self.carry_on_at(stream, config)) {
            Some(from) => Outcome::Reconnect(from, Final::Reset, self.owed_on_reconnect(from, Some(acked), stream)),
            None => Outcome::Continue,
        }
    }

    /// Handles that the target connection is gone. `closed`: what the target's FIN had acknowledged, if there was one.
    pub(super) fn after_reset(&self, closed: Option<SentOffset>, stream: &Stream, config: &Config) -> Outcome {
        let next = if self.is_unanswered() {
            self.repeat_from(stream, config)
        } else if stream.end() > self.sent {
            self.resume_at(stream, config)
        } else if stream.gap_since().is_none() && stream.is_over() {
            return Outcome::Finished(Final::Nothing, self.owed_at_end(Final::Nothing, closed, stream));
        } else if config.rejoin {
            return Outcome::Rest(Final::Nothing);
        } else {
            None
        };
        match next {
            Some(from) => Outcome::Reconnect(from, Final::Nothing, self.owed_on_reconnect(from, closed, stream)),
            None => Outcome::Aborted(Reason::TargetReset, Final::Nothing),
        }
    }

    /// Whether the target has ended a connection that began in the middle because of that: without an answer, or with
    /// another one than the live server's.
    pub(super) fn is_refused(&self, stream: &Stream) -> bool {
        let Standing::OnTrial { stateful } = self.standing else { return false };
        if self.request > self.adapter.origin() {
            // It has answered the first request, if with less than the live server.
            return stateful;
        }
        if self.newest != Newest::Answered {
            return true;
        }
        let next = stream.mark(self.next_mark).and_then(|mark| mark.ack);
        next.is_some() && (stateful || !self.answers.is_alike(self.read_by(next)))
    }

    /// Whether the newest request was sent, in part at least, and the target has not answered it.
    fn is_unanswered(&self) -> bool {
        self.newest != Newest::Answered && self.request < self.sent
    }

    /// Where the newest request begins, if it was sent, not answered, and is still held (rule S5: only such octets go
    /// to a second connection).
    fn repeat_from(&self, stream: &Stream, config: &Config) -> Option<LiveOffset> {
        let possible =
            config.rejoin && self.is_unanswered() && stream.start() <= self.request && self.fruitless < MAX_FRUITLESS;
        possible.then_some(self.request)
    }

    /// Where the octets begin that were never sent, if a request begins there.
    fn resume_at(&self, stream: &Stream, config: &Config) -> Option<LiveOffset> {
        let begins = stream.mark(self.next_mark).is_some_and(|m| m.offset == self.sent)
            && (stream.begins_request(self.next_mark) || self.sent == LiveOffset::START);
        (config.rejoin && begins && self.fruitless < MAX_FRUITLESS).then_some(self.sent)
    }

    /// Where another connection carries on, if the live client's behaviour asks for one: at the newest request, which
    /// the live server has answered and the target has not, or at what was never sent.
    fn carry_on_at(&self, stream: &Stream, config: &Config) -> Option<LiveOffset> {
        let repeat = if self.is_answered_live(stream) { self.repeat_from(stream, config) } else { None };
        repeat.or_else(|| self.resume_at(stream, config))
    }

    /// Whether the live client shows that it has read an answer to the last octets that we sent.
    fn is_answered_live(&self, stream: &Stream) -> bool {
        let Some(read) = self.read else { return false };
        let next = stream.mark(self.next_mark).and_then(|mark| mark.ack);
        let end = stream.fin().or(stream.reset()).and_then(|ending| ending.ack);
        // A single number may be the live server's FIN.
        next.is_some_and(|ack| ack.is_after(read)) || end.is_some_and(|ack| ack.is_after(read.plus(1)))
    }

    /// What the present target connection still owes when another carries on at `from`. `closed`: what the target's FIN
    /// had acknowledged, if there was one.
    fn owed_on_reconnect(&self, from: LiveOffset, closed: Option<SentOffset>, stream: &Stream) -> Owed {
        let crossed = closed.is_some_and(|acked| self.adapter.live_of(acked) < self.sent);
        if from > self.request && (self.is_unanswered() || crossed) {
            Owed::Answer
        } else {
            Owed::Perhaps(self.unclear(closed, stream))
        }
    }

    /// What the present target connection still owes when the session ends as the live connection does, with a segment
    /// of this kind. A session that is aborted is counted as that.
    pub(super) fn owed_at_end(&self, kind: Final, closed: Option<SentOffset>, stream: &Stream) -> Owed {
        let answered_live = self.is_answered_live(stream);
        if self.is_unanswered() && answered_live {
            Owed::Answer
        } else if kind == Final::Reset || !answered_live {
            // With a RST it is the live client that ends.
            Owed::Perhaps(0)
        } else {
            Owed::Perhaps(self.unclear(closed, stream))
        }
    }

    /// How many requests may have stayed without an answer on the present target connection, which cannot be told for
    /// certain.
    fn unclear(&self, closed: Option<SentOffset>, stream: &Stream) -> u64 {
        let closed_first = closed.is_none_or(|acked| stream.fin().is_none() || acked <= self.adapter.end(stream));
        // Where the gate has been given up, the two servers do not speak in step, and the target had its reason to end.
        if !closed_first && self.gate.is_off() {
            return 0;
        }
        let next = stream.mark(self.next_mark).and_then(|mark| mark.ack);
        let end = stream.fin().or(stream.reset()).and_then(|ending| ending.ack);
        self.answers.unclear(self.newest == Newest::Answered, self.read_by(next.or(end)))
    }
}
