//! What the target's programs report to `intercept`, and the sessions they know.
//!
//! A report is a [`ResponseHeader`], and behind it the first octets of the response's payload, as many as the header
//! says. Both in the ring and on the control channel; [`Response`] is what either is read into.

use bytemuck::{Pod, Zeroable};

use crate::{
    figures::{Figures as _, Section, counter},
    flow::Flow,
    prefix::Prefix,
    tcp_flags::TcpFlags,
};

/// The headers of one swallowed response segment, or an event of a session. The same 72 octets travel on the control
/// channel to the worker that owns the session.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct ResponseHeader {
    /// The replayed client and the target.
    pub flow: Flow,
    /// Sequence number, network order.
    pub seq: [u8; 4],
    /// Acknowledgement number, network order.
    pub ack: [u8; 4],
    /// Window field, unscaled, network order.
    pub window: [u8; 2],
    /// Control bits.
    pub flags: TcpFlags,
    /// Shift count of a window scale option (RFC 7323), or [`NO_WINDOW_SCALE`]. Only meaningful with SYN.
    pub window_scale: u8,
    /// TSval of a timestamps option (RFC 7323), network order; zero without one.
    pub tsval: [u8; 4],
    /// Octets of payload (a super-packet's whole payload), host order (little-endian on the wire).
    pub payload_len: u32,
    /// The instance that owns the session, host order (little-endian on the wire).
    pub instance: u32,
    /// MSS option (RFC 9293, section 3.7.1), network order; zero without one. Only meaningful with SYN.
    pub mss: [u8; 2],
    /// One of [`kind`].
    pub kind: u8,
    /// Bits of [`option`].
    pub options: u8,
    /// Octets of the payload, from its first on, that follow this header; host order (little-endian on the wire). At
    /// most [`payload_len`](Self::payload_len), and what the session's [`Prefix`] asks for.
    pub prefix_len: u16,
    /// Zero.
    pub _reserved: [u8; 2],
}

const _: () = assert!(size_of::<ResponseHeader>() == 72);
const _: () = assert!(core::mem::offset_of!(ResponseHeader, prefix_len) == 68);

/// A report, read: a header whose lengths agree with each other and with the octets that follow it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Response<'a> {
    header: ResponseHeader,
    prefix: &'a [u8],
}

impl<'a> Response<'a> {
    /// A header (in host order), and the first octets of the payload that it is of. `None` when its
    /// [`prefix_len`](ResponseHeader::prefix_len) contradicts these, or the payload's length, or what a [`Prefix`] can
    /// be.
    #[inline]
    #[must_use]
    pub fn new(header: ResponseHeader, prefix: &'a [u8]) -> Option<Self> {
        let possible = header.prefix_len <= Prefix::MOST.octets() && u32::from(header.prefix_len) <= header.payload_len;
        (possible && prefix.len() == usize::from(header.prefix_len)).then_some(Self { header, prefix })
    }

    /// Reads a record of the ring, which may be longer than the report in it. `None` when it is shorter, or its lengths
    /// contradict each other.
    #[inline]
    #[must_use]
    pub fn from_record(record: &'a [u8]) -> Option<Self> {
        let (header, rest) = record.split_first_chunk::<{ size_of::<ResponseHeader>() }>()?;
        let header: ResponseHeader = bytemuck::pod_read_unaligned(header);
        Self::new(header, rest.get(..usize::from(header.prefix_len))?)
    }

    /// The headers.
    #[inline]
    #[must_use]
    pub const fn header(&self) -> &ResponseHeader {
        &self.header
    }

    /// The first octets of the payload: none, unless the session's [`Prefix`] asks for them.
    #[inline]
    #[must_use]
    pub const fn prefix(&self) -> &'a [u8] {
        self.prefix
    }
}

/// A report of headers only.
impl From<ResponseHeader> for Response<'_> {
    #[inline]
    fn from(header: ResponseHeader) -> Self {
        Self { header: ResponseHeader { prefix_len: 0, ..header }, prefix: &[] }
    }
}

/// [`ResponseHeader::window_scale`]: the option was absent.
pub const NO_WINDOW_SCALE: u8 = 0xff;

/// Values of [`ResponseHeader::kind`].
pub mod kind {
    /// A response segment, swallowed.
    pub const SEGMENT: u8 = 0;
    /// An ICMP error that quotes the session, swallowed; no TCP fields.
    pub const ICMP_ERROR: u8 = 1;
    /// The session's SYN was refused: another instance, or a connection of the target's own, holds the four-tuple; no
    /// TCP fields but `seq`, the refused ISN.
    pub const COLLISION: u8 = 2;
    /// A client of the target's own opened a connection on the session's four-tuple, or the target one to the client:
    /// the session is no longer ours.
    pub const RECLAIMED: u8 = 3;
    /// The session's SYN was refused because the session map is full; `seq` is the refused ISN.
    pub const MAP_FULL: u8 = 4;
    /// A probe has come, and was dropped: see [`Stamp::probes`](crate::mark::Stamp::probes). `seq` is its sequence
    /// number; `intercept` adds [`option`](super::option)s, and in `ack` how many reports of the instance it has lost.
    pub const PROBED: u8 = 5;
    /// A SYN has come again of a session whose SYN was not answered, as far as the target's programs have seen; `seq`
    /// is the session's ISN. `intercept` adds [`option`](super::option)s.
    pub const UNANSWERED: u8 = 6;
}

/// Bits of [`ResponseHeader::options`].
pub mod option {
    /// A timestamps option was present.
    pub const TIMESTAMPS: u8 = 1;
    /// The target was given the client's acknowledgement of this payload, and of everything before it.
    pub const REFLECTED: u8 = 2;
    /// The target's programs have reported everything before this payload, be it that the reports were lost later.
    pub const IN_ORDER: u8 = 4;
    /// Of [`PROBED`](super::kind::PROBED) and [`UNANSWERED`](super::kind::UNANSWERED): the service listens here, and has
    /// no room for another connection until it accepts one.
    pub const SERVICE_FULL: u8 = 8;
    /// Of [`UNANSWERED`](super::kind::UNANSWERED): this host has a socket for the connection, and so has answered it.
    pub const ANSWERED: u8 = 16;
    /// Of [`UNANSWERED`](super::kind::UNANSWERED): it has answered, and the answer waits for a neighbour that says
    /// nothing.
    pub const NEIGHBOUR_SILENT: u8 = 32;
}

/// Maximum octets of an answer with PSH at its end that is left to the source to acknowledge: there it costs nothing
/// when another request follows. That many leave the target in one go, as its initial window has ten segments
/// (RFC 6928).
pub const LEFT_TO_THE_SOURCE: u32 = 8 * 1448;

/// The urgent pointer of an acknowledgement that `intercept` has reflected, by which its own program knows it. Without
/// URG it means nothing to anybody else (RFC 9293, section 3.1).
pub const REFLECTION: [u8; 2] = *b"tc";

/// A replayed session known to the target: value of the session map, whose key is the [`Flow`].
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Session {
    /// When its SYN came: ns of `CLOCK_MONOTONIC`, host order.
    pub opened_ns: u64,
    /// When its client was last seen on the wire, likewise.
    pub last_seen_ns: u64,
    /// The owner, host order.
    pub instance: u32,
    /// Initial sequence number of the replayed client, network order.
    pub isn: [u8; 4],
    /// The target's sequence number after the last octet that was reported without a gap before it, host order; kept
    /// only where acknowledgements are reflected.
    pub answered: u32,
    /// The [`Prefix`] of its reports, in octets, host order: that of its target when its SYN came.
    pub prefix: u32,
    /// How sure it is that what the target sends on the four-tuple is a response: one of [`state`].
    pub state: u8,
    /// Zero.
    pub _reserved: [u8; 7],
}

const _: () = assert!(size_of::<Session>() == 40);

/// Values of [`Session::state`].
pub mod state {
    /// The target has not answered the SYN. A socket that the programs cannot see, because it is in another network
    /// namespace, may hold the four-tuple: only what answers this very SYN is a response.
    pub const OPENING: u8 = 0;
    /// As [`OPENING`], and a socket of an earlier session may be there: see
    /// [`MEETS_WITHIN`](crate::mark::MEETS_WITHIN).
    pub const MEETING: u8 = 1;
    /// The target has answered the SYN, or an earlier session was known: whatever comes is a response.
    pub const OPEN: u8 = 2;
}

crate::figures! {
    /// What the target's ingress saw of one instance's sessions: value of a per-CPU hash map keyed by instance.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
    pub struct WireStats {
        /// Segments of replayed sessions, SYNs included.
        pub segments: u64 = counter(Section::SeenOnTheWire),
        /// Payload octets of replayed sessions, retransmissions included.
        pub payload_bytes: u64 = counter(Section::SeenOnTheWire).bytes(),
        /// SYNs with a valid mark, retransmissions included.
        pub syns: u64 = counter(Section::SeenOnTheWire),
        /// Segments with FIN, retransmissions included.
        pub fins: u64 = counter(Section::SeenOnTheWire),
        /// Response segments to replayed sessions, all of them swallowed.
        pub swallowed: u64 = counter(Section::SeenOnTheWire).named("response_segments"),
        /// Payload octets of responses to replayed sessions.
        pub swallowed_bytes: u64 = counter(Section::SeenOnTheWire).named("response_bytes").bytes(),
        /// Reports lost because the ring was full (the response is swallowed all the same).
        pub reports_lost: u64 = counter(Section::NotReported).named("ring_full"),
    }
}

impl core::ops::AddAssign for WireStats {
    fn add_assign(&mut self, more: Self) {
        self.merge(&more);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A report of a payload of 40 octets, of which 16 follow, in a larger bucket.
    fn record(change: impl FnOnce(&mut ResponseHeader)) -> [u8; 72 + 64] {
        let mut header = ResponseHeader { payload_len: 40, prefix_len: 16, ..ResponseHeader::zeroed() };
        change(&mut header);
        let mut record = [0xee; 72 + 64];
        record[..72].copy_from_slice(bytemuck::bytes_of(&header));
        record[72..88].copy_from_slice(b"HTTP/1.1 200 OK\r");
        record
    }

    #[test]
    fn a_record_is_read_up_to_the_end_of_its_prefix() {
        let record = record(|_| {});
        let response = Response::from_record(&record).unwrap();
        assert_eq!((response.header().payload_len, response.prefix()), (40, &b"HTTP/1.1 200 OK\r"[..]));
        assert_eq!(Response::from_record(&record[..88]), Some(response));
        assert_eq!(Response::from(*response.header()).prefix(), b"");
        assert_eq!(Response::from(*response.header()).header().prefix_len, 0);
    }

    #[test]
    fn lengths_that_contradict_each_other_make_no_response() {
        for short in [0, 71, 72, 87] {
            assert_eq!(Response::from_record(&record(|_| {})[..short]), None, "{short} octets");
        }
        let longer_than = |payload_len| record(move |header| header.payload_len = payload_len);
        assert_eq!(Response::from_record(&longer_than(15)), None, "longer than the payload");
        assert!(Response::from_record(&longer_than(16)).is_some(), "all of the payload");
        let mut long = [0; 72 + 4096];
        for (octets, is_possible) in [(2048, true), (2049, false), (4096, false)] {
            let header = ResponseHeader { payload_len: 1 << 16, prefix_len: octets, ..ResponseHeader::zeroed() };
            long[..72].copy_from_slice(bytemuck::bytes_of(&header));
            assert_eq!(Response::from_record(&long).is_some(), is_possible, "{octets} octets");
        }
        let header = ResponseHeader { payload_len: 9, prefix_len: 4, ..ResponseHeader::zeroed() };
        assert_eq!(Response::new(header, b"abc"), None, "too few");
        assert_eq!(Response::new(header, b"abcde"), None, "too many");
    }
}
