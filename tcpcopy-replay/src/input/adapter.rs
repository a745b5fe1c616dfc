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
    /// Where in the live stream the present target connection begins, in the lowest [`ORIGIN_BITS`]; above them, how
    /// many octets each target connection begins with that no live client has sent. One number, because every idle
    /// session has it.
    packed: u64,
    #[cfg(test)]
    script: Option<Box<script::Script>>,
}

/// 64 PiB are more than a connection carries.
const ORIGIN_BITS: u32 = 56;

/// What becomes of the live client's octets.
#[derive(Clone, Debug)]
pub(crate) enum Rewrite {
    /// They are sent as they are.
    Identity,
    /// Each target connection begins with a header of so many octets.
    Header(u8),
    #[cfg(test)]
    Scripted(Box<script::Script>),
}

impl Adapter {
    /// An adapter for a target connection that begins at a live offset.
    pub(crate) fn new(origin: LiveOffset, rewrite: Rewrite) -> Self {
        let header_len = match rewrite {
            Rewrite::Identity => 0,
            Rewrite::Header(len) => len,
            #[cfg(test)]
            Rewrite::Scripted(script) => return Self { packed: pack(origin, 0), script: Some(script) },
        };
        Self {
            packed: pack(origin, header_len.into()),
            #[cfg(test)]
            script: None,
        }
    }

    /// Begins another target connection.
    pub(crate) const fn restart(&mut self, origin: LiveOffset) {
        self.packed = pack(origin, self.header_len());
    }

    /// Where in the live stream the present target connection begins.
    pub(crate) const fn origin(&self) -> LiveOffset {
        LiveOffset::new(self.packed & ((1 << ORIGIN_BITS) - 1))
    }

    const fn header_len(&self) -> u64 {
        self.packed >> ORIGIN_BITS
    }

    /// Where the live client's octets begin on the present target connection: what is sent before is inserted.
    pub(crate) fn first(&self) -> SentOffset {
        self.sent_of(self.origin())
    }

    /// Where the octet at a live offset is sent; if it is left out, the next one that is not. What is inserted before
    /// it goes first.
    pub(crate) fn sent_of(&self, live: LiveOffset) -> SentOffset {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.sent_of(self.origin(), live);
        }
        SentOffset::new(self.header_len() + live.since(self.origin()))
    }

    /// The first live octet that is still needed when everything before a sent offset has arrived. Octets that are left
    /// out go with the next one that is sent. Behind the end it counts on, as sent offsets do.
    pub(crate) fn live_of(&self, sent: SentOffset) -> LiveOffset {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.live_of(self.origin(), sent);
        }
        self.origin().plus(sent.get().saturating_sub(self.header_len()))
    }

    /// Where the octets end that can be sent by now, and where the FIN is sent once the live client has closed.
    pub(crate) fn end(&self, stream: &Stream) -> SentOffset {
        self.sent_of(stream.end())
    }

    /// How many of the live octets in a range are not sent.
    pub(crate) fn left_out(&self, live: Range<LiveOffset>) -> u64 {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.left_out(live);
        }
        let _ = live;
        0
    }

    /// How many of the `len` octets from a sent offset on one [`slice`](Self::slice) holds; at least one of them.
    pub(crate) fn contiguous(&self, from: SentOffset, len: usize) -> usize {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.contiguous(self.origin(), from, len);
        }
        match self.header_len().saturating_sub(from.get()) {
            0 => len,
            rest => len.min(rest as usize),
        }
    }

    /// The octets to send from a sent offset on: `len` that are [`contiguous`](Self::contiguous), as far as they are
    /// there. `header`: what is inserted, for offsets before [`first`](Self::first).
    pub(crate) fn slice<'a>(&'a self, stream: &'a Stream, header: &'a [u8], from: SentOffset, len: usize) -> &'a [u8] {
        #[cfg(test)]
        if let Some(script) = &self.script {
            return script.slice(self.origin(), stream, from, len);
        }
        if from >= self.first() {
            return stream.slice(self.live_of(from), len);
        }
        let rest = header.get(from.get() as usize..).unwrap_or_default();
        rest.get(..len).unwrap_or(rest)
    }
}

const fn pack(origin: LiveOffset, header_len: u64) -> u64 {
    origin.get() & ((1 << ORIGIN_BITS) - 1) | header_len << ORIGIN_BITS
}

#[cfg(test)]
pub(crate) mod script;
