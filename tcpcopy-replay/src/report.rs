//! What a target's `intercept` reports, read once where it arrives.

use tcpcopy_common::{
    flow::Flow,
    response::{NO_WINDOW_SCALE, Response, ResponseHeader, kind, option},
    tcp_flags::TcpFlags,
};

/// A report of a target's `intercept`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Report<'a> {
    /// A response segment of a session, swallowed.
    Segment(SegmentReport<'a>),
    /// An ICMP error that quotes a segment of the session, swallowed.
    IcmpError(SessionReport),
    /// A SYN was dropped because another instance has a session on its four-tuple.
    Collision(SynReport),
    /// A SYN was dropped because the session map is full.
    MapFull(SynReport),
    /// A client of the target's own opened a connection on the session's four-tuple, which ended the session.
    Reclaimed(SessionReport),
    /// A probe has come, and was dropped.
    Probed(ProbeReport),
    /// A SYN has come again of a session whose SYN the target's programs have not seen answered.
    Unanswered(UnansweredReport),
}

/// The headers of a response segment, and the first octets of its payload where they are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentReport<'a> {
    /// The session.
    pub session: SessionReport,
    /// Sequence number, in the target's space.
    pub seq: u32,
    /// Acknowledgement number, in the replayed client's space; meaningful with ACK.
    pub ack: u32,
    /// Window field, unscaled.
    pub window: u16,
    /// Control bits.
    pub flags: TcpFlags,
    /// Shift count of a window scale option (RFC 7323, section 2), whatever it says; meaningful with SYN.
    pub window_scale: Option<u8>,
    /// MSS option (RFC 9293, section 3.7.1), never 0; meaningful with SYN.
    pub mss: Option<u16>,
    /// TSval of a timestamps option (RFC 7323, section 3).
    pub tsval: Option<u32>,
    /// Octets of payload: up to 64 KiB where the stack coalesced segments.
    pub payload_len: u32,
    /// The first of these octets, as many as the rule's [`Prefix`](tcpcopy_common::prefix::Prefix) asks for. None of
    /// them where the target's ring had no room for more than the headers.
    pub payload: &'a [u8],
    /// The target was given the client's acknowledgement of this payload and of everything before it.
    pub reflected: bool,
    /// Everything before this payload was reported, be it that the reports were lost later.
    pub in_order: bool,
}

/// The session that a report is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionReport {
    /// The replayed client and the target.
    pub flow: Flow,
    /// The instance that owns the session.
    pub instance: u32,
}

/// A SYN that the target's programs dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynReport {
    /// The session that it would have opened.
    pub session: SessionReport,
    /// Its sequence number, in the replayed client's space.
    pub isn: u32,
}

/// A probe that the target's programs have seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProbeReport {
    /// Of the probe; it is no session's.
    pub session: SessionReport,
    /// Its sequence number.
    pub seq: u32,
    /// How many reports of the instance were lost so far, modulo 2³².
    pub lost: u32,
    /// The service has no room for another connection until it accepts one.
    pub full: bool,
}

/// A SYN that was let in twice, and that nothing seems to have answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnansweredReport {
    /// The session.
    pub session: SessionReport,
    /// The target itself knows why: the service has no room for another connection until it accepts one, or the answer
    /// waits for a neighbour that says nothing.
    pub explained: bool,
    /// The target has a socket for it, and so has answered it.
    pub answered: bool,
}

/// A report of a kind that this release does not know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("report of unknown kind {0}")]
pub struct UnknownKind(pub u8);

impl<'a> Report<'a> {
    /// Reads a report.
    ///
    /// # Errors
    /// [`UnknownKind`].
    pub fn parse(response: &Response<'a>) -> Result<Self, UnknownKind> {
        let header = response.header();
        let session = SessionReport { flow: header.flow, instance: header.instance };
        let syn = || SynReport { session, isn: u32::from_be_bytes(header.seq) };
        let has = |bit| header.options & bit != 0;
        Ok(match header.kind {
            kind::SEGMENT => Self::Segment(SegmentReport::new(session, header, response.prefix())),
            kind::ICMP_ERROR => Self::IcmpError(session),
            kind::COLLISION => Self::Collision(syn()),
            kind::MAP_FULL => Self::MapFull(syn()),
            kind::RECLAIMED => Self::Reclaimed(session),
            kind::PROBED => Self::Probed(ProbeReport {
                session,
                seq: u32::from_be_bytes(header.seq),
                lost: u32::from_be_bytes(header.ack),
                full: has(option::SERVICE_FULL),
            }),
            kind::UNANSWERED => Self::Unanswered(UnansweredReport {
                session,
                explained: has(option::SERVICE_FULL | option::NEIGHBOUR_SILENT),
                answered: has(option::ANSWERED),
            }),
            kind => return Err(UnknownKind(kind)),
        })
    }

    /// Returns the session that this is about.
    #[must_use]
    pub const fn session(&self) -> &SessionReport {
        match self {
            Self::Segment(segment) => &segment.session,
            Self::Collision(syn) | Self::MapFull(syn) => &syn.session,
            Self::IcmpError(session) | Self::Reclaimed(session) => session,
            Self::Probed(probe) => &probe.session,
            Self::Unanswered(unanswered) => &unanswered.session,
        }
    }

    /// Tells whether `intercept` has acknowledged a response itself.
    #[must_use]
    pub const fn is_reflected(&self) -> bool {
        matches!(self, Self::Segment(segment) if segment.reflected)
    }
}

impl<'a> SegmentReport<'a> {
    fn new(session: SessionReport, header: &ResponseHeader, payload: &'a [u8]) -> Self {
        let has = |bit| header.options & bit != 0;
        Self {
            session,
            seq: u32::from_be_bytes(header.seq),
            ack: u32::from_be_bytes(header.ack),
            window: u16::from_be_bytes(header.window),
            flags: header.flags,
            window_scale: (header.window_scale != NO_WINDOW_SCALE).then_some(header.window_scale),
            mss: Some(u16::from_be_bytes(header.mss)).filter(|&mss| mss != 0),
            tsval: has(option::TIMESTAMPS).then(|| u32::from_be_bytes(header.tsval)),
            payload_len: header.payload_len,
            payload,
            reflected: has(option::REFLECTED),
            in_order: has(option::IN_ORDER),
        }
    }
}

#[cfg(test)]
mod tests {
    use tcpcopy_common::tcp_flags::{ACK, SYN};

    use super::*;
    use crate::engine::tests::flow;

    fn header(kind: u8) -> ResponseHeader {
        ResponseHeader {
            flow: flow(40_000),
            seq: [0, 0, 0, 9],
            ack: [0, 0, 1, 0],
            window: [2, 0],
            flags: SYN | ACK,
            window_scale: NO_WINDOW_SCALE,
            payload_len: 3,
            instance: 7,
            kind,
            ..bytemuck::Zeroable::zeroed()
        }
    }

    #[test]
    fn each_kind_is_read_and_others_are_named() {
        let session = SessionReport { flow: flow(40_000), instance: 7 };
        let syn = SynReport { session, isn: 9 };
        let read = [1, 2, 3, 4].map(|kind| Report::parse(&header(kind).into()));
        let expected =
            [Report::IcmpError(session), Report::Collision(syn), Report::Reclaimed(session), Report::MapFull(syn)];
        assert_eq!(read, expected.map(Ok));
        for report in expected {
            assert_eq!((report.session(), report.is_reflected()), (&session, false));
        }
        for kind in 7..=u8::MAX {
            assert_eq!(Report::parse(&header(kind).into()), Err(UnknownKind(kind)));
        }
    }

    #[test]
    fn what_intercept_has_found_out_is_read() {
        let session = SessionReport { flow: flow(40_000), instance: 7 };
        for (options, explained, answered) in [(0, false, false), (8, true, false), (16, false, true), (48, true, true)]
        {
            let read = |kind| Report::parse(&ResponseHeader { options, ..header(kind) }.into());
            let full = options & 8 != 0;
            assert_eq!(read(5), Ok(Report::Probed(ProbeReport { session, seq: 9, lost: 256, full })));
            assert_eq!(read(6), Ok(Report::Unanswered(UnansweredReport { session, explained, answered })));
        }
    }

    #[test]
    fn options_of_a_segment_are_there_or_not() {
        let bare = SegmentReport {
            session: SessionReport { flow: flow(40_000), instance: 7 },
            seq: 9,
            ack: 256,
            window: 512,
            flags: SYN | ACK,
            window_scale: None,
            mss: None,
            tsval: None,
            payload_len: 3,
            payload: &[],
            reflected: false,
            in_order: false,
        };
        assert_eq!(Report::parse(&header(kind::SEGMENT).into()), Ok(Report::Segment(bare)));
        let mut full = header(kind::SEGMENT);
        (full.window_scale, full.mss, full.tsval) = (0, [5, 180], [0, 0, 0, 0]);
        full.options = option::TIMESTAMPS | option::REFLECTED | option::IN_ORDER;
        full.prefix_len = 2;
        let expected = SegmentReport {
            window_scale: Some(0),
            mss: Some(1460),
            tsval: Some(0),
            payload: b"OK",
            reflected: true,
            in_order: true,
            ..bare
        };
        let response = Response::new(full, b"OK").expect("lengths that agree");
        let read = Report::parse(&response);
        assert_eq!(read, Ok(Report::Segment(expected)));
        assert!(read.is_ok_and(|report| report.is_reflected()));
    }
}
