//! The end of a live connection that had several requests under way: it waits for the answers to all of them.

use std::time::Duration;

use super::{
    open::Open,
    shared::{Context, Shared},
};
use crate::{causality::farewell::Parting, store::moment::Moment, tcp::seq::LiveAck};

/// How long a target that has sent enough must have been quiet. Some of it may be no answer: a server of HTTP/2 asks by
/// PING and opens windows when it likes to, which the live one has not done, or not as often.
const QUIET: Duration = Duration::from_millis(20);

/// Whether the live client's FIN or RST may follow what was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// As far as the answers go that the target owes.
    Due,
    /// It has waited for them as long as it may.
    Forced,
    /// Not yet.
    Waits,
}

impl Open {
    /// Decides whether the target has sent as much as the live client had read when it acknowledged `ack` at its end,
    /// or is quiet for the gate's limit.
    pub(super) fn farewell(&mut self, shared: &mut Shared, ack: Option<LiveAck>, cx: &mut Context<'_>) -> Farewell {
        let parting = self.rare().parting;
        if !self.owes_answers(shared, ack, cx) {
            let quiet = shared.last_progress.after(QUIET);
            if cx.now < quiet && self.has_answered_several(shared, ack, cx) {
                shared.gate_until = Moment::at(quiet);
                return Farewell::Waits;
            }
            if let Parting::Waits(_) = parting {
                self.rare_mut().parting = Parting::Undecided;
                shared.gate_until = Moment::NEVER;
                cx.profile.farewells.judge(true);
            }
            return Farewell::Due;
        }
        let asked = match parting {
            Parting::Waits(since) => since,
            Parting::Undecided if cx.profile.farewells.is_to_wait() => {
                self.rare_mut().parting = Parting::Waits(cx.now);
                cx.now
            }
            Parting::Undecided | Parting::Goes => {
                self.rare_mut().parting = Parting::Goes;
                return Farewell::Due;
            }
        };
        let until = asked.max(shared.last_progress).after(cx.config.gate_limit);
        if cx.now < until {
            shared.gate_until = Moment::at(until);
            return Farewell::Waits;
        }
        shared.gate_until = Moment::NEVER;
        cx.profile.farewells.judge(false);
        cx.stats.farewells_in_vain += 1;
        Farewell::Forced
    }

    /// Whether several requests may be under way, and the target has sent less than the live server had.
    fn owes_answers(&self, shared: &Shared, ack: Option<LiveAck>, cx: &Context<'_>) -> bool {
        // Totals wrap, their difference does not. One number may be the live server's FIN.
        self.answers_read(shared, ack, cx).is_some_and(|read| read.wrapping_sub(self.receiver.octets()) as i32 > 1)
    }

    /// Whether several requests may have been under way, of which the live client has read an answer.
    fn has_answered_several(&self, shared: &Shared, ack: Option<LiveAck>, cx: &Context<'_>) -> bool {
        self.answers_read(shared, ack, cx).is_some_and(|read| read > 1)
    }

    /// Returns how many octets the live client had read at its end, modulo 2^32, if several requests may be under way.
    fn answers_read(&self, shared: &Shared, ack: Option<LiveAck>, cx: &Context<'_>) -> Option<u32> {
        let waits = cx.config.gate && shared.answers.is_concurrent() && !self.receiver.is_finished();
        let ack = ack.filter(|_| waits && shared.read.is_some())?;
        Some(ack.distance(shared.base) as u32)
    }
}
