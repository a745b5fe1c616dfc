//! Receive path of an open connection: handles the target's segments.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, RST, SYN};

use super::{
    open::{Open, Rare},
    outcome::{Final, Outcome},
    shared::{Context, Newest, Shared},
};
use crate::{
    causality::greeting::{FirstSpeaker, GREETING},
    input::{offset::SentOffset, stream::Stream},
    report::SegmentReport,
    stats::Stats,
    store::moment::Moment,
    tcp::seq::{ReplaySeq, TargetSeq},
};

/// Duplicate acknowledgements that cause a fast retransmit (RFC 5681, section 3.2).
const DUPLICATES: u8 = 3;

impl Open {
    /// Handles a response segment of this session's four-tuple.
    pub(super) fn handle_segment(
        &mut self,
        shared: &mut Shared,
        r: &SegmentReport<'_>,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Outcome {
        let seq = TargetSeq::new(r.seq);
        let acked = if r.flags.contains(ACK) { self.offset_of(ReplaySeq::new(r.ack), shared) } else { None };
        let plausible = if r.flags & (ACK | RST) == RST {
            self.receiver.is_plausible_reset(seq)
        } else {
            self.receiver.is_plausible(seq) && acked.is_some()
        };
        if !plausible {
            cx.stats.stale_responses += 1;
            return Outcome::Continue;
        }
        cx.stats.response_segments += 1;
        shared.last_heard = cx.now;
        if r.flags.contains(RST) {
            shared.handle_end(cx);
            return shared.after_reset(self.acknowledged_at_close(), stream, cx.config);
        }
        if r.flags.contains(SYN) {
            // The SYN-ACK again: our ACK was lost.
            self.acknowledger.handle_syn_ack_again();
            return Outcome::Continue;
        }
        let Some(acked) = acked else { return Outcome::Continue };
        if let (Some(echo), Some(tsval)) = (&mut self.echo, r.tsval) {
            // RFC 7323, section 4.3: only what comes in order, or the echo would run ahead of the acknowledgement.
            if !seq.is_after(self.receiver.next()) {
                *echo = tsval;
            }
        }
        self.handle_ack(shared, acked, r, stream, cx);
        self.handle_payload(shared, seq, acked, r, cx);

        let Some(at_fin) = self.acknowledged_at_close() else { return Outcome::Continue };
        match shared.after_fin(at_fin, stream, cx.config) {
            Outcome::Continue if stream.fin().is_some() && self.una > shared.adapter.end(stream) => {
                // An acknowledgement that rode on our FIN has arrived with it.
                let kind = if self.acknowledger.is_settled() { Final::Nothing } else { Final::Acknowledge };
                Outcome::Finished(kind, shared.owed_at_end(kind, Some(at_fin), stream))
            }
            outcome => outcome,
        }
    }

    /// The offset that an acknowledgement number means, if this connection has sent so far.
    fn offset_of(&self, ack: ReplaySeq, shared: &Shared) -> Option<SentOffset> {
        let ahead = i64::from(ack.distance(shared.seq_of(self.high)));
        if ahead > 0 { None } else { self.high.offset_by(ahead) }
    }

    /// Updates SND.UNA and everything that depends on it.
    fn handle_ack(
        &mut self,
        shared: &mut Shared,
        acked: SentOffset,
        r: &SegmentReport<'_>,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) {
        let window_end = acked.plus(u64::from(r.window) << self.scale);
        let window_moved = window_end > self.window_end;
        self.window_end = self.window_end.max(window_end);
        if acked > self.una {
            self.advance_una(shared, acked, stream, cx);
        } else if acked == self.una {
            let pure = r.payload_len == 0 && !r.flags.contains(FIN);
            if self.una == self.high {
                // With nothing under way the timer is the persist timer, which is done with once the window has opened.
                if self.window_end > self.nxt && shared.retransmit_at.is_set() {
                    shared.rto = shared.rto.reset_backoff();
                    shared.retransmit_at = Moment::NEVER;
                }
            } else if pure && !window_moved {
                self.handle_duplicate_ack(cx);
            }
        }
    }

    /// Handles an acknowledgement of something new.
    fn advance_una(&mut self, shared: &mut Shared, acked: SentOffset, stream: &Stream, cx: &mut Context<'_>) {
        let flight = self.flight();
        let octets = acked.since(self.una);
        self.una = acked;
        shared.last_progress = cx.now;
        self.nxt = self.nxt.max(acked);
        shared.accept(acked, stream, cx.stats);
        if self.timed_at.is_set() && acked >= self.timed {
            shared.rto.sample(cx.now.since(self.timed_at.time()));
            self.timed_at = Moment::NEVER;
        }
        match self.rare().recover {
            Some(recover) if acked < recover => {
                // A partial acknowledgement: the segment after it was lost too (RFC 6582, section 3.2).
                self.resend = true;
                self.duplicates = 0;
            }
            Some(_) => self.rare_mut().recover = None,
            None => self.congestion.acknowledge(octets.min(u64::from(u32::MAX)) as u32, flight, self.segment_size),
        }
        if self.rare().recover.is_none() {
            self.duplicates = 0;
        }
        shared.rto.progress();
        if self.una == self.high {
            shared.retransmit_at = Moment::NEVER;
        } else {
            shared.restart_retransmission(cx.now);
        }
    }

    /// Counts a duplicate acknowledgement; the third one starts fast recovery.
    fn handle_duplicate_ack(&mut self, cx: &mut Context<'_>) {
        self.duplicates = self.duplicates.saturating_add(1);
        let Rare { recover, guard, .. } = self.rare();
        if self.duplicates == DUPLICATES && recover.is_none() && self.una >= guard {
            self.congestion.handle_loss(self.flight(), self.segment_size);
            self.rare_mut().recover = Some(self.high);
            self.resend = true;
            cx.stats.fast_retransmits += 1;
        }
    }

    /// Updates RCV.NXT and everything that depends on it.
    fn handle_payload(
        &mut self,
        shared: &mut Shared,
        seq: TargetSeq,
        acked: SentOffset,
        r: &SegmentReport<'_>,
        cx: &mut Context<'_>,
    ) {
        let fin = r.flags.contains(FIN);
        if r.flags.intersects(PSH | FIN) {
            self.receiver.note_end(seq.plus(r.payload_len));
        }
        if r.in_order {
            self.receiver.skip_to(seq);
        }
        let received = self.receiver.receive(seq, r.payload_len, fin);
        self.acknowledger.handle_segment(
            cx.now,
            received.acknowledge,
            received.new,
            &self.receiver,
            self.segment_size,
            &mut cx.profile.nagle,
        );
        if r.reflected {
            cx.stats.reflected_segments += 1;
            self.acknowledger.handle_reflected(cx.now, seq.plus(r.payload_len), &self.receiver);
        }
        cx.stats.response_bytes += u64::from(received.new);
        let closes = self.receiver.is_finished() && self.acknowledged_at_close().is_none();
        if closes {
            shared.handle_end(cx);
            self.rare_mut().closed = Some((cx.now, acked));
        }
        if received.new > 0 || closes {
            shared.last_progress = cx.now;
            shared.gate.handle_response(cx.now, self.receiver.is_complete(), self.una == self.high);
        }
        if received.new > 0 {
            shared.answers.record_response(received.new);
            let first = shared.adapter.first();
            if acked > shared.adapter.sent_of(shared.request) {
                shared.newest = Newest::Answered;
                if shared.request > shared.adapter.origin() {
                    shared.prove(cx);
                }
                shared.fruitless = 0;
            } else if acked > first {
                shared.gate.opened_early();
                shared.answers.record_continuation();
            }
            if acked <= first && cx.now.since(self.since) < GREETING {
                cx.profile.first_speaker = FirstSpeaker::Server;
            }
        }
    }
}

impl Shared {
    /// Accounts for the live octets that the target has acknowledged.
    fn accept(&mut self, acked: SentOffset, stream: &Stream, stats: &mut Stats) {
        let until = self.adapter.live_of(acked).min(stream.end());
        if until > self.accepted {
            stats.accepted_bytes += until.since(self.accepted) - self.adapter.left_out(self.accepted..until);
            self.accepted = until;
        }
    }
}
