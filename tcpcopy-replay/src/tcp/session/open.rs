//! An established target connection: its state, its timers, and its options.

use std::time::Duration;

use super::{
    outcome::{Final, Outcome},
    shared::{Context, Shared},
};
use crate::{
    causality::{
        farewell::Parting,
        joining::{AT_ONCE, Standing},
    },
    input::{offset::SentOffset, stream::Stream},
    report::SegmentReport,
    stats::Reason,
    store::moment::Moment,
    tcp::{
        congestion::Congestion,
        delayed_ack::Acknowledger,
        distance::Distance,
        receiver::Receiver,
        seq::{ReplaySeq, TargetSeq},
    },
    time::Nanos,
};

/// Maximum consecutive retransmissions of data or FIN: about a hundred seconds at the minimum RTO.
const MAX_RETRIES: u8 = 8;
/// How long a target connection stays half-closed after the target's FIN: well before the target forgets its half of
/// the connection (60 s, `tcp_fin_timeout`) and would answer our FIN with a RST that is not recognised there as ours.
const CLOSE_WAIT_LIMIT: Duration = Duration::from_secs(20);

/// How long the target may say nothing until it is asked whether it is still there (RFC 9293, section 3.8.4). Less than
/// half the time after which `intercept` forgets a session whose socket it cannot see, in a container: what such a
/// service answers later would leave for the real client (rule S3).
const KEEPALIVE: Duration = Duration::from_secs(60);

/// Assumed when the SYN-ACK has no MSS option (RFC 9293, section 3.7.1; RFC 8200 for IPv6).
const DEFAULT_MSS_V4: u16 = 536;
const DEFAULT_MSS_V6: u16 = 1220;
/// RFC 7323, section 2.3.
const MAX_WINDOW_SCALE: u8 = 14;
/// Octets that the timestamps option takes in each segment, with its padding.
const TIMESTAMPS: u16 = 12;

/// ESTABLISHED and all that follows.
#[derive(Debug)]
pub(super) struct Open {
    pub receiver: Receiver,
    /// Octets (and the FIN, the offset after the last octet) before this are acknowledged: SND.UNA.
    pub una: SentOffset,
    /// What to send next: SND.NXT; goes back to `una` when the timer expires.
    pub nxt: SentOffset,
    /// The highest `nxt` so far.
    pub high: SentOffset,
    /// The target's window ends here; it never shrinks (RFC 9293, section 3.8.6).
    pub window_end: SentOffset,
    /// Shift count of the target's window field.
    pub scale: u8,
    /// The target's newest TSval (RFC 7323, section 4.3), if it agreed to timestamps.
    pub echo: Option<u32>,
    pub segment_size: u16,
    pub congestion: Congestion,
    pub duplicates: u8,
    /// The segment at `una` is to be sent again.
    pub resend: bool,
    pub acknowledger: Acknowledger,
    pub probe: bool,
    /// The round trip that is measured ends when this is acknowledged.
    pub timed: SentOffset,
    /// When it began; never while none is measured.
    pub timed_at: Moment,
    pub since: Nanos,
    rare: Option<Box<Rare>>,
}

/// What a target connection has only after a loss or near its end: most are idle most of the time, and are to be small
/// then.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Rare {
    /// In fast recovery until this is acknowledged (RFC 6582).
    pub recover: Option<SentOffset>,
    /// No fast retransmit before this is acknowledged: duplicates may come from our own retransmissions.
    pub guard: SentOffset,
    /// When the target's FIN came, and what it acknowledged.
    pub closed: Option<(Nanos, SentOffset)>,
    /// What was decided about the live client's end.
    pub parting: Parting,
}

impl Open {
    /// Begins with a SYN-ACK, which came `handshake` after the SYN.
    pub(super) fn new(shared: &Shared, r: &SegmentReport<'_>, handshake: Duration, cx: &Context<'_>) -> Self {
        let (ours, default) = if shared.flow.server.is_v4() {
            (cx.config.mss_v4, DEFAULT_MSS_V4)
        } else {
            (cx.config.mss_v6, DEFAULT_MSS_V6)
        };
        let taken = if r.tsval.is_some() { TIMESTAMPS } else { 0 };
        let segment_size = r.mss.unwrap_or(default).min(ours).saturating_sub(taken).max(1);
        let receiver = Receiver::new(TargetSeq::new(r.seq));
        Self {
            acknowledger: Acknowledger::new(cx.now, cx.distance, handshake, &receiver),
            receiver,
            una: SentOffset::START,
            nxt: SentOffset::START,
            high: SentOffset::START,
            // The window of a SYN-ACK is never scaled (RFC 7323, section 2.2).
            window_end: SentOffset::new(r.window.into()),
            scale: r.window_scale.unwrap_or(0).min(MAX_WINDOW_SCALE),
            echo: r.tsval,
            segment_size,
            congestion: Congestion::new(segment_size),
            duplicates: 0,
            resend: false,
            probe: false,
            timed: SentOffset::START,
            timed_at: Moment::NEVER,
            since: cx.now,
            rare: None,
        }
    }

    pub(super) fn rare(&self) -> Rare {
        self.rare.as_deref().copied().unwrap_or_default()
    }

    pub(super) fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// What the target's FIN acknowledged, if it has closed.
    pub(super) fn acknowledged_at_close(&self) -> Option<SentOffset> {
        self.rare().closed.map(|(_, acked)| acked)
    }

    /// The target accepts a RST only at exactly the number that it expects next (RFC 5961, section 3.2): when nothing
    /// was lost on the way, that is the highest sent.
    pub(super) fn reset_seq(&self, shared: &Shared) -> ReplaySeq {
        shared.seq_of(self.high)
    }

    /// Acknowledgement number and timestamps of a final ACK.
    pub(super) fn final_ack(&self, shared: &Shared) -> (TargetSeq, Option<(u32, u32)>) {
        (self.receiver.next(), self.timestamps(shared))
    }

    /// The timestamps of a segment, if the target agreed to them.
    pub(super) fn timestamps(&self, shared: &Shared) -> Option<(u32, u32)> {
        self.echo.map(|echo| (shared.opening.tsval, echo))
    }

    pub(super) fn learn_distance(&mut self, distance: Distance) {
        self.acknowledger.learn(distance);
    }

    /// When the live client must have closed too: soon, if it is the end of a connection that the target does not want.
    pub(super) fn close_wait_deadline(&self, shared: &Shared) -> Moment {
        let limit = if matches!(shared.standing, Standing::OnTrial { .. }) { AT_ONCE } else { CLOSE_WAIT_LIMIT };
        self.rare().closed.map(|(at, _)| at.after(limit)).into()
    }

    /// When a target that says nothing is asked whether it is still there. Without an answer, the timer that then runs
    /// is the persist timer.
    pub(super) fn keepalive_deadline(&self, shared: &Shared) -> Moment {
        let idle = self.una == self.high && !shared.retransmit_at.is_set();
        if idle && !shared.fin_sent { Moment::at(shared.last_heard.after(KEEPALIVE)) } else { Moment::NEVER }
    }

    /// When an acknowledgement is due.
    pub(super) fn ack_deadline(&self) -> Moment {
        self.acknowledger.deadline()
    }

    /// How much is under way.
    pub(super) const fn flight(&self) -> u32 {
        self.nxt.since(self.una) as u32
    }

    /// Fires expired timers; `expired`: the retransmission timer, or the persist timer, is one of them.
    pub(super) fn handle_timeout(
        &mut self,
        shared: &mut Shared,
        expired: bool,
        stream: &Stream,
        cx: &mut Context<'_>,
    ) -> Outcome {
        // Also while the channel is down: a deadline that has passed must go.
        self.release_acks(cx);
        if expired {
            let probing = self.una == self.high;
            // A target whose window stays closed may answer probes for ever; the session timeout is for that.
            let silent = !probing || cx.now.since(shared.last_heard) >= shared.rto.current();
            if shared.rto.expirations() >= MAX_RETRIES && silent {
                return Outcome::Aborted(Reason::TargetSilent, Final::Reset);
            }
            shared.rto.expire();
            shared.retransmit_at = Moment::NEVER;
            if probing {
                self.probe = true;
            } else {
                self.handle_retransmission_timeout();
                cx.stats.timeouts += 1;
            }
        }
        if cx.credentials.is_some() && self.keepalive_deadline(shared).is_due(cx.now) {
            self.probe = true;
            shared.restart_retransmission(cx.now);
        }
        if self.close_wait_deadline(shared).is_due(cx.now) {
            return if shared.sent == stream.end() && !stream.is_over() && cx.config.rejoin {
                Outcome::Rest(Final::Reset)
            } else {
                Outcome::Aborted(Reason::TargetClosed, Final::Reset)
            };
        }
        Outcome::Continue
    }

    /// Lets acknowledgements out that are due.
    pub(super) fn release_acks(&mut self, cx: &mut Context<'_>) {
        let awaited = self.acknowledger.is_awaited();
        self.acknowledger.handle_timeout(cx.now);
        cx.stats.handshakes_unseen += u64::from(awaited && !self.acknowledger.is_awaited());
    }

    /// Everything unacknowledged is sent again, slowly (RFC 5681, section 3.1).
    fn handle_retransmission_timeout(&mut self) {
        self.congestion.handle_timeout(self.high.since(self.una) as u32, self.segment_size);
        self.nxt = self.una;
        let guard = self.high;
        let rare = self.rare_mut();
        rare.guard = guard;
        rare.recover = None;
        self.duplicates = 0;
        self.resend = false;
        self.timed_at = Moment::NEVER;
    }
}
