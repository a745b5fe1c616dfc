//! The seam between what a live client sent and what is sent in its place.
//!
//! Octets are captured at a [`LiveOffset`] and sent at a [`SentOffset`]; that the one follows from the other is written
//! down here and nowhere else. Sequence numbers, acknowledgements and windows are sent offsets. Marks, request
//! boundaries, memory and the ledger are live offsets. TCP asks the adapter of its session where one is in terms of the
//! other.
//!
//! An adapter may insert octets, leave octets out, and replace octets by others. It keeps these laws, in which
//! positions are those of one target connection that begins at the live offset `origin`:
//!
//! 1. [`sent_of`](Adapter::sent_of) and [`live_of`](Adapter::live_of) never decrease.
//! 2. `live_of(START)` is `origin`, and `live_of(sent_of(l)) <= l`.
//! 3. Once everything before a sent offset `s` has arrived, no live octet before `live_of(s)` is needed any more.
//! 4. The live octets between two offsets are sent, or counted by [`left_out`](Adapter::left_out).

use std::ops::Range;

use crate::input::{
    offset::{LiveOffset, SentOffset},
    stream::Stream,
};

/// Converts between the octets captured of a live connection and those sent on a target connection.
#[derive(Debug)]
pub(crate) struct Adapter {
    /// Where in the live stream the present target connection begins.
    origin: LiveOffset,
    rewrite: Rewrite,
}

/// What becomes of the live client's octets.
#[derive(Clone, Debug, Default)]
pub(crate) enum Rewrite {
    /// They are sent as they are: takes no memory and no time.
    #[default]
    Identity,
    #[cfg(test)]
    Scripted(Box<script::Script>),
}

impl Adapter {
    /// An adapter for a target connection that begins at a live offset.
    pub(crate) const fn new(origin: LiveOffset, rewrite: Rewrite) -> Self {
        Self { origin, rewrite }
    }

    /// Begins another target connection.
    pub(crate) const fn restart(&mut self, origin: LiveOffset) {
        self.origin = origin;
    }

    /// Where in the live stream the present target connection begins.
    pub(crate) const fn origin(&self) -> LiveOffset {
        self.origin
    }

    /// Where the octet at a live offset is sent; if it is left out, the next one that is not. What is inserted before
    /// it goes first.
    pub(crate) fn sent_of(&self, live: LiveOffset) -> SentOffset {
        match &self.rewrite {
            Rewrite::Identity => SentOffset::new(live.since(self.origin)),
            #[cfg(test)]
            Rewrite::Scripted(script) => script.sent_of(self.origin, live),
        }
    }

    /// The first live octet that is still needed when everything before a sent offset has arrived. Octets that are left
    /// out go with the next one that is sent. Behind the end it counts on, as sent offsets do.
    pub(crate) fn live_of(&self, sent: SentOffset) -> LiveOffset {
        match &self.rewrite {
            Rewrite::Identity => self.origin.plus(sent.get()),
            #[cfg(test)]
            Rewrite::Scripted(script) => script.live_of(self.origin, sent),
        }
    }

    /// Where the octets end that can be sent by now, and where the FIN is sent once the live client has closed.
    pub(crate) fn end(&self, stream: &Stream) -> SentOffset {
        self.sent_of(stream.end())
    }

    /// How many of the live octets in a range are not sent.
    pub(crate) fn left_out(&self, live: Range<LiveOffset>) -> u64 {
        match &self.rewrite {
            Rewrite::Identity => {
                let _ = live;
                0
            }
            #[cfg(test)]
            Rewrite::Scripted(script) => script.left_out(live),
        }
    }

    /// How many of the `len` octets from a sent offset on one [`slice`](Self::slice) holds; at least one of them.
    pub(crate) fn contiguous(&self, from: SentOffset, len: usize) -> usize {
        match &self.rewrite {
            Rewrite::Identity => {
                let _ = from;
                len
            }
            #[cfg(test)]
            Rewrite::Scripted(script) => script.contiguous(self.origin, from, len),
        }
    }

    /// The octets to send from a sent offset on: `len` that are [`contiguous`](Self::contiguous), as far as they are
    /// there.
    pub(crate) fn slice<'a>(&'a self, stream: &'a Stream, from: SentOffset, len: usize) -> &'a [u8] {
        match &self.rewrite {
            Rewrite::Identity => stream.slice(self.live_of(from), len),
            #[cfg(test)]
            Rewrite::Scripted(script) => script.slice(self.origin, stream, from, len),
        }
    }
}

#[cfg(test)]
pub(crate) mod script;
