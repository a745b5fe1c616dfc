//! What a session keeps from one target connection to the next, and what it borrows of the engine.

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{TcpFlags, URG},
};

use crate::{
    causality::{
        answers::Answers,
        gate::Gate,
        joining::{AT_ONCE, Standing},
    },
    config::{Config, Credentials, TargetId},
    input::{
        adapter::Adapter,
        offset::{LiveOffset, SentOffset},
        stream::Stream,
    },
    stats::{Reason, Stats},
    store::moment::Moment,
    tcp::{
        distance::Distance,
        isn::Opening,
        rto::Rto,
        seq::{LiveAck, ReplaySeq},
        server_profile::ServerProfile,
    },
    time::Nanos,
};

/// Octets that the target has acknowledged but not answered are kept up to this much, to be sent again if it closes.
const KEPT_FOR_RETRY: u64 = 256 << 10;

/// State borrowed from the engine for one call.
pub(crate) struct Context<'a> {
    pub now: Nanos,
    pub config: &'a Config,
    pub stats: &'a mut Stats,
    /// Of the servers of the connection's rule.
    pub profile: &'a mut ServerProfile,
    /// Of the live client; `None` until its handshake has shown it.
    pub distance: Option<Distance>,
    /// Of the target's channel; `None` while it is down, or nothing may be sent to the target.
    pub credentials: Option<Credentials>,
    /// Why there are none.
    pub withheld: Reason,
}

/// The newest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newest {
    /// The target has sent no payload since; its octets are kept to be sent again.
    Kept,
    /// The target has sent no payload since, for so long that the octets are kept no longer.
    Forgotten,
    /// The target has sent payload since.
    Answered,
}

/// What a session keeps from one target connection to the next, and what its states have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) target: TargetId,
    /// As the target sees it.
    pub(super) flow: Flow,
    /// How many client ports were tried.
    pub(super) ports_tried: u8,
    /// Under which instance the SYN was sent.
    pub(super) instance: u32,
    pub(super) opening: Opening,
    /// Where this target connection begins in the live stream, and where the octets of each stream are in the other.
    pub(super) adapter: Adapter,
    /// Live octets before this have been sent, be it on an earlier target connection.
    pub(super) sent: LiveOffset,
    /// Live octets before this have been acknowledged, likewise.
    pub(super) accepted: LiveOffset,
    pub(super) fin_sent: bool,
    /// The first mark whose octets have not been sent.
    pub(super) next_mark: u64,
    /// What the live client had read when it sent the last octets that we sent.
    pub(super) read: Option<LiveAck>,
    /// What it had read when the present target connection began, as far as is known; nothing while `read` is not.
    pub(super) base: LiveAck,
    /// Where the newest request begins.
    pub(super) request: LiveOffset,
    pub(super) newest: Newest,
    pub(super) standing: Standing,
    /// Target connections in a row without an answer.
    pub(super) fruitless: u8,
    pub(super) answers: Answers,
    /// This target connection carries on something: a server that speaks first does so once more, which is no answer.
    pub(super) greeting_due: bool,
    pub(super) gate: Gate,
    pub(super) gate_until: Moment,
    pub(super) rto: Rto,
    /// When the retransmission timer, or the persist timer, expires.
    pub(super) retransmit_at: Moment,
    /// When the target last sent anything.
    pub(super) last_heard: Nanos,
    /// When it last sent or acknowledged something new.
    pub(super) last_progress: Nanos,
}

impl Shared {
    /// The sequence number of an offset on the present target connection.
    pub(super) const fn seq_of(&self, offset: SentOffset) -> ReplaySeq {
        self.opening.isn.plus(1).plus(offset.get() as u32)
    }

    /// Accounts for the live octets before `until`, which have been sent or left out by now.
    pub(super) fn account(&mut self, until: LiveOffset, stats: &mut Stats) {
        if until > self.sent {
            let left_out = self.adapter.left_out(self.sent..until);
            stats.bytes.send(until.since(self.sent) - left_out);
            if left_out > 0 {
                stats.bytes.discard(Reason::Filtered, left_out);
            }
            self.sent = until;
        }
    }

    /// Whether the newest request, of which the target has acknowledged what lies before `una`, is kept to be sent again
    /// if the target closes without an answer.
    pub(super) fn may_retry(&self, una: LiveOffset, config: &Config) -> bool {
        config.rejoin && self.newest == Newest::Kept && una.since(self.request) <= KEPT_FOR_RETRY
    }

    /// Notes that the target goes on with a connection that may have begun in the middle.
    pub(super) const fn prove(&mut self, cx: &mut Context<'_>) {
        if matches!(self.standing, Standing::OnTrial { .. }) {
            self.standing = Standing::Good;
            cx.profile.joins.accept();
        }
    }

    /// Handles that the target ends the connection: not because of what it has read, if that was a while ago.
    pub(super) fn handle_end(&mut self, cx: &mut Context<'_>) {
        if self.newest == Newest::Answered && cx.now.since(self.last_progress) >= AT_ONCE {
            self.prove(cx);
        }
    }

    /// Cuts a segment so that an urgent octet has one of its own, with URG: the target's TCP then hands it to the service
    /// as the live server's did, out of line unless that has asked for it in line. Returns its length and that flag.
    pub(super) fn cut_at_urgent(&self, stream: &Stream, from: SentOffset, len: usize) -> (usize, TcpFlags) {
        let Some(urgent) = stream.next_urgent(self.adapter.live_of(from)) else { return (len, TcpFlags::NONE) };
        match usize::try_from(self.adapter.sent_of(urgent).since(from)) {
            Ok(0) if len > 0 => (1, URG),
            Ok(before) if before < len => (before, TcpFlags::NONE),
            _ => (len, TcpFlags::NONE),
        }
    }

    /// Starts the retransmission timer anew.
    pub(super) fn restart_retransmission(&mut self, now: Nanos) {
        self.retransmit_at = Moment::at(now.after(self.rto.current()));
    }

    /// Starts the retransmission timer unless it runs.
    pub(super) fn start_retransmission(&mut self, now: Nanos) {
        self.retransmit_at.set_once(now.after(self.rto.current()));
    }
}
