//! A worker: the loop of one thread that replays what is captured of its connections.
//!
//! ```text
//!                     orders   Host   notices, figures
//!                        │      ▲      ▲
//!                        ▼      │ rest │
//! Capture ── segments ──► Worker: Replica (Engine) × copies ── segments ──► Sink
//!                        ▲
//!                        └── responses, figures ── Reports (channels to the targets)
//! ```
//!
//! What surrounds it are ports, traits in `ports`: the program implements them over a ring, sockets and control
//! channels, the simulation over virtual time. Here is what must hold whatever they are:
//!
//! - Each turn has a budget for what is captured and one for what is sent, so that neither starves the other, the
//!   reports, the timers or the orders.
//! - A loss is made known to the engines before what was captured after it.
//! - What the sink has no room for is tried again within [`RETRY`].
//! - Before it sleeps, the worker asks to be woken; what has come by then keeps it awake.
//! - At the end everything captured is handled, every replayed session is reset, and only then do the targets hear a
//!   farewell: from that on they let responses pass, so that nothing may be sent any more.

mod channels;
mod lateness;
pub mod nap;
mod ports;
mod replica;
mod snapshot;

use std::time::Duration;

use tcpcopy_common::wakeup::MAX_SLEEP_MS;

use self::{
    channels::{Channel, Reception},
    lateness::Lateness,
    nap::{Naps, Rest},
    replica::LOOK_AHEAD,
};
pub use self::{
    ports::{Capture, Clock, Fill, HandleReports, Host, Notice, Order, Reports, Sink, Upcoming},
    replica::{Replica, RuleTable},
    snapshot::{CopySnapshot, Counts, Snapshot},
};
use crate::{Credentials, LiveRecord, Nanos, TargetId};

/// Captured records handled before the channels, the timers and the sink get their turn again.
const RECORDS_PER_TURN: usize = 256;
/// Octets of captured records per turn, about: with 256 large ones a turn would take tens of milliseconds, and all
/// responses would wait for its end.
const CAPTURED_PER_TURN: usize = 1 << 20;

/// Octets sent before captured records get their turn again: an upload that arrives at the speed of the machine must
/// not fill the ring while the worker is busy sending. A few hundred packets, less than a millisecond.
const OCTETS_PER_TURN: usize = 256 << 10;
/// What a packet costs beside its payload, in octets of payload: measured, packets of 100 and of 1400 octets cost the
/// same.
const OCTETS_PER_PACKET: usize = 1400;
/// When a full sink is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// The longest nap. While records flow, a segment waits for half of it on average, and lag is to stay below a
/// millisecond.
const NAP: Duration = Duration::from_micros(600);
/// How often a worker publishes what it has counted.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping worker waits for a full sink, and then for the last figures of the targets.
const FAREWELL: Duration = Duration::from_millis(500);

/// Replays what one [`Capture`] yields, in every copy.
pub struct Worker<C, S, R: Reports> {
    capture: C,
    replicas: Vec<Replica>,
    sink: S,
    reports: R,
    /// By [`TargetId`].
    channels: Vec<Channel<R::Figures>>,
    notices: Vec<Notice<R::Error>>,
    own: Counts,
    naps: Naps,
    lateness: Lateness,
    phase: Phase,
}

/// How far a worker's end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Running,
    /// Handles what is left in the capture.
    Draining,
    /// Sends the resets of all sessions, and waits for a full sink until then.
    Resetting(Nanos),
    /// Waits for the targets' last figures until then.
    Leaving(Nanos),
}

/// What the thread does after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// Takes another turn.
    Turn,
    /// Sleeps, and cannot be woken.
    Nap(Duration),
    /// Sleeps until it is woken; by captured records, too, if `capture`.
    Wait { capture: bool, timeout: Duration },
    /// Ends.
    End,
}

/// What a turn has taken from the capture.
#[derive(Clone, Copy, Debug, Default)]
struct Captured {
    records: usize,
    octets: usize,
    /// The budget was used up: there may be more.
    more: bool,
}

/// Returns how many of the first records hold `octets` together, or a little more, and how many octets they have.
fn fitting(records: impl Iterator<Item = Upcoming>, octets: usize) -> Captured {
    let mut fitting = Captured::default();
    for record in records {
        if fitting.octets >= octets {
            break;
        }
        fitting.records += 1;
        fitting.octets += record.octets;
    }
    fitting
}

impl<C: Capture, S: Sink, R: Reports> Worker<C, S, R> {
    /// Makes a worker with a channel, not up yet, for each of `channels`: the index of the replica whose sessions it is
    /// for.
    #[must_use]
    pub fn new(
        now: Nanos,
        capture: C,
        replicas: Vec<Replica>,
        sink: S,
        reports: R,
        channels: impl Iterator<Item = usize>,
    ) -> Self {
        Self {
            capture,
            replicas,
            sink,
            reports,
            channels: channels.map(Channel::new).collect(),
            notices: Vec::new(),
            own: Counts::default(),
            naps: Naps::new(now, NAP),
            lateness: Lateness::new(R::EXPEDITED),
            phase: Phase::Running,
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self, mut host: impl Host<C, S, R>) {
        let mut publish_at = Nanos::default();
        loop {
            let now = host.now();
            self.take_orders(now, &mut host);
            let next = self.turn(now);
            for (copy, Replica { engine, .. }) in self.replicas.iter_mut().enumerate() {
                let events = std::iter::from_fn(|| engine.poll_fuse_event());
                self.notices.extend(events.map(|event| Notice::Fuse { copy, event }));
            }
            for notice in self.notices.drain(..) {
                host.notify(notice);
            }
            if now >= publish_at || next == Next::End {
                host.publish(self.snapshot());
                publish_at = now.after(SNAPSHOT_INTERVAL);
            }
            match next {
                Next::Turn => {}
                Next::Nap(time) => host.nap(time),
                Next::Wait { capture: false, timeout } => host.wait(None, &self.reports, timeout),
                Next::Wait { capture: true, timeout } => {
                    host.wait(Some(&self.capture), &self.reports, timeout);
                    self.capture.awake();
                }
                Next::End => return,
            }
        }
    }

    /// Takes orders up to the one to stop; there is nothing to be done about those behind it.
    fn take_orders(&mut self, now: Nanos, host: &mut impl Host<C, S, R>) {
        while self.phase == Phase::Running
            && let Some(order) = host.next_order()
        {
            match order {
                Order::LinkUp(target, link, credentials) => self.link_up(now, target, link, credentials),
                Order::Fuse(event) => {
                    for Replica { engine, .. } in &mut self.replicas {
                        engine.handle_fuse_event(now, event);
                    }
                }
                Order::Stop => self.phase = Phase::Draining,
            }
        }
    }

    fn link_up(&mut self, now: Nanos, target: TargetId, link: R::Link, credentials: Credentials) {
        let channel = &mut self.channels[usize::from(target.0)];
        channel.establish(&credentials);
        self.reports.connect(target, link);
        self.replicas[channel.replica].engine.handle_channel_up(now, target, credentials);
    }

    fn turn(&mut self, now: Nanos) -> Next {
        match self.phase {
            Phase::Running => {
                let captured = self.capture(now);
                self.receive(now);
                self.expire(now);
                let more = self.transmit(now);
                if captured.more || more { Next::Turn } else { self.rest(now) }
            }
            Phase::Draining => {
                let captured = self.capture(now);
                self.receive(now);
                self.expire(now);
                self.transmit(now);
                if captured.records == 0 {
                    self.reset(now);
                }
                Next::Turn
            }
            Phase::Resetting(until) => {
                self.receive(now);
                if self.transmit(now) {
                    Next::Turn
                } else if self.sink.pending() > 0 && now < until {
                    Next::Wait { capture: false, timeout: RETRY }
                } else {
                    self.leave(now)
                }
            }
            Phase::Leaving(until) => {
                self.receive(now);
                let timeout = until.since(now);
                let waits = self.channels.iter().any(|channel| channel.is_up) && !timeout.is_zero();
                if waits { Next::Wait { capture: false, timeout } } else { Next::End }
            }
        }
    }

    /// Hands captured segments to every copy, within the budget of a turn.
    fn capture(&mut self, now: Nanos) -> Captured {
        let Fill { used, size } = self.capture.fill();
        let mut all = Captured::default();
        loop {
            let step = fitting(self.capture.upcoming().take(LOOK_AHEAD), CAPTURED_PER_TURN - all.octets);
            // Asked after the records of this step were there, so that what was lost before them is known before them.
            let lost = self.capture.has_lost();
            for Replica { engine, .. } in &mut self.replicas {
                if lost {
                    engine.handle_ring_full(now);
                }
                engine.expect_live(self.capture.upcoming().take(step.records).filter_map(|record| record.flow));
            }
            let records = self.capture_some(now, step.records);
            all.records += records;
            all.octets += step.octets;
            all.more = all.records >= RECORDS_PER_TURN || all.octets >= CAPTURED_PER_TURN;
            if all.more || records < LOOK_AHEAD {
                break;
            }
        }
        self.naps.found(all.records, used, size);
        all
    }

    fn capture_some(&mut self, now: Nanos, budget: usize) -> usize {
        let Self { capture, replicas, own, .. } = self;
        capture.drain(budget, |record| {
            let segment = match record {
                Ok(LiveRecord::Segment(segment)) => segment,
                Ok(LiveRecord::Answer(answer)) => {
                    replicas.iter_mut().for_each(|replica| replica.handle_answer(now, &answer));
                    return;
                }
                Err(_) => {
                    own.bad_records += 1;
                    return;
                }
            };
            let mut wanted = false;
            for replica in replicas.iter_mut() {
                wanted |= replica.handle_live(now, &segment);
            }
            if !wanted {
                own.no_target += 1;
                own.no_target_bytes += segment.payload.len() as u64;
            }
        })
    }

    /// Hands the targets' responses to the engines.
    fn receive(&mut self, now: Nanos) {
        let Self { reports, replicas, channels, notices, own, .. } = self;
        reports.receive(&mut Reception { now, replicas, channels, notices, own });
    }

    /// Handles the timers that are due.
    fn expire(&mut self, now: Nanos) {
        for Replica { engine, .. } in &mut self.replicas {
            if engine.poll_timeout().is_some_and(|at| at <= now) {
                engine.handle_timeout(now);
            }
            while let Some(target) = engine.poll_unseen_rule() {
                self.notices.push(Notice::AnswersUnseen { target });
            }
            while let Some(target) = engine.poll_unjoinable_rule() {
                self.notices.push(Notice::Unjoinable { target });
            }
        }
    }

    /// Sends what the engines have, within the budget of a turn; returns whether there is more.
    fn transmit(&mut self, now: Nanos) -> bool {
        let mut more = false;
        let budget = OCTETS_PER_TURN / self.replicas.len().max(1);
        for replica in &mut self.replicas {
            let mut left = budget;
            while left > 0 {
                let Some(transmit) = replica.engine.poll_transmit(now) else { break };
                left = left.saturating_sub(transmit.payload.len().max(OCTETS_PER_PACKET));
                self.sink.push(&transmit);
            }
            more |= left == 0;
        }
        self.sink.flush();
        more
    }

    /// Returns the earliest timer of all copies.
    fn poll_timeout(&self) -> Option<Nanos> {
        self.replicas.iter().filter_map(|replica| replica.engine.poll_timeout()).min()
    }

    /// Decides how to wait for more to do: see [`nap`].
    fn rest(&mut self, now: Nanos) -> Next {
        let bound = if self.sink.pending() > 0 { RETRY } else { Duration::from_millis(u64::from(MAX_SLEEP_MS)) };
        let timeout = self.poll_timeout().map_or(bound, |at| at.since(now).min(bound));
        let late = self.replicas.iter().map(|replica| replica.engine.stats().gate_late).sum();
        let alert = self.lateness.note(now, late);
        if self.lateness.is_news(now) {
            self.reports.expedite();
        }
        match self.naps.rest(now) {
            // A timer may be late by a nap, and a response be handled late, when no request waits for it.
            Rest::Nap(time) if !alert => {
                self.own.naps += 1;
                Next::Nap(time.min(bound))
            }
            Rest::Nap(time) => {
                self.own.naps += 1;
                Next::Wait { capture: false, timeout: timeout.min(time) }
            }
            Rest::Sleep if timeout.is_zero() || !self.capture.prepare_sleep() => Next::Turn,
            Rest::Sleep => {
                self.own.sleeps += 1;
                Next::Wait { capture: true, timeout }
            }
        }
    }

    /// Ends every replayed session with a reset, which the next turns send.
    fn reset(&mut self, now: Nanos) {
        for Replica { engine, .. } in &mut self.replicas {
            engine.handle_shutdown(now);
        }
        self.phase = Phase::Resetting(now.after(FAREWELL));
    }

    /// Takes leave of the targets.
    fn leave(&mut self, now: Nanos) -> Next {
        self.reports.leave();
        self.phase = Phase::Leaving(now.after(FAREWELL));
        Next::Turn
    }

    /// Returns what was counted so far.
    fn snapshot(&self) -> Snapshot<S::Figures, R::Figures> {
        let mut targets = R::Figures::default();
        for channel in &self.channels {
            targets += channel.figures();
        }
        Snapshot {
            copies: self.replicas.iter().map(Replica::snapshot).collect(),
            inject: self.sink.figures(),
            targets,
            own: self.own,
        }
    }
}
