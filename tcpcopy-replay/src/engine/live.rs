//! Handles what live clients send.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, RST, SYN};

use super::{handshake::Verdict, lifecycle::RING_GAP_WINDOW};
use crate::{
    engine::{Connection, Engine, Flag, FourTuple, Handshake, Replay},
    input::{
        buffer::Pool,
        holders::{Client, Owner},
        stream::{Close, Facts, Share, Stream},
    },
    multipath::{Multipath, Subflow},
    segment::LiveSegment,
    stats::{Reason, Refusal, Stats},
    store::id::Id,
    tcp::{
        acceptance::{Acceptance, Arrival},
        distance::Distance,
        seq::{LiveAck, LiveSeq},
        session::{Final, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Handles a segment captured from a live client.
    pub fn handle_live(&mut self, now: Nanos, segment: &LiveSegment<'_>) {
        self.stats.live_segments += 1;
        self.judge_live(now, segment);
    }

    /// Handles a segment that may have waited since it was captured.
    pub(super) fn judge_live(&mut self, now: Nanos, segment: &LiveSegment<'_>) {
        let octets = segment.payload.len() as u64;
        if !segment.intact {
            return self.stats.refused.add(Refusal::Checksum, octets);
        }
        let known = self.id_of_live(&segment.flow);
        let flags = segment.flags & (SYN | ACK | FIN | RST);
        if flags == SYN {
            return self.handle_live_syn(now, segment, known);
        }
        if flags.contains(SYN) {
            return self.stats.refused.add(Refusal::Syn, octets);
        }
        if let Verdict::Handled = self.handle_handshake(now, segment, known) {
            return;
        }
        match known {
            Some(id) => self.handle_known(now, id, segment),
            None => self.handle_unknown(now, segment),
        }
    }

    /// Ends a connection whose live client uses its port for a new one: it is over, whether its end was captured or
    /// not. What is still to be replayed of it is replayed; the new one gets another client port as long as that takes.
    pub(super) fn supersede(&mut self, now: Nanos, id: Id) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        self.by_live.remove(&connection.live.flow(), id);
        match connection.replay {
            Replay::Parked(reason, _) => self.forget(id, reason),
            Replay::Active(_) => {
                if connection.stream.fin().is_none() {
                    connection.stream.abort(None);
                }
                self.handle_stream_change(now, id);
            }
        }
    }

    /// Handles a segment of a connection whose SYN was not captured: it may be joined at a later request.
    fn handle_unknown(&mut self, now: Nanos, segment: &LiveSegment<'_>) {
        let nothing = segment.payload.is_empty() || segment.flags.contains(RST);
        if segment.multipath != Multipath::Nothing {
            // Other subflows may have the octets between its own.
            return self.refuse(segment, Reason::Multipath);
        }
        if self.config.complete_only || !self.config.rejoin {
            return self.refuse(segment, Reason::Incomplete);
        }
        if !self.config.join_open {
            return self.refuse(segment, Reason::NotAdmitted);
        }
        if nothing {
            return self.refuse(segment, Reason::BeforeJoin);
        }
        if !self.may_join(segment.rule, None, segment.payload) {
            return self.refuse(segment, Reason::Unjoinable);
        }
        if self.connections.len() >= self.config.max_sessions {
            return self.refuse(segment, Reason::SessionLimit);
        }
        if let Err(reason) = self.destination(&segment.flow, segment.rule) {
            return self.refuse(segment, reason);
        }
        let id = self.insert(now, segment, None);
        self.handle_known(now, id, segment);
    }

    pub(super) fn insert(&mut self, now: Nanos, segment: &LiveSegment<'_>, isn: Option<LiveSeq>) -> Id {
        let id = self.connections.insert(Connection {
            live: FourTuple::new(&segment.flow),
            rule: segment.rule,
            stream: Stream::new(isn.map(|isn| isn.plus(1))),
            handshake: isn.map(|isn| Handshake { isn, distance: Distance::of_new(self.config.round_trip) }),
            // The handshake's duration is measured from here.
            last_activity: if isn.is_some() { segment.time } else { now },
            syn: if isn.is_some() { Flag::Pending } else { Flag::Settled },
            fin: Flag::Settled,
            acceptance: Acceptance::joined(),
            replay: Replay::Parked(Reason::BeforeJoin, None),
        });
        self.by_live.insert(&segment.flow, id);
        id
    }

    /// Counts a segment that belongs to no connection, and is not replayed.
    pub(super) fn refuse(&mut self, segment: &LiveSegment<'_>, reason: Reason) {
        self.stats.bytes.refuse(reason, segment.payload.len() as u64);
        self.stats.syns.refuse(reason, u64::from(segment.flags & (SYN | ACK) == SYN));
        self.stats.fins.refuse(reason, u64::from(segment.flags.contains(FIN)));
    }

    /// Handles a segment of a known connection, if the live server accepts it.
    pub(super) fn handle_known(&mut self, now: Nanos, id: Id, segment: &LiveSegment<'_>) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let last = connection.last_activity;
        let arrival = Arrival {
            seq: LiveSeq::new(segment.seq),
            ack: segment.flags.contains(ACK).then_some(LiveAck::new(segment.ack)),
            reset: segment.flags.contains(RST),
            options: &segment.options,
            after: now.max(segment.time).since(last),
            after_loss: self.ring_full.is_some_and(|full| full.after(RING_GAP_WINDOW) >= last),
        };
        match connection.acceptance.accept(connection.stream.position(), &arrival) {
            Ok(()) if segment.multipath == Multipath::Nothing => self.take(now, id, segment, arrival.seq),
            Ok(()) => {
                self.place_in_multipath(id, segment.multipath);
                self.take(now, id, segment, arrival.seq);
            }
            Err(refusal) => self.stats.refused.add(refusal, segment.payload.len() as u64),
        }
    }

    /// Learns where a segment's octets are in a multipath connection. If others are missing between them, what is replayed
    /// ends (rule S5), and nothing of the connection is replayed any more.
    fn place_in_multipath(&mut self, id: Id, word: Multipath) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let before = connection.stream.subflow();
        let mut subflow = before;
        subflow.learn(word, connection.handshake.is_some());
        if subflow == before {
            return;
        }
        connection.stream.set_subflow(subflow);
        if subflow == Subflow::Part {
            self.abandon(id, Reason::Multipath, Final::Reset);
            if let Some(Connection { replay: Replay::Parked(why, _), .. }) = self.connections.get_mut(id) {
                *why = Reason::Multipath;
            }
        }
    }

    /// Takes what a segment of a known connection says; its first octet of payload has the sequence number `seq`.
    pub(super) fn take(&mut self, now: Nanos, id: Id, segment: &LiveSegment<'_>, seq: LiveSeq) {
        let Some(connection) = self.connections.get_mut(id) else { return };
        let mut ends_handshake = false;
        if !segment.flags.contains(SYN) {
            ends_handshake = connection.is_in_handshake();
            if ends_handshake {
                let distance = Distance::measured(segment.time.since(connection.last_activity));
                connection.end_handshake(distance);
                self.stats.distant_clients += u64::from(distance != Distance::Near);
            }
            connection.last_activity = now;
        }
        let ack = segment.flags.contains(ACK).then_some(LiveAck::new(segment.ack));
        if segment.flags.contains(RST) {
            connection.stream.abort(ack);
            // What a RST carries is an explanation (RFC 9293, section 3.5.3), not data.
            self.stats.bytes.refuse(Reason::Nonsense, segment.payload.len() as u64);
            return self.handle_stream_change(now, id);
        }
        if segment.payload.is_empty() && !segment.flags.intersects(SYN | FIN) {
            if ends_handshake {
                self.enqueue(id);
            }
            return;
        }
        let share = Share { owner: connection.owner(id), limit: self.config.max_session_memory };
        let mut kept = connection.insert(&mut self.pool, share, &mut self.stats, segment, seq, ack);
        while kept == Err(Reason::TotalMemory)
            && let Some(victim) = self.victim(share.owner.client, segment.payload.len())
        {
            self.overflow(now, victim, Reason::ClientMemory);
            let Some(connection) = self.connections.get_mut(id) else { return };
            kept = connection.insert(&mut self.pool, share, &mut self.stats, segment, seq, ack);
        }
        match kept {
            Ok(()) => self.handle_stream_change(now, id),
            Err(reason) => {
                self.stats.bytes.refuse(reason, segment.payload.len() as u64);
                self.stats.fins.refuse(reason, u64::from(segment.flags.contains(FIN)));
                self.overflow(now, id, reason);
            }
        }
    }

    /// Returns a connection that has to give way to a client, which needs so many bytes more than there are.
    #[cold]
    fn victim(&mut self, client: Client, more: usize) -> Option<Id> {
        if !self.pool.has_books() {
            self.open_books();
        }
        self.pool.victim(client, more)
    }

    /// Finds out who holds how much.
    fn open_books(&mut self) {
        self.pool.open_books();
        for id in self.connections.ids() {
            let Some(connection) = self.connections.get_mut(id) else { continue };
            let owner = connection.owner(id);
            connection.stream.account(&mut self.pool, owner);
        }
    }

    /// Ends the session of a connection whose octets there is no room for, and discards everything that it held.
    pub(super) fn overflow(&mut self, now: Nanos, id: Id, reason: Reason) {
        self.abandon(id, reason, Final::Reset);
        let Some(connection) = self.connections.get_mut(id) else { return };
        let held = connection.stream.held_from(connection.stream.start());
        self.stats.bytes.discard(reason, held);
        connection.stream.clear(&mut self.pool);
        if let Replay::Parked(why, _) = &mut connection.replay {
            *why = reason;
        }
        self.seek(now, id);
    }

    /// Handles that a connection's stream has changed.
    fn handle_stream_change(&mut self, now: Nanos, id: Id) {
        let Some(connection) = self.connections.get(id) else { return };
        match &connection.replay {
            Replay::Parked(..) => self.seek(now, id),
            Replay::Active(session) => {
                let outcome = session.reconsider(&connection.stream, &self.config);
                if outcome == Outcome::Continue {
                    // The timer is armed when the session has been asked what to send.
                    self.enqueue(id);
                } else {
                    self.conclude(now, id, outcome);
                }
            }
        }
    }
}

impl Connection {
    /// Whom what it holds is charged to.
    fn owner(&self, id: Id) -> Owner {
        Owner { client: Client::of(&self.live.client), connection: id }
    }

    /// Adds a segment's payload and FIN to the stream, and counts them.
    ///
    /// # Errors
    /// The reason why there is no room for the payload; the stream is unchanged.
    fn insert(
        &mut self,
        pool: &mut Pool,
        share: Share,
        stats: &mut Stats,
        segment: &LiveSegment<'_>,
        seq: LiveSeq,
        ack: Option<LiveAck>,
    ) -> Result<(), Reason> {
        let payload = segment.payload;
        let fin = segment.flags.contains(FIN);
        if self.stream.withdraw_fin(seq, payload.len()) {
            self.fin = Flag::Settled;
            stats.fins.withdraw(1);
            stats.refused.add(Refusal::Fin, 0);
        }
        if !payload.is_empty() {
            let facts = Facts { time: segment.time, ack, push: segment.flags.contains(PSH), urgent: segment.urgent };
            let inserted = self.stream.insert(pool, share, seq, payload, facts)?;
            stats.bytes.capture(inserted.unique);
            stats.bytes.refuse(Reason::Nonsense, inserted.nonsense);
            stats.bytes.refuse(Reason::CaptureGap, inserted.too_far);
            stats.duplicate_bytes += inserted.duplicate;
        }
        if fin {
            match self.stream.close(seq.plus(payload.len() as u32), segment.time, ack) {
                Close::New => {
                    self.fin = Flag::Pending;
                    stats.fins.capture(1);
                }
                Close::Repeated => {}
                Close::Contradictory => stats.refused.add(Refusal::Fin, 0),
            }
        }
        Ok(())
    }
}
