//! The table of orphaned connections at one target, see [`super::orphans`]: which to probe, and when.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tcpcopy_common::flow::Flow;

use crate::{tcp::isn::Opening, time::Nanos};

/// Maximum SYNs without an answer at a time. The answers pace the others, so that a source with many sessions does not
/// flood the target.
const MAX_ASKED: usize = 128;
/// Linux sends a socket's challenge ACKs at least 500 ms apart (`tcp_invalid_ratelimit`).
const RETRY: Duration = Duration::from_secs(1);
/// Maximum SYNs for one connection: then the target is silent, or has no room in its session map.
const MAX_SYNS: u8 = 5;

/// The orphans at one target.
#[derive(Debug, Default)]
pub(crate) struct Orphans {
    known: BTreeMap<Flow, Orphan>,
    /// Orphans to probe, in order. May name some that are settled.
    waiting: VecDeque<Flow>,
    /// Orphans to look at again, in the order of time. May name some that are settled.
    later: VecDeque<(Nanos, Flow)>,
    /// How many are [`Stage::Asked`].
    asked: usize,
}

#[derive(Debug)]
struct Orphan {
    opening: Opening,
    syns: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// A SYN was sent, which times out then.
    Asked(Nanos),
    /// A session has the four-tuple, and may be about to send a SYN itself, or nothing may be sent to the target; to be
    /// looked at again then.
    Postponed(Nanos),
}

impl Orphans {
    /// Returns how many are not settled.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Returns whether there is one on this four-tuple.
    pub(super) fn knows(&self, flow: &Flow) -> bool {
        self.known.contains_key(flow)
    }

    /// Adds a connection; returns whether it was not known yet.
    pub(super) fn add(&mut self, flow: Flow, opening: Opening) -> bool {
        if let Some(known) = self.known.get_mut(&flow) {
            // Another connection was there since, and has sent more.
            if opening.isn.is_after(known.opening.isn) {
                known.opening = opening;
            }
            return false;
        }
        self.known.insert(flow, Orphan { opening, syns: 0, stage: Stage::Waiting });
        self.waiting.push_back(flow);
        true
    }

    /// Lets all of them wait again: no SYN that was sent counts any more.
    pub(super) fn start_over(&mut self) {
        for orphan in self.known.values_mut() {
            (orphan.syns, orphan.stage) = (0, Stage::Waiting);
        }
        self.waiting = self.known.keys().copied().collect();
        self.later.clear();
        self.asked = 0;
    }

    /// Returns the next one to probe.
    pub(super) fn next(&mut self) -> Option<Flow> {
        if self.asked >= MAX_ASKED {
            return None;
        }
        loop {
            let flow = self.waiting.pop_front()?;
            if self.known.get(&flow).is_some_and(|orphan| orphan.stage == Stage::Waiting) {
                return Some(flow);
            }
        }
    }

    /// Notes that a SYN is sent for one that waits; returns what the SYN begins with.
    pub(super) fn ask(&mut self, now: Nanos, flow: &Flow) -> Option<Opening> {
        let orphan = self.known.get_mut(flow)?;
        let until = now.after(RETRY);
        orphan.stage = Stage::Asked(until);
        orphan.syns += 1;
        self.asked += 1;
        self.later.push_back((until, *flow));
        Some(orphan.opening)
    }

    /// Puts off one that waits.
    pub(super) fn postpone(&mut self, now: Nanos, flow: &Flow) {
        if let Some(orphan) = self.known.get_mut(flow) {
            let until = now.after(RETRY);
            orphan.stage = Stage::Postponed(until);
            self.later.push_back((until, *flow));
        }
    }

    /// Lets those that were put off wait again at once: what they were put off for may be over.
    pub(super) fn hurry(&mut self) {
        for (flow, orphan) in &mut self.known {
            if matches!(orphan.stage, Stage::Postponed(_)) {
                orphan.stage = Stage::Waiting;
                self.waiting.push_back(*flow);
            }
        }
    }

    /// Forgets the one on this four-tuple; returns whether there was one.
    pub(super) fn settle(&mut self, flow: &Flow) -> bool {
        let Some(orphan) = self.known.remove(flow) else { return false };
        self.asked -= usize::from(matches!(orphan.stage, Stage::Asked(_)));
        true
    }

    /// Lets those wait again whose SYN has timed out; returns how many are given up.
    pub(super) fn expire(&mut self, now: Nanos) -> u64 {
        let mut given_up = 0;
        while let Some(&(at, flow)) = self.later.front().filter(|(at, _)| *at <= now) {
            self.later.pop_front();
            let Some(orphan) = self.known.get_mut(&flow) else { continue };
            match orphan.stage {
                Stage::Asked(until) if until == at && orphan.syns >= MAX_SYNS => {
                    self.settle(&flow);
                    given_up += 1;
                }
                Stage::Asked(until) | Stage::Postponed(until) if until == at => {
                    self.asked -= usize::from(matches!(orphan.stage, Stage::Asked(_)));
                    orphan.stage = Stage::Waiting;
                    self.waiting.push_back(flow);
                }
                // Settled meanwhile, and left again.
                Stage::Waiting | Stage::Asked(_) | Stage::Postponed(_) => {}
            }
        }
        given_up
    }

    /// When to call [`expire`](Self::expire).
    pub(super) fn deadline(&self) -> Option<Nanos> {
        self.later.front().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{engine::tests::flow, tcp::seq::ReplaySeq};

    fn orphans(count: u16) -> Orphans {
        let mut orphans = Orphans::default();
        let opening = Opening { isn: ReplaySeq::new(1), tsval: 2 };
        assert!((0..count).all(|port| orphans.add(flow(port), opening)) && !orphans.add(flow(0), opening));
        orphans
    }

    fn ask_all(orphans: &mut Orphans, now: Nanos) -> usize {
        std::iter::from_fn(|| orphans.next().and_then(|flow| orphans.ask(now, &flow))).count()
    }

    #[test]
    fn answers_make_room_for_further_questions() {
        let mut orphans = orphans(300);
        assert_eq!(ask_all(&mut orphans, Nanos(0)), MAX_ASKED);
        assert!((0..50).all(|port| orphans.settle(&flow(port))) && !orphans.settle(&flow(0)));
        assert_eq!(ask_all(&mut orphans, Nanos(1)), 50);
        assert_eq!(orphans.len(), 250);
    }

    #[test]
    fn silence_is_given_up_and_its_room_is_free_again() {
        let mut orphans = orphans(200);
        let (mut syns, mut given_up) = (0, 0);
        while orphans.len() > 0 {
            let now = orphans.deadline().unwrap_or(Nanos(0));
            given_up += orphans.expire(now);
            syns += ask_all(&mut orphans, now);
        }
        assert_eq!((syns, given_up, orphans.asked), (200 * usize::from(MAX_SYNS), 200, 0));
        assert_eq!(orphans.deadline(), None);
    }

    #[test]
    fn one_that_is_settled_and_left_again_keeps_no_old_deadline() {
        let mut orphans = orphans(1);
        ask_all(&mut orphans, Nanos(0));
        orphans.settle(&flow(0));
        orphans.add(flow(0), Opening { isn: ReplaySeq::new(3), tsval: 4 });
        ask_all(&mut orphans, Nanos(5));
        orphans.expire(Nanos(0).after(RETRY));
        assert_eq!((orphans.next(), orphans.asked), (None, 1));
        orphans.expire(Nanos(5).after(RETRY));
        assert_eq!((orphans.next(), orphans.asked), (Some(flow(0)), 0));
    }
}
