//! Causality: a request waits until the target has answered the one before, as the live client waited for the live server.
//!
//! The live client's acknowledgement number tells that it had read something before it sent a segment; the gate then holds
//! the segment until the target's answer seems complete. An answer is complete when PSH or FIN was seen on a response
//! segment after everything sent had been acknowledged, and [`Config::gate_quiet`] has passed without another.
//! A bound keeps sessions going whose answers never come (push protocols, long polls).

use std::time::Duration;

use crate::{
    config::{Config, GATE_STRIKES},
    store::moment::Moment,
    time::Nanos,
};

/// How much longer the quiet is after an answer that came early: perhaps it was one to an earlier request of a pipeline, or
/// only the permission to go on (RFC 9110, section 10.1.1).
const DOUBT: u32 = 10;
/// How much shorter the quiet may be when the replay is late (see [`LATE`]): the quiet only guards against an answer
/// written in pieces, and a replay that trails further and further behind is worse.
const HURRY: u32 = 8;
/// From this age of a segment on the replay counts as late.
pub(crate) const LATE: Duration = Duration::from_millis(5);

/// What the target has said since we last sent it something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Nothing,
    /// The last segment, at this time, did not end an answer.
    Begun,
    /// The last segment, at this time, may have ended one.
    Complete(Moment),
    /// An answer ended before the target had acknowledged the whole request, as when a server refuses an upload: at this time,
    /// or the rest of the request was sent then. There may be more to come.
    ///
    /// The acknowledgement of the rest is not waited for: a target that has nothing more to say delays it, by 40 ms on Linux.
    Early(Moment),
}

/// What has become of the last segment that had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waiting {
    /// There was none on this connection.
    Never,
    /// It waits, since then.
    Since(Moment),
    /// It was let through at this time.
    Until(Moment),
}

/// Whether a segment may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Permit {
    /// It may; it has waited so long since it was captured. `forced`: the bound was reached.
    Granted { waited: Duration, forced: bool },
    /// Not before then.
    Wait(Nanos),
}

/// The gate of one session.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    answer: Answer,
    /// What may be an answer came since the last segment that had waited for one.
    spoken: bool,
    waiting: Waiting,
    strikes: u8,
    /// An answer went on after the gate had opened for the next request: there is no more hurry.
    patient: bool,
}

impl Gate {
    pub const fn new() -> Self {
        Self { answer: Answer::Nothing, spoken: false, waiting: Waiting::Never, strikes: 0, patient: false }
    }

    /// The gate of a new target connection of the same session.
    pub const fn reconnect(&mut self) {
        self.answer = Answer::Nothing;
        self.spoken = false;
        self.waiting = Waiting::Never;
    }

    /// Something new was sent.
    pub const fn sent(&mut self, now: Nanos) {
        self.answer = if self.spoken { Answer::Early(Moment::at(now)) } else { Answer::Nothing };
    }

    /// The target sent payload or a FIN. `ends`: with PSH or FIN, and nothing before it is missing; `heard`: after it had
    /// acknowledged everything.
    pub const fn answered(&mut self, now: Nanos, ends: bool, heard: bool) {
        self.spoken |= ends;
        self.answer = match (ends, heard) {
            (true, true) => Answer::Complete(Moment::at(now)),
            (true, false) => Answer::Early(Moment::at(now)),
            (false, _) => Answer::Begun,
        };
    }

    /// The target went on with an answer after the segment that was to wait for it had been sent. If that happens when it
    /// closes, the rest of the one answer is taken for an answer to the next request.
    pub const fn opened_early(&mut self) {
        self.patient = true;
    }

    /// Whether the gate has been given up.
    pub const fn is_off(&self) -> bool {
        self.strikes >= GATE_STRIKES
    }

    /// Asks for a segment, captured at `captured`, that the live client sent after it had read something. Everything before
    /// it was sent; `round_trip`: how long the target takes to hear of that.
    pub fn ask(
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
        let quiet = if late { config.gate_quiet / HURRY } else { config.gate_quiet };
        let until = match self.answer {
            Answer::Complete(at) => at.time().after(quiet).min(bound),
            Answer::Early(at) => at.time().after(round_trip + quiet * DOUBT).min(bound),
            Answer::Nothing | Answer::Begun => bound,
        };
        if now < until {
            self.waiting = Waiting::Since(Moment::at(since));
            return Permit::Wait(until);
        }
        // It was open from then on, whenever somebody came to ask.
        self.waiting = Waiting::Until(Moment::at(until));
        self.spoken = false;
        let forced = matches!(self.answer, Answer::Nothing | Answer::Begun);
        Permit::Granted { waited: until.since(captured), forced }
    }

    /// Notes that the segment that waits, if one does, goes without asking again; how long it has waited.
    pub const fn pass(&mut self, now: Nanos, captured: Nanos) -> Option<Duration> {
        let Waiting::Since(_) = self.waiting else { return None };
        self.waiting = Waiting::Until(Moment::at(now));
        Some(now.since(captured))
    }

    /// From when on a segment captured at `captured` could have been sent: what it has waited for the gate is no lag.
    pub fn ready(&self, captured: Nanos) -> Nanos {
        match self.waiting {
            Waiting::Until(opened) => captured.max(opened.time()),
            Waiting::Never | Waiting::Since(_) => captured,
        }
    }

    /// Notes that the bound was reached; whether the gate is given up now.
    pub const fn strike(&mut self) -> bool {
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
        gate.answered(Nanos(11 * MS), false, true);
        assert_eq!(ask(&mut gate, Nanos(12 * MS), captured), Permit::Wait(captured.after(LIMIT)));
        gate.answered(Nanos(12 * MS), true, true);
        let quiet = Nanos(12 * MS + MS / 2);
        assert_eq!(ask(&mut gate, Nanos(12 * MS), captured), Permit::Wait(quiet));
        let waited = Duration::from_micros(2500);
        assert_eq!(ask(&mut gate, quiet, captured), Permit::Granted { waited, forced: false });
    }

    #[test]
    fn an_answer_that_goes_on_starts_the_quiet_anew() {
        let mut gate = Gate::new();
        gate.answered(Nanos(MS), true, true);
        gate.answered(Nanos(MS + 400_000), true, true);
        assert!(!granted(ask(&mut gate, Nanos(MS + 600_000), Nanos(MS))));
        assert!(granted(ask(&mut gate, Nanos(MS + 900_000), Nanos(MS))));
    }

    #[test]
    fn an_answer_before_the_request_was_sent_whole_counts_a_while_after_the_rest_was_sent() {
        let round_trip = Duration::from_millis(3);
        let ask = |gate: &mut Gate, now, captured| gate.ask(now, captured, round_trip, LIMIT, &config());
        let mut gate = Gate::new();
        gate.answered(Nanos(MS), true, false);
        assert_eq!(ask(&mut gate, Nanos(MS), Nanos(MS)), Permit::Wait(Nanos(9 * MS)), "sent, not acknowledged");
        gate.sent(Nanos(2 * MS));
        assert_eq!(ask(&mut gate, Nanos(2 * MS), Nanos(2 * MS)), Permit::Wait(Nanos(10 * MS)));
        let waited = Duration::from_millis(5);
        assert_eq!(ask(&mut gate, Nanos(10 * MS), Nanos(5 * MS)), Permit::Granted { waited, forced: false });
        // It does not count for the next request.
        gate.sent(Nanos(8 * MS));
        assert!(!granted(ask(&mut gate, Nanos(20 * MS), Nanos(20 * MS))));
        // Who is late waits less.
        gate.answered(Nanos(30 * MS), true, false);
        assert_eq!(ask(&mut gate, Nanos(30 * MS), Nanos(0)), Permit::Wait(Nanos(33 * MS + 625_000)));
        // An answer that goes on has not ended.
        gate.answered(Nanos(31 * MS), false, false);
        assert!(!granted(ask(&mut gate, Nanos(50 * MS), Nanos(0))));
    }

    #[test]
    fn a_new_target_connection_has_answered_nothing() {
        let mut gate = Gate::new();
        gate.answered(Nanos(MS), true, true);
        gate.reconnect();
        gate.sent(Nanos(2 * MS));
        assert_eq!(ask(&mut gate, Nanos(9 * MS), Nanos(MS)), Permit::Wait(Nanos(9 * MS).after(LIMIT)));
    }

    #[test]
    fn a_late_replay_waits_less() {
        let mut gate = Gate::new();
        gate.answered(Nanos(100 * MS), true, true);
        assert!(granted(ask(&mut gate, Nanos(100 * MS + 62_500), Nanos(0))));
    }

    #[test]
    fn a_late_replay_that_has_cut_into_an_answer_waits_its_time() {
        let mut gate = Gate::new();
        gate.opened_early();
        gate.reconnect();
        gate.answered(Nanos(100 * MS), true, true);
        assert!(!granted(ask(&mut gate, Nanos(100 * MS + 499_999), Nanos(0))));
        assert!(granted(ask(&mut gate, Nanos(100 * MS + 500_000), Nanos(0))));
    }

    #[test]
    fn lag_begins_when_the_gate_opens_for_all_that_has_waited_and_for_nothing_else() {
        let mut gate = Gate::new();
        let captured = Nanos(10 * MS);
        assert!(!granted(ask(&mut gate, captured, captured)));
        assert_eq!(gate.ready(captured), captured, "still waits");
        gate.answered(Nanos(11 * MS), true, true);
        // A loop that sleeps comes late, and that is lag.
        assert!(granted(ask(&mut gate, Nanos(13 * MS), captured)));
        let opened = Nanos(11 * MS + MS / 2);
        assert_eq!((gate.ready(captured), gate.ready(opened)), (opened, opened));
        assert_eq!(gate.ready(Nanos(12 * MS)), Nanos(12 * MS));
        assert_eq!(gate.pass(Nanos(14 * MS), captured), None, "nothing waits");
    }

    #[test]
    fn what_goes_without_asking_again_has_waited_too() {
        let mut gate = Gate::new();
        assert!(!granted(ask(&mut gate, Nanos(MS), Nanos(MS))));
        assert_eq!(gate.pass(Nanos(4 * MS), Nanos(MS)), Some(Duration::from_millis(3)));
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
            gate.answered(Nanos(100 * MS - 62_500), true, true);
            assert_eq!(granted(ask(&mut gate, Nanos(100 * MS), captured)), late);
        }
    }
}
