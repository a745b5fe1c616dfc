//! Segments at the engine's boundary: captured from a live client, and to be sent to a target.

use tcpcopy_common::{flow::Flow, mark::Mark, tcp_flags::TcpFlags};

use crate::{multipath::Multipath, time::Nanos};

/// A segment that a live client sent to the live server, as captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSegment<'a> {
    /// When the kernel saw it.
    pub time: Nanos,
    /// Live client and live server.
    pub flow: Flow,
    /// Which `-x` entry matched.
    pub rule: u16,
    /// Sequence number, in the live client's space.
    pub seq: u32,
    /// Acknowledgement number, in the live server's space; meaningful with ACK.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// TCP options, as far as they matter.
    pub options: LiveOptions,
    /// What it says of other subflows of its connection.
    pub multipath: Multipath,
    /// Which octet of its payload is the urgent one, if the client has sent one in it.
    pub urgent: Option<u16>,
    /// Whether its checksum is right, as far as it can be told.
    pub intact: bool,
    /// Payload: up to 64 KiB where the NIC or the stack coalesced segments.
    pub payload: &'a [u8],
}

/// A SYN-ACK of the live server: what proves a live client's handshake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveAnswer {
    /// When the kernel saw it.
    pub time: Nanos,
    /// Live client and live server, as in the client's segments.
    pub flow: Flow,
    /// Which `-x` entry matched.
    pub rule: u16,
    /// The live server's ISN.
    pub seq: u32,
    /// Acknowledgement number: what the live client sends next.
    pub ack: u32,
    /// TCP options, as far as they matter.
    pub options: LiveOptions,
    /// What it says of other subflows of its connection.
    pub multipath: Multipath,
}

/// The TCP options of a live host that decide on what the other accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LiveOptions {
    /// Window scale shift count (RFC 7323, section 2), only in a SYN.
    pub window_scale: Option<u8>,
    /// TSval and TSecr (RFC 7323, section 3).
    pub timestamps: Option<(u32, u32)>,
}

/// A segment for the target, complete but for headers below TCP, checksums and re-segmentation.
///
/// The injector cuts [`payload`](Self::payload) into segments of at most [`segment_size`](Self::segment_size) octets
/// (or hands the whole to the kernel as one GSO packet); PSH and FIN belong to the last of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Replayed client and target.
    pub flow: Flow,
    /// Sequence number of the first octet, in the replayed client's space.
    pub seq: u32,
    /// Acknowledgement number, in the target's space; sent only with ACK.
    pub ack: u32,
    /// Window field as it goes on the wire.
    pub window: u16,
    /// Control bits. With URG the last octet of the payload, which fits a segment then, is the urgent one.
    pub flags: TcpFlags,
    /// TCP options.
    pub options: TransmitOptions,
    /// The largest payload of one segment on the path to the target, in octets; at least 1.
    pub segment_size: u16,
    /// Payload.
    pub payload: &'a [u8],
}

/// The TCP options of a [`Transmit`]. They always fit the 40 octets of the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOptions {
    /// Only in a SYN.
    pub syn: Option<SynOptions>,
    /// TSval and TSecr (RFC 7323, section 3).
    pub timestamps: Option<(u32, u32)>,
}

/// The options of a replayed SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size that we announce (RFC 9293, section 3.7.1).
    pub mss: u16,
    /// Window scale shift count, 0 to 14 (RFC 7323, section 2).
    pub window_scale: Option<u8>,
    /// Proof of ownership for the target.
    pub mark: Mark,
}
