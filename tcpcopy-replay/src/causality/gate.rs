//! The gate: a request waits until the target has answered the one before, as the live client waited for the live
//! server.
//!
//! The live client's acknowledgement number tells that it had read something before it sent a segment; the gate then
//! holds the segment until the target's answer seems complete. An answer is complete when PSH or FIN was seen on a
//! response segment after everything sent had been acknowledged, and [`Config::gate_quiet`] has passed without another.
//! A bound keeps sessions going whose answers never come (push protocols, long polls).

use std::time::Duration;

use crate::{
    config::{Config, GATE_STRIKES},
    store::moment::Moment,
    time::Nanos,
};

/// Factor by which the quiet is longer after an answer that came early: it may belong to an earlier request of a
/// pipeline, or be the permission to go on (RFC 9110, section 10.1.1).
const EARLY_QUIET_FACTOR: u32 = 10;
/// Divisor of the quiet when the replay is late (see [`LATE`]): the quiet only guards against an answer written in
/// pieces, and a replay that trails further and further behind is worse.
const LATE_QUIET_DIVISOR: u32 = 8;
/// Age of a segment from which on the replay counts as late.
pub(crate) const LATE: Duration = Duration::from_millis(5);

/// What the target has sent since something was last sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    /// The last segment, at this time, did not end an answer.
    Begun,
    /// The last segment, at this time, may have ended one.
    Complete(Moment),
    /// An answer ended before the target had acknowledged the whole request, as when a server refuses an upload: at
    /// this time, or the rest of the request was sent then. There may be more to come.
    ///
    /// The acknowledgement of the rest is not waited for: a target that has nothing more to send delays it, by 40 ms on
    /// Linux.
    Early(Moment),
}

/// The state of the last segment that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// There was none on this connection.
    Never,
    /// It has been waiting since then.
    Since(Moment),
    /// It was let through at this time.
    Until(Moment),
}

/// Whether a segment may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// It may; `waited` is the time since its capture. `forced`: the bound was reached.
    Granted { waited: Duration, forced: bool },
    /// It may not before then.
    Wait(Nanos),
}

/// The gate of one session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    answer: Answer,
    /// A segment that may end a response came since the last request that had waited for one.
    response_ended: bool,
    waiting: Waiting,
    strikes: u8,
    /// An answer went on after the gate had opened for the next request: the quiet is no longer shortened.
    patient: bool,
}

impl Gate {
    pub(crate) const fn new() -> Self {
        Self { answer: Answer::Nothing, response_ended: false, waiting: Waiting::Never, strikes: 0, patient: false }
    }

    /// Resets the gate for a new target connection of the same session.
    pub(crate) const fn reconnect(&mut self) {
        self.answer = Answer::Nothing;
        self.response_ended = false;
        self.waiting = Waiting::Never;
    }

    /// Records that something new is sent.
    pub(crate) const fn record_sent(&mut self, now: Nanos) {
        self.answer = if self.response_ended { Answer::Early(Moment::at(now)) } else { Answer::Nothing };
    }

    /// Handles payload or a FIN of the target. `ends`: with PSH or FIN, and nothing before it is missing;
    /// `all_acknowledged`: after it had acknowledged everything that was sent.
    pub(crate) const fn handle_response(&mut self, now: Nanos, ends: bool, all_acknowledged: bool) {
        self.response_ended |= ends;
        self.answer = match (ends, all_acknowledged) {
            (true, true) => Answer::Complete(Moment::at(now)),
            (true, false) => Answer::Early(Moment::at(now)),
            (false, _) => Answer::Begun,
        };
    }

    /// Notes that the target went on with an answer after the segment that was to wait for it had been sent. If that
    /// happens when it closes, the rest of the one answer is taken for an answer to the next request.
    pub(crate) const fn opened_early(&mut self) {
        self.patient = true;
    }

    /// Whether the gate has been given up.
    pub(crate) const fn is_off(&self) -> bool {
        self.strikes >= GATE_STRIKES
    }

    /// Asks whether a segment may be sent that was captured at `captured`, and that the live client sent after it had
    /// read something. Everything before it has been sent; `round_trip`: how long that takes to the target and back.
    pub(crate) fn ask(
        &mut self,
        now: Nanos,
        captured: Nanos,
        round_trip: Duration,
        limit: Duration,
        config: &Config,
    ) -> Permit {
        if !config.gate || self.is_off() {
            return Permit::Granted { waited: Duration::ZERO, forced: false };
        }
        let since = match self.waiting {
            Waiting::Since(since) => since.time(),
            Waiting::Never | Waiting::Until(_) => now,
        };
        let bound = since.after(limit);
        let late = !self.patient && now.since(captured) > LATE;
        let quiet = if late { config.gate_quiet / LATE_QUIET_DIVISOR } else { config.gate_quiet };
        let until = match self.answer {
            Answer::Complete(at) => at.time().after(quiet).min(bound),
            Answer::Early(at) => at.time().after(round_trip + quiet * EARLY_QUIET_FACTOR).min(bound),
            Answer::Nothing | Answer::Begun => bound,
        };
        if now < until {
            self.waiting = Waiting::Since(Moment::at(since));
            return Permit::Wait(until);
        }
        // The gate opened at `until`, even if it was polled later.
        self.waiting = Waiting::Until(Moment::at(until));
        self.response_ended = false;
        let forced = matches!(self.answer, Answer::Nothing | Answer::Begun);
        Permit::Granted { waited: until.since(captured), forced }
    }

    /// Notes that the segment that waits, if one does, is sent without asking again; returns how long it has waited.
    pub(crate) const fn skip(&mut self, now: Nanos, captured: Nanos) -> Option<Duration> {
        let Waiting::Since(_) = self.waiting else { return None };
        self.waiting = Waiting::Until(Moment::at(now));
        Some(now.since(captured))
    }

    /// Returns from when on a segment captured at `captured` could have been sent: the wait for the gate is no lag.
    pub(crate) fn ready(&self, captured: Nanos) -> Nanos {
        match self.waiting {
            Waiting::Until(opened) => captured.max(opened.time()),
            Waiting::Never | Waiting::Since(_) => captured,
        }
    }

    /// Notes that the bound was reached; returns whether the gate is given up now.
    pub(crate) const fn strike(&mut self) -> bool {
        self.strikes = self.strikes.saturating_add(1);
        self.strikes == GATE_STRIKES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMIT: Duration = Duration::from_secs(2);

    fn config() -> Config {
        Config { gate_quiet: Duration::from_micros(500), ..Config::default() }
    }

    fn ask(gate: &mut Gate, now: Nanos, captured: Nanos) -> Permit {
        gate.ask(now, captured, Duration::ZERO, LIMIT, &config())
    }

    fn granted(permit: Permit) -> bool {
        matches!(permit, Permit::Granted { .. })
    }

    #[test]
    fn opens_after_a_complete_answer_and_a_quiet_time() {
        let mut gate = Gate::new();
        let captured = Nanos(10 * MS);
        assert_eq!(ask(&mut gate, captured, captured), Permit::Wait(captured.after(LIMIT)));
        gate.handle_response(Nanos(11 * MS), false, true);
        assert_eq!(ask(&mut gate, Nanos(12 * MS), captured), Permit::Wait(captured.after(LIMIT)));
        gate.handle_response(Nanos(12 * MS), true, true);
        let quiet = Nanos(12 * MS + MS / 2);
        assert_eq!(ask(&mut gate, Nanos(12 * MS), captured), Permit::Wait(quiet));
        let waited = Duration::from_micros(2500);
        assert_eq!(ask(&mut gate, quiet, captured), Permit::Granted { waited, forced: false });
    }

    #[test]
    fn an_answer_that_goes_on_starts_the_quiet_anew() {
        let mut gate = Gate::new();
        gate.handle_response(Nanos(MS), true, true);
        gate.handle_response(Nanos(MS + 400_000), true, true);
        assert!(!granted(ask(&mut gate, Nanos(MS + 600_000), Nanos(MS))));
        assert!(granted(ask(&mut gate, Nanos(MS + 900_000), Nanos(MS))));
    }

    #[test]
    fn an_answer_before_the_request_was_sent_whole_counts_a_while_after_the_rest_was_sent() {
        let round_trip = Duration::from_millis(3);
        let ask = |gate: &mut Gate, now, captured| gate.ask(now, captured, round_trip, LIMIT, &config());
        let mut gate = Gate::new();
        gate.handle_response(Nanos(MS), true, false);
        assert_eq!(ask(&mut gate, Nanos(MS), Nanos(MS)), Permit::Wait(Nanos(9 * MS)), "sent, not acknowledged");
        gate.record_sent(Nanos(2 * MS));
        assert_eq!(ask(&mut gate, Nanos(2 * MS), Nanos(2 * MS)), Permit::Wait(Nanos(10 * MS)));
        let waited = Duration::from_millis(5);
        assert_eq!(ask(&mut gate, Nanos(10 * MS), Nanos(5 * MS)), Permit::Granted { waited, forced: false });
        // It does not count for the next request.
        gate.record_sent(Nanos(8 * MS));
        assert!(!granted(ask(&mut gate, Nanos(20 * MS), Nanos(20 * MS))));
        // Who is late waits less.
        gate.handle_response(Nanos(30 * MS), true, false);
        assert_eq!(ask(&mut gate, Nanos(30 * MS), Nanos(0)), Permit::Wait(Nanos(33 * MS + 625_000)));
        // An answer that goes on has not ended.
        gate.handle_response(Nanos(31 * MS), false, false);
        assert!(!granted(ask(&mut gate, Nanos(50 * MS), Nanos(0))));
    }

    #[test]
    fn a_new_target_connection_has_answered_nothing() {
        let mut gate = Gate::new();
        gate.handle_response(Nanos(MS), true, true);
        gate.reconnect();
        gate.record_sent(Nanos(2 * MS));
        assert_eq!(ask(&mut gate, Nanos(9 * MS), Nanos(MS)), Permit::Wait(Nanos(9 * MS).after(LIMIT)));
    }

    #[test]
    fn a_late_replay_waits_less() {
        let mut gate = Gate::new();
        gate.handle_response(Nanos(100 * MS), true, true);
        assert!(granted(ask(&mut gate, Nanos(100 * MS + 62_500), Nanos(0))));
    }

    #[test]
    fn a_late_replay_that_has_cut_into_an_answer_waits_its_time() {
        let mut gate = Gate::new();
        gate.opened_early();
        gate.reconnect();
        gate.handle_response(Nanos(100 * MS), true, true);
        assert!(!granted(ask(&mut gate, Nanos(100 * MS + 499_999), Nanos(0))));
        assert!(granted(ask(&mut gate, Nanos(100 * MS + 500_000), Nanos(0))));
    }

    #[test]
    fn lag_begins_when_the_gate_opens_for_all_that_has_waited_and_for_nothing_else() {
        let mut gate = Gate::new();
        let captured = Nanos(10 * MS);
        assert!(!granted(ask(&mut gate, captured, captured)));
        assert_eq!(gate.ready(captured), captured, "still waits");
        gate.handle_response(Nanos(11 * MS), true, true);
        // A loop that sleeps comes late, and that is lag.
        assert!(granted(ask(&mut gate, Nanos(13 * MS), captured)));
        let opened = Nanos(11 * MS + MS / 2);
        assert_eq!((gate.ready(captured), gate.ready(opened)), (opened, opened));
        assert_eq!(gate.ready(Nanos(12 * MS)), Nanos(12 * MS));
        assert_eq!(gate.skip(Nanos(14 * MS), captured), None, "nothing waits");
    }

    #[test]
    fn what_goes_without_asking_again_has_waited_too() {
        let mut gate = Gate::new();
        assert!(!granted(ask(&mut gate, Nanos(MS), Nanos(MS))));
        assert_eq!(gate.skip(Nanos(4 * MS), Nanos(MS)), Some(Duration::from_millis(3)));
        assert_eq!(gate.ready(Nanos(MS)), Nanos(4 * MS));
    }

    #[test]
    fn three_strikes_switch_it_off() {
        let mut gate = Gate::new();
        for strike in 1..=3 {
            let start = Nanos(strike * 10_000 * MS);
            assert!(!granted(ask(&mut gate, start, start)));
            let end = start.after(LIMIT);
            assert_eq!(ask(&mut gate, end, start), Permit::Granted { waited: LIMIT, forced: true });
            assert_eq!(gate.strike(), strike == 3);
        }
        assert!(gate.is_off() && granted(ask(&mut gate, Nanos(0), Nanos(0))));
    }

    #[test]
    fn a_replay_is_late_from_more_than_five_milliseconds_on() {
        for (captured, late) in [(Nanos(95 * MS), false), (Nanos(95 * MS - 1), true)] {
            let mut gate = Gate::new();
            gate.handle_response(Nanos(100 * MS - 62_500), true, true);
            assert_eq!(granted(ask(&mut gate, Nanos(100 * MS), captured)), late);
        }
    }
}
