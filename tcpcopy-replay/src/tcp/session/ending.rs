//! What becomes of a session whose target connection ends before the live one: what goes to another connection, and which requests
//! stay without an answer.

use super::{Farewell, Outcome, Session, State};
use crate::{config::Config, input::stream::Stream, stats::Reason};

/// Target connections in a row that ended without an answer, until the session is given up.
const MOST_FRUITLESS: u8 = 2;

impl Session {
    /// The live client said more, while the target may have closed already.
    pub(crate) fn reconsider(&self, stream: &Stream, config: &Config) -> Outcome {
        match &self.state {
            State::Connecting { .. } => Outcome::Continue,
            State::Open(open) => match open.rare().closed {
                Some((_, acked)) => self.after_fin(acked, stream, config),
                None => Outcome::Continue,
            },
            State::Resting => {
                if let Some(from) = self.carry_on_at(stream, config) {
                    Outcome::Reconnect(from, Farewell::Nothing)
                } else if stream.end() > self.sent {
                    Outcome::Aborted(Reason::TargetClosed, Farewell::Nothing)
                } else if stream.fin().is_some() || stream.reset().is_some() {
                    Outcome::Finished(Farewell::Nothing)
                } else {
                    Outcome::Continue
                }
            }
        }
    }

    /// The target closed its direction, having acknowledged what lies before `acked`. It may still read, so only what it
    /// cannot answer any more is moved to another connection.
    ///
    /// A request that the target acknowledged before it closed may have reached an application that had closed already,
    /// or its answer may be the close (`quit`). What the live server did decides.
    pub(crate) fn after_fin(&self, acked: u64, stream: &Stream, config: &Config) -> Outcome {
        let read_to_the_end = self.fin_sent && stream.fin().is_some_and(|fin| acked > fin.offset);
        if read_to_the_end {
            return Outcome::Continue;
        }
        let crossed = if acked < self.sent { self.repeat_from(stream, config) } else { None };
        match crossed.or_else(|| self.carry_on_at(stream, config)) {
            Some(from) => Outcome::Reconnect(from, Farewell::Reset),
            None => Outcome::Continue,
        }
    }

    /// The target connection is gone.
    pub(crate) fn after_reset(&self, stream: &Stream, config: &Config) -> Outcome {
        let unanswered = !self.answered && self.request < self.sent;
        if unanswered {
            return match self.repeat_from(stream, config) {
                Some(from) => Outcome::Reconnect(from, Farewell::Nothing),
                None => Outcome::Aborted(Reason::TargetReset, Farewell::Nothing),
            };
        }
        if stream.end() > self.sent {
            return match self.resume_at(stream, config) {
                Some(from) => Outcome::Reconnect(from, Farewell::Nothing),
                None => Outcome::Aborted(Reason::TargetReset, Farewell::Nothing),
            };
        }
        if stream.hole_since().is_none() && stream.is_over() {
            return Outcome::Finished(Farewell::Nothing);
        }
        if config.rejoin {
            Outcome::Rest(Farewell::Nothing)
        } else {
            Outcome::Aborted(Reason::TargetReset, Farewell::Nothing)
        }
    }

    /// Where the newest request begins, if it was sent, not answered, and is still held (rule S5: only such octets go to a
    /// second connection).
    fn repeat_from(&self, stream: &Stream, config: &Config) -> Option<u64> {
        let possible = config.rejoin
            && !self.answered
            && self.request < self.sent
            && stream.start() <= self.request
            && self.fruitless < MOST_FRUITLESS;
        possible.then_some(self.request)
    }

    /// Where the octets begin that were never sent, if a request begins there.
    fn resume_at(&self, stream: &Stream, config: &Config) -> Option<u64> {
        let begins = stream.mark(self.next_mark).is_some_and(|m| m.offset == self.sent)
            && (stream.begins_request(self.next_mark) || self.sent == 0);
        (config.rejoin && begins && self.fruitless < MOST_FRUITLESS).then_some(self.sent)
    }

    /// Where another connection carries on, if the live client's behaviour asks for one: at the newest request, which the
    /// live server has answered and the target has not, or at what was never sent.
    fn carry_on_at(&self, stream: &Stream, config: &Config) -> Option<u64> {
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

    /// Whether a request of the present target connection stays without an answer for good, if this becomes of the
    /// session. An aborted one is counted as that.
    pub(crate) fn leaves_unanswered(&self, outcome: Outcome, stream: &Stream) -> bool {
        let silent = !self.answered && self.request < self.sent;
        let closed = if let State::Open(open) = &self.state { open.rare().closed } else { None };
        let crossed = closed.is_some_and(|(_, acked)| acked < self.sent);
        match outcome {
            Outcome::Reconnect(from, _) => from > self.request && (silent || crossed),
            Outcome::Finished(_) => silent && self.is_answered_live(stream),
            _ => false,
        }
    }

    /// How many requests may have stayed without an answer on the present target connection, which nobody can tell for
    /// certain, if this becomes of the session.
    pub(crate) fn leaves_unclear(&self, outcome: Outcome, stream: &Stream) -> u64 {
        let closed_first = match &self.state {
            State::Connecting { .. } => false,
            State::Open(open) => {
                open.rare().closed.is_none_or(|(_, acked)| stream.fin().is_none_or(|fin| acked <= fin.offset))
            }
            State::Resting => true,
        };
        let ended = match outcome {
            Outcome::Reconnect(..) => true,
            // With a RST it is the live client that ends.
            Outcome::Finished(farewell) => farewell != Farewell::Reset && self.is_answered_live(stream),
            _ => false,
        };
        // Where the gate has been given up, the two servers do not speak in step, and the target had its reason to end.
        if !ended || !closed_first && self.gate.is_off() {
            return 0;
        }
        let next = stream.mark(self.next_mark).and_then(|mark| mark.ack);
        let end = stream.fin().or(stream.reset()).and_then(|ending| ending.ack);
        self.answers.unclear(self.answered, self.read_by(next.or(end)))
    }
}
