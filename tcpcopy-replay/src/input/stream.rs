//! Reassembly of a live client's stream: each octet once, whatever was reordered, retransmitted or cut differently.
//!
//! Octets are named by their [`LiveOffset`], a 64-bit count from the start of the connection (or from where capture
//! began), so that nothing but this module meets the live client's sequence numbers.

use std::ops::Range;

use crate::{
    input::{
        buffer::{Exhausted, Pool, Store},
        holders::Owner,
        mark::Mark,
        offset::LiveOffset,
        out_of_order::PIECE_OVERHEAD,
    },
    multipath::Subflow,
    stats::Reason,
    tcp::{
        acceptance::Position,
        seq::{LiveAck, LiveSeq},
    },
    time::Nanos,
};

/// Maximum segments behind a gap: a window of 44 MiB in segments of 1,400 octets. Past it the session is given up.
const MAX_OUT_OF_ORDER: usize = 1 << 15;

/// Maximum marks: a sane connection does not hold back more segments.
const MAX_MARKS: usize = 4096;

/// How a live client ended its stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ending {
    /// The offset after the last octet.
    pub offset: LiveOffset,
    /// What the live client had acknowledged by then.
    pub ack: Option<LiveAck>,
}

/// A segment's facts besides its octets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Facts {
    pub time: Nanos,
    pub ack: Option<LiveAck>,
    pub push: bool,
    /// Which of its octets is the urgent one.
    pub urgent: Option<u16>,
}

impl Facts {
    fn mark(&self, offset: u64) -> Mark {
        Mark { offset: LiveOffset::new(offset), time: self.time, ack: self.ack, push: self.push, urgent: self.urgent }
    }

    /// Without the first `octets`, and of `len` that follow.
    fn part(self, octets: u64, len: u64) -> Self {
        let moved = |urgent: u16| u64::from(urgent).checked_sub(octets).filter(|urgent| *urgent < len);
        Self { urgent: self.urgent.and_then(moved).and_then(|urgent| u16::try_from(urgent).ok()), ..self }
    }
}

/// What a stream may take of the pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Share {
    /// Whom it is charged to.
    pub owner: Owner,
    /// Maximum bytes.
    pub limit: usize,
}

/// The account of a segment's octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Inserted {
    /// New octets, kept.
    pub unique: u64,
    /// Octets that were there already.
    pub duplicate: u64,
    /// Octets after the FIN.
    pub nonsense: u64,
    /// Octets so far ahead that they cannot be kept: much was not captured, or they belong to another connection.
    pub too_far: u64,
}

/// The result of a FIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Close {
    /// It ends there.
    New,
    /// It was known to end there.
    Repeated,
    /// It would end before octets that were captured, or elsewhere than by an earlier FIN. Nothing was noted.
    Contradictory,
}

/// One live client's octets.
#[derive(Debug)]
pub(crate) struct Stream {
    /// The sequence number of offset `end`; `None` while the position is unknown: the next segment tells it.
    end_seq: Option<LiveSeq>,
    /// Everything before this has been released.
    start: u64,
    /// Everything before this is there.
    end: u64,
    store: Option<Box<Store>>,
    /// The number of the first mark in the store: how many have been released.
    first_mark: u64,
    /// Acknowledgement and PSH of the segment before that mark.
    before: Option<(Option<LiveAck>, bool)>,
    rare: Option<Box<Rare>>,
}

/// What a stream has only when something is missing, near its end, or over several paths: most connections are idle most of the time, and
/// are to be small then.
#[derive(Clone, Copy, Debug, Default)]
struct Rare {
    /// When the gap before the next range out of order opened.
    gap_since: Option<Nanos>,
    fin: Option<Ending>,
    reset: Option<Ending>,
    subflow: Subflow,
    /// Whether it has ever had an urgent octet.
    urgent: bool,
}

impl Stream {
    /// Creates a stream whose first octet has sequence number `first`, or that begins with the next segment.
    pub(crate) const fn new(first: Option<LiveSeq>) -> Self {
        Self { end_seq: first, start: 0, end: 0, store: None, first_mark: 0, before: None, rare: None }
    }

    fn rare(&self) -> Rare {
        self.rare.as_deref().copied().unwrap_or_default()
    }

    fn rare_mut(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    fn open_gap(&mut self, time: Nanos) {
        self.rare_mut().gap_since.get_or_insert(time);
    }

    fn close_gap(&mut self) {
        if let Some(rare) = &mut self.rare {
            rare.gap_since = None;
        }
    }

    /// Returns the offset after the last octet in order.
    pub(crate) const fn end(&self) -> LiveOffset {
        LiveOffset::new(self.end)
    }

    /// Returns the offset of the first octet that has not been released.
    pub(crate) const fn start(&self) -> LiveOffset {
        LiveOffset::new(self.start)
    }

    /// Returns since when a gap keeps later octets (or the FIN) from being in order.
    pub(crate) fn gap_since(&self) -> Option<Nanos> {
        self.rare().gap_since
    }

    /// Returns the FIN, once everything before it is there.
    pub(crate) fn fin(&self) -> Option<Ending> {
        self.rare().fin.filter(|fin| fin.offset == self.end())
    }

    /// Returns the live client's reset.
    pub(crate) fn reset(&self) -> Option<Ending> {
        self.rare().reset
    }

    /// Returns what is known of its place in a multipath connection.
    pub(crate) fn subflow(&self) -> Subflow {
        self.rare().subflow
    }

    /// Notes its place in a multipath connection.
    pub(crate) fn set_subflow(&mut self, subflow: Subflow) {
        self.rare_mut().subflow = subflow;
    }

    /// Whether the live client will send nothing more.
    pub(crate) fn is_over(&self) -> bool {
        let Rare { fin, reset, .. } = self.rare();
        fin.is_some() || reset.is_some()
    }

    /// Returns what is known of the live server's RCV.NXT.
    pub(crate) fn position(&self) -> Position {
        let last = self.store.as_ref().and_then(|store| store.out_of_order.end());
        Position {
            next: self.end_seq,
            received: self.end,
            beyond: last.map_or(0, |end| end.saturating_sub(self.end)),
            fin: self.fin().is_some(),
        }
    }

    /// Takes back a FIN that is not in order if these octets reach beyond it, as the live server does that receives
    /// them; returns whether there was one.
    pub(crate) fn withdraw_fin(&mut self, seq: LiveSeq, len: usize) -> bool {
        let begin = self.offset_of(seq);
        let finish = begin + len as i64;
        let end = self.end;
        let Some(rare) = &mut self.rare else { return false };
        let contradicted = rare.fin.is_some_and(|fin| {
            let offset = fin.offset.get();
            offset > end && (begin..finish).contains(&(offset as i64))
        });
        if contradicted {
            rare.fin = None;
        }
        contradicted
    }

    fn offset_of(&mut self, seq: LiveSeq) -> i64 {
        let end_seq = *self.end_seq.get_or_insert(seq);
        self.end as i64 + i64::from(seq.distance(end_seq))
    }

    /// Inserts a segment's octets.
    ///
    /// # Errors
    /// The reason why they cannot be kept; the stream is unchanged.
    pub(crate) fn insert(
        &mut self,
        pool: &mut Pool,
        share: Share,
        seq: LiveSeq,
        payload: &[u8],
        facts: Facts,
    ) -> Result<Inserted, Reason> {
        let Share { owner, limit } = share;
        let begin = self.offset_of(seq);
        let finish = begin + payload.len() as i64;
        let fin = self.rare().fin;
        let last = fin.map_or(i64::MAX, |fin| fin.offset.get() as i64);
        let nonsense = fin.map_or(0, |_| (finish - last.max(begin)).max(0));
        let finish = finish.min(last);
        let from = begin.max(self.end as i64);
        if finish <= from {
            return Ok(Inserted {
                duplicate: payload.len() as u64 - nonsense as u64,
                nonsense: nonsense as u64,
                ..Inserted::default()
            });
        }
        if from - self.end as i64 > limit as i64 {
            self.open_gap(facts.time);
            return Ok(Inserted { too_far: payload.len() as u64, ..Inserted::default() });
        }
        let kept = &payload[(from - begin) as usize..(finish - begin) as usize];
        let facts = if facts.urgent.is_some() {
            self.rare_mut().urgent = true;
            facts.part((from - begin) as u64, kept.len() as u64)
        } else {
            facts
        };
        let (from, finish) = (from as u64, finish as u64);
        let mut store = self.store.take().unwrap_or_else(|| pool.take(owner));
        let placed = if from == self.end && store.out_of_order.is_empty() {
            self.append(pool, &mut store, limit, finish, kept, facts)
        } else {
            self.place(pool, &mut store, limit, from..finish, kept, facts)
        };
        if store.bytes.len() > store.head || !store.out_of_order.is_empty() {
            self.store = Some(store);
        } else {
            pool.give_back(store);
        }
        let unique = placed?;
        let nonsense = nonsense as u64;
        Ok(Inserted { unique, duplicate: payload.len() as u64 - unique - nonsense, nonsense, too_far: 0 })
    }

    /// Appends octets that are next, when nothing waits behind a gap.
    #[inline]
    fn append(
        &mut self,
        pool: &mut Pool,
        store: &mut Store,
        limit: usize,
        finish: u64,
        octets: &[u8],
        facts: Facts,
    ) -> Result<u64, Reason> {
        let held = (finish - self.start) as usize;
        if held + store.marks.len() * size_of::<Mark>() > limit {
            return Err(Reason::SessionMemory);
        }
        pool.reserve(store, store.head + held).map_err(|Exhausted| Reason::TotalMemory)?;
        self.extend(store, octets, facts.mark(self.end));
        pool.settle(store);
        self.note_gap(false, facts.time);
        Ok(octets.len() as u64)
    }

    /// Adds what lacks of a range of octets. The first copy of an octet is the one that a receiver keeps.
    fn place(
        &mut self,
        pool: &mut Pool,
        store: &mut Store,
        limit: usize,
        range: Range<u64>,
        octets: &[u8],
        facts: Facts,
    ) -> Result<u64, Reason> {
        let lack = store.out_of_order.lack(range.clone());
        let pieces = store.out_of_order.len() + lack.parts;
        let held = (self.end - self.start) as usize + store.marks.len() * size_of::<Mark>();
        let new = lack.octets as usize + lack.parts * PIECE_OVERHEAD;
        if pieces > MAX_OUT_OF_ORDER || held + store.out_of_order.footprint() + new > limit {
            return Err(Reason::SessionMemory);
        }
        let closes_gap = range.start == self.end;
        if closes_gap {
            let run = store.out_of_order.run_end(range.end) - self.start;
            pool.reserve(store, store.head + run as usize).map_err(|Exhausted| Reason::TotalMemory)?;
            self.close_gap();
        } else if !pool.has_room_for(new) {
            return Err(Reason::TotalMemory);
        }
        let mut at = range.start;
        while let Some(part) = store.out_of_order.first_lack(at..range.end) {
            let piece = &octets[(part.start - range.start) as usize..(part.end - range.start) as usize];
            // Mark each piece, so that a later segment is not attributed to data before the gap.
            let facts = facts.part(part.start - range.start, part.end - part.start);
            let mut mark = Mark { push: facts.push && part.end == range.end, ..facts.mark(part.start) };
            // A retransmission acknowledges more than the first copy did, which was sent before what follows it.
            if let (Some(ack), Some(after)) = (mark.ack, store.out_of_order.ack_behind(part.start))
                && ack.is_after(after)
            {
                mark.ack = Some(after);
            }
            if closes_gap {
                self.extend(store, piece, mark);
                self.join(store);
            } else {
                store.out_of_order.insert(mark, piece);
            }
            at = part.end.max(self.end);
        }
        pool.settle(store);
        self.note_gap(!store.out_of_order.is_empty(), facts.time);
        Ok(lack.octets)
    }

    /// Moves what follows the octets in order to them. There is room for it.
    fn join(&mut self, store: &mut Store) {
        while let Some(piece) = store.out_of_order.pop_at(self.end) {
            self.extend(store, &piece.octets, piece.mark);
        }
    }

    /// Adds the next octets. There is room for them.
    #[inline]
    fn extend(&mut self, store: &mut Store, octets: &[u8], mark: Mark) {
        store.bytes.extend_from_slice(octets);
        let many = store.marks.len() >= MAX_MARKS;
        match store.marks.back_mut() {
            // A flood of tiny segments: past the limit they are no longer told apart.
            Some(last) if many && last.ack == mark.ack && mark.urgent.is_none() => last.push = mark.push,
            _ => store.marks.push_back(mark),
        }
        self.advance_to(mark.offset.get() + octets.len() as u64);
    }

    fn note_gap(&mut self, out_of_order: bool, time: Nanos) {
        if out_of_order || self.rare().fin.is_some_and(|fin| fin.offset > self.end()) {
            self.open_gap(time);
        } else {
            self.close_gap();
        }
    }

    fn advance_to(&mut self, end: u64) {
        let seq = self.end_seq.map(|seq| seq.plus((end - self.end) as u32));
        self.end_seq = seq;
        self.end = end;
    }

    /// Notes a FIN, which follows the octet before `seq`.
    pub(crate) fn close(&mut self, seq: LiveSeq, time: Nanos, ack: Option<LiveAck>) -> Close {
        let offset = self.offset_of(seq);
        if let Some(fin) = self.rare().fin {
            return if fin.offset.get() as i64 == offset { Close::Repeated } else { Close::Contradictory };
        }
        let known = self.store.as_ref().and_then(|store| store.out_of_order.end()).unwrap_or(self.end);
        if offset < known as i64 {
            return Close::Contradictory;
        }
        let offset = LiveOffset::new(offset as u64);
        self.rare_mut().fin = Some(Ending { offset, ack });
        if offset > self.end() {
            self.open_gap(time);
        }
        Close::New
    }

    /// Notes a reset; it takes effect after what is there in order.
    pub(crate) fn abort(&mut self, ack: Option<LiveAck>) {
        let offset = self.end();
        let rare = self.rare_mut();
        if rare.reset.is_none() {
            rare.reset = Some(Ending { offset, ack });
            rare.gap_since = None;
        }
    }

    /// Returns the octets from `offset` on, at most `len`, as far as they are there in order.
    pub(crate) fn slice(&self, offset: LiveOffset, len: usize) -> &[u8] {
        let Some(store) = &self.store else { return &[] };
        let from = offset.get().max(self.start);
        let len = len.min(self.end.saturating_sub(from) as usize);
        let position = store.head + (from - self.start) as usize;
        store.bytes.get(position..position + len).unwrap_or(&[])
    }

    /// Returns the mark with a number, if it has not been released and its octets are in order.
    pub(crate) fn mark(&self, number: u64) -> Option<&Mark> {
        let index = number.checked_sub(self.first_mark)?;
        self.store.as_ref()?.marks.get(index as usize)
    }

    /// Returns where the first urgent octet is from `offset` on, as far as it has not been released.
    pub(crate) fn next_urgent(&self, offset: LiveOffset) -> Option<LiveOffset> {
        if !self.rare().urgent {
            return None;
        }
        let marks = &self.store.as_ref()?.marks;
        let first = marks.partition_point(|mark| mark.offset <= offset).saturating_sub(1);
        let urgent = marks.range(first..).filter_map(|mark| Some(mark.offset.plus(mark.urgent?.into())));
        urgent.into_iter().find(|urgent| *urgent >= offset)
    }

    /// Returns the number of the first mark that has not been released.
    pub(crate) const fn first_mark(&self) -> u64 {
        self.first_mark
    }

    /// Whether the segment of a mark begins a request: the one before it ended with PSH, and its acknowledgement shows
    /// that the live client has received something in between.
    pub(crate) fn begins_request(&self, number: u64) -> bool {
        let before = number.checked_sub(1).and_then(|n| self.mark(n)).map_or(self.before, |m| Some((m.ack, m.push)));
        match (before, self.mark(number).and_then(|m| m.ack)) {
            (Some((Some(before), true)), Some(ack)) => ack.is_after(before),
            _ => false,
        }
    }

    /// Returns how many octets at and after `offset` are held, in order or not.
    pub(crate) fn held_from(&self, offset: LiveOffset) -> u64 {
        let Some(store) = &self.store else { return 0 };
        let offset = offset.get();
        self.end.saturating_sub(offset.max(self.start)) + store.out_of_order.octets_from(offset)
    }

    /// Notes in the pool's books what is held.
    pub(crate) fn account(&mut self, pool: &mut Pool, owner: Owner) {
        if let Some(store) = &mut self.store {
            pool.account_for(store, owner);
        }
    }

    /// Releases what lies before `offset`.
    pub(crate) fn release(&mut self, pool: &mut Pool, offset: LiveOffset) {
        let offset = offset.get().min(self.end);
        if offset <= self.start {
            return;
        }
        let Some(mut store) = self.store.take() else { return };
        store.head += (offset - self.start) as usize;
        self.start = offset;
        while let Some(mark) = store.marks.front().filter(|m| m.offset.get() < offset) {
            self.before = Some((mark.ack, mark.push));
            self.first_mark += 1;
            store.marks.pop_front();
        }
        if store.head >= store.bytes.len() {
            if store.out_of_order.is_empty() {
                pool.give_back(store);
                return;
            }
            store.bytes.clear();
            store.head = 0;
        }
        // Moving the rest to the front costs less than what was appended since the last time.
        if store.head > store.bytes.len() / 2 {
            store.bytes.copy_within(store.head.., 0);
            store.bytes.truncate(store.bytes.len() - store.head);
            store.head = 0;
        }
        self.store = Some(store);
    }

    /// Gives up the octets of the first gap, and goes on with what follows them. Returns how many they are; when
    /// nothing is known to follow, the position becomes unknown.
    ///
    /// # Errors
    /// [`Exhausted`] when the pool has no room to put together what follows.
    pub(crate) fn skip_gap(&mut self, pool: &mut Pool) -> Result<u64, Exhausted> {
        let end = self.end;
        self.release(pool, self.end());
        self.close_gap();
        self.before = None;
        if let Some(mut store) = self.store.take() {
            // After the release, only what is out of order is left.
            let begin = store.out_of_order.begin().unwrap_or(end);
            let run = store.out_of_order.run_end(begin) - begin;
            let room = pool.reserve(&mut store, run as usize);
            if room.is_ok() {
                self.advance_to(begin);
                self.start = begin;
                self.join(&mut store);
                pool.settle(&mut store);
            }
            // The next gap has had as much time as this one.
            self.note_gap(!store.out_of_order.is_empty(), Nanos(0));
            self.store = Some(store);
            return room.map(|()| begin - end);
        }
        match self.rare().fin {
            Some(fin) => {
                let missing = fin.offset.since(self.end());
                self.advance_to(fin.offset.get());
                self.start = self.end;
                Ok(missing)
            }
            None => {
                self.end_seq = None;
                Ok(0)
            }
        }
    }

    /// Releases everything held; the next segment tells where the stream goes on.
    pub(crate) fn clear(&mut self, pool: &mut Pool) {
        if let Some(store) = self.store.take() {
            self.first_mark += store.marks.len() as u64;
            pool.give_back(store);
        }
        self.start = self.end;
        self.end_seq = None;
        self.before = None;
        self.close_gap();
    }
}

#[cfg(test)]
mod tests;
