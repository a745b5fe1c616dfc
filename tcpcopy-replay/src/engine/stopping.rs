//! What the engine does when a [fuse](super::fuse) lets nothing more through, or something again.

use tcpcopy_common::tcp_flags::{RST, SYN};

use super::fuse::{Change, Found, Probe};
use crate::{
    config::TargetId,
    engine::{Connection, Engine, Fault, FuseEvent, Replay},
    report::Report,
    segment::Transmit,
    stats::Reason,
    tcp::{
        isn,
        receiver::WINDOW,
        session::{Final, FinalSegment, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Handles that a target's channel was heard, as it is every second while it is up.
    pub fn handle_heard(&mut self, now: Nanos, target: TargetId) {
        self.fuses.handle_heard(now, target);
    }

    /// Handles what another engine has found out about a target.
    pub fn handle_fuse_event(&mut self, now: Nanos, event: FuseEvent) {
        self.fuses.handle_event(now, event);
        self.settle_fuses(now);
    }

    /// Returns what this engine has found out about a target since the last call: whether anything may be sent there,
    /// and why not.
    pub fn poll_fuse_event(&mut self) -> Option<FuseEvent> {
        let event = self.fuses.poll_event()?;
        match event.fault {
            None => {}
            Some(Fault::ProbeUnseen) => self.stats.probe_unseen += 1,
            Some(Fault::SynsUnseen) => self.stats.syns_unseen += 1,
            Some(Fault::Unanswered) => self.stats.unanswered += 1,
            Some(Fault::AnswersUnseen) => self.stats.answers_unseen += 1,
        }
        Some(event)
    }

    pub(super) fn fuse_channel_up(&mut self, now: Nanos, target: TargetId, is_new: bool) {
        self.fuses.handle_channel_up(now, target, is_new);
        self.stats.stopped = self.fuses.stopped();
    }

    pub(super) fn expire_fuses(&mut self, now: Nanos) {
        self.fuses.expire(now);
        self.settle_fuses(now);
    }

    /// Tells the fuses what a report means to them; returns whether it is for nobody else.
    pub(super) fn handle_fuse_report(&mut self, now: Nanos, target: TargetId, report: &Report<'_>) -> bool {
        let flow = report.session().flow;
        let found = |explained, answered| match (explained, answered) {
            (true, _) => Found::Explained,
            (false, true) => Found::Answered,
            (false, false) => Found::Nothing,
        };
        let is_apart = match report {
            Report::Segment(_) | Report::IcmpError(_) => {
                self.fuses.handle_response(now, target, &flow);
                false
            }
            Report::Collision(_) | Report::MapFull(_) | Report::Reclaimed(_) => {
                self.fuses.handle_refusal(target, &flow);
                false
            }
            Report::Probed(probe) => {
                let found = found(probe.full, false);
                self.fuses.handle_probed(now, target, &flow, probe.seq, found, probe.lost);
                true
            }
            Report::Unanswered(syn) => {
                self.fuses.handle_unanswered(now, target, &flow, found(syn.explained, syn.answered));
                true
            }
        };
        self.settle_fuses(now);
        is_apart
    }

    /// Carries out what the fuses want of sessions.
    fn settle_fuses(&mut self, now: Nanos) {
        while let Some(Change { target, server, reset }) = self.fuses.poll_change() {
            self.stats.stopped = self.fuses.stopped();
            if let Some(orphans) = self.orphans.get_mut(usize::from(target.0)) {
                orphans.hurry();
            }
            for id in self.sessions_of(target) {
                let Some(Connection { replay: Replay::Active(session), .. }) = self.connections.get(id) else {
                    continue;
                };
                let is_there = (session.flow().server, session.flow().server_port) == server;
                if reset && is_there && session.is_visible() {
                    self.conclude(now, id, Outcome::Aborted(Reason::TargetStopped, Final::Reset));
                } else if is_there {
                    self.enqueue(id);
                }
            }
        }
        self.stats.stopped = self.fuses.stopped();
    }

    /// Whether the final segment of a session may be sent. A RST is never answered (RFC 9293, section 3.10.7.1).
    pub(super) fn lets_final(&self, segment: &FinalSegment) -> bool {
        segment.flags.contains(RST) || self.fuses.lets_to(segment.target, &segment.flow)
    }

    /// Returns the next SYN that only asks whether it is seen.
    pub(super) fn poll_probe(&mut self, now: Nanos) -> Option<Transmit<'static>> {
        let Probe { target, flow, seq } = self.fuses.poll_probe(now)?;
        let credentials = self.credentials(target)?;
        self.stats.probes_sent += 1;
        Some(Transmit {
            flow,
            seq: seq.get(),
            ack: 0,
            window: WINDOW,
            flags: SYN,
            options: isn::probe_options(&self.config, &credentials, &flow, seq),
            segment_size: 1,
            payload: &[],
        })
    }
}
