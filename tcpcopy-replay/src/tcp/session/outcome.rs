//! What a session asks of the engine: segments to send, and what is to become of it.

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{RST, TcpFlags},
};

use crate::{
    config::TargetId,
    input::offset::{LiveOffset, SentOffset},
    segment::{Transmit, TransmitOptions},
    stats::Reason,
    tcp::{receiver::WINDOW, seq::ReplaySeq},
};

/// A segment to be sent, but for the octets themselves, which are the stream's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plan {
    pub seq: u32,
    pub ack: u32,
    pub window: u16,
    pub flags: TcpFlags,
    pub options: TransmitOptions,
    pub segment_size: u16,
    /// Of the first octet.
    pub offset: SentOffset,
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

/// What is to become of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes on.
    Continue,
    /// It ended as the live connection did.
    Finished(Final, Owed),
    /// It ended early.
    Aborted(Reason, Final),
    /// Another target connection is to carry it on, from this offset.
    Reconnect(LiveOffset, Final, Owed),
    /// The target closed and owes nothing; the next request needs another connection.
    Rest(Final),
    /// Its four-tuple is taken at the target.
    Collided,
    /// The target holds an old connection on the same four-tuple, which a RST with this number ends.
    HalfOpen(ReplaySeq),
}

/// The requests that a target connection leaves without an answer when it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owed {
    /// The newest one has none, for certain.
    Answer,
    /// This many may have none, which cannot be told for certain.
    Perhaps(u64),
}

/// The kind of segment that a target connection is left with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Final {
    Nothing,
    Acknowledge,
    Reset,
}

/// The final segment on a target connection, without payload.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FinalSegment {
    pub target: TargetId,
    pub flow: Flow,
    pub seq: ReplaySeq,
    pub ack: u32,
    pub flags: TcpFlags,
    pub timestamps: Option<(u32, u32)>,
}

impl FinalSegment {
    /// A RST that acknowledges nothing.
    pub(crate) const fn reset(target: TargetId, flow: Flow, seq: ReplaySeq) -> Self {
        Self { target, flow, seq, ack: 0, flags: RST, timestamps: None }
    }

    /// Returns it as it goes on the wire.
    pub(crate) fn transmit(self) -> Transmit<'static> {
        Transmit {
            flow: self.flow,
            seq: self.seq.get(),
            ack: self.ack,
            window: if self.flags.contains(RST) { 0 } else { WINDOW },
            flags: self.flags,
            options: TransmitOptions { syn: None, timestamps: self.timestamps },
            segment_size: 1,
            payload: &[],
        }
    }
}
