//! The thread that runs the worker: turns and rests.

use std::{mem, time::Duration};

use tcpcopy_common::wakeup::MAX_SLEEP_MS;
use tcpcopy_replay::Nanos;

use super::World;
use crate::{live::START, worker::site::Site};

const LONGEST_NAP: Duration = Duration::from_micros(600);
const LONGEST_SLEEP: Duration = Duration::from_millis(MAX_SLEEP_MS as u64);
/// The longest wait for the targets' farewell.
const LONGEST_FAREWELL: Duration = Duration::from_millis(500);
/// How long packets wait in the sink before it is tried again, at most.
const RETRY: Duration = Duration::from_millis(1);
/// Turns without any progress, and without a rest, that are no livelock yet: a timer may be looked at in vain.
const IDLE_TURNS: u32 = 200;
/// What a turn costs on a good machine, in ns.
const TURN_COST: u64 = 3_000;
/// How late a sleeper is woken when nothing else happens: while something is still to be captured, and afterwards. It
/// saves turns in which nothing happens.
const LATE: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(1)];

impl World<'_> {
    pub fn begin_turn(&mut self) -> Nanos {
        let cost = TURN_COST + mem::take(&mut self.cost);
        self.elapse(Duration::from_nanos(cost * self.scenario.surroundings.slowness));
        let since = self.now.since(START);
        let stalls = &self.scenario.surroundings.stalls;
        if let Some((_, to)) = stalls.iter().find(|(from, to)| (*from..*to).contains(&since)) {
            self.elapse(*to - since);
        }
        self.idle_turns = if mem::take(&mut self.progress) { 0 } else { self.idle_turns + 1 };
        self.require(self.idle_turns <= IDLE_TURNS, || "livelock: turn after turn without progress".to_owned());
        self.require(!self.ring.need_wakeup, || "the worker is awake and asks to be woken".to_owned());
        self.now
    }

    /// The worker is about to rest for `time`.
    fn rests(&mut self, time: Duration) {
        let retried = self.waiting.is_empty() || time <= RETRY;
        self.require(retried, || format!("packets wait in the sink, and the worker rests for {time:?}"));
        self.progress = true;
    }

    pub fn nap(&mut self, time: Duration) {
        self.require(time <= LONGEST_NAP, || format!("a nap of {time:?}"));
        self.rests(time);
        self.outcome.naps += 1;
        self.elapse(time);
    }

    pub fn wait(&mut self, capture: bool, timeout: Duration) {
        let longest = if self.left { LONGEST_FAREWELL } else { LONGEST_SLEEP };
        self.require(timeout <= longest, || format!("a sleep of {timeout:?}"));
        self.outcome.sleeps += u64::from(capture);
        // What has come already ends the sleep at once.
        if !self.orders.is_empty() || self.sites.iter().any(Site::is_readable) || capture && !self.ring.is_empty() {
            return;
        }
        let taken_over = self.stopping || self.sites.iter().all(Site::is_taken_over);
        self.require(taken_over, || "the worker sleeps, and has not taken over a channel that is up".to_owned());
        self.rests(timeout);
        let until = self.now.after(self.late(timeout));
        let woken = loop {
            let Some(at) = self.next_due().filter(|at| *at <= until) else { break false };
            self.happen(at);
            let rung = capture && self.ring.has_woken();
            if rung || !self.orders.is_empty() || self.sites.iter().any(Site::is_readable) {
                break true;
            }
        };
        if !woken {
            self.now = until;
        }
        self.require(woken || !capture || self.ring.is_empty() || self.ring.waking, || {
            "a wake-up is lost: the worker slept although records had come".to_owned()
        });
    }

    /// How long a sleep takes that nothing ends before its time.
    fn late(&self, timeout: Duration) -> Duration {
        if timeout < LONGEST_SLEEP || !self.waiting.is_empty() {
            return timeout;
        }
        let late = self.now.after(LATE[usize::from(self.to_come == 0)]);
        self.next_due().map_or(late, |at| at.min(late)).since(self.now).max(timeout)
    }
}
