//! Connections that are still open at a target although their session is over, and that nobody there knows as replayed.
//!
//! An `intercept` that was killed takes its session map with it. The target's sockets stay, and what they say later (a
//! keep-alive's FIN, a retransmission) would go to the real clients. So when its successor is up, each of them is asked
//! for by a SYN on its four-tuple, with a mark of the new instance: from then on whatever it says is swallowed and
//! reported. A socket that is there answers with a challenge ACK (RFC 5961, section 4.2) that names the one sequence
//! number of a RST that it accepts, which a RST at our own idea of that number would be only if nothing had been lost on
//! the way; one that is not answers with a SYN-ACK. Either is a response of no session, and is reset as such.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tcpcopy_common::{flow::Flow, response::kind, tcp_flags::SYN};

use super::{
    Connection, Engine, Replay, TargetId, opening,
    receiver::WINDOW,
    session::{Last, Opening},
};
use crate::{segment::Transmit, time::Nanos};

/// SYNs without an answer at a time. The answers pace the others, so that a source with many sessions does not flood
/// the target.
const MOST_ASKED: usize = 128;
/// Linux sends a socket's challenge ACKs at least 500 ms apart (`tcp_invalid_ratelimit`).
const RETRY: Duration = Duration::from_secs(1);
/// SYNs for one connection: then the target is silent, or has no room in its session map.
const MOST_SYNS: u8 = 5;

/// What is left at one target.
#[derive(Debug, Default)]
pub(super) struct Leftovers {
    known: BTreeMap<Flow, Leftover>,
    /// Those to ask for. It may name some that are settled.
    waiting: VecDeque<Flow>,
    /// Those to look at again, in the order of time; likewise.
    later: VecDeque<(Nanos, Flow)>,
    /// How many are [`Stage::Asked`].
    asked: usize,
}

#[derive(Debug)]
struct Leftover {
    opening: Opening,
    syns: u8,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Waiting,
    /// A SYN was sent; time-out then.
    Asked(Nanos),
    /// A session has the four-tuple, and may be about to send a SYN itself; look again then.
    Postponed(Nanos),
}

impl Leftovers {
    /// How many are not settled.
    #[cfg(test)]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Whether the connection was not known yet.
    fn add(&mut self, flow: Flow, opening: Opening) -> bool {
        let is_new = !self.known.contains_key(&flow);
        if is_new {
            self.known.insert(flow, Leftover { opening, syns: 0, stage: Stage::Waiting });
            self.waiting.push_back(flow);
        }
        is_new
    }

    /// Nothing that was asked counts any more.
    fn start_over(&mut self) {
        for leftover in self.known.values_mut() {
            (leftover.syns, leftover.stage) = (0, Stage::Waiting);
        }
        self.waiting = self.known.keys().copied().collect();
        self.later.clear();
        self.asked = 0;
    }

    /// The next to ask for.
    fn next(&mut self) -> Option<Flow> {
        if self.asked >= MOST_ASKED {
            return None;
        }
        loop {
            let flow = self.waiting.pop_front()?;
            if self.known.get(&flow).is_some_and(|leftover| leftover.stage == Stage::Waiting) {
                return Some(flow);
            }
        }
    }

    /// Asks for one that waits.
    fn ask(&mut self, now: Nanos, flow: &Flow) -> Option<Opening> {
        let leftover = self.known.get_mut(flow)?;
        let until = now.after(RETRY);
        leftover.stage = Stage::Asked(until);
        leftover.syns += 1;
        self.asked += 1;
        self.later.push_back((until, *flow));
        Some(leftover.opening)
    }

    /// Looks at one that waits again later.
    fn postpone(&mut self, now: Nanos, flow: &Flow) {
        if let Some(leftover) = self.known.get_mut(flow) {
            let until = now.after(RETRY);
            leftover.stage = Stage::Postponed(until);
            self.later.push_back((until, *flow));
        }
    }

    /// Whether there was one on this four-tuple; it is forgotten.
    fn settle(&mut self, flow: &Flow) -> bool {
        let Some(leftover) = self.known.remove(flow) else { return false };
        self.asked -= usize::from(matches!(leftover.stage, Stage::Asked(_)));
        true
    }

    /// Lets those wait again whose time has come; returns how many are given up.
    fn expire(&mut self, now: Nanos) -> u64 {
        let mut given_up = 0;
        while let Some(&(at, flow)) = self.later.front().filter(|(at, _)| *at <= now) {
            self.later.pop_front();
            let Some(leftover) = self.known.get_mut(&flow) else { continue };
            match leftover.stage {
                Stage::Asked(until) if until == at && leftover.syns >= MOST_SYNS => {
                    self.settle(&flow);
                    given_up += 1;
                }
                Stage::Asked(until) | Stage::Postponed(until) if until == at => {
                    self.asked -= usize::from(matches!(leftover.stage, Stage::Asked(_)));
                    leftover.stage = Stage::Waiting;
                    self.waiting.push_back(flow);
                }
                // Settled meanwhile, and left again.
                Stage::Waiting | Stage::Asked(_) | Stage::Postponed(_) => {}
            }
        }
        given_up
    }

    /// When to call [`expire`](Self::expire).
    fn deadline(&self) -> Option<Nanos> {
        self.later.front().map(|(at, _)| *at)
    }
}

impl Engine {
    /// Notes a connection that may be open at a target, and that no session is responsible for.
    pub(super) fn leave_over(&mut self, now: Nanos, target: TargetId, flow: Flow) {
        let opening = opening::opening(self.seed, now, &flow, None);
        if let Some(leftovers) = self.leftovers.get_mut(usize::from(target.0)) {
            self.stats.leftovers += u64::from(leftovers.add(flow, opening));
        }
    }

    /// A farewell that cannot be said, because the channel is down.
    pub(super) fn leave_unsaid(&mut self, now: Nanos, last: &Last) {
        self.leave_over(now, last.target, last.flow);
    }

    /// Asks for everything that is left at a target whose channel has come up.
    pub(super) fn ask_for_leftovers(&mut self, target: TargetId) {
        if let Some(leftovers) = self.leftovers.get_mut(usize::from(target.0)) {
            leftovers.start_over();
        }
    }

    /// A report about a four-tuple without a session: whether it settles what was left there.
    pub(super) fn settle_leftover(&mut self, target: TargetId, flow: &Flow, reported: u8) -> bool {
        // A segment shows that the SYN has come through the target's programs, which swallow what follows. A collision,
        // that another instance answers for the four-tuple; a reclaimed one belongs to a client of the target's own.
        let settles = matches!(reported, kind::SEGMENT | kind::COLLISION | kind::RECLAIMED);
        let leftovers = self.leftovers.get_mut(usize::from(target.0)).filter(|_| settles);
        let settled = leftovers.is_some_and(|leftovers| leftovers.settle(flow));
        self.stats.leftovers_settled += u64::from(settled);
        settled
    }

    pub(super) fn expire_leftovers(&mut self, now: Nanos) {
        for leftovers in &mut self.leftovers {
            self.stats.leftovers_given_up += leftovers.expire(now);
        }
    }

    pub(super) fn leftovers_deadline(&self) -> Option<Nanos> {
        self.leftovers.iter().filter_map(Leftovers::deadline).min()
    }

    /// The next SYN for a connection that is left at a target.
    pub(super) fn poll_leftovers(&mut self, now: Nanos) -> Option<Transmit<'static>> {
        for index in 0..self.leftovers.len() {
            let Some(credentials) = self.channels[index] else { continue };
            while let Some(flow) = self.leftovers[index].next() {
                match self.id_at_target(&flow).and_then(|id| self.connections.get(id)) {
                    // It finds what is left by its own SYN.
                    Some(Connection { replay: Replay::Active(session), .. })
                        if session.instance() == Some(credentials.instance) =>
                    {
                        self.stats.leftovers_settled += u64::from(self.leftovers[index].settle(&flow));
                    }
                    Some(_) => self.leftovers[index].postpone(now, &flow),
                    None => {
                        let Some(opening) = self.leftovers[index].ask(now, &flow) else { continue };
                        return Some(Transmit {
                            flow,
                            seq: opening.isn.get(),
                            ack: 0,
                            window: WINDOW,
                            flags: SYN,
                            options: opening::syn_options(&self.config, &credentials, &flow, opening),
                            segment_size: 1,
                            payload: &[],
                        });
                    }
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::seq::ReplaySeq;
    use crate::engine::tests::flow;

    fn leftovers(count: u16) -> Leftovers {
        let mut leftovers = Leftovers::default();
        let opening = Opening { isn: ReplaySeq::new(1), tsval: 2 };
        assert!((0..count).all(|port| leftovers.add(flow(port), opening)) && !leftovers.add(flow(0), opening));
        leftovers
    }

    fn ask_all(leftovers: &mut Leftovers, now: Nanos) -> usize {
        std::iter::from_fn(|| leftovers.next().and_then(|flow| leftovers.ask(now, &flow))).count()
    }

    #[test]
    fn answers_make_room_for_further_questions() {
        let mut leftovers = leftovers(300);
        assert_eq!(ask_all(&mut leftovers, Nanos(0)), MOST_ASKED);
        assert!((0..50).all(|port| leftovers.settle(&flow(port))) && !leftovers.settle(&flow(0)));
        assert_eq!(ask_all(&mut leftovers, Nanos(1)), 50);
        assert_eq!(leftovers.len(), 250);
    }

    #[test]
    fn silence_is_given_up_and_its_room_is_free_again() {
        let mut leftovers = leftovers(200);
        let (mut syns, mut given_up) = (0, 0);
        while leftovers.len() > 0 {
            let now = leftovers.deadline().unwrap_or(Nanos(0));
            given_up += leftovers.expire(now);
            syns += ask_all(&mut leftovers, now);
        }
        assert_eq!((syns, given_up, leftovers.asked), (200 * usize::from(MOST_SYNS), 200, 0));
        assert_eq!(leftovers.deadline(), None);
    }

    #[test]
    fn one_that_is_settled_and_left_again_keeps_no_old_deadline() {
        let mut leftovers = leftovers(1);
        ask_all(&mut leftovers, Nanos(0));
        leftovers.settle(&flow(0));
        leftovers.add(flow(0), Opening { isn: ReplaySeq::new(3), tsval: 4 });
        ask_all(&mut leftovers, Nanos(5));
        leftovers.expire(Nanos(0).after(RETRY));
        assert_eq!((leftovers.next(), leftovers.asked), (None, 1));
        leftovers.expire(Nanos(5).after(RETRY));
        assert_eq!((leftovers.next(), leftovers.asked), (Some(flow(0)), 0));
    }
}
