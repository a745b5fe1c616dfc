//! Send path of an open connection: what to send to the target next.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, TcpFlags};

use super::{
    farewell::Farewell,
    open::Open,
    outcome::{Final, Outcome, Plan, Poll},
    pacing::Clearance,
    shared::{Context, Shared},
};
use crate::{
    input::{offset::SentOffset, stream::Stream},
    segment::TransmitOptions,
    store::moment::Moment,
    tcp::{receiver::WINDOW, seq::TargetSeq},
};

/// An IP packet holds 65,535 octets with its headers: at most 60 of IP, 60 of TCP.
const MAX_PAYLOAD: usize = 65_535 - 120;

impl Open {
    /// Returns what to send now. The channel must be up.
    pub(super) fn poll(&mut self, shared: &mut Shared, stream: &Stream, cx: &mut Context<'_>) -> Poll {
        self.release_acks(cx);
        let Some(ack) = self.acknowledger.number(&self.receiver) else { return Poll::Idle };
        if std::mem::take(&mut self.resend)
            && let Some(plan) = self.plan_resend(shared, ack, stream, cx)
        {
            return Poll::Transmit(plan);
        }
        if let Some(plan) = self.plan_data(shared, ack, stream, cx) {
            return Poll::Transmit(plan);
        }
        if let Some(plan) = self.plan_fin(shared, ack, stream, cx) {
            return Poll::Transmit(plan);
        }
        if self.live_reset_is_due(shared, stream, cx) {
            let owed = shared.owed_at_end(Final::Reset, self.acknowledged_at_close(), stream);
            return Poll::End(Outcome::Finished(Final::Reset, owed));
        }
        if std::mem::take(&mut self.probe) {
            let waiting = shared.adapter.end(stream) > self.nxt;
            *(if waiting { &mut cx.stats.window_probes } else { &mut cx.stats.keepalive_probes }) += 1;
            // An octet that the target has already acknowledged, left out: it answers with its window, and nothing is
            // sent that it has no room for (as Linux does; RFC 9293, section 3.8.6.1 asks for an octet of new data).
            let plan = self.plan(shared, ack, self.una, 0, TcpFlags::NONE);
            return Poll::Transmit(Plan { seq: plan.seq.wrapping_sub(1), ..plan });
        }
        if self.acknowledger.is_due() {
            cx.stats.pure_acks += 1;
            let plan = self.plan(shared, ack, self.high, 0, TcpFlags::NONE);
            self.acknowledger.record_sent_alone(cx.now, &self.receiver);
            return Poll::Transmit(plan);
        }
        Poll::Idle
    }

    /// A segment of the present connection; whatever it is, it acknowledges.
    fn plan(&mut self, shared: &Shared, ack: TargetSeq, offset: SentOffset, len: usize, flags: TcpFlags) -> Plan {
        self.acknowledger.record_sent(&self.receiver);
        Plan {
            seq: shared.seq_of(offset).get(),
            ack: ack.get(),
            window: WINDOW,
            flags: ACK | flags,
            options: TransmitOptions { syn: None, timestamps: self.timestamps(shared) },
            segment_size: self.segment_size,
            offset,
            len,
        }
    }

    /// Fast retransmit: one segment from SND.UNA.
    fn plan_resend(
        &mut self,
        shared: &mut Shared,
        ack: TargetSeq,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Option<Plan> {
        if self.una >= self.high {
            return None;
        }
        let octets = self.high.min(shared.adapter.end(stream)).since(self.una);
        let len = shared.adapter.contiguous(self.una, octets.min(u64::from(self.segment_size)) as usize);
        let (len, urgent) = shared.cut_at_urgent(stream, self.una, len);
        let fin = FIN.when(len == 0);
        self.timed_at = Moment::NEVER;
        shared.restart_retransmission(cx.now);
        cx.stats.retransmitted_segments += 1;
        cx.stats.retransmitted_bytes += len as u64;
        Some(self.plan(shared, ack, self.una, len, fin | urgent))
    }

    /// As much from SND.NXT as the windows and the gate allow.
    fn plan_data(
        &mut self,
        shared: &mut Shared,
        ack: TargetSeq,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Option<Plan> {
        let from = self.nxt;
        let end = shared.adapter.end(stream);
        let available = end.since(from);
        if available == 0 {
            return None;
        }
        let segment = usize::from(self.segment_size);
        let usable = self.usable();
        if usable == 0 || (usable < available && usable < segment as u64 && self.flight() > 0) {
            // Closed, or open by less than a segment while more will be acknowledged: wait (RFC 9293, section
            // 3.8.6.2.1).
            if self.flight() == 0 && !shared.retransmit_at.is_set() {
                shared.restart_retransmission(cx.now);
            }
            return None;
        }
        // What the adapter puts before the first octet is no request: it waits for nothing, and a server that speaks
        // first does so when it has got it.
        let first = shared.adapter.first();
        let inserted = from < first;
        if !inserted && (self.una < first && shared.may_be_greeted(cx) || !shared.is_greeted(cx)) {
            return None;
        }
        let mut len = available.min(usable).min(MAX_PAYLOAD as u64) as usize;
        if len as u64 != available && len >= segment {
            // What does not fill a segment goes with what follows it.
            len -= len % segment;
        }
        len = shared.adapter.contiguous(from, len);
        let urgent;
        (len, urgent) = shared.cut_at_urgent(stream, from, len);
        // Sent before, on this target connection or on an earlier one.
        let again = from < self.high || !inserted && shared.adapter.live_of(from) < shared.sent;
        let (mut push, mut asks) = (false, !inserted);
        if again {
            len = len.min(self.high.max(shared.adapter.sent_of(shared.sent)).since(from) as usize);
        } else if inserted {
            cx.stats.inserted_bytes += len as u64;
        } else {
            match shared.clear(stream, from, len, cx) {
                Clearance::Octets { len: cleared, push: last, asks: any } => (len, push, asks) = (cleared, last, any),
                Clearance::Wait => return None,
            }
        }
        self.nxt = from.plus(len as u64);
        self.high = self.high.max(self.nxt);
        push |= self.nxt == end;
        shared.account(shared.adapter.live_of(self.nxt), cx.stats);
        if again {
            cx.stats.retransmitted_segments += 1;
            cx.stats.retransmitted_bytes += len as u64;
        } else {
            cx.stats.sent_segments += 1;
            if asks {
                shared.gate.record_sent(cx.now);
            }
            if !self.timed_at.is_set() {
                (self.timed, self.timed_at) = (self.nxt, Moment::at(cx.now));
            }
        }
        shared.start_retransmission(cx.now);
        Some(self.plan(shared, ack, from, len, PSH.when(push) | urgent))
    }

    /// The FIN, once everything before it has been sent.
    fn plan_fin(&mut self, shared: &mut Shared, ack: TargetSeq, stream: &Stream, cx: &mut Context<'_>) -> Option<Plan> {
        let fin = stream.fin()?;
        let offset = shared.adapter.end(stream);
        if self.nxt != offset {
            return None;
        }
        if !shared.fin_sent {
            let waits = match self.farewell(shared, fin.ack, cx) {
                Farewell::Due => shared.is_reply(fin.ack, cx) && shared.permitted(cx.now, cx).is_none(),
                Farewell::Forced => false,
                Farewell::Waits => true,
            };
            if waits {
                return None;
            }
        }
        self.nxt = offset.plus(1);
        self.high = self.high.max(self.nxt);
        if shared.fin_sent {
            cx.stats.retransmitted_segments += 1;
        } else {
            shared.fin_sent = true;
            // What was left out at the end goes with the FIN.
            shared.account(fin.offset, cx.stats);
            cx.stats.fins.send(1);
        }
        shared.start_retransmission(cx.now);
        Some(self.plan(shared, ack, offset, 0, FIN))
    }

    /// Whether everything before the live client's RST has arrived, so that the RST may follow.
    fn live_reset_is_due(&mut self, shared: &mut Shared, stream: &Stream, cx: &mut Context<'_>) -> bool {
        let Some(reset) = stream.reset() else { return false };
        let end = shared.adapter.end(stream);
        let (end, read) = stream.fin().map_or((end, None), |fin| (end.plus(1), fin.ack));
        // The FIN has already waited for what it replies to.
        let is_news = reset.ack.zip(read).is_none_or(|(ack, read)| ack.is_after(read));
        if self.una < end {
            return false;
        }
        // A FIN has already waited for what the target owes.
        let farewell = if shared.fin_sent { Farewell::Due } else { self.farewell(shared, reset.ack, cx) };
        match farewell {
            Farewell::Due => !(is_news && shared.is_reply(reset.ack, cx)) || shared.permitted(cx.now, cx).is_some(),
            Farewell::Forced => true,
            Farewell::Waits => false,
        }
    }

    /// How many octets may be sent from SND.NXT on.
    fn usable(&self) -> u64 {
        // In fast recovery each duplicate tells that a segment has left the network (RFC 6582, section 3.2).
        let inflated = match self.rare().recover {
            Some(_) => u64::from(self.duplicates) * u64::from(self.segment_size),
            None => 0,
        };
        let congestion_end = self.una.plus(u64::from(self.congestion.window()) + inflated);
        congestion_end.min(self.window_end).since(self.nxt)
    }
}
