//! The life of a session: how it begins, moves to another target connection and ends, and what happens to what it held.

use std::{net::IpAddr, time::Duration};

use tcpcopy_common::flow::Flow;

use super::joining;
use crate::{
    causality::joining::{HEAD, Standing},
    config::{Config, TargetId},
    engine::{Connection, Engine, Flag, Replay},
    identity,
    input::{adapter::Rewrite, offset::LiveOffset, proxy_protocol::Header},
    multipath::Subflow,
    stats::Reason,
    store::{id::Id, moment::Moment, timers::Timer},
    tcp::{
        distance::Distance,
        isn,
        session::{Final, FinalSegment, Origin, Outcome, Owed, Session},
    },
    time::Nanos,
};

/// A gap that opens within this time of a full ring is taken for one that it has left: the worker sees that the ring is
/// full before it sees the records around what was lost, or just after.
pub(super) const RING_GAP_WINDOW: Duration = Duration::from_secs(1);
/// How long such a gap may stay open: only packets that have overtaken each other fill it.
const RING_GAP_TIMEOUT: Duration = Duration::from_millis(20);

impl Engine {
    /// Returns where a live connection is replayed to, and the four-tuple that it would have there if clients kept
    /// theirs.
    ///
    /// # Errors
    /// The reason why it cannot be replayed.
    pub(crate) fn destination(&self, live: &Flow, rule: u16) -> Result<(TargetId, Flow), Reason> {
        let rule = self.config.rules.get(usize::from(rule)).ok_or(Reason::UnknownRule)?;
        let mut client = IpAddr::from(live.client);
        if let Some(other) = self.config.loopback_client.filter(|_| client.is_loopback()) {
            client = other;
        }
        if client.is_ipv4() != rule.address.is_ipv4() {
            return Err(Reason::AddressFamily);
        }
        let flow = Flow {
            client: client.into(),
            server: rule.address.ip().into(),
            server_port: rule.address.port().to_be_bytes(),
            ..*live
        };
        Ok((rule.target, flow))
    }

    /// Returns the first four-tuple, from the `attempt`th on, that no session of this engine has, nor an orphan.
    fn free_flow(&self, target: TargetId, wanted: &Flow, attempt: u8) -> Option<(Flow, u8)> {
        let orphans = self.orphans.get(usize::from(target.0));
        identity::candidates(&self.config.identity, self.secret, wanted, attempt)
            .find(|(flow, _)| self.id_at_target(flow).is_none() && orphans.is_none_or(|orphans| !orphans.knows(flow)))
    }

    /// What a session to be opened sends in place of what its live client has sent.
    fn rewrite(&self, live: &Flow) -> Rewrite {
        #[cfg(test)]
        if let Some(script) = &self.config.script {
            return Rewrite::Scripted(Box::new(script.clone()));
        }
        match self.config.proxy_protocol {
            Some(version) => Rewrite::Header(Header::new(version, live).len()),
            None => Rewrite::Identity,
        }
    }

    /// Begins a session for a connection that has none.
    ///
    /// # Errors
    /// The reason why none can begin.
    pub(crate) fn open_session(&mut self, now: Nanos, id: Id, origin: Origin) -> Result<(), Reason> {
        let Some(connection) = self.connections.get(id) else { return Ok(()) };
        let used = if let Replay::Parked(_, used) = connection.replay { used } else { None };
        let live = connection.live.flow();
        let (target, wanted) = self.destination(&live, connection.rule)?;
        // A four-tuple that the target's own traffic has taken must be left alone.
        let attempt = u8::from(matches!(connection.replay, Replay::Parked(Reason::Reclaimed, _)));
        let (flow, attempt) = self.free_flow(target, &wanted, attempt).ok_or(Reason::Collision)?;
        let opening = isn::opening(self.secret, now, &flow, used);
        let session = Session::new(now, target, flow, attempt, opening, origin, self.rewrite(&live));
        self.by_target.insert(&flow, id);
        self.stats.sessions.seen += 1;
        self.stats.sessions.active += 1;
        if let Some(connection) = self.connections.get_mut(id) {
            connection.replay = Replay::Active(session);
        }
        self.enqueue(id);
        self.arm(id);
        Ok(())
    }

    /// Carries out what a session asked for.
    pub(crate) fn conclude(&mut self, now: Nanos, id: Id, outcome: Outcome) {
        match self.judge_join(id, outcome) {
            Outcome::Continue => {}
            Outcome::Finished(kind, owed) => {
                self.count_owed(owed);
                if self.detach(id, kind, Reason::LiveReset).is_some() {
                    self.stats.sessions.finished += 1;
                }
                let reset = self.connections.get(id).is_some_and(|c| c.stream.reset().is_some());
                // Normally nothing is left; a RST may have overtaken octets, or the target closed before the FIN.
                self.forget(id, if reset { Reason::LiveReset } else { Reason::TargetClosed });
                return;
            }
            Outcome::Aborted(reason, kind) => {
                self.abandon_and_skip(now, id, reason, kind);
                return;
            }
            Outcome::Reconnect(from, kind, owed) => {
                self.count_owed(owed);
                self.queue_final_segment(id, kind);
                self.stats.reconnects += 1;
                if let Some(Connection { stream, replay: Replay::Active(session), .. }) = self.connections.get_mut(id) {
                    let opening = isn::opening(self.secret, now, session.flow(), Some(session.used()));
                    session.reconnect(now, opening, from, stream);
                }
            }
            Outcome::Rest(kind) => {
                self.queue_final_segment(id, kind);
                if let Some(session) = self.session_mut(id) {
                    session.rest();
                }
            }
            Outcome::Collided => {
                self.stats.collisions += 1;
                if !self.remap(now, id) {
                    self.abandon_and_skip(now, id, Reason::Collision, Final::Nothing);
                    return;
                }
            }
            Outcome::HalfOpen(seq) => {
                if let Some(session) = self.session_mut(id) {
                    let reset = FinalSegment::reset(session.target(), *session.flow(), seq);
                    self.final_segments.push_back(reset);
                }
            }
        }
        self.release(id);
        self.enqueue(id);
        self.arm(id);
    }

    /// Counts the requests that a target connection has left without an answer.
    const fn count_owed(&mut self, owed: Owed) {
        match owed {
            Owed::Answer => self.stats.requests_unanswered += 1,
            Owed::Perhaps(requests) => self.stats.requests_unclear += requests,
        }
    }

    fn session_mut(&mut self, id: Id) -> Option<&mut Session> {
        match &mut self.connections.get_mut(id)?.replay {
            Replay::Active(session) => Some(session),
            Replay::Parked(..) => None,
        }
    }

    /// Moves a session to another client port; returns whether there was one.
    fn remap(&mut self, now: Nanos, id: Id) -> bool {
        let Some(connection) = self.connections.get(id) else { return false };
        let (live, rule) = (connection.live.flow(), connection.rule);
        let Replay::Active(session) = &connection.replay else { return false };
        let (old, next) = (*session.flow(), session.ports_tried().saturating_add(1));
        let Ok((target, wanted)) = self.destination(&live, rule) else { return false };
        let Some((flow, attempt)) = self.free_flow(target, &wanted, next) else { return false };
        self.by_target.remove(&old, id);
        self.by_target.insert(&flow, id);
        let opening = isn::opening(self.secret, now, &flow, None);
        if let Some(session) = self.session_mut(id) {
            session.remap(now, flow, attempt, opening);
        }
        true
    }

    /// Queues the final segment of a session's present target connection.
    fn queue_final_segment(&mut self, id: Id, kind: Final) {
        let segment = self.session_mut(id).and_then(|session| session.final_segment(kind));
        self.final_segments.extend(segment);
    }

    /// Takes a connection's session away, and releases what that had sent.
    fn detach(&mut self, id: Id, kind: Final, reason: Reason) -> Option<()> {
        self.queue_final_segment(id, kind);
        let connection = self.connections.get_mut(id)?;
        let Replay::Active(session) = &connection.replay else { return None };
        connection.stream.release(&mut self.pool, session.sent());
        if session.fin_sent() {
            connection.fin = Flag::Settled;
        }
        self.by_target.remove(session.flow(), id);
        connection.replay = Replay::Parked(reason, Some(session.used()));
        self.stats.sessions.active -= 1;
        Some(())
    }

    /// Ends a session early; its connection is parked. Octets that were not sent stay for [`seek`](Self::seek).
    pub(crate) fn abandon(&mut self, id: Id, reason: Reason, kind: Final) {
        if self.detach(id, kind, reason).is_some() {
            self.stats.sessions.aborted.add(reason, 1);
        }
        if let Some(connection) = self.connections.get_mut(id)
            && connection.syn == Flag::Pending
        {
            connection.syn = Flag::Settled;
            self.stats.syns.discard(reason, 1);
        }
    }

    /// Ends a session early, and joins at the next request. A request that a session began with and never got to send
    /// is given up with it, as the next session would fare no better: it would be refused for ever, as fast as the
    /// target can. So is all that waits behind it when the target was silent: each request would be held for another
    /// minute.
    fn abandon_and_skip(&mut self, now: Nanos, id: Id, reason: Reason, kind: Final) {
        // After these two the next session has another port, or another `intercept`.
        let hopeless = !matches!(reason, Reason::Reclaimed | Reason::ChannelLost);
        let vain = hopeless && self.session_mut(id).is_some_and(|session| session.has_sent_nothing());
        self.abandon(id, reason, kind);
        let Some(Connection { stream, .. }) = self.connections.get(id) else { return };
        let first = match reason {
            Reason::TargetSilent if vain => stream.end(),
            _ if vain => stream.start().plus(1),
            _ => stream.start(),
        };
        self.seek_from(now, id, first);
    }

    /// Discards what a parked connection holds up to the next request, and joins there.
    pub(crate) fn seek(&mut self, now: Nanos, id: Id) {
        self.seek_from(now, id, LiveOffset::START);
    }

    /// Does the same, but not at a request that begins before `first`.
    fn seek_from(&mut self, now: Nanos, id: Id, first: LiveOffset) {
        let may_join = self.config.rejoin && !self.config.complete_only;
        loop {
            let Some(Connection { stream, rule, replay: Replay::Parked(reason, _), .. }) = self.connections.get_mut(id)
            else {
                return;
            };
            let (reason, rule) = (*reason, *rule);
            let joins = self.profiles.get(usize::from(rule)).is_none_or(|profile| !profile.joins.are_over());
            let may_join = may_join && stream.subflow() != Subflow::Part;
            let mut number = stream.first_mark();
            let first = first.max(stream.start());
            let begin = loop {
                match stream.mark(number) {
                    Some(mark)
                        if may_join
                            && mark.offset >= first
                            && stream.begins_request(number)
                            && joining::may_join(joins, Some(reason), stream.slice(mark.offset, HEAD)) =>
                    {
                        let standing = Standing::at(mark.offset, stream.slice(mark.offset, HEAD));
                        break Some(Origin { offset: mark.offset, mark: number, read: mark.ack, standing });
                    }
                    Some(_) => number += 1,
                    None => break None,
                }
            };
            let keep = begin.map_or(stream.end(), |origin| origin.offset);
            self.stats.bytes.discard(reason, keep.since(stream.start()));
            let Some(origin) = begin else {
                let over = stream.fin().is_some() || stream.reset().is_some();
                stream.release(&mut self.pool, keep);
                if over {
                    self.forget(id, reason);
                } else {
                    self.arm(id);
                }
                return;
            };
            // The mark stays: the session passes it like any other. What lies before it goes with the next release.
            let before = stream.start();
            match self.open_session(now, id, origin) {
                Ok(()) => {
                    self.stats.joined += 1;
                    self.release(id);
                    return;
                }
                Err(reason) => self.skip_request(id, number, before, keep, reason),
            }
        }
    }

    /// Discards a request that could have been joined, had there been a session.
    fn skip_request(&mut self, id: Id, number: u64, before: LiveOffset, begin: LiveOffset, reason: Reason) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let end = connection.stream.mark(number + 1).map_or(connection.stream.end(), |m| m.offset);
        debug_assert!(before <= begin && begin < end);
        self.stats.bytes.discard(reason, end.since(begin));
        connection.stream.release(&mut self.pool, end);
    }

    /// Forgets a connection; what it still held is discarded for `reason`.
    pub(crate) fn forget(&mut self, id: Id, reason: Reason) {
        let Some(mut connection) = self.connections.remove(id) else { return };
        let left = connection.stream.held_from(connection.stream.start());
        self.stats.bytes.discard(reason, left);
        if connection.syn == Flag::Pending {
            self.stats.syns.discard(reason, 1);
        }
        if connection.fin == Flag::Pending {
            self.stats.fins.discard(reason, 1);
        }
        connection.stream.clear(&mut self.pool);
        self.by_live.remove(&connection.live.flow(), id);
    }

    /// Releases memory that the session no longer needs.
    fn release(&mut self, id: Id) {
        let Some(Connection { stream, replay: Replay::Active(session), .. }) = self.connections.get_mut(id) else {
            return;
        };
        stream.release(&mut self.pool, session.needed_from(&self.config));
    }

    /// Sets the connection's timers to its deadlines.
    pub(crate) fn arm(&mut self, id: Id) {
        let Some(connection) = self.connections.get(id) else { return };
        let deadlines = self.deadlines(connection);
        let Some(armed) = self.connections.armed_mut(id) else { return };
        for (timer, deadline) in deadlines {
            self.timers.arm(id, armed, timer, deadline);
        }
    }

    /// Returns a connection's deadlines, one for each of its timers.
    pub(super) fn deadlines(&self, connection: &Connection) -> [(Timer, Moment); 3] {
        let mut late = self.idle_deadline(connection).min(self.retry_deadline(connection));
        if let Some(since) = connection.stream.gap_since() {
            late = late.min(Moment::at(self.gap_deadline(since)));
        }
        let [soon, loss] = match &connection.replay {
            Replay::Parked(..) => [Moment::NEVER; 2],
            Replay::Active(session) => {
                let lets = self.fuses.lets(connection.rule, session.is_visible());
                let channel_up = lets && self.credentials(session.target()).is_some();
                let loss = session.retransmit_at(channel_up);
                late = late.min(session.state_deadline(channel_up));
                if session.is_open() {
                    [session.soon(), loss]
                } else {
                    // A SYN waits so much longer than data that its entry would be cancelled before it is due.
                    late = late.min(loss);
                    [session.soon(), Moment::NEVER]
                }
            }
        };
        [(Timer::Soon, soon), (Timer::Loss, loss), (Timer::Late, late)]
    }

    /// Returns when octets that are missing since `since` are given up.
    fn gap_deadline(&self, since: Nanos) -> Nanos {
        let ours = self
            .ring_full
            .is_some_and(|full| since <= full.after(RING_GAP_WINDOW) && full <= since.after(RING_GAP_WINDOW));
        since.after(if ours { RING_GAP_TIMEOUT } else { self.config.gap_timeout })
    }

    fn idle_deadline(&self, connection: &Connection) -> Moment {
        let Config { session_timeout, keepalive_timeout, .. } = self.config;
        let session = match &connection.replay {
            Replay::Active(session) => session,
            // It is remembered that it stays out.
            Replay::Parked(Reason::Unjoinable, _) => {
                return keepalive_timeout.map(|timeout| connection.last_activity.after(timeout)).into();
            }
            Replay::Parked(..) => return Moment::at(connection.last_activity.after(session_timeout)),
        };
        let stream = &connection.stream;
        let open = stream.fin().is_none() && stream.reset().is_none();
        let timeout = match keepalive_timeout {
            _ if !open || session.sent() < stream.end() => Some(session_timeout),
            // A session that has not sent a request yet is not one between two requests.
            Some(_) if session.sent() == LiveOffset::START => Some(session_timeout),
            timeout => timeout,
        };
        timeout.map(|timeout| last_use(connection, session).after(timeout)).into()
    }

    /// Returns when the octets of a request that the target never answered are kept no longer to be sent again: idle
    /// sessions, of which there may be many, hold no buffers.
    fn retry_deadline(&self, connection: &Connection) -> Moment {
        match &connection.replay {
            Replay::Active(session) if session.keeps_for_retry(&self.config) => {
                Moment::at(last_use(connection, session).after(self.config.session_timeout))
            }
            _ => Moment::NEVER,
        }
    }

    /// Handles an expired timer of a connection, whose deadline may have moved since it was armed.
    pub(crate) fn handle_connection_timer(&mut self, now: Nanos, id: Id) {
        let Some(connection) = self.connections.get(id) else { return };
        if self.deadlines(connection).iter().any(|(_, deadline)| deadline.is_due(now)) {
            self.handle_connection_timeout(now, id);
        } else {
            self.arm(id);
        }
    }

    fn handle_connection_timeout(&mut self, now: Nanos, id: Id) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.stream.gap_since().is_some_and(|since| self.gap_deadline(since) <= now) {
            self.give_up_gap(now, id);
            return;
        }
        let idle = self.idle_deadline(connection).is_due(now);
        let forgets = self.retry_deadline(connection).is_due(now);
        if let (true, &Replay::Parked(reason, _)) = (idle, &connection.replay) {
            self.forget(id, reason);
            return;
        }
        if idle {
            if let Some(connection) = self.connections.get_mut(id) {
                // Parked for another timeout, so that the next request can be told from the middle of one.
                connection.last_activity = now;
                if connection.is_in_handshake() {
                    connection.end_handshake(Distance::Near);
                }
            }
            self.abandon_and_skip(now, id, Reason::IdleTimeout, Final::Reset);
            return;
        }
        if forgets {
            if let Some(session) = self.session_mut(id) {
                session.give_up_retry();
            }
            self.release(id);
        }
        match self.with_session(now, id, Session::handle_timeout) {
            Some(outcome) => self.conclude(now, id, outcome),
            None => self.arm(id),
        }
    }

    /// Gives up a gap: the octets will not come any more, and rule S5 forbids to go on with what follows.
    fn give_up_gap(&mut self, now: Nanos, id: Id) {
        let reason = Reason::CaptureGap;
        self.abandon(id, reason, Final::Reset);
        let Some(Connection { stream, .. }) = self.connections.get_mut(id) else { return };
        // The gaps behind it are as old as it is: see `Stream::skip_gap`.
        while stream.gap_since().is_some() {
            self.stats.bytes.discard(reason, stream.end().since(stream.start()));
            let Ok(missing) = stream.skip_gap(&mut self.pool) else {
                return self.overflow(now, id, Reason::TotalMemory);
            };
            self.stats.missing_bytes += missing;
        }
        self.seek(now, id);
    }
}

/// When live client or target last used a session.
fn last_use(connection: &Connection, session: &Session) -> Nanos {
    connection.last_activity.max(session.last_progress())
}
