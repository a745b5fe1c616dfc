//! Orphaned connections: still open at a target although their session is over, and not known there as replayed.
//!
//! An `intercept` that was killed takes its session map with it. The target's sockets stay, and what they send later (a
//! keep-alive's FIN, a retransmission) would go to the real clients. So when its successor is up, each of them is
//! probed by a SYN on its four-tuple, with a mark of the new instance that says so
//! ([`Stamp::meets`](tcpcopy_common::mark::Stamp::meets)), because the SYN of any other session keeps away from open
//! connections. Its ISN lies just above what was sent before, by which the programs tell the orphan from a connection
//! that somebody else has opened meanwhile ([`MEETS_WITHIN`](tcpcopy_common::mark::MEETS_WITHIN)). From then on
//! whatever it sends is swallowed and reported. A socket that is there answers with a challenge ACK (RFC 5961,
//! section 4.2) that names the one sequence number of a RST that it accepts; a RST at our own idea of that number
//! would hit it only if nothing had been lost on the way. Where there is no socket, the listener answers with a
//! SYN-ACK. Either is a response of no session, and is reset as such.

use tcpcopy_common::{flow::Flow, tcp_flags::SYN};

use crate::{
    config::TargetId,
    engine::{Connection, Engine, Replay, orphan_table::Orphans},
    report::Report,
    segment::Transmit,
    tcp::{isn, receiver::WINDOW, seq::ReplaySeq},
    time::Nanos,
};

impl Engine {
    /// Notes a connection that may be open at a target, and that belongs to no session; `last` is the sequence number
    /// after everything that was sent on it.
    pub(crate) fn leave_orphan(&mut self, now: Nanos, target: TargetId, flow: Flow, last: ReplaySeq) {
        let opening = isn::above(self.secret, now, &flow, last);
        if let Some(orphans) = self.orphans.get_mut(usize::from(target.0)) {
            self.stats.orphans += u64::from(orphans.add(flow, opening));
        }
    }

    /// Begins to probe everything that is left at a target whose channel has come up.
    pub(crate) fn ask_for_orphans(&mut self, target: TargetId) {
        if let Some(orphans) = self.orphans.get_mut(usize::from(target.0)) {
            orphans.start_over();
        }
    }

    /// Handles a report about a four-tuple without a session; returns whether it settles an orphan.
    pub(crate) fn settle_orphan(&mut self, target: TargetId, report: &Report<'_>) -> bool {
        // A segment shows that the SYN has come through the target's programs, which swallow what follows. A collision,
        // that another instance answers for the four-tuple; a reclaimed one belongs to a client of the target's own.
        let settles = matches!(report, Report::Segment(_) | Report::Collision(_) | Report::Reclaimed(_));
        let orphans = self.orphans.get_mut(usize::from(target.0)).filter(|_| settles);
        let settled = orphans.is_some_and(|orphans| orphans.settle(&report.session().flow));
        self.stats.orphans_settled += u64::from(settled);
        settled
    }

    pub(crate) fn expire_orphans(&mut self, now: Nanos) {
        for orphans in &mut self.orphans {
            self.stats.orphans_given_up += orphans.expire(now);
        }
    }

    pub(crate) fn orphans_deadline(&self) -> Option<Nanos> {
        self.orphans.iter().filter_map(Orphans::deadline).min()
    }

    /// Returns the next SYN that probes an orphan.
    pub(crate) fn poll_orphans(&mut self, now: Nanos) -> Option<Transmit<'static>> {
        for index in 0..self.orphans.len() {
            let Some(credentials) = self.channels[index] else { continue };
            while let Some(flow) = self.orphans[index].next() {
                if !self.fuses.lets_to(TargetId(index as u16), &flow) {
                    self.orphans[index].postpone(now, &flow);
                    continue;
                }
                match self.id_at_target(&flow).and_then(|id| self.connections.get(id)) {
                    // Its own SYN has probed what was left there.
                    Some(Connection { replay: Replay::Active(session), .. })
                        if session.is_open() && session.instance() == Some(credentials.instance) =>
                    {
                        self.stats.orphans_settled += u64::from(self.orphans[index].settle(&flow));
                    }
                    Some(_) => self.orphans[index].postpone(now, &flow),
                    None => {
                        let Some(opening) = self.orphans[index].ask(now, &flow) else { continue };
                        return Some(Transmit {
                            flow,
                            seq: opening.isn.get(),
                            ack: 0,
                            window: WINDOW,
                            flags: SYN,
                            options: isn::syn_options(&self.config, &credentials, &flow, opening, true),
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
