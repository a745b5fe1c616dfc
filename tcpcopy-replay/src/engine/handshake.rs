//! The handshakes of live clients. A connection begins when the live server has answered a SYN, and the client has
//! acknowledged that (rule S8): what a SYN or a segment says alone, anybody can say.
//!
//! | the live server's SYN-ACKs | what proves a client |
//! |---|---|
//! | are seen | the acknowledgement number of its first segment is what the SYN-ACK demands |
//! | are never seen: a mirror port, answers that leave another way | its sequence number is the one behind the SYN's |
//!
//! Which of both holds is found out for each rule: a segment that proves itself by its sequence number alone is
//! withheld for [`GRACE`], and a SYN-ACK that is seen decides for ever.

use std::{net::SocketAddr, time::Duration};

use tcpcopy_common::tcp_flags::{ACK, PSH, RST, SYN};

use super::{
    half_open::{Answer, HalfOpen, Syn},
    visibility::{Visibility, Withheld},
};
use crate::{
    engine::Engine,
    multipath::Multipath,
    segment::{LiveAnswer, LiveSegment},
    stats::{Reason, Refusal},
    store::id::Id,
    tcp::{
        acceptance::Acceptance,
        seq::{LiveAck, LiveSeq},
        session::Origin,
    },
    time::Nanos,
};

/// How long the first segments of a rule wait for a SYN-ACK to be seen. It leaves the host before the client can have
/// acknowledged it; only a forger need not wait for it, and sends SYN and data together.
const GRACE: Duration = Duration::from_millis(20);
/// Segments, and their octets, that are withheld at a time.
const MOST_WITHHELD: usize = 256;
const MOST_WITHHELD_OCTETS: usize = 1 << 20;
/// How far ahead of a SYN-ACK's number a first segment may acknowledge if its timestamp echoes that of a SYN-ACK: the
/// server spoke first, and the acknowledgement that ended the handshake was not captured.
const MOST_READ: i32 = 1 << 30;
/// The longest that such a handshake takes, in TSval ticks, of which the fastest clocks have one each µs.
const MOST_TICKS: u32 = 60_000_000;
/// The largest window that a SYN-ACK can announce.
const WINDOW: i32 = 65_535;
/// So much can follow the first segment within [`GRACE`].
const FIRST_FLIGHT: i32 = 1 << 20;

/// What a segment is to a handshake under way.
pub(super) enum Verdict {
    /// There is none, or it is not meant.
    Elsewhere,
    /// It was dealt with.
    Handled,
}

impl Engine {
    /// Handles a SYN-ACK of the live server.
    pub fn handle_answer(&mut self, now: Nanos, answer: &LiveAnswer) {
        let Some(visibility) = self.visibility.get_mut(usize::from(answer.rule)) else { return };
        let news = *visibility != Visibility::Seen;
        *visibility = Visibility::Seen;
        self.note_answer(now, answer);
        if news {
            self.release_withheld(now);
        }
    }

    fn note_answer(&mut self, now: Nanos, answer: &LiveAnswer) {
        let LiveAnswer { flow, rule, .. } = *answer;
        if answer.multipath == Multipath::Join {
            // Of a SYN that was refused.
            return;
        }
        if self.destination(&flow, rule).is_err() {
            return;
        }
        let isn = LiveSeq::new(answer.ack.wrapping_sub(1));
        let noted = Some(Answer { first: LiveAck::new(answer.seq.wrapping_add(1)), options: answer.options });
        let Some(id) = self.half_open.find(&flow) else {
            // Of a connection that we know, its last acknowledgement was lost behind us.
            let known = self.id_of_live(&flow).and_then(|id| self.connections.get(id));
            if !known.is_some_and(|connection| connection.has_isn(isn)) {
                self.add_half_open(now, HalfOpen { flow, isn, syn: None, answer: noted });
            }
            return;
        };
        let Some(entry) = self.half_open.get(id) else { return };
        let taken = i64::from(isn.distance(entry.isn));
        if let Some(taken) = usize::try_from(taken).ok().filter(|&taken| taken <= entry.payload_len()) {
            // What the SYN carries was taken whole, or not (RFC 7413, section 4.2).
            if taken == 0
                && let Some(payload) = self.take_syn_payload(id)
            {
                self.stats.refused.refused_bytes += payload.len() as u64;
            }
            if let Some(entry) = self.half_open.get_mut(id) {
                entry.answer = noted;
            }
            return;
        }
        // It answers another SYN than the last that was captured.
        self.end_half_open(id);
        self.add_half_open(now, HalfOpen { flow, isn, syn: None, answer: noted });
    }

    /// Handles a SYN of a live client; `known` is the connection that its four-tuple has.
    pub(super) fn handle_live_syn(&mut self, now: Nanos, segment: &LiveSegment<'_>, known: Option<Id>) {
        if segment.multipath == Multipath::Join {
            // It has a part of another connection's octets.
            return self.refuse(segment, Reason::Multipath);
        }
        let isn = LiveSeq::new(segment.seq);
        let octets = segment.payload.len() as u64;
        let mut payload = (octets > 0).then(|| Box::from(segment.payload));
        if let Some(id) = self.half_open.find(&segment.flow)
            && let Some(entry) = self.half_open.get_mut(id)
        {
            if entry.isn == isn {
                // A duration measured from here is never too long (Karn's rule asks for no more).
                let push = segment.flags.contains(PSH);
                let new = Syn { time: segment.time, options: segment.options, payload: None, push };
                entry.syn.get_or_insert(new).time = segment.time;
                self.stats.duplicate_bytes += octets;
                return;
            }
            if entry.answer.is_some() {
                // The live server waits for another client's acknowledgement, unless its next SYN-ACK says otherwise.
                return self.stats.refused.add(Refusal::Syn, octets);
            }
            self.end_half_open(id);
        } else if known.and_then(|id| self.connections.get(id)).is_some_and(|connection| connection.has_isn(isn)) {
            self.stats.duplicate_bytes += octets;
            return;
        }
        if let Err(reason) = self.destination(&segment.flow, segment.rule) {
            return self.refuse(segment, reason);
        }
        if !self.half_open.has_room_for(segment.payload.len()) {
            self.stats.bytes.refuse(Reason::TotalMemory, octets);
            payload = None;
        }
        let push = segment.flags.contains(PSH);
        let syn = Some(Syn { time: segment.time, options: segment.options, payload, push });
        let flow = segment.flow;
        self.add_half_open(now, HalfOpen { flow, isn, syn, answer: None });
    }

    /// Handles a segment other than a SYN: it may complete a handshake, or end it.
    pub(super) fn handle_handshake(&mut self, now: Nanos, segment: &LiveSegment<'_>, known: Option<Id>) -> Verdict {
        let Some(id) = self.half_open.find(&segment.flow) else { return Verdict::Elsewhere };
        let Some(entry) = self.half_open.get(id) else { return Verdict::Elsewhere };
        let refusal = match self.judge_handshake(entry, segment) {
            Ok(Proof::Complete(first)) => {
                self.establish(now, id, first, segment, known);
                return Verdict::Handled;
            }
            Ok(Proof::Reset) => {
                self.end_half_open(id);
                // What a RST carries is an explanation (RFC 9293, section 3.5.3), not data.
                self.stats.bytes.refuse(Reason::Nonsense, segment.payload.len() as u64);
                return Verdict::Handled;
            }
            Ok(Proof::Wait) if self.withhold(now, segment) => return Verdict::Handled,
            Ok(Proof::Wait) => Refusal::Unproven,
            Err(refusal) => refusal,
        };
        if known.is_some() {
            return Verdict::Elsewhere;
        }
        self.stats.refused.add(refusal, segment.payload.len() as u64);
        Verdict::Handled
    }

    fn judge_handshake(&self, entry: &HalfOpen, segment: &LiveSegment<'_>) -> Result<Proof, Refusal> {
        let ahead = LiveSeq::new(segment.seq).distance(entry.isn.plus(1));
        let next = ahead == 0 || usize::try_from(ahead) == Ok(entry.payload_len());
        if segment.flags.contains(RST) {
            return if next { Ok(Proof::Reset) } else { Err(Refusal::Reset) };
        }
        if !segment.flags.contains(ACK) {
            return Err(Refusal::Acknowledgement);
        }
        let ack = LiveAck::new(segment.ack);
        let Some(answer) = entry.answer else {
            return match self.visibility.get(usize::from(segment.rule)) {
                Some(Visibility::Unseen) if next => Ok(Proof::Complete(ack)),
                Some(Visibility::Unknown) if next || (0..=FIRST_FLIGHT).contains(&ahead) => Ok(Proof::Wait),
                _ => Err(Refusal::Unproven),
            };
        };
        let read = ack.distance(answer.first);
        let proven = read == 0 || (1..=MOST_READ).contains(&read) && echoes(&answer, segment);
        let window = WINDOW << answer.options.window_scale.unwrap_or(0).min(14);
        if proven && (0..=window).contains(&ahead) { Ok(Proof::Complete(answer.first)) } else { Err(Refusal::Unproven) }
    }

    /// Begins the connection of a client that has completed its handshake, with the segment that proves it; `first` is
    /// the number of the live server's first octet.
    fn establish(&mut self, now: Nanos, id: Id, first: LiveAck, segment: &LiveSegment<'_>, known: Option<Id>) {
        let payload = self.take_syn_payload(id);
        let Some(HalfOpen { isn, syn, answer, .. }) = self.half_open.remove(id) else { return };
        self.note_half_open();
        if let Some(old) = known {
            self.stats.port_reuses += 1;
            self.supersede(now, old);
        }
        let carried = payload.as_deref().unwrap_or_default();
        let syns = u64::from(syn.is_some());
        let possible = self.destination(&segment.flow, segment.rule).map(|_| ());
        if let Err(reason) = possible.and(if self.make_room(now) { Ok(()) } else { Err(Reason::SessionLimit) }) {
            self.stats.syns.refuse(reason, syns);
            self.stats.bytes.refuse(reason, carried.len() as u64);
            return self.refuse(segment, reason);
        }
        self.stats.syns.capture(syns);
        let id = self.insert(now, segment, Some(isn));
        if let Some(connection) = self.connections.get_mut(id) {
            let options = syn.as_ref().map(|syn| &syn.options);
            connection.acceptance = Acceptance::established(first, answer.as_ref().map(|a| &a.options), options);
            // The handshake's duration is measured from here.
            connection.last_activity = syn.as_ref().map_or(segment.time, |syn| syn.time);
            if syn.is_none() {
                connection.syn = super::Flag::Settled;
            }
        }
        // A first segment may acknowledge what the live server has said first, unless the SYN-ACK tells.
        let read = (answer.is_some() || segment.payload.is_empty()).then_some(first);
        if let Err(reason) = self.open_session(now, id, Origin::whole(read)) {
            self.forget(id, reason);
            self.stats.bytes.refuse(reason, carried.len() as u64);
            return self.refuse(segment, reason);
        }
        if !carried.is_empty() {
            let push = PSH.when(syn.is_some_and(|syn| syn.push));
            let syn = LiveSegment { flags: SYN | push, urgent: None, payload: carried, ..*segment };
            self.take(now, id, &syn, isn.plus(1));
        }
        // There may be none by now.
        match self.id_of_live(&segment.flow) {
            Some(id) => self.handle_known(now, id, segment),
            None => self.refuse(segment, Reason::SessionMemory),
        }
    }

    /// Keeps a segment until the visibility of its rule is known; returns whether there is room.
    fn withhold(&mut self, now: Nanos, segment: &LiveSegment<'_>) -> bool {
        let octets: usize = self.withheld.iter().map(|withheld| withheld.payload.len()).sum();
        if self.withheld.len() >= MOST_WITHHELD || octets + segment.payload.len() > MOST_WITHHELD_OCTETS {
            return false;
        }
        let LiveSegment { time, flow, rule, seq, ack, flags, options, multipath, urgent, payload, .. } = *segment;
        let payload = payload.into();
        self.withheld.push(Withheld { time, flow, rule, seq, ack, flags, options, multipath, urgent, payload });
        self.stats.half_open_bytes += segment.payload.len() as u64;
        self.withheld_until.get_or_insert(now.after(GRACE));
        true
    }

    /// Handles again what was withheld, as far as the visibility of its rule is known by now.
    fn release_withheld(&mut self, now: Nanos) {
        self.withheld_until = None;
        for withheld in std::mem::take(&mut self.withheld) {
            let Withheld { time, flow, rule, seq, ack, flags, options, multipath, urgent, ref payload } = withheld;
            self.stats.half_open_bytes -= payload.len() as u64;
            let intact = true;
            let segment =
                LiveSegment { time, flow, rule, seq, ack, flags, options, multipath, urgent, intact, payload };
            self.judge_live(now, &segment);
        }
    }

    /// When a handshake that is under way wants to be looked at.
    pub(super) fn handshake_deadline(&self) -> Option<Nanos> {
        [self.withheld_until, self.half_open.deadline()].into_iter().flatten().min()
    }

    /// Ends handshakes that take too long, and decides that SYN-ACKs cannot be seen if none was in time.
    pub(super) fn expire_handshakes(&mut self, now: Nanos) {
        if self.withheld_until.is_some_and(|until| until <= now) {
            for withheld in &self.withheld {
                let rule = withheld.rule;
                if let Some(visibility @ Visibility::Unknown) = self.visibility.get_mut(usize::from(rule)) {
                    *visibility = Visibility::Unseen;
                    self.unseen_rules.push(rule);
                }
            }
            self.release_withheld(now);
        }
        while let Some(entry) = self.half_open.pop_expired(now) {
            self.count_unfinished(&entry);
        }
    }

    /// Gives all handshakes up.
    pub(super) fn end_handshakes(&mut self) {
        for withheld in std::mem::take(&mut self.withheld) {
            self.stats.half_open_bytes -= withheld.payload.len() as u64;
            self.stats.refused.add(Refusal::Unproven, withheld.payload.len() as u64);
        }
        self.withheld_until = None;
        while let Some(entry) = self.half_open.pop_oldest() {
            self.count_unfinished(&entry);
        }
    }

    /// Returns the target of a rule whose live server's SYN-ACKs are not seen, so that what proves a client is weaker;
    /// each once.
    pub fn poll_unseen_rule(&mut self) -> Option<SocketAddr> {
        let rule = self.unseen_rules.pop()?;
        self.config.rules.get(usize::from(rule)).map(|rule| rule.address)
    }

    fn add_half_open(&mut self, now: Nanos, entry: HalfOpen) {
        self.stats.half_open_bytes += entry.payload_len() as u64;
        if let Some(oldest) = self.half_open.insert(now, entry) {
            self.count_unfinished(&oldest);
        }
        self.note_half_open();
    }

    fn take_syn_payload(&mut self, id: Id) -> Option<Box<[u8]>> {
        let payload = self.half_open.take_payload(id)?;
        self.stats.half_open_bytes -= payload.len() as u64;
        Some(payload)
    }

    fn end_half_open(&mut self, id: Id) {
        if let Some(entry) = self.half_open.remove(id) {
            self.count_unfinished(&entry);
        }
    }

    fn note_half_open(&mut self) {
        self.stats.half_open = self.half_open.len() as u64;
    }

    /// Counts a handshake that was not completed.
    fn count_unfinished(&mut self, entry: &HalfOpen) {
        let octets = entry.payload_len() as u64;
        self.stats.half_open_bytes -= octets;
        if entry.syn.is_some() {
            self.stats.refused.add(Refusal::Unfinished, octets);
        }
        self.note_half_open();
    }
}

/// What a segment proves.
enum Proof {
    /// The handshake is complete; the number of the live server's first octet.
    Complete(LiveAck),
    /// The client gives it up.
    Reset,
    /// Nothing before it is known whether SYN-ACKs are seen.
    Wait,
}

/// Whether a segment echoes a timestamp that the live server has sent since its SYN-ACK.
fn echoes(answer: &Answer, segment: &LiveSegment<'_>) -> bool {
    match (answer.options.timestamps, segment.options.timestamps) {
        (Some((tsval, _)), Some((_, echo))) => echo.wrapping_sub(tsval) <= MOST_TICKS,
        _ => false,
    }
}
