//! Handles what live clients send.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, RST, SYN};

use crate::{
    engine::{Connection, Engine, Flag, FourTuple, Handshake, Replay},
    input::{
        buffer::Pool,
        offset::LiveOffset,
        stream::{Close, Facts, Stream},
    },
    segment::LiveSegment,
    stats::{Reason, Stats},
    store::id::Id,
    tcp::{
        distance::Distance,
        seq::{LiveAck, LiveSeq},
        session::{Final, Origin, Outcome},
    },
    time::Nanos,
};

impl Engine {
    /// Handles a segment captured from a live client.
    pub fn handle_live(&mut self, now: Nanos, segment: &LiveSegment<'_>) {
        self.stats.live_segments += 1;
        match (segment.flags & (SYN | ACK | FIN | RST), self.id_of_live(&segment.flow)) {
            (SYN, known) => self.handle_live_syn(now, segment, known),
            (flags, _) if flags.contains(SYN) => self.refuse(segment, Reason::Nonsense),
            (_, Some(id)) => self.handle_known(now, id, segment, LiveSeq::new(segment.seq)),
            (_, None) => self.handle_unknown(now, segment),
        }
    }

    fn handle_live_syn(&mut self, now: Nanos, segment: &LiveSegment<'_>, known: Option<Id>) {
        let isn = LiveSeq::new(segment.seq);
        if known
            .and_then(|id| self.connections.get(id))
            .is_some_and(|c| c.handshake.is_some_and(|handshake| handshake.isn == isn))
        {
            self.stats.duplicate_bytes += segment.payload.len() as u64;
            if let Some(connection) = known.and_then(|id| self.connections.get_mut(id))
                && connection.is_in_handshake()
            {
                // A duration measured from here is never too long (Karn's rule asks for no more).
                connection.last_activity = segment.time;
            }
            return;
        }
        if let Some(id) = known {
            self.stats.port_reuses += 1;
            self.supersede(now, id);
        }
        if self.connections.len() >= self.config.max_sessions {
            return self.refuse(segment, Reason::SessionLimit);
        }
        if let Err(reason) = self.destination(&segment.flow, segment.rule) {
            return self.refuse(segment, reason);
        }
        self.stats.syns.capture(1);
        let id = self.insert(now, segment, Some(isn));
        if let Err(reason) = self.open_session(now, id, Origin { offset: LiveOffset::START, mark: 0, read: None }) {
            self.forget(id, reason);
            self.stats.bytes.refuse(reason, segment.payload.len() as u64);
            return;
        }
        if !segment.payload.is_empty() {
            self.handle_known(now, id, segment, isn.plus(1));
        }
    }

    /// Ends a connection whose live client uses its port for a new one: it is over, whether its end was captured or
    /// not. What is still to be replayed of it is replayed; the new one gets another client port as long as that takes.
    fn supersede(&mut self, now: Nanos, id: Id) {
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
        if self.config.complete_only || !self.config.rejoin {
            return self.refuse(segment, Reason::Incomplete);
        }
        if !self.config.join_open {
            return self.refuse(segment, Reason::NotAdmitted);
        }
        if nothing {
            return self.refuse(segment, Reason::BeforeJoin);
        }
        if self.connections.len() >= self.config.max_sessions {
            return self.refuse(segment, Reason::SessionLimit);
        }
        if let Err(reason) = self.destination(&segment.flow, segment.rule) {
            return self.refuse(segment, reason);
        }
        let id = self.insert(now, segment, None);
        self.handle_known(now, id, segment, LiveSeq::new(segment.seq));
    }

    fn insert(&mut self, now: Nanos, segment: &LiveSegment<'_>, isn: Option<LiveSeq>) -> Id {
        let id = self.connections.insert(Connection {
            live: FourTuple::new(&segment.flow),
            rule: segment.rule,
            stream: Stream::new(isn.map(|isn| isn.plus(1))),
            handshake: isn.map(|isn| Handshake { isn, distance: Distance::of_new(self.config.round_trip) }),
            // The handshake's duration is measured from here.
            last_activity: if isn.is_some() { segment.time } else { now },
            syn: if isn.is_some() { Flag::Pending } else { Flag::Settled },
            fin: Flag::Settled,
            replay: Replay::Parked(Reason::BeforeJoin, None),
        });
        self.by_live.insert(&segment.flow, id);
        id
    }

    /// Counts a segment that belongs to no connection, and is not replayed.
    fn refuse(&mut self, segment: &LiveSegment<'_>, reason: Reason) {
        self.stats.bytes.refuse(reason, segment.payload.len() as u64);
        self.stats.syns.refuse(reason, u64::from(segment.flags & (SYN | ACK) == SYN));
        self.stats.fins.refuse(reason, u64::from(segment.flags.contains(FIN)));
    }

    /// Handles a segment of a known connection, whose first octet of payload has the sequence number `seq`.
    fn handle_known(&mut self, now: Nanos, id: Id, segment: &LiveSegment<'_>, seq: LiveSeq) {
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
            if let (Replay::Active(session), Some(ack)) = (&mut connection.replay, ack) {
                session.learn_live_iss(ack);
            }
            if ends_handshake {
                self.enqueue(id);
            }
            return;
        }
        let limit = self.config.max_session_memory;
        match connection.insert(&mut self.pool, limit, &mut self.stats, segment, seq, ack) {
            Ok(()) => self.handle_stream_change(now, id),
            Err(reason) => self.overflow(now, id, reason),
        }
    }

    /// Ends the session of a connection whose octets there is no room for, and discards everything that it held.
    fn overflow(&mut self, now: Nanos, id: Id, reason: Reason) {
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
    /// Adds a segment's payload and FIN to the stream, and counts them.
    ///
    /// # Errors
    /// The reason why there is no room for the payload; the stream is unchanged, and the segment counted as discarded.
    fn insert(
        &mut self,
        pool: &mut Pool,
        limit: usize,
        stats: &mut Stats,
        segment: &LiveSegment<'_>,
        seq: LiveSeq,
        ack: Option<LiveAck>,
    ) -> Result<(), Reason> {
        let payload = segment.payload;
        let fin = segment.flags.contains(FIN);
        if !payload.is_empty() {
            let facts = Facts { time: segment.time, ack, push: segment.flags.contains(PSH) };
            let inserted = self.stream.insert(pool, limit, seq, payload, facts).inspect_err(|&reason| {
                stats.bytes.refuse(reason, payload.len() as u64);
                stats.fins.refuse(reason, u64::from(fin));
            })?;
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
                Close::Contradictory => stats.fins.refuse(Reason::Nonsense, 1),
            }
        }
        Ok(())
    }
}
