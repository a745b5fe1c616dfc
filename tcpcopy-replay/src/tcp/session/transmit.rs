//! Send path of an open connection: what to send to the target next.

use std::num::NonZeroU64;

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, TcpFlags};

use super::{Context, Final, Open, Outcome, Shared, pacing::Clearance};
use crate::{
    input::stream::Stream,
    segment::TransmitOptions,
    tcp::{receiver::WINDOW, seq::TargetSeq},
};

/// An IP packet holds 65,535 octets with its headers: at most 60 of IP, 60 of TCP.
const MAX_PAYLOAD: usize = 65_535 - 120;

/// A segment to be sent, but for the octets themselves, which are the stream's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: TcpFlags,
    pub options: TransmitOptions,
    pub segment_size: u16,
    /// Stream offset of the first octet, and how many.
    pub offset: u64,
    pub len: usize,
}

/// What to do now.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Poll {
    /// Send this, and ask again.
    Transmit(Plan),
    /// Nothing until something happens.
    Idle,
    /// The session ends or moves.
    End(Outcome),
}

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
            cx.stats.window_probes += 1;
            // An octet that the target has already acknowledged, left out: it answers with its window, and nothing is
            // sent that it has no room for (as Linux does; RFC 9293, section 3.8.6.1 asks for an octet of new data).
            let offset = self.una.wrapping_sub(1);
            return Poll::Transmit(self.plan(shared, ack, offset, 0, TcpFlags::NONE));
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
    fn plan(&mut self, shared: &Shared, ack: TargetSeq, offset: u64, len: usize, flags: TcpFlags) -> Plan {
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
        let len = self.high.min(stream.end()).saturating_sub(self.una).min(u64::from(self.segment_size)) as usize;
        let fin = FIN.when(len == 0);
        self.timed = None;
        shared.restart_retransmission(cx.now);
        cx.stats.retransmitted_segments += 1;
        cx.stats.retransmitted_bytes += len as u64;
        Some(self.plan(shared, ack, self.una, len, fin))
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
        let available = stream.end().saturating_sub(from);
        if available == 0 {
            return None;
        }
        let segment = usize::from(self.segment_size);
        let usable = self.usable();
        if usable == 0 || (usable < available && usable < segment as u64 && self.flight() > 0) {
            // Closed, or open by less than a segment while more will be acknowledged: wait (RFC 9293, section 3.8.6.2.1).
            if self.flight() == 0 && !shared.retransmit_at.is_set() {
                shared.restart_retransmission(cx.now);
            }
            return None;
        }
        if !shared.is_greeted(cx) {
            return None;
        }
        let mut len = available.min(usable).min(MAX_PAYLOAD as u64) as usize;
        if len as u64 != available && len >= segment {
            // What does not fill a segment goes with what follows it.
            len -= len % segment;
        }
        let again = from < shared.sent;
        let mut push = false;
        if again {
            len = len.min((shared.sent - from) as usize);
        } else {
            match shared.clear(stream, from, len, cx) {
                Clearance::Octets { len: cleared, push: last } => (len, push) = (cleared, last),
                Clearance::Wait => return None,
            }
        }
        push |= from + len as u64 == stream.end();

        self.nxt = from + len as u64;
        self.high = self.high.max(self.nxt);
        shared.sent = shared.sent.max(self.nxt);
        if again {
            cx.stats.retransmitted_segments += 1;
            cx.stats.retransmitted_bytes += len as u64;
        } else {
            cx.stats.sent_segments += 1;
            cx.stats.bytes.send(len as u64);
            shared.gate.sent(cx.now);
            self.timed = self.timed.or_else(|| NonZeroU64::new(self.nxt).map(|offset| (offset, cx.now)));
        }
        shared.start_retransmission(cx.now);
        Some(self.plan(shared, ack, from, len, PSH.when(push)))
    }

    /// The FIN, once everything before it has been sent.
    fn plan_fin(&mut self, shared: &mut Shared, ack: TargetSeq, stream: &Stream, cx: &mut Context<'_>) -> Option<Plan> {
        let fin = stream.fin().filter(|fin| fin.offset == self.nxt)?;
        if !shared.fin_sent && shared.is_reply(fin.ack, cx) && shared.permitted(cx.now, cx).is_none() {
            return None;
        }
        self.nxt = fin.offset + 1;
        self.high = self.high.max(self.nxt);
        if shared.fin_sent {
            cx.stats.retransmitted_segments += 1;
        } else {
            shared.fin_sent = true;
            cx.stats.fins.send(1);
        }
        shared.start_retransmission(cx.now);
        Some(self.plan(shared, ack, fin.offset, 0, FIN))
    }

    /// Whether everything before the live client's RST has arrived, so that the RST may follow.
    fn live_reset_is_due(&self, shared: &mut Shared, stream: &Stream, cx: &mut Context<'_>) -> bool {
        let Some(reset) = stream.reset() else { return false };
        let (end, read) = stream.fin().map_or((stream.end(), None), |fin| (fin.offset + 1, fin.ack));
        // The FIN has already waited for what it replies to.
        let is_news = reset.ack.zip(read).is_none_or(|(ack, read)| ack.is_after(read));
        self.una >= end && (!(is_news && shared.is_reply(reset.ack, cx)) || shared.permitted(cx.now, cx).is_some())
    }

    /// How many octets may be sent from SND.NXT on.
    fn usable(&self) -> u64 {
        // In fast recovery each duplicate tells that a segment has left the network (RFC 6582, section 3.2).
        let inflated = match self.rare().recover {
            Some(_) => u64::from(self.duplicates) * u64::from(self.segment_size),
            None => 0,
        };
        let congestion_end = self.una + u64::from(self.congestion.window()) + inflated;
        congestion_end.min(self.window_end).saturating_sub(self.nxt)
    }
}
