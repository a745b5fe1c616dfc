//! The watch over SYNs that stay without a response.
//!
//! Silence by itself means nothing: packets are lost, hosts are slow, a service that accepts no connection answers no
//! SYN. So each conclusion needs a proof that the opposite cannot explain, and reports come in order:
//!
//! - [`Fault::SynsUnseen`]: several SYNs and probes from a client's address went unreported, and then a probe of our own
//!   was reported.
//! - [`Fault::Unanswered`], [`Fault::AnswersUnseen`]: a SYN came a second time, its first was not answered, and a probe
//!   that was sent later was reported: the answer is not on its way.
//! - [`Fault::ProbeUnseen`]: none of our own probes was reported for longer than [`BLIND`], and the channel is alive.
//!
//! Any response ends the watch, and so does the service's queue being full.

use std::time::Duration;

use tcpcopy_common::flow::Flow;

use super::fault::Fault;
use crate::{store::moment::Moment, tcp::seq::ReplaySeq, time::Nanos};

/// The time in units of some 1 ms, which is the sequence number of a probe: so the report of one tells when it was
/// sent.
pub(super) const fn tick(time: Nanos) -> ReplaySeq {
    ReplaySeq::new((time.0 >> 20) as u32)
}

/// How long a SYN may stay without a response until probes are sent: longer than most round trips.
const QUIET: Duration = Duration::from_millis(500);
/// Between two probes, of which every second comes from the client's address as long as there are few.
const BETWEEN: Duration = Duration::from_millis(100);
/// So many come from the client's address.
const OF_CLIENT: u32 = 5;
/// The shortest time between what a probe is to confirm and that probe, so that they cannot change places on the way.
const APART: Duration = Duration::from_millis(50);
/// So many SYNs must have been sent. Together with the probes from the client's address all are lost by chance once in
/// ten million times where every tenth packet is lost.
const MIN_SYNS: u32 = 2;
/// How long our own probes may stay without a report.
const BLIND: Duration = Duration::from_millis(1800);
/// How long probes are sent after a SYN: if nothing is proved by then, the next one begins anew.
const WINDOW: Duration = Duration::from_millis(2600);
/// Where there are no probes of our own, how long an answer may be on its way.
const ON_THE_WAY: Duration = Duration::from_millis(500);

/// What was sent since the last response, and what is known of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Watch {
    /// The last response; never before the first one.
    response: Option<Nanos>,
    /// Since when SYNs are without one.
    since: Moment,
    /// SYNs since then.
    syns: u32,
    /// Sessions whose first SYN was among them.
    opened: u32,
    /// The connection of the first.
    suspect: Flow,
    /// Of `suspect`.
    probes: u32,
    own_probes: u32,
    probe_at: Moment,
    /// When the last probe of `suspect` was sent.
    probed: Nanos,
    /// One of our own has been reported.
    own_seen: bool,
    /// A packet from a client's address has been reported.
    client_seen: bool,
    /// What the target's programs have reported of SYNs, and when the first such report came.
    unanswered: Option<(Fault, Nanos)>,
}

impl Watch {
    pub(super) fn new() -> Self {
        Self {
            response: None,
            since: Moment::NEVER,
            syns: 0,
            opened: 0,
            suspect: bytemuck::Zeroable::zeroed(),
            probes: 0,
            own_probes: 0,
            probe_at: Moment::NEVER,
            probed: Nanos::default(),
            own_seen: false,
            client_seen: false,
            unanswered: None,
        }
    }

    /// Whether there was a response since the way was proved.
    pub(super) const fn is_confirmed(&self) -> bool {
        self.response.is_some()
    }

    pub(super) fn confirmed_within(&self, now: Nanos, time: Duration) -> bool {
        self.response.is_some_and(|response| now.since(response) < time)
    }

    /// Sessions opened since the last response.
    pub(super) const fn opened(&self) -> u32 {
        self.opened
    }

    /// Handles a response, or whatever else explains why there is none.
    pub(super) fn handle_response(&mut self) {
        if self.since.is_set() {
            self.forget();
        }
    }

    /// Notes the response that shows that responses are swallowed.
    pub(super) const fn confirm(&mut self, now: Nanos) {
        self.response = Some(now);
    }

    /// Forgets what was sent: nothing can be heard of it.
    pub(super) fn forget(&mut self) {
        *self = Self { response: self.response, ..Self::new() };
    }

    /// Looks into what was sent as if it had been sent now.
    pub(super) fn start_over(&mut self, now: Nanos) {
        if self.since.is_set() {
            let Self { opened, suspect, .. } = *self;
            self.forget();
            (self.opened, self.suspect) = (opened, suspect);
            (self.since, self.probe_at) = (Moment::at(now), Moment::at(now.after(QUIET)));
        }
    }

    pub(super) fn handle_syn(&mut self, now: Nanos, flow: &Flow, is_first: bool) {
        if !self.since.is_set() {
            (self.since, self.suspect) = (Moment::at(now), *flow);
            self.probe_at = Moment::at(now.after(QUIET));
        } else if !self.probe_at.is_set() {
            let Self { syns, opened, .. } = *self;
            self.forget();
            (self.syns, self.opened) = (syns, opened);
            (self.since, self.suspect) = (Moment::at(now), *flow);
            self.probe_at = Moment::at(now.after(QUIET));
        }
        self.syns = self.syns.saturating_add(1);
        self.opened = self.opened.saturating_add(u32::from(is_first));
    }

    /// Handles that the target's programs have let a SYN in twice, and seen no answer to the first.
    pub(super) fn handle_unanswered(&mut self, now: Nanos, fault: Fault) {
        // That of a session from before the last response says nothing new.
        if !self.since.is_set() {
            return;
        }
        self.client_seen = true;
        self.unanswered = Some(match self.unanswered {
            Some((known, at)) if known == fault || known == Fault::AnswersUnseen => (known, at),
            _ => (fault, now),
        });
        self.probe_at = self.probe_at.min(Moment::at(now.after(BETWEEN)));
    }

    /// Handles that a probe that was sent at `seq` was reported; returns what that proves.
    pub(super) fn handle_probed(&mut self, flow: &Flow, seq: ReplaySeq, is_own: bool) -> Option<Fault> {
        if !self.since.is_set() || tick(self.since.time()).is_after(seq) {
            return None;
        }
        if !is_own {
            self.client_seen |= *flow == self.suspect;
            return None;
        }
        self.own_seen = true;
        let is_later = |than: Nanos| !tick(than.after(APART)).is_after(seq);
        match self.unanswered {
            Some((fault, at)) => is_later(at).then_some(fault),
            None if self.client_seen || self.probes < OF_CLIENT || self.syns < MIN_SYNS => None,
            None => is_later(self.probed).then_some(Fault::SynsUnseen),
        }
    }

    /// Decides what time alone proves; `can_probe`: we have an address of our own; `is_alive`: the channel is.
    pub(super) fn expire(&mut self, now: Nanos, can_probe: bool, is_alive: bool) -> Option<Fault> {
        if !self.since.is_set() || !is_alive {
            return None;
        }
        match self.unanswered {
            Some((fault, at)) if !can_probe && now.since(at) >= ON_THE_WAY => Some(fault),
            None if can_probe && self.is_blind(now) => Some(Fault::ProbeUnseen),
            _ => None,
        }
    }

    /// Ends the probes if nothing was proved for long enough; returns whether sessions may be opened that had to wait.
    pub(super) fn rest(&mut self, now: Nanos) -> bool {
        if !self.probe_at.is_set() || now.since(self.since.time()) < WINDOW {
            return false;
        }
        self.probe_at = Moment::NEVER;
        std::mem::take(&mut self.opened) > 0 && !self.is_confirmed()
    }

    fn is_blind(&self, now: Nanos) -> bool {
        !self.own_seen && !self.client_seen && self.own_probes >= OF_CLIENT && now.since(self.since.time()) >= BLIND
    }

    /// When to poll for a probe; [`expire`](Self::expire) is called then too.
    pub(super) const fn deadline(&self) -> Moment {
        self.probe_at
    }

    /// Returns the four-tuple of the probe that is due; `own`: that of ours, if there is one.
    pub(super) fn poll_probe(&mut self, now: Nanos, own: Option<Flow>) -> Option<Flow> {
        if !self.probe_at.is_due(now) {
            return None;
        }
        self.probe_at = Moment::at(now.after(BETWEEN));
        let own = own?;
        if self.own_probes > self.probes && self.probes < OF_CLIENT && !self.client_seen {
            self.probes += 1;
            self.probed = now;
            return Some(self.suspect);
        }
        self.own_probes = self.own_probes.saturating_add(1);
        Some(own)
    }
}
