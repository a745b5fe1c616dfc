//! Whether the live server's SYN-ACKs are seen, and what waits until that is known: `handshake` finds it out.

use tcpcopy_common::{flow::Flow, tcp_flags::TcpFlags};

use crate::{multipath::Multipath, segment::LiveOptions, time::Nanos};

/// Whether the live server's SYN-ACKs of a rule are seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Visibility {
    #[default]
    Unknown,
    Seen,
    Unseen,
}

/// A segment that waits until the visibility of its rule is known.
#[derive(Debug)]
pub(super) struct Withheld {
    pub(super) time: Nanos,
    pub(super) flow: Flow,
    pub(super) rule: u16,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) flags: TcpFlags,
    pub(super) options: LiveOptions,
    pub(super) multipath: Multipath,
    pub(super) urgent: Option<u16>,
    pub(super) payload: Box<[u8]>,
}
