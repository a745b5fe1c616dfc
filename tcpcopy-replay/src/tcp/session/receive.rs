//! What the target said.

use std::{num::NonZeroU64, time::Duration};

use tcpcopy_common::{
    response::{NO_WINDOW_SCALE, ResponseHeader, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN},
};

use super::{Context, Farewell, Open, Outcome, Rare, Session, State};
use crate::{
    causality::gate::{FirstWord, GREETING},
    input::stream::Stream,
    stats::Reason,
    store::moment::Moment,
    tcp::{
        delayed_ack::Acknowledger,
        receiver::Receiver,
        recovery::{Congestion, Rto},
        seq::{ReplaySeq, TargetSeq},
    },
};

/// Assumed when the SYN-ACK has no MSS option (RFC 9293, section 3.7.1; RFC 8200 for IPv6).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// RFC 7323, section 2.3.
const LARGEST_SCALE: u8 = 14;
/// Octets that the timestamps option takes in each segment, with its padding.
const TIMESTAMPS: u16 = 12;
/// RFC 5681, section 3.2.
const DUPLICATES: u8 = 3;

impl Session {
    /// Takes a response segment of this session's four-tuple.
    pub fn handle_segment(&mut self, r: &ResponseHeader, stream: &Stream, cx: &mut Context<'_>) -> Outcome {
        match self.state {
            State::Connecting { transmitted: true, .. } => self.handle_while_connecting(r, cx),
            State::Open(_) => self.handle_while_open(r, stream, cx),
            State::Connecting { transmitted: false, .. } | State::Resting => {
                // From a connection that is over for us: a late SYN, or a RST that was lost.
                cx.stats.stale_responses += 1;
                if r.flags & (ACK | RST) == ACK {
                    Outcome::HalfOpen(ReplaySeq::from_be(r.ack))
                } else {
                    Outcome::Continue
                }
            }
        }
    }

    /// Whether a SYN with this sequence number is on its way.
    pub const fn awaits(&self, seq: ReplaySeq) -> bool {
        matches!(self.state, State::Connecting { transmitted: true, .. }) && seq.get() == self.opening.isn.get()
    }

    fn handle_while_connecting(&mut self, r: &ResponseHeader, cx: &mut Context<'_>) -> Outcome {
        let ack = ReplaySeq::from_be(r.ack);
        let ours = r.flags.contains(ACK) && ack == self.opening.isn.plus(1);
        if r.flags.contains(RST) {
            if ours {
                return Outcome::Aborted(Reason::TargetRefused, Farewell::Nothing);
            }
            cx.stats.stale_responses += 1;
            return Outcome::Continue;
        }
        if !ours {
            // RFC 9293, section 3.5.1: the target still holds a connection that we know nothing of.
            cx.stats.stale_responses += 1;
            if !r.flags.contains(ACK) {
                return Outcome::Continue;
            }
            // Our RST ends that connection, but its challenge has cost us the SYN. What comes late may be none, so that
            // these do not count as retries.
            if let State::Connecting { due, provoked, .. } = &mut self.state
                && *provoked < super::MOST_PROVOKED
            {
                *provoked += 1;
                *due = true;
                self.retransmit_at = Moment::NEVER;
            }
            return Outcome::HalfOpen(ack);
        }
        if !r.flags.contains(SYN) {
            cx.stats.stale_responses += 1;
            return Outcome::Continue;
        }
        self.establish(r, cx);
        Outcome::Continue
    }

    fn establish(&mut self, r: &ResponseHeader, cx: &mut Context<'_>) {
        let now = cx.now;
        self.heard = now;
        self.progress = now;
        let retried = self.rto.expirations() > 0;
        self.rto = Rto::new();
        let mut handshake = Duration::ZERO;
        if let (State::Connecting { since, provoked: 0, .. }, false) = (&self.state, retried) {
            handshake = now.since(*since);
            self.rto.sample(handshake);
        }
        self.retransmit_at = Moment::NEVER;
        let timestamps = r.options & option::TIMESTAMPS != 0;
        let (ours, default) = if self.flow.server.is_v4() {
            (cx.config.mss_v4, DEFAULT_MSS_V4)
        } else {
            (cx.config.mss_v6, DEFAULT_MSS_V6)
        };
        let announced = match u16::from_be_bytes(r.mss) {
            0 => default,
            mss => mss,
        };
        let taken = if timestamps { TIMESTAMPS } else { 0 };
        let segment_size = announced.min(ours).saturating_sub(taken).max(1);
        let receiver = Receiver::new(TargetSeq::from_be(r.seq));
        self.state = State::Open(Open {
            acknowledger: Acknowledger::new(now, cx.distance, handshake, &receiver),
            receiver,
            una: self.origin,
            nxt: self.origin,
            high: self.origin,
            // The window of a SYN-ACK is never scaled (RFC 7323, section 2.2).
            window_end: self.origin + u64::from(u16::from_be_bytes(r.window)),
            scale: if r.window_scale == NO_WINDOW_SCALE { 0 } else { r.window_scale.min(LARGEST_SCALE) },
            echo: timestamps.then(|| u32::from_be_bytes(r.tsval)),
            segment_size,
            congestion: Congestion::new(segment_size),
            duplicates: 0,
            resend: false,
            probe: false,
            timed: None,
            since: now,
            rare: None,
        });
        cx.stats.connected += 1;
        cx.stats.response_segments += 1;
    }

    fn handle_while_open(&mut self, r: &ResponseHeader, stream: &Stream, cx: &mut Context<'_>) -> Outcome {
        let (first, origin) = (self.seq_of(self.origin), self.origin);
        let State::Open(open) = &mut self.state else { return Outcome::Continue };
        let seq = TargetSeq::from_be(r.seq);
        let acked = if r.flags.contains(ACK) { open.offset_of(ReplaySeq::from_be(r.ack), first, origin) } else { None };
        let plausible = if r.flags & (ACK | RST) == RST {
            open.receiver.is_plausible_reset(seq)
        } else {
            open.receiver.is_plausible(seq) && acked.is_some()
        };
        if !plausible {
            cx.stats.stale_responses += 1;
            return Outcome::Continue;
        }
        cx.stats.response_segments += 1;
        self.heard = cx.now;
        if r.flags.contains(RST) {
            return self.after_reset(stream, cx.config);
        }
        if r.flags.contains(SYN) {
            // The SYN-ACK again: our ACK was lost.
            open.acknowledger.repeat();
            return Outcome::Continue;
        }
        let Some(acked) = acked else { return Outcome::Continue };
        if let Some(echo) = &mut open.echo {
            // RFC 7323, section 4.3: only what comes in order, or the echo would run ahead of the acknowledgement.
            if r.options & option::TIMESTAMPS != 0 && !seq.is_after(open.receiver.next()) {
                *echo = u32::from_be_bytes(r.tsval);
            }
        }
        let pure = r.payload_len == 0 && !r.flags.contains(FIN);
        self.acknowledged(acked, r, pure, stream, cx);
        self.received(seq, acked, r, cx);

        let State::Open(open) = &self.state else { return Outcome::Continue };
        if let Some((_, at_fin)) = open.rare().closed {
            let done = stream.fin().is_some_and(|fin| open.una > fin.offset);
            // An acknowledgement that rode on our FIN has arrived with it.
            let farewell = if open.acknowledger.is_settled() { Farewell::Nothing } else { Farewell::Acknowledge };
            return match self.after_fin(at_fin, stream, cx.config) {
                Outcome::Continue if done => Outcome::Finished(farewell),
                outcome => outcome,
            };
        }
        Outcome::Continue
    }

    /// SND.UNA and everything that depends on it.
    fn acknowledged(&mut self, acked: u64, r: &ResponseHeader, pure: bool, stream: &Stream, cx: &mut Context<'_>) {
        let State::Open(open) = &mut self.state else { return };
        let window_end = acked + (u64::from(u16::from_be_bytes(r.window)) << open.scale);
        let window_moved = window_end > open.window_end;
        open.window_end = open.window_end.max(window_end);
        if acked > open.una {
            let flight = open.flight();
            let octets = acked - open.una;
            open.una = acked;
            self.progress = cx.now;
            open.nxt = open.nxt.max(acked);
            let accepted = acked.min(stream.end()).max(self.accepted);
            cx.stats.accepted_bytes += accepted - self.accepted;
            self.accepted = accepted;
            if let Some((offset, sent)) = open.timed
                && acked >= offset.get()
            {
                self.rto.sample(cx.now.since(sent));
                open.timed = None;
            }
            match open.rare().recover {
                Some(recover) if acked < recover.get() => {
                    // A partial acknowledgement: the segment after it was lost too (RFC 6582, section 3.2).
                    open.resend = true;
                    open.duplicates = 0;
                }
                Some(_) => open.rare_mut().recover = None,
                None => open.congestion.acknowledge(octets.min(u64::from(u32::MAX)) as u32, flight, open.segment_size),
            }
            if open.rare().recover.is_none() {
                open.duplicates = 0;
            }
            self.rto.progress();
            self.retransmit_at =
                if open.una == open.high { Moment::NEVER } else { Moment::at(cx.now.after(self.rto.current())) };
        } else if acked == open.una {
            if open.una == open.high {
                // With nothing under way the timer is the persist timer, which is done with once the window has opened.
                if open.window_end > open.nxt && self.retransmit_at.is_set() {
                    self.rto = self.rto.calm();
                    self.retransmit_at = Moment::NEVER;
                }
            } else if pure && !window_moved {
                open.duplicates = open.duplicates.saturating_add(1);
                let Rare { recover, guard, .. } = open.rare();
                if open.duplicates == DUPLICATES && recover.is_none() && open.una >= guard {
                    let (flight, high) = (open.flight(), open.high);
                    open.congestion.lose(flight, open.segment_size);
                    open.rare_mut().recover = NonZeroU64::new(high);
                    open.resend = true;
                    cx.stats.fast_retransmits += 1;
                }
            }
        }
    }

    /// RCV.NXT and everything that depends on it.
    fn received(&mut self, seq: TargetSeq, acked: u64, r: &ResponseHeader, cx: &mut Context<'_>) {
        let State::Open(open) = &mut self.state else { return };
        let fin = r.flags.contains(FIN);
        if r.flags.intersects(PSH | FIN) {
            open.receiver.note_end(seq.plus(r.payload_len));
        }
        if r.options & option::IN_ORDER != 0 {
            open.receiver.pass(seq);
        }
        let received = open.receiver.receive(seq, r.payload_len, fin);
        open.acknowledger.heard(
            cx.now,
            received.acknowledge,
            received.new,
            &open.receiver,
            open.segment_size,
            &mut cx.manners.nagle,
        );
        if r.options & option::REFLECTED != 0 {
            cx.stats.reflected_segments += 1;
            open.acknowledger.reflected(cx.now, seq.plus(r.payload_len), &open.receiver);
        }
        cx.stats.response_bytes += u64::from(received.new);
        let closes = open.receiver.is_finished() && open.rare().closed.is_none();
        if closes {
            open.rare_mut().closed = Some((cx.now, acked));
        }
        if received.new > 0 || closes {
            self.progress = cx.now;
            self.gate.answered(cx.now, open.receiver.is_complete(), open.una == open.high);
        }
        if received.new > 0 {
            self.answers.said(received.new);
            if acked > self.request {
                self.answered = true;
                self.fruitless = 0;
            } else if acked > self.origin {
                self.gate.opened_early();
                self.answers.went_on();
            }
            let greeting = acked == self.origin && cx.now.since(open.since) < GREETING;
            if greeting {
                cx.manners.first_word = FirstWord::Server;
            }
        }
    }
}

impl Open {
    /// The offset that an acknowledgement number means, if this connection has sent so far. `first` is the sequence number
    /// of the offset `origin`.
    fn offset_of(&self, ack: ReplaySeq, first: ReplaySeq, origin: u64) -> Option<u64> {
        let high = first.plus(self.high.wrapping_sub(origin) as u32);
        let ahead = i64::from(ack.distance(high));
        if ahead > 0 {
            return None;
        }
        self.high.checked_add_signed(ahead).filter(|&offset| offset >= origin)
    }
}
