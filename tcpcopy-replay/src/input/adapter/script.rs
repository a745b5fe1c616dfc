//! An adapter that is not the identity, for tests of the seam: each target connection begins with octets that no live
//! client has sent, and a range of what the live client has sent is left out.

use std::ops::Range;

use super::{Adapter, Rewrite};
use crate::input::{
    offset::{LiveOffset, SentOffset},
    stream::Stream,
};

#[derive(Clone, Debug)]
pub(crate) struct Script {
    /// Inserted before the first octet of each target connection.
    pub header: Vec<u8>,
    /// Left out.
    pub dropped: Range<u64>,
}

impl Script {
    /// What is left out of the octets from `origin` on, in octets since `origin`.
    fn gap(&self, origin: LiveOffset) -> Range<u64> {
        let begin = self.dropped.start.max(origin.get());
        begin - origin.get()..self.dropped.end.max(begin) - origin.get()
    }

    fn header_len(&self) -> u64 {
        self.header.len() as u64
    }

    pub(super) fn sent_of(&self, origin: LiveOffset, live: LiveOffset) -> SentOffset {
        let left_out = self.left_out(origin..live);
        SentOffset::new(self.header_len() + live.since(origin) - left_out)
    }

    pub(super) fn live_of(&self, origin: LiveOffset, sent: SentOffset) -> LiveOffset {
        let octets = sent.get().saturating_sub(self.header_len());
        let gap = self.gap(origin);
        let beyond = if octets > gap.start { gap.end - gap.start } else { 0 };
        origin.plus(octets + beyond)
    }

    pub(super) fn left_out(&self, live: Range<LiveOffset>) -> u64 {
        let (begin, end) = (live.start.get().max(self.dropped.start), live.end.get().min(self.dropped.end));
        end.saturating_sub(begin)
    }

    pub(super) fn contiguous(&self, origin: LiveOffset, from: SentOffset, len: usize) -> usize {
        let gap = self.gap(origin);
        let (header, octets) = (self.header_len(), from.get().saturating_sub(self.header_len()));
        let run = if from.get() < header {
            header - from.get()
        } else if octets < gap.start && !gap.is_empty() {
            gap.start - octets
        } else {
            u64::MAX
        };
        len.min(run.try_into().unwrap_or(usize::MAX))
    }

    pub(super) fn slice<'a>(
        &'a self,
        origin: LiveOffset,
        stream: &'a Stream,
        from: SentOffset,
        len: usize,
    ) -> &'a [u8] {
        if let Some(rest) = self.header.get(from.get() as usize..).filter(|rest| !rest.is_empty()) {
            return &rest[..len.min(rest.len())];
        }
        let octets = from.get() - self.header_len();
        let gap = self.gap(origin);
        let beyond = if octets >= gap.start { gap.end - gap.start } else { 0 };
        stream.slice(origin.plus(octets + beyond), len)
    }
}

#[test]
fn the_laws_hold_for_the_identity_and_for_what_inserts_and_leaves_out() {
    let scripted = |header: &[u8], dropped| Rewrite::Scripted(Box::new(Script { header: header.to_vec(), dropped }));
    let rewrites = [
        Rewrite::Identity,
        Rewrite::Header(5),
        Rewrite::Header(u8::MAX),
        scripted(b"", 3..7),
        scripted(b"hello", 0..0),
        scripted(b"hello", 0..4),
        scripted(b"hello", 10..14),
        scripted(b"hello", 18..40),
    ];
    for rewrite in rewrites {
        for origin in [0, 2, 5, 12] {
            let origin = LiveOffset::new(origin);
            let adapter = Adapter::new(origin, rewrite.clone());
            assert_eq!(adapter.live_of(SentOffset::START), origin);
            let end = adapter.sent_of(LiveOffset::new(30));
            for sent in 0..end.get() {
                let here = SentOffset::new(sent);
                assert!(adapter.live_of(here) <= adapter.live_of(here.plus(1)), "{adapter:?} {sent}");
                assert!((1..=9).contains(&adapter.contiguous(here, 9)), "{adapter:?} {sent}");
            }
            for live in origin.get()..30 {
                let (here, next) = (LiveOffset::new(live), LiveOffset::new(live + 1));
                let kept = adapter.left_out(here..next) == 0;
                assert!(adapter.live_of(adapter.sent_of(here)) <= here, "{adapter:?} {live}");
                assert_eq!(adapter.sent_of(next).since(adapter.sent_of(here)), u64::from(kept), "{adapter:?} {live}");
                if kept {
                    assert_eq!(adapter.live_of(adapter.sent_of(here).plus(1)), next, "{adapter:?} {live}");
                }
            }
        }
    }
}
