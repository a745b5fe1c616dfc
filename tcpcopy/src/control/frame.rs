//! The messages of the control channel and their octets.
//!
//! A frame is one octet that names its kind, and a body. Numbers that we make are little-endian; numbers copied from a
//! packet stay in network order. Encoding and decoding are exact inverses: what decodes has one encoding.

use std::time::Duration;

use tcpcopy_common::{
    figures,
    figures::{Figures as _, Group, Section, counter},
    mark::{Epoch, MarkKey},
    response::WireStats,
};

use super::{
    prefixes::{MAX_TARGETS, TargetPrefix},
    registration::{MAX_NAME, MAX_REFUSAL, RefusalCode, Resume, Token, Welcome},
    responses::{self, ROOM, Responses},
};

/// The largest frame, in octets: a Noise message (65,535) less its authentication tag (16).
pub const MAX_FRAME: usize = 65_535 - 16;
/// Octets of a [`Frame::Hello`] without a name and prefixes.
const HELLO: usize = 1 + 2 + 1 + 4 + 16 + 1;
/// The largest frame of an opening: a [`Frame::Hello`].
pub(super) const MAX_OPENING_FRAME: usize = HELLO + MAX_NAME + MAX_TARGETS * size_of::<TargetPrefix>();

const _: () = assert!(1 + ROOM == MAX_FRAME, "a full batch of reports fills a frame");
const _: () = assert!(MAX_OPENING_FRAME > 1 + 1 + MAX_REFUSAL, "a refusal is an opening too");

/// One message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame<'a> {
    /// Client to server, first: a worker introduces itself.
    Hello {
        /// Index of the worker in its process.
        worker: u16,
        /// The instance it wants back.
        resume: Option<Resume>,
        /// The source's name, at most 64 octets without control characters.
        name: &'a str,
        /// Of which targets' responses it wants the first octets, at most [`MAX_TARGETS`], as it says it.
        prefixes: &'a [TargetPrefix],
    },
    /// Server to client, first: the worker is registered.
    Welcome(Welcome),
    /// Server to client, first: the worker is turned away. The connection ends.
    Refused {
        /// For the program.
        code: RefusalCode,
        /// For people, at most 256 octets without control characters.
        text: &'a str,
    },
    /// Server to client: reports of swallowed responses.
    Responses(Responses<'a>),
    /// Server to client, once a second and at the end.
    Stats(Stats),
    /// Server to client, once a second: the time at the target, which marks have to show from now on.
    Epoch(Epoch),
    /// Either way, last: the sender ends in good order.
    Bye,
    /// Client to server: requests are late because they wait for answers. For [`HURRY`] from now on each should be
    /// reported at once, not with others.
    Hurry,
}

/// How long a [`Frame::Hurry`] holds.
pub const HURRY: Duration = Duration::from_millis(50);

figures! {
    /// What the target saw of an instance.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Stats {
        /// Segments at the target's ingress and egress.
        pub wire: WireStats = Group,
        /// Responses that the channel had no room for: `tcpcopy` was too slow.
        pub responses_dropped: u64 = counter(Section::NotReported).named("channel_too_slow"),
    }
}

impl std::ops::AddAssign for Stats {
    fn add_assign(&mut self, more: Self) {
        self.merge(&more);
    }
}

/// Octets that are no frame, or a frame that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No octet at all.
    #[error(
        "a control frame is empty: the peer runs another release, or is not tcpcopy; install the same on both hosts"
    )]
    Empty,
    /// A kind that this release does not know.
    #[error("control frame of unknown kind {0}: install the same release on both hosts")]
    UnknownKind(u8),
    /// A body whose content contradicts its kind.
    #[error("control frame of kind {kind} with a bad body of {len} octets: install the same release on both hosts")]
    Body {
        /// First octet of the frame.
        kind: u8,
        /// Octets after it.
        len: usize,
    },
    /// A kind that may not come at this point or from this side.
    #[error("control frame of kind {0} out of place: install the same release on both hosts")]
    OutOfPlace(u8),
    /// More than fits a frame.
    #[error("a control frame of {0} octets is too large: at most {MAX_FRAME} are possible")]
    TooLarge(usize),
}

mod kind {
    pub(super) const HELLO: u8 = 1;
    pub(super) const WELCOME: u8 = 2;
    pub(super) const REFUSED: u8 = 3;
    pub(super) const STATS: u8 = 5;
    pub(super) const BYE: u8 = 6;
    pub(super) const HURRY: u8 = 7;
    pub(super) const EPOCH: u8 = 8;
}

impl<'a> Frame<'a> {
    /// The first octet of the frame.
    pub(super) const fn kind(&self) -> u8 {
        match self {
            Self::Hello { .. } => kind::HELLO,
            Self::Welcome(_) => kind::WELCOME,
            Self::Refused { .. } => kind::REFUSED,
            Self::Responses(_) => responses::KIND,
            Self::Stats(_) => kind::STATS,
            Self::Epoch(_) => kind::EPOCH,
            Self::Bye => kind::BYE,
            Self::Hurry => kind::HURRY,
        }
    }

    /// How many octets [`encode`](Self::encode) appends.
    #[must_use]
    pub const fn encoded_len(&self) -> usize {
        match self {
            Self::Hello { name, prefixes, .. } => HELLO + name.len() + size_of_val(*prefixes),
            Self::Welcome(_) => 1 + 4 + 16 + 4 + 16,
            Self::Refused { text, .. } => 1 + 1 + text.len(),
            Self::Responses(responses) => responses.frame().len(),
            Self::Stats(_) => 1 + 8 * 8,
            Self::Epoch(_) => 1 + 4,
            Self::Bye | Self::Hurry => 1,
        }
    }

    /// What [`encode`](Self::encode) appends, of a frame that is kept in that form.
    pub(super) const fn encoded(&self) -> Option<&'a [u8]> {
        match self {
            Self::Responses(responses) => Some(responses.frame()),
            _ => None,
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Body`] for a text or a list that breaks the limits; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let len = self.encoded_len();
        let fits = match self {
            Self::Hello { name, prefixes, .. } => is_text(name, MAX_NAME) && prefixes.len() <= MAX_TARGETS,
            Self::Refused { text, .. } => is_text(text, MAX_REFUSAL),
            _ => true,
        };
        if len > MAX_FRAME {
            return Err(FrameError::TooLarge(len));
        }
        if !fits {
            return Err(FrameError::Body { kind: self.kind(), len: len - 1 });
        }
        out.reserve(len);
        if let Some(encoded) = self.encoded() {
            out.extend_from_slice(encoded);
            return Ok(());
        }
        out.push(self.kind());
        match self {
            Self::Hello { worker, resume, name, prefixes } => {
                out.extend_from_slice(&worker.to_le_bytes());
                out.push(u8::from(resume.is_some()));
                let Resume { instance, token } = resume.unwrap_or(Resume { instance: 0, token: Token([0; 16]) });
                out.extend_from_slice(&instance.to_le_bytes());
                out.extend_from_slice(&token.0);
                // Checked above.
                out.push(name.len() as u8);
                out.extend_from_slice(name.as_bytes());
                out.extend_from_slice(bytemuck::cast_slice(prefixes));
            }
            Self::Welcome(welcome) => {
                out.extend_from_slice(&welcome.instance.to_le_bytes());
                out.extend_from_slice(&welcome.key.k0.to_le_bytes());
                out.extend_from_slice(&welcome.key.k1.to_le_bytes());
                out.extend_from_slice(&welcome.epoch.0.to_le_bytes());
                out.extend_from_slice(&welcome.token.0);
            }
            Self::Refused { code, text } => {
                out.push(code.to_wire());
                out.extend_from_slice(text.as_bytes());
            }
            Self::Stats(Stats { wire, responses_dropped }) => {
                let WireStats { segments, payload_bytes, syns, fins, swallowed, swallowed_bytes, reports_lost } = wire;
                for number in
                    [segments, payload_bytes, syns, fins, swallowed, swallowed_bytes, reports_lost, responses_dropped]
                {
                    out.extend_from_slice(&number.to_le_bytes());
                }
            }
            Self::Epoch(epoch) => out.extend_from_slice(&epoch.0.to_le_bytes()),
            // Nothing more, or encoded above.
            Self::Bye | Self::Hurry | Self::Responses(_) => {}
        }
        Ok(())
    }

    /// Reads a whole frame. Nothing is copied but the numbers.
    ///
    /// # Errors
    /// [`FrameError`] for octets that no [`encode`](Self::encode) makes.
    pub fn decode(octets: &'a [u8]) -> Result<Self, FrameError> {
        let (&kind, body) = octets.split_first().ok_or(FrameError::Empty)?;
        if octets.len() > MAX_FRAME {
            return Err(FrameError::TooLarge(octets.len()));
        }
        let bad_body = FrameError::Body { kind, len: body.len() };
        if kind == responses::KIND {
            return Responses::read(octets).map(Self::Responses).ok_or(bad_body);
        }
        let mut reader = Reader(body);
        let frame = match kind {
            kind::HELLO => reader.hello(),
            kind::WELCOME => reader.welcome(),
            kind::REFUSED => reader.refused(),
            kind::STATS => reader.stats(),
            kind::EPOCH => reader.u32().map(|number| Self::Epoch(Epoch(number))),
            kind::BYE => Some(Self::Bye),
            kind::HURRY => Some(Self::Hurry),
            kind => return Err(FrameError::UnknownKind(kind)),
        };
        frame.filter(|_| reader.0.is_empty()).ok_or(bad_body)
    }
}

/// What of a body is still unread.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (octets, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*octets)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn octets(&mut self, len: usize) -> Option<&'a [u8]> {
        let (octets, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(octets)
    }

    fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }

    fn hello(&mut self) -> Option<Frame<'a>> {
        let worker = u16::from_le_bytes(self.array()?);
        let [resumes] = self.array()?;
        let resume = Resume { instance: self.u32()?, token: Token(self.array()?) };
        let resume = match resumes {
            0 if resume.instance == 0 && resume.token.0 == [0; 16] => None,
            1 => Some(resume),
            _ => return None,
        };
        let [name_len] = self.array()?;
        let name = text(self.octets(name_len.into())?, MAX_NAME)?;
        let prefixes: &[TargetPrefix] = bytemuck::try_cast_slice(self.rest()).ok()?;
        (prefixes.len() <= MAX_TARGETS).then_some(Frame::Hello { worker, resume, name, prefixes })
    }

    fn welcome(&mut self) -> Option<Frame<'a>> {
        Some(Frame::Welcome(Welcome {
            instance: self.u32()?,
            key: MarkKey { k0: self.u64()?, k1: self.u64()? },
            epoch: Epoch(self.u32()?),
            token: Token(self.array()?),
        }))
    }

    fn refused(&mut self) -> Option<Frame<'a>> {
        let [code] = self.array()?;
        Some(Frame::Refused { code: RefusalCode::from_wire(code), text: text(self.rest(), MAX_REFUSAL)? })
    }

    fn stats(&mut self) -> Option<Frame<'a>> {
        Some(Frame::Stats(Stats {
            wire: WireStats {
                segments: self.u64()?,
                payload_bytes: self.u64()?,
                syns: self.u64()?,
                fins: self.u64()?,
                swallowed: self.u64()?,
                swallowed_bytes: self.u64()?,
                reports_lost: self.u64()?,
            },
            responses_dropped: self.u64()?,
        }))
    }
}

/// Reads a text.
fn text(octets: &[u8], max: usize) -> Option<&str> {
    str::from_utf8(octets).ok().filter(|text| is_text(text, max))
}

/// Whether a text may go into a frame. It may end up in the log of the other host, so it brings no control characters.
fn is_text(text: &str, max: usize) -> bool {
    text.len() <= max && !text.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};
    use tcpcopy_common::prefix::Prefix;

    use super::*;
    use crate::control::{responses::Batch, testing::response};

    fn encoded(frame: &Frame<'_>) -> Vec<u8> {
        let mut octets = Vec::new();
        frame.encode(&mut octets).unwrap();
        octets
    }

    fn target_prefix() -> impl Strategy<Value = TargetPrefix> {
        any::<[u8; size_of::<TargetPrefix>()]>().prop_map(bytemuck::cast)
    }

    /// Builds a frame of any kind; the closure sees it, because a frame borrows.
    fn any_frame(check: impl Fn(Frame<'_>) -> Result<(), TestCaseError>) {
        let numbers = (any::<u16>(), any::<u32>(), any::<[u64; 8]>(), any::<Option<(u32, [u8; 16])>>());
        let lists = ("\\PC{0,16}", vec(target_prefix(), 0..4), vec((any::<[u8; 72]>(), 0usize..100), 0..40));
        proptest!(|(kind in 0..8, (a, b, n, resume) in numbers, (text, prefixes, records) in lists)| {
            let mut batch = Batch::new();
            for (header, prefix) in &records {
                prop_assert!(batch.push(&response(bytemuck::pod_read_unaligned(header), &[7; 100][..*prefix])));
            }
            check(match kind {
                0 => Frame::Hello {
                    worker: a,
                    resume: resume.map(|(instance, token)| Resume { instance, token: Token(token) }),
                    name: &text,
                    prefixes: &prefixes,
                },
                1 => Frame::Welcome(Welcome {
                    instance: b,
                    key: MarkKey { k0: n[0], k1: n[1] },
                    epoch: Epoch(b),
                    token: Token((u128::from(n[2]) << 64 | u128::from(n[3])).to_be_bytes()),
                }),
                2 => Frame::Refused { code: RefusalCode::from_wire(a as u8), text: &text },
                3 => Frame::Responses(batch.responses()),
                4 => Frame::Stats(Stats {
                    wire: WireStats {
                        segments: n[0],
                        payload_bytes: n[1],
                        syns: n[2],
                        fins: n[3],
                        swallowed: n[4],
                        swallowed_bytes: n[5],
                        reports_lost: n[6],
                    },
                    responses_dropped: n[7],
                }),
                5 => Frame::Bye,
                6 => Frame::Epoch(Epoch(b)),
                _ => Frame::Hurry,
            })?;
        });
    }

    #[test]
    fn every_frame_survives_the_wire() {
        any_frame(|frame| {
            let octets = encoded(&frame);
            prop_assert_eq!(octets.len(), frame.encoded_len());
            prop_assert_eq!(Frame::decode(&octets), Ok(frame));
            Ok(())
        });
    }

    #[test]
    fn a_frame_cut_short_or_with_octets_left_is_refused() {
        any_frame(|frame| {
            let mut octets = encoded(&frame);
            // Frames that end in a text or in a list have other valid lengths.
            if !matches!(frame, Frame::Hello { .. } | Frame::Refused { .. } | Frame::Responses(_)) {
                for len in 0..octets.len() {
                    prop_assert!(Frame::decode(&octets[..len]).is_err());
                }
            }
            octets.push(0);
            prop_assert!(Frame::decode(&octets).is_err());
            Ok(())
        });
    }

    proptest! {
        #[test]
        fn arbitrary_octets_never_panic_and_have_one_encoding(kind in 0u8..10, body in vec(any::<u8>(), 0..200)) {
            let octets: Vec<u8> = std::iter::once(kind).chain(body).collect();
            if let Ok(frame) = Frame::decode(&octets) {
                prop_assert_eq!(encoded(&frame), octets);
            }
        }
    }

    #[test]
    fn the_octets_are_the_documented_ones() {
        let token = Token(*b"0123456789abcdef");
        let of = |target: &str, octets| TargetPrefix::new(target.parse().unwrap(), Prefix::new(octets).unwrap());
        let prefixes = [of("10.0.0.3:8080", 16), of("[2001:db8::3]:443", 2048)];
        let resume = Some(Resume { instance: 0x0304_0506, token });
        let hello = Frame::Hello { worker: 0x0102, resume, name: "web", prefixes: &prefixes };
        let expected = [
            &b"\x01\x02\x01\x01\x06\x05\x04\x030123456789abcdef\x03web"[..],
            b"\0\0\0\0\0\0\0\0\0\0\xff\xff\x0a\0\0\x03\x1f\x90\x10\0",
            b"\x20\x01\x0d\xb8\0\0\0\0\0\0\0\0\0\0\0\x03\x01\xbb\0\x08",
        ];
        assert_eq!(encoded(&hello), expected.concat());
        let key = MarkKey { k0: u64::from_le_bytes(*b"ABCDEFGH"), k1: 2 };
        let welcome = Welcome { instance: 1, key, epoch: Epoch(0x0405_0607), token };
        let octets = b"\x02\x01\0\0\0ABCDEFGH\x02\0\0\0\0\0\0\0\x07\x06\x05\x040123456789abcdef";
        assert_eq!(encoded(&Frame::Welcome(welcome)), octets);
        assert_eq!(encoded(&Frame::Epoch(Epoch(0x0102_0304))), b"\x08\x04\x03\x02\x01");
        assert_eq!(encoded(&Frame::Refused { code: RefusalCode::Full, text: "no" }), b"\x03\x02no");
        assert_eq!(encoded(&Frame::Bye), b"\x06");
        assert_eq!(encoded(&Frame::Hurry), b"\x07");
    }

    #[test]
    fn texts_that_would_spoil_a_log_are_refused_both_ways() {
        let long = "x".repeat(MAX_NAME + 1);
        for name in ["a\nb", "\u{1b}[2J", "\u{85}", &long] {
            assert!(hello(name, &[]).encode(&mut Vec::new()).is_err(), "{name:?}");
            let mut octets = encoded(&hello("", &[]));
            octets.pop();
            octets.push(name.len() as u8);
            octets.extend_from_slice(name.as_bytes());
            assert!(Frame::decode(&octets).is_err(), "{name:?}");
        }
        assert!(Frame::decode(b"\x03\x01\xff\xfe").is_err(), "invalid UTF-8");
    }

    #[test]
    fn the_largest_batch_fills_a_frame_and_one_octet_more_is_too_large() {
        let mut batch = Batch::new();
        while batch.push(&response(bytemuck::Zeroable::zeroed(), &[7; 2048])) {}
        assert!(batch.push(&response(bytemuck::Zeroable::zeroed(), &[8; 2048][..ROOM - 30 * 2120 - 72])));
        let mut octets = encoded(&Frame::Responses(batch.responses()));
        assert_eq!(octets.len(), MAX_FRAME);
        assert_eq!(Frame::decode(&octets), Ok(Frame::Responses(batch.responses())));
        octets.push(0);
        assert_eq!(Frame::decode(&octets), Err(FrameError::TooLarge(MAX_FRAME + 1)));
        octets.truncate(MAX_FRAME - 1);
        assert_eq!(Frame::decode(&octets), Err(FrameError::Body { kind: 4, len: MAX_FRAME - 2 }));
    }

    fn hello<'a>(name: &'a str, prefixes: &'a [TargetPrefix]) -> Frame<'a> {
        Frame::Hello { worker: 0, resume: None, name, prefixes }
    }

    #[test]
    fn a_hello_holds_so_many_targets_and_whole_ones_only() {
        let prefixes = [TargetPrefix::new(([10, 0, 0, 3], 80).into(), Prefix::LEAST); MAX_TARGETS + 1];
        let name = "x".repeat(MAX_NAME);
        let largest = hello(&name, &prefixes[1..]);
        let mut octets = encoded(&largest);
        assert_eq!(octets.len(), MAX_OPENING_FRAME);
        assert_eq!(Frame::decode(&octets), Ok(largest));
        assert!(hello(&name, &prefixes).encode(&mut Vec::new()).is_err());
        for more in 1..=size_of::<TargetPrefix>() {
            octets.push(0);
            assert!(Frame::decode(&octets).is_err(), "{more} octets more");
        }
        for less in 1..size_of::<TargetPrefix>() {
            let octets = &octets[..MAX_OPENING_FRAME - less];
            assert!(Frame::decode(octets).is_err(), "{less} octets less");
        }
        let mut octets = encoded(&hello("web", &[]));
        octets[24] = 4;
        assert!(Frame::decode(&octets).is_err(), "a name that is longer than the frame");
    }
}
