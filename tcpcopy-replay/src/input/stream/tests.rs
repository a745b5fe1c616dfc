//! The stream by itself: what is taken in, held and let go.

use proptest::prelude::*;

use super::*;
use crate::{input::holders::Client, store::id::Id};

const LIMIT: usize = 1 << 20;
const OWNER: Owner = Owner { client: Client::TEST, connection: Id::new(0) };
const SHARE: Share = Share { owner: OWNER, limit: LIMIT };

fn facts(ms: u64, ack: u32, push: bool) -> Facts {
    Facts { time: Nanos(ms * 1_000_000), ack: Some(LiveAck::new(ack)), push, urgent: None }
}

struct Rig {
    pool: Pool,
    stream: Stream,
    isn: LiveSeq,
}

impl Rig {
    fn new(isn: u32) -> Self {
        let isn = LiveSeq::new(isn);
        Self { pool: Pool::new(1, 4 << 20), stream: Stream::new(Some(isn)), isn }
    }

    fn put(&mut self, offset: u32, octets: &[u8]) -> Inserted {
        self.put_with(offset, octets, facts(0, 1, false)).unwrap()
    }

    fn put_with(&mut self, offset: u32, octets: &[u8], facts: Facts) -> Result<Inserted, Reason> {
        self.stream.insert(&mut self.pool, SHARE, self.isn.plus(offset), octets, facts)
    }

    fn all(&self) -> &[u8] {
        self.stream.slice(self.stream.start(), usize::MAX)
    }
}

#[test]
fn a_late_segment_closes_the_hole_and_the_rest_follows() {
    let mut rig = Rig::new(u32::MAX - 2);
    assert_eq!(rig.put(4, b"efgh").unique, 4);
    assert_eq!((rig.all(), rig.stream.gap_since()), (&b""[..], Some(Nanos(0))));
    assert_eq!(rig.put(0, b"abcd").unique, 4);
    assert_eq!((rig.all(), rig.stream.gap_since()), (&b"abcdefgh"[..], None));
}

#[test]
fn the_first_copy_of_an_octet_is_kept() {
    let mut rig = Rig::new(7);
    rig.put(2, b"cd");
    assert_eq!(rig.put(0, b"ABCDEF"), Inserted { unique: 4, duplicate: 2, ..Inserted::default() });
    assert_eq!(rig.put(1, b"xyz"), Inserted { duplicate: 3, ..Inserted::default() });
    assert_eq!(rig.all(), b"ABcdEF");
}

#[test]
fn octets_after_the_fin_are_refused_and_counted() {
    let mut rig = Rig::new(7);
    assert_eq!(rig.stream.close(rig.isn.plus(4), Nanos(0), None), Close::New);
    assert_eq!(rig.stream.close(rig.isn.plus(4), Nanos(0), None), Close::Repeated);
    assert_eq!(rig.stream.close(rig.isn.plus(3), Nanos(0), None), Close::Contradictory);
    assert!(rig.stream.fin().is_none() && rig.stream.gap_since().is_some());
    assert_eq!(rig.put(2, b"cdef"), Inserted { unique: 2, nonsense: 2, ..Inserted::default() });
    rig.put(0, b"ab");
    assert_eq!(rig.all(), b"abcd");
    assert!(rig.stream.fin().is_some() && rig.stream.gap_since().is_none());
    assert_eq!(rig.put(9, b"z"), Inserted { nonsense: 1, ..Inserted::default() });
}

#[test]
fn a_retransmission_in_the_midst_of_a_request_begins_none() {
    let mut rig = Rig::new(7);
    for (offset, ack) in [(0, 1), (2, 1), (1, 5)] {
        rig.put_with(offset, b"x", facts(0, ack, true)).unwrap();
    }
    assert!(!(0..3).any(|n| rig.stream.begins_request(n)));
}

#[test]
fn a_retransmission_that_fills_two_holes_hides_no_boundary() {
    let mut rig = Rig::new(7);
    // Two requests, of three octets each; then the second and the fourth octet come.
    for (offset, octets, ack, push) in [(0, "a", 1, false), (2, "c", 1, true), (4, "ef", 5, true)] {
        rig.put_with(offset, octets.as_bytes(), facts(0, ack, push)).unwrap();
    }
    rig.put_with(1, b"bcd", facts(0, 5, false)).unwrap();
    let begins: Vec<_> = (0..5)
        .filter(|&n| rig.stream.begins_request(n))
        .filter_map(|n| rig.stream.mark(n))
        .map(|mark| mark.offset.get())
        .collect();
    assert_eq!((rig.all(), begins), (&b"abcdef"[..], vec![3]));
}

#[test]
fn octets_from_before_the_capture_began_are_repetitions() {
    let mut rig = Rig::new(7);
    rig.stream = Stream::new(None);
    assert_eq!(rig.put(100, b"x").unique, 1);
    assert_eq!(rig.put(50, b"abc"), Inserted { duplicate: 3, ..Inserted::default() });
    assert_eq!(rig.put(99, b"wx"), Inserted { duplicate: 2, ..Inserted::default() });
    assert_eq!(rig.all(), b"x");
}

#[test]
fn a_request_begins_where_the_client_had_read_since_its_last_push() {
    let mut rig = Rig::new(7);
    for (offset, ack, push) in [(0, 1, false), (1, 5, true), (2, 5, true), (3, 9, true), (4, 8, true)] {
        rig.put_with(offset, b"x", facts(0, ack, push)).unwrap();
    }
    let begins: Vec<_> = (0..6).map(|n| rig.stream.begins_request(n)).collect();
    assert_eq!(begins, [false, false, false, true, false, false]);
    rig.stream.release(&mut rig.pool, LiveOffset::new(3));
    assert!(rig.stream.begins_request(3));
}

/// What belongs to several segments has a mark for each, and PSH where a segment ends.
#[test]
fn a_piece_between_two_others_is_no_end_of_a_request() {
    let begins = |puts: &[(u32, &str, u32, bool)]| {
        let mut rig = Rig::new(7);
        for &(offset, octets, ack, push) in puts {
            rig.put_with(offset, octets.as_bytes(), facts(0, ack, push)).unwrap();
        }
        let begins = (0..9).filter(|&n| rig.stream.begins_request(n)).filter_map(|n| rig.stream.mark(n));
        begins.map(|mark| mark.offset.get()).collect::<Vec<_>>()
    };
    assert_eq!(begins(&[(2, "cd", 1, true), (4, "ef", 5, true), (0, "ab", 1, false)]), [4]);
    assert_eq!(begins(&[(2, "cd", 1, false), (4, "ef", 5, true), (0, "ab", 1, false)]), [] as [u64; 0]);
    // The first copy of the whole was overtaken by a later segment.
    assert_eq!(begins(&[(2, "cd", 5, false), (0, "abcdef", 1, true)]), [] as [u64; 0]);
}

#[test]
fn a_repetition_of_what_waits_behind_a_hole_adds_a_mark_only_for_what_is_new() {
    let mut rig = Rig::new(7);
    rig.put(4, b"ef");
    rig.put(4, b"efgh");
    rig.put(0, b"abcd");
    let marks: Vec<_> = (0..9).filter_map(|n| rig.stream.mark(n)).map(|mark| mark.offset.get()).collect();
    assert_eq!(marks, [0, 4, 6]);
}

#[test]
fn a_hole_can_be_given_up() {
    let mut rig = Rig::new(7);
    rig.put(0, b"ab");
    rig.put(5, b"fg");
    rig.put(9, b"j");
    assert_eq!(rig.stream.held_from(LiveOffset::new(1)), 4);
    assert_eq!(rig.stream.skip_gap(&mut rig.pool), Ok(3));
    assert_eq!((rig.all(), rig.stream.start().get()), (&b"fg"[..], 5));
    assert_eq!(rig.stream.gap_since(), Some(Nanos(0)));
    assert!(!rig.stream.begins_request(rig.stream.first_mark()), "nobody knows what the hole held");
    assert_eq!(rig.stream.skip_gap(&mut rig.pool), Ok(2));
    assert_eq!((rig.all(), rig.stream.gap_since()), (&b"j"[..], None));
    rig.put(10, b"k");
    assert_eq!(rig.all(), b"jk");
}

#[test]
fn too_much_is_refused_without_a_trace() {
    let mut rig = Rig::new(7);
    assert_eq!(rig.put_with(0, &[0; LIMIT + 1], facts(0, 1, true)), Err(Reason::SessionMemory));
    assert_eq!(rig.put_with(1, &[0; LIMIT], facts(0, 1, true)), Err(Reason::SessionMemory));
    rig.pool = Pool::new(1, 2048);
    assert_eq!(rig.put_with(0, &[0; 4096], facts(0, 1, true)), Err(Reason::TotalMemory));
    assert_eq!((rig.stream.end().get(), rig.pool.allocated()), (0, 0));
}

#[test]
fn a_flood_of_single_octets_does_not_grow_a_mark_for_each() {
    let mut rig = Rig::new(7);
    for i in 0..3 * MAX_MARKS as u32 {
        rig.put(i, b"x");
    }
    assert!(rig.stream.mark(MAX_MARKS as u64 - 1).is_some() && rig.stream.mark(MAX_MARKS as u64).is_none());
}

#[test]
fn a_drained_stream_holds_no_memory() {
    let mut rig = Rig::new(7);
    rig.put(0, b"abc");
    rig.stream.release(&mut rig.pool, LiveOffset::new(2));
    assert_eq!(rig.all(), b"c");
    rig.stream.release(&mut rig.pool, LiveOffset::new(3));
    assert!(rig.stream.store.is_none());
    rig.put(3, b"d");
    assert_eq!((rig.all(), rig.stream.first_mark()), (&b"d"[..], 1));
}

#[test]
fn what_may_be_held_is_octets_and_marks_together() {
    let mark = size_of::<Mark>();
    let mut rig = Rig::new(7);
    let mut put = |offset: u32, octets: &[u8], limit| {
        rig.stream.insert(&mut rig.pool, Share { limit, ..SHARE }, rig.isn.plus(offset), octets, facts(0, 1, true))
    };
    assert_eq!(put(0, &[1; 1001], 1000), Err(Reason::SessionMemory));
    assert!(put(0, &[1; 1000], 1000).is_ok());
    assert_eq!(put(1000, b"x", 1000 + mark), Err(Reason::SessionMemory));
    assert!(put(1000, b"x", 1001 + mark).is_ok());
    assert_eq!(put(1001, b"x", 1001 + 2 * mark), Err(Reason::SessionMemory));
    let far = Inserted { too_far: 2, ..Inserted::default() };
    assert_eq!(put(1001 + 5001, b"xy", 5000), Ok(far));
    rig.stream.release(&mut rig.pool, LiveOffset::new(900));
    let share = Share { limit: 102 + 2 * mark, ..SHARE };
    assert!(rig.stream.insert(&mut rig.pool, share, rig.isn.plus(1001), b"x", facts(0, 1, true)).is_ok());
}

#[test]
fn a_refused_segment_leaves_no_empty_store() {
    let mut rig = Rig::new(7);
    rig.pool = Pool::new(1, 2048);
    assert_eq!(rig.put_with(0, &[0; 4096], facts(0, 1, true)), Err(Reason::TotalMemory));
    assert!(rig.stream.store.is_none());
}

#[test]
fn a_fin_ahead_stays_a_hole_until_everything_before_it_is_there() {
    let mut rig = Rig::new(7);
    assert_eq!(rig.stream.close(rig.isn.plus(6), Nanos(5), None), Close::New);
    rig.put(0, b"ab");
    assert_eq!(rig.stream.gap_since(), Some(Nanos(5)));
    assert_eq!(rig.stream.skip_gap(&mut rig.pool), Ok(4), "octets that are missing before the FIN");
    assert_eq!((rig.stream.end().get(), rig.stream.fin().map(|fin| fin.offset.get())), (6, Some(6)));
}

#[test]
fn a_stream_is_over_after_a_fin_as_after_a_reset() {
    let (mut closed, mut aborted) = (Rig::new(7), Rig::new(7));
    assert!(!closed.stream.is_over());
    closed.stream.close(closed.isn, Nanos(0), None);
    aborted.stream.abort(None);
    assert!(closed.stream.is_over() && aborted.stream.is_over());
}

#[test]
fn marks_are_numbered_on_after_everything_was_forgotten() {
    let mut rig = Rig::new(7);
    rig.put(0, b"a");
    rig.put(1, b"b");
    rig.stream.clear(&mut rig.pool);
    assert_eq!(rig.stream.first_mark(), 2);
}

#[test]
fn a_segment_next_to_what_is_there_adds_one_mark() {
    let mut rig = Rig::new(7);
    rig.put(4, b"ef");
    rig.put(2, b"cd");
    rig.put(0, b"ab");
    let marks: Vec<_> = (0..9).filter_map(|n| rig.stream.mark(n)).map(|mark| mark.offset.get()).collect();
    assert_eq!(marks, [0, 2, 4]);
}

#[test]
fn a_piece_far_ahead_costs_what_it_holds() {
    let mut rig = Rig::new(7);
    assert_eq!(rig.put(LIMIT as u32, b"x").unique, 1);
    assert!(rig.pool.allocated() < 400, "{}", rig.pool.allocated());
    assert_eq!(rig.put(LIMIT as u32 + 2, b"x"), Inserted { too_far: 1, ..Inserted::default() });
    assert_eq!(rig.stream.skip_gap(&mut rig.pool), Ok(LIMIT as u64));
    assert_eq!(rig.all(), b"x");
}

#[test]
fn pieces_are_limited_in_number_and_with_what_they_take() {
    let mut rig = Rig::new(7);
    rig.pool = Pool::new(1, 64 << 20);
    let many = Share { limit: 64 << 20, ..SHARE };
    let mut put = |n: usize, share: Share| {
        let seq = rig.isn.plus(2 * n as u32 + 1);
        rig.stream.insert(&mut rig.pool, share, seq, b"x", facts(0, 1, false))
    };
    assert!((0..MAX_OUT_OF_ORDER).all(|n| put(n, many).is_ok()));
    assert_eq!(put(MAX_OUT_OF_ORDER, many), Err(Reason::SessionMemory));
    assert!(put(0, many).is_ok_and(|inserted| inserted.duplicate == 1), "a repetition needs no room");
    let mut rig = Rig::new(7);
    let few = Share { limit: 3 * (PIECE_OVERHEAD + 1), ..SHARE };
    let mut put = |n: u32| rig.stream.insert(&mut rig.pool, few, rig.isn.plus(2 * n), b"x", facts(0, 1, false));
    assert!((1..4).all(|n| put(n).is_ok()));
    assert_eq!(put(4), Err(Reason::SessionMemory));
}

#[test]
fn a_gap_that_cannot_be_closed_for_want_of_room_stays_as_it_is() {
    let mut rig = Rig::new(7);
    rig.pool = Pool::new(1, 4096);
    rig.put(1, &[1; 2000]);
    // What follows the gap is put together with what fills it.
    assert_eq!(rig.put_with(0, &[0; 1], facts(0, 1, false)), Err(Reason::TotalMemory));
    assert_eq!((rig.all(), rig.stream.held_from(LiveOffset::START)), (&b""[..], 2000));
    assert!(rig.stream.skip_gap(&mut rig.pool).is_err());
    rig.stream.clear(&mut rig.pool);
    assert_eq!(rig.pool.allocated(), 0);
}

proptest! {
    /// However a stream is cut, repeated and shuffled, it comes out as it was, each octet once.
    #[test]
    fn any_segmentation_yields_the_stream(
        len in 1usize..3000,
        isn: u32,
        cuts in prop::collection::vec((0usize..3000, 1usize..600), 0..60),
        releases in prop::collection::vec(0u64..400, 0..60),
        shuffle: u64,
    ) {
        let octets: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
        let mut pieces: Vec<(usize, usize)> = cuts.into_iter().map(|(at, n)| (at % len, n)).collect();
        // Enough pieces to cover everything, somewhere among the random ones.
        pieces.extend((0..len).step_by(97).map(|at| (at, 97)));
        let mut state = shuffle | 1;
        for i in (1..pieces.len()).rev() {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            pieces.swap(i, (state >> 33) as usize % (i + 1));
        }
        let mut rig = Rig::new(isn);
        let mut got = Vec::new();
        let mut unique = 0;
        let mut releases = releases.into_iter().cycle();
        for (at, n) in pieces {
            let piece = &octets[at..(at + n).min(len)];
            let inserted = rig.put(at as u32, piece);
            prop_assert_eq!(inserted.unique + inserted.duplicate, piece.len() as u64);
            unique += inserted.unique;
            prop_assert_eq!(rig.stream.held_from(LiveOffset::new(0)), unique - got.len() as u64);
            let step = releases.next().unwrap_or(1000) as usize;
            let ready = rig.stream.slice(LiveOffset::new(got.len() as u64), step).to_vec();
            got.extend_from_slice(&ready);
            rig.stream.release(&mut rig.pool, LiveOffset::new(got.len() as u64));
        }
        let rest = rig.all().to_vec();
        got.extend_from_slice(&rest);
        prop_assert_eq!(unique, len as u64);
        prop_assert_eq!(got, octets);
        prop_assert_eq!(rig.stream.gap_since(), None);
    }

    /// Whatever contradicts what, the first copy of each octet counts; a gap that is given up loses nothing else.
    #[test]
    fn the_first_copy_counts_whatever_overlaps(
        isn: u32,
        puts in prop::collection::vec((0usize..400, 1usize..60, any::<u8>(), 0u32..4, any::<bool>()), 1..80),
        release in 0u64..60,
    ) {
        let mut rig = Rig::new(isn);
        let mut model: Vec<Option<u8>> = vec![None; 512];
        let mut start = 0;
        for (at, len, octet, kind, push) in puts {
            let end = model.iter().position(Option::is_none).unwrap_or(512);
            if kind == 3 && rig.stream.gap_since().is_some() {
                let next = (end..512).find(|&n| model[n].is_some()).expect("what is behind the gap");
                prop_assert_eq!(rig.stream.skip_gap(&mut rig.pool), Ok((next - end) as u64));
                model[..next].fill(Some(0));
                start = next;
            }
            let octets = vec![octet; len];
            let new: usize = model[at..at + len].iter().filter(|octet| octet.is_none()).count();
            let inserted = rig.put_with(at as u32, &octets, facts(0, 1, push)).unwrap();
            prop_assert_eq!((inserted.unique, inserted.duplicate), (new as u64, (len - new) as u64));
            model[at..at + len].iter_mut().for_each(|place| *place = place.or(Some(octet)));
            let end = model.iter().position(Option::is_none).unwrap_or(512);
            if kind == 0 {
                start = start.max(end.min(start + release as usize));
                rig.stream.release(&mut rig.pool, LiveOffset::new(start as u64));
            }
            let expected: Vec<u8> = model[start..end].iter().flatten().copied().collect();
            prop_assert_eq!(rig.all(), &expected[..]);
            let held = model[start..].iter().flatten().count() as u64;
            prop_assert_eq!(rig.stream.held_from(rig.stream.start()), held);
            let last = model.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
            prop_assert_eq!(rig.stream.position().beyond, (last.max(end) - end) as u64);
            prop_assert_eq!(rig.stream.gap_since().is_some(), last > end);
            let marks: Vec<_> = (rig.stream.first_mark()..).map_while(|n| rig.stream.mark(n)).collect();
            prop_assert!(marks.is_sorted_by_key(|mark| mark.offset));
            prop_assert!(marks.iter().all(|mark| (start..end).contains(&(mark.offset.get() as usize))));
        }
        rig.stream.clear(&mut rig.pool);
        prop_assert!(rig.stream.store.is_none());
    }
}
