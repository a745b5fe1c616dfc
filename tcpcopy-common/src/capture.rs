//! What the source's capture programs put into a worker's ring, and the rules that tell them what to take.

use bytemuck::{Pod, Zeroable};

use crate::{
    flow::{Flow, IpAddress},
    tcp_flags::TcpFlags,
};

/// A captured segment of a live client, or a SYN-ACK of the live server: this header, then the TCP header with its
/// options, then [`payload_len`](Self::payload_len) octets of payload. The ring record is as long as the size bucket it
/// was reserved in; what follows the payload is undefined.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct CaptureHeader {
    /// When the program saw it: ns of `CLOCK_MONOTONIC`, host order.
    pub time_ns: u64,
    /// Live client and live server, whoever of both has sent it.
    pub flow: Flow,
    /// Sequence number, network order.
    pub seq: [u8; 4],
    /// Acknowledgement number, network order.
    pub ack: [u8; 4],
    /// Octets of payload after both headers, host order.
    pub payload_len: u32,
    /// Which rule matched: [`Rule::id`].
    pub rule: u16,
    /// Control bits.
    pub flags: TcpFlags,
    /// What else is known: bits of [`note`].
    pub notes: u8,
}

/// What is known of a captured packet beside its octets.
pub mod note {
    /// The live server has sent it.
    pub const ANSWER: u8 = 1;
    /// Its checksum is known to be right, or is none: coalesced segments, of which each was right.
    pub const VERIFIED: u8 = 2;
}

const _: () = assert!(size_of::<CaptureHeader>() == 64);
const _: () = assert!(core::mem::offset_of!(CaptureHeader, payload_len) == 56);

/// The largest payload of one record: what a 64 KiB IP packet can hold.
pub const MAX_PAYLOAD: usize = 65_536;
/// The largest TCP options field: a data offset of 15 words less the fixed 20 octets (RFC 9293, section 3.1).
pub const MAX_TCP_OPTIONS: usize = 40;

/// Key of the hash map of rules that name an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct RuleKey {
    /// The live service's address.
    pub address: IpAddress,
    /// The live service's port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub _reserved: [u8; 2],
}

const _: () = assert!(size_of::<RuleKey>() == 20);

/// Value of that hash map, and of the array indexed by destination port (host order) that is asked first.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Rule {
    /// One of the `ACTION_*` bits.
    pub action: u16,
    /// Which `-x` entry this is.
    pub id: u16,
}

impl Rule {
    /// Nothing: the value of a port that no rule names.
    pub const IGNORE: u16 = 0;
    /// Capture under [`id`](Self::id).
    pub const CAPTURE: u16 = 1;
    /// Only in the port array: look the address up in the hash map; if it is absent there, the other bits decide.
    pub const BY_ADDRESS: u16 = 2;
}

/// By what connections are chosen among those that the rules match: bits, so that a program tests only what is asked
/// for.
pub mod criterion {
    /// The client's address.
    pub const CLIENT: u32 = 1;
    /// The lottery of [`Flow::draw`](crate::flow::Flow::draw).
    pub const SAMPLE: u32 = 2;
}

/// The threshold below which every number is that a connection can draw: all are sampled.
pub const WHOLE_SAMPLE: u64 = 1 << 32;

/// Handshakes that can be remembered at a time, to tell the acknowledgement that ends each from all others: a power of
/// two. One that takes another's place in a table of that many costs the other its measurement, no more; of a thousand
/// that are under way at a time, 0.4 % meet.
pub const HANDSHAKE_SLOTS: u32 = 1 << 18;

/// The most workers one process can have.
pub const MAX_WORKERS: u32 = 64;
