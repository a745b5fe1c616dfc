//! The out-of-order queue: what was captured behind a gap, each piece in memory of its own, so that it costs what it
//! holds however far ahead it is.

use std::{collections::BTreeMap, ops::Range};

use crate::{input::mark::Mark, tcp::seq::LiveAck};

/// Octets that a piece takes besides its payload: its share of the tree's nodes, of which a half may be empty, and what
/// the allocator needs.
pub(super) const PIECE_OVERHEAD: usize = 160;

/// A captured segment, or the part of it that was new.
#[derive(Debug)]
pub(super) struct Piece {
    /// Whose offset is that of the first octet.
    pub mark: Mark,
    pub octets: Box<[u8]>,
}

impl Piece {
    fn end(&self) -> u64 {
        self.mark.offset.get() + self.octets.len() as u64
    }
}

/// Pieces behind a gap by the offset where they begin. They do not overlap, because the first copy of an octet is the
/// one that a receiver keeps.
#[derive(Debug, Default)]
pub(super) struct OutOfOrder {
    pieces: BTreeMap<u64, Piece>,
    octets: usize,
}

/// What of a range is in no piece.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lack {
    pub octets: u64,
    /// How many contiguous parts that is.
    pub parts: usize,
}

impl OutOfOrder {
    pub(super) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// The number of pieces.
    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Bytes that the queue takes.
    pub(super) fn footprint(&self) -> usize {
        self.octets + self.pieces.len() * PIECE_OVERHEAD
    }

    /// The offset of the first octet.
    pub(super) fn begin(&self) -> Option<u64> {
        self.pieces.first_key_value().map(|(&begin, _)| begin)
    }

    /// The offset after the last octet.
    pub(super) fn end(&self) -> Option<u64> {
        self.pieces.last_key_value().map(|(_, piece)| piece.end())
    }

    /// Octets at and after an offset.
    pub(super) fn octets_from(&self, offset: u64) -> u64 {
        if self.begin().is_none_or(|begin| begin >= offset) {
            return self.octets as u64;
        }
        self.pieces.values().map(|piece| piece.end().saturating_sub(offset.max(piece.mark.offset.get()))).sum()
    }

    /// Where the octets end that are contiguous from `offset` on, if all before it is there.
    pub(super) fn run_end(&self, offset: u64) -> u64 {
        let mut end = self.piece_before(offset).map_or(offset, |piece| offset.max(piece.end()));
        for (&begin, piece) in self.pieces.range(offset..) {
            if begin > end {
                break;
            }
            end = end.max(piece.end());
        }
        end
    }

    /// Returns the first part of a range that is in no piece.
    pub(super) fn first_lack(&self, range: Range<u64>) -> Option<Range<u64>> {
        let mut at = self.piece_before(range.start).map_or(range.start, |piece| range.start.max(piece.end()));
        if at >= range.end {
            return None;
        }
        for (&begin, piece) in self.pieces.range(at..range.end) {
            if begin > at {
                return Some(at..begin);
            }
            at = piece.end();
        }
        (at < range.end).then_some(at..range.end)
    }

    /// Sums up what of a range is in no piece.
    pub(super) fn lack(&self, mut range: Range<u64>) -> Lack {
        let mut lack = Lack::default();
        while let Some(part) = self.first_lack(range.clone()) {
            lack.octets += part.end - part.start;
            lack.parts += 1;
            range.start = part.end;
        }
        lack
    }

    /// The piece that begins before an offset, and so may reach beyond it.
    fn piece_before(&self, offset: u64) -> Option<&Piece> {
        self.pieces.range(..offset).next_back().map(|(_, piece)| piece)
    }

    /// What the first segment behind an offset acknowledges.
    pub(super) fn ack_behind(&self, offset: u64) -> Option<LiveAck> {
        self.pieces.range(offset..).next().and_then(|(_, piece)| piece.mark.ack)
    }

    /// Adds a piece that overlaps no other.
    pub(super) fn insert(&mut self, mark: Mark, octets: &[u8]) {
        self.octets += octets.len();
        self.pieces.insert(mark.offset.get(), Piece { mark, octets: octets.into() });
    }

    /// Takes the piece out that begins at an offset, if it is the first.
    pub(super) fn pop_at(&mut self, offset: u64) -> Option<Piece> {
        let first = self.pieces.first_entry().filter(|first| *first.key() == offset)?;
        let piece = first.remove();
        self.octets -= piece.octets.len();
        Some(piece)
    }

    pub(super) fn clear(&mut self) {
        // Nearly always there is nothing, and to clear that takes a while.
        if !self.is_empty() {
            self.pieces.clear();
            self.octets = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{input::offset::LiveOffset, time::Nanos};

    fn queue(pieces: &[(u64, &str)]) -> OutOfOrder {
        let mut queue = OutOfOrder::default();
        for &(offset, octets) in pieces {
            let ack = Some(LiveAck::new(offset as u32));
            let mark = Mark { offset: LiveOffset::new(offset), time: Nanos(0), ack, push: false, urgent: None };
            queue.insert(mark, octets.as_bytes());
        }
        queue
    }

    #[test]
    fn what_lacks_lies_between_the_pieces() {
        let queue = queue(&[(10, "abc"), (13, "d"), (20, "ef")]);
        assert_eq!(queue.first_lack(5..8), Some(5..8));
        assert_eq!(queue.first_lack(5..30), Some(5..10));
        assert_eq!(queue.first_lack(10..14), None);
        assert_eq!(queue.first_lack(11..15), Some(14..15));
        assert_eq!(queue.first_lack(21..23), Some(22..23));
        assert_eq!(queue.lack(5..30), Lack { octets: 5 + 6 + 8, parts: 3 });
        assert_eq!(queue.lack(12..21), Lack { octets: 6, parts: 1 });
        assert_eq!((queue.begin(), queue.end()), (Some(10), Some(22)));
    }

    #[test]
    fn a_run_ends_at_the_next_gap() {
        let queue = queue(&[(10, "abc"), (13, "d"), (20, "ef")]);
        for (offset, end) in [(5, 5), (10, 14), (11, 14), (13, 14), (14, 14), (20, 22), (21, 22), (30, 30)] {
            assert_eq!(queue.run_end(offset), end, "{offset}");
        }
    }

    #[test]
    fn octets_are_counted_as_they_come_and_go() {
        let mut queue = queue(&[(10, "abc"), (20, "ef")]);
        assert_eq!([0, 10, 11, 13, 21, 22].map(|from| queue.octets_from(from)), [5, 5, 4, 2, 1, 0]);
        assert_eq!(queue.footprint(), 5 + 2 * PIECE_OVERHEAD);
        assert!(queue.pop_at(20).is_none(), "not the first");
        assert_eq!(queue.pop_at(10).map(|piece| piece.octets), Some((*b"abc").into()));
        assert_eq!((queue.len(), queue.footprint()), (1, 2 + PIECE_OVERHEAD));
        queue.clear();
        assert_eq!((queue.is_empty(), queue.footprint(), queue.end()), (true, 0, None));
    }

    #[test]
    fn the_first_segment_behind_is_the_one_that_was_sent_later() {
        let queue = queue(&[(10, "abc"), (20, "ef")]);
        let acks = [5, 10, 11, 21].map(|offset| queue.ack_behind(offset).map(LiveAck::get));
        assert_eq!(acks, [Some(10), Some(10), Some(20), None]);
    }
}
