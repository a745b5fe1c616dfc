//! Marks: what is remembered of the segments that a stream's octets came in.

use crate::{input::offset::LiveOffset, tcp::seq::LiveAck, time::Nanos};

/// Marks where a captured segment begins in its stream, with what is needed to replay it at the right moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Stream offset of its first octet that was new.
    pub offset: LiveOffset,
    /// When it was captured.
    pub time: Nanos,
    /// The live client's cumulative acknowledgement: how much of the live server's answers it had received.
    pub ack: Option<LiveAck>,
    /// Whether it ended with PSH: the live client had nothing more to send just then.
    pub push: bool,
    /// Which of its octets is the urgent one.
    pub urgent: Option<u16>,
}
