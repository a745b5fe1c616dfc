//! A target connection from its SYN to the SYN-ACK.

use std::time::Duration;

use tcpcopy_common::tcp_flags::{ACK, RST, SYN};

use super::{
    open::Open,
    outcome::{Final, Outcome, Plan, Poll},
    shared::{Context, Shared},
};
use crate::{
    config::Credentials,
    input::offset::SentOffset,
    report::SegmentReport,
    stats::Reason,
    store::moment::Moment,
    tcp::{isn, receiver::WINDOW, rto::Rto, seq::ReplaySeq},
    time::Nanos,
};

/// Retransmissions of a SYN in a row: with the back-off, about a minute.
const MAX_SYN_RETRIES: u8 = 5;
/// SYNs sent again at once, between two that the timer sends, because the target spoke of an earlier connection.
const MAX_PROVOKED: u8 = 3;
/// How long a session waits for a channel before its SYN was sent.
const CHANNEL_PATIENCE: Duration = Duration::from_secs(5);

/// SYN-SENT, or about to be.
#[derive(Debug)]
pub(super) struct Connecting {
    /// When the SYN was first sent; before that, when it was first to be sent.
    since: Nanos,
    syn: Syn,
    /// SYNs sent again since the timer has sent one.
    provoked: u8,
}

/// Where the SYN is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Syn {
    /// To be sent for the first time.
    Unsent,
    /// Sent, and waited for.
    InFlight,
    /// Sent, and to be sent again.
    Resend,
}

impl Connecting {
    pub(super) const fn new(now: Nanos) -> Self {
        Self { since: now, syn: Syn::Unsent, provoked: 0 }
    }

    /// Whether the target may know of the connection.
    pub(super) const fn is_visible(&self) -> bool {
        !matches!(self.syn, Syn::Unsent)
    }

    /// When a session that has not sent its SYN gives up waiting for a channel.
    pub(super) fn channel_deadline(&self) -> Moment {
        match self.syn {
            Syn::Unsent => Moment::at(self.since.after(CHANNEL_PATIENCE)),
            Syn::InFlight | Syn::Resend => Moment::NEVER,
        }
    }

    /// Fires expired timers; `expired`: the retransmission timer is one of them.
    pub(super) fn handle_timeout(&mut self, shared: &mut Shared, expired: bool, cx: &mut Context<'_>) -> Outcome {
        if self.syn == Syn::Unsent {
            // Only while the channel is down: otherwise it has nothing that is due.
            if cx.now.since(self.since) >= CHANNEL_PATIENCE {
                return Outcome::Aborted(cx.withheld, Final::Nothing);
            }
        } else if expired {
            if shared.rto.expirations() >= MAX_SYN_RETRIES {
                return Outcome::Aborted(Reason::TargetSilent, Final::Reset);
            }
            shared.rto.expire();
            shared.retransmit_at = Moment::NEVER;
            (self.syn, self.provoked) = (Syn::Resend, 0);
            cx.stats.timeouts += 1;
        }
        Outcome::Continue
    }

    /// Returns the SYN, if it is to be sent now.
    pub(super) fn poll(&mut self, shared: &mut Shared, credentials: &Credentials, cx: &mut Context<'_>) -> Poll {
        match self.syn {
            Syn::InFlight => return Poll::Idle,
            Syn::Unsent => self.since = cx.now,
            Syn::Resend => cx.stats.retransmitted_segments += 1,
        }
        self.syn = Syn::InFlight;
        shared.instance = credentials.instance;
        shared.restart_retransmission(cx.now);
        Poll::Transmit(Plan {
            seq: shared.opening.isn.get(),
            ack: 0,
            window: WINDOW,
            flags: SYN,
            options: isn::syn_options(cx.config, credentials, &shared.flow, shared.opening, false),
            segment_size: 1,
            offset: SentOffset::START,
            len: 0,
        })
    }

    /// Handles a segment that the target sent after the SYN: returns the open connection that a SYN-ACK makes.
    ///
    /// # Errors
    /// What is to become of the session when the segment is none.
    pub(super) fn handle_segment(
        &mut self,
        shared: &mut Shared,
        r: &SegmentReport<'_>,
        cx: &mut Context<'_>,
    ) -> Result<Open, Outcome> {
        let ack = ReplaySeq::new(r.ack);
        let ours = r.flags.contains(ACK) && ack == shared.opening.isn.plus(1);
        if ours && r.flags.contains(RST) {
            return Err(Outcome::Aborted(Reason::TargetRefused, Final::Nothing));
        }
        if ours && r.flags.contains(SYN) {
            return Ok(self.establish(shared, r, cx));
        }
        cx.stats.stale_responses += 1;
        if ours || r.flags & (ACK | RST) != ACK {
            return Err(Outcome::Continue);
        }
        // RFC 9293, section 3.5.1: the target still holds a connection that we know nothing of. Our RST ends that
        // connection, but its challenge has cost us the SYN. What comes late may be none, so that these do not count as
        // retries.
        if self.provoked < MAX_PROVOKED {
            self.provoked += 1;
            self.syn = Syn::Resend;
            shared.retransmit_at = Moment::NEVER;
        }
        Err(Outcome::HalfOpen(ack))
    }

    fn establish(&self, shared: &mut Shared, r: &SegmentReport<'_>, cx: &mut Context<'_>) -> Open {
        shared.last_heard = cx.now;
        shared.last_progress = cx.now;
        shared.retransmit_at = Moment::NEVER;
        let repeated = shared.rto.expirations() > 0 || self.provoked > 0;
        shared.rto = Rto::new();
        let mut handshake = Duration::ZERO;
        if !repeated {
            handshake = cx.now.since(self.since);
            shared.rto.sample(handshake);
        }
        cx.stats.connected += 1;
        cx.stats.response_segments += 1;
        Open::new(shared, r, handshake, cx)
    }
}
