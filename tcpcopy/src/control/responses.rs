//! Batches of reports, as they travel: each a header, and behind it the first octets of the payload that the header
//! says.

use std::fmt;

use tcpcopy_common::response::{Response, ResponseHeader};

/// The first octet of a frame of reports.
pub(super) const KIND: u8 = 4;
/// Octets of a report without payload.
const HEADER: usize = size_of::<ResponseHeader>();
/// Octets of all reports in a frame: a Noise message (65,535) less its authentication tag (16) and the kind of the
/// frame (1).
pub(super) const ROOM: usize = 65_535 - 16 - 1;
/// The most reports in one frame, all of them without payload.
pub const MAX_RESPONSES: usize = ROOM / HEADER;

/// Reports for one frame, collected in the form in which they travel, so that the frame is copied or encrypted at once.
#[derive(Clone)]
pub struct Batch {
    frame: Vec<u8>,
    len: usize,
}

impl Batch {
    /// An empty batch, with room for a whole frame.
    #[must_use]
    pub fn new() -> Self {
        let mut frame = Vec::with_capacity(1 + ROOM);
        frame.push(KIND);
        Self { frame, len: 0 }
    }

    /// Adds a report. False when the frame has no room for it: then the batch is as it was, and must be sent first. An
    /// empty batch has room for any report. Does not allocate.
    #[inline]
    #[must_use = "a report that did not fit is to be added to the next batch"]
    pub fn push(&mut self, response: &Response<'_>) -> bool {
        let fits = self.frame.len() + HEADER + response.prefix().len() <= 1 + ROOM;
        if fits {
            self.frame.extend_from_slice(bytemuck::bytes_of(&wire_order(*response.header())));
            self.frame.extend_from_slice(response.prefix());
            self.len += 1;
        }
        fits
    }

    /// How many reports there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes all reports out, and keeps the room.
    pub fn clear(&mut self) {
        self.frame.truncate(1);
        self.len = 0;
    }

    /// The reports, to be sent.
    #[must_use]
    pub fn responses(&self) -> Responses<'_> {
        Responses { frame: &self.frame, len: self.len }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.responses().fmt(f)
    }
}

/// The reports of one frame, whose lengths agree with each other.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Responses<'a> {
    frame: &'a [u8],
    len: usize,
}

impl<'a> Responses<'a> {
    /// Reads a frame of the kind [`KIND`]. `None` where it is of another, a length in it contradicts another, or it does
    /// not end with a report.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let (&KIND, mut rest) = frame.split_first()? else { return None };
        let mut len = 0;
        while !rest.is_empty() {
            (_, rest) = split(rest)?;
            len += 1;
        }
        Some(Self { frame, len })
    }

    /// How many reports there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The reports, in the order in which the target's programs made them.
    #[must_use]
    pub fn iter(&self) -> Iter<'a> {
        Iter(&self.frame[1..])
    }

    /// The frame, as it travels.
    pub(super) const fn frame(&self) -> &'a [u8] {
        self.frame
    }
}

impl fmt::Debug for Responses<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// See [`Responses::iter`].
#[derive(Clone, Debug)]
pub struct Iter<'a>(&'a [u8]);

impl<'a> Iterator for Iter<'a> {
    type Item = Response<'a>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        // Nothing else than the end: all reports were read before.
        let (response, rest) = split(self.0)?;
        self.0 = rest;
        Some(response)
    }
}

/// Reads the first report; returns what is behind it as well.
#[inline]
fn split(octets: &[u8]) -> Option<(Response<'_>, &[u8])> {
    let (header, rest) = octets.split_first_chunk::<HEADER>()?;
    let header = wire_order(bytemuck::pod_read_unaligned(header));
    let (prefix, rest) = rest.split_at_checked(header.prefix_len.into())?;
    Some((Response::new(header, prefix)?, rest))
}

/// Between host order and the wire's little-endian order, in either direction, for the fields that are not in network
/// order anyway.
#[inline]
fn wire_order(header: ResponseHeader) -> ResponseHeader {
    ResponseHeader {
        payload_len: header.payload_len.to_le(),
        instance: header.instance.to_le(),
        prefix_len: header.prefix_len.to_le(),
        ..header
    }
}

#[cfg(test)]
mod tests {
    use bytemuck::Zeroable as _;

    use super::*;
    use crate::control::testing::response;

    fn batch(prefixes: &[&[u8]]) -> Batch {
        let mut batch = Batch::new();
        for prefix in prefixes {
            assert!(batch.push(&response(ResponseHeader::zeroed(), prefix)));
        }
        batch
    }

    #[test]
    fn a_report_travels_as_the_72_octets_of_the_ring_and_its_payload() {
        let mut header = ResponseHeader::zeroed();
        (header.flow.protocol, header.seq) = (6, [9, 8, 7, 6]);
        header.payload_len = 0x0d0c_0b0a;
        header.instance = 0x0403_0201;
        let mut batch = Batch::new();
        assert!(batch.push(&header.into()));
        header.prefix_len = 300;
        assert!(batch.push(&Response::new(header, &[b'x'; 300]).unwrap()));
        let octets = &batch.responses().frame()[1..];
        assert_eq!(octets.len(), 72 + 72 + 300);
        for report in [octets, &octets[72..]] {
            assert_eq!(report[36..48], [6, 0, 0, 0, 9, 8, 7, 6, 0, 0, 0, 0]);
            assert_eq!(report[56..64], [0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4]);
        }
        assert_eq!((&octets[68..72], &octets[72 + 68..72 + 72]), (&[0; 4][..], &[0x2c, 1, 0, 0][..]));
        assert_eq!(octets[72 + 72..], [b'x'; 300]);
    }

    #[test]
    fn reports_of_any_lengths_are_read_in_order() {
        let payload: Vec<u8> = (0..2048u16).map(|i| i as u8).collect();
        let lengths = [0, 2048, 1, 0, 0, 16, 1448, 2047, 0];
        let batch = batch(&lengths.map(|len| &payload[..len]));
        let read = Responses::read(batch.responses().frame()).unwrap();
        assert_eq!((read.len(), read), (lengths.len(), batch.responses()));
        assert!(read.iter().map(|response| response.prefix()).eq(lengths.map(|len| &payload[..len])));
    }

    #[test]
    fn a_length_that_lies_is_refused() {
        let batch = batch(&[b"", b"HTTP/1.1 200 OK\r", b""]);
        let good = batch.responses().frame();
        assert!(Responses::read(good).is_some());
        let with = |at: usize, number: &[u8]| {
            let mut octets = good.to_vec();
            octets[1 + at..][..number.len()].copy_from_slice(number);
            Responses::read(&octets).is_some()
        };
        // The second report. With another length the third begins in the middle of it, or nowhere.
        for length in 0..=u16::MAX {
            assert_eq!(with(72 + 68, &length.to_le_bytes()), length == 16, "{length} octets of payload follow");
        }
        for length in 0..16u32 {
            assert!(!with(72 + 56, &length.to_le_bytes()), "16 octets of {length}");
        }
        for len in 0..good.len() {
            let whole = [1, 1 + 72, 1 + 72 + 88].contains(&len);
            assert_eq!(Responses::read(&good[..len]).is_some(), whole, "cut to {len} octets");
        }
    }

    #[test]
    fn more_than_any_prefix_is_refused_though_it_is_there() {
        let mut octets = batch(&[&[7; 2048]]).responses().frame().to_vec();
        assert!(Responses::read(&octets).is_some());
        octets.push(7);
        octets[1..][68..70].copy_from_slice(&2049u16.to_le_bytes());
        octets[1..][56..60].copy_from_slice(&9000u32.to_le_bytes());
        assert_eq!(Responses::read(&octets), None);
    }

    #[test]
    fn a_batch_holds_what_fits_a_frame_and_not_an_octet_more() {
        assert_eq!(MAX_RESPONSES, 909);
        let mut batch = batch(&[&[][..]; MAX_RESPONSES]);
        assert!(!batch.push(&ResponseHeader::zeroed().into()));
        assert_eq!((batch.len(), batch.responses().frame().len()), (909, 1 + 909 * 72));

        // 30 of the largest, and then as much as is left.
        batch.clear();
        assert!(batch.is_empty() && batch.responses().is_empty());
        let capacity = batch.frame.capacity();
        let largest = response(ResponseHeader::zeroed(), &[1; 2048]);
        for _ in 0..30 {
            assert!(batch.push(&largest));
        }
        assert!(!batch.push(&largest));
        let left = ROOM - 30 * (72 + 2048) - 72;
        assert!(!batch.push(&response(ResponseHeader::zeroed(), &[2; 2048][..left + 1])));
        assert!(batch.push(&response(ResponseHeader::zeroed(), &[2; 2048][..left])));
        assert_eq!((batch.len(), batch.responses().frame().len()), (31, 1 + ROOM));
        assert_eq!(Responses::read(batch.responses().frame()), Some(batch.responses()));
        assert_eq!(batch.frame.capacity(), capacity, "a batch does not allocate");
    }
}
