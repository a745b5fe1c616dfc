//! What the engine takes from the allocator: nothing in the steady state, not much for a session that is idle, and for
//! what waits behind a gap no more than is charged for it.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

use tcpcopy_replay::testing::steady::Steady;

/// Counts what threads that want it counted allocate: the test harness has threads of its own, which print when a test
/// takes long.
struct Counting;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
    static CALLS: Cell<u64> = const { Cell::new(0) };
    static OCTETS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            CALLS.set(CALLS.get() + 1);
            OCTETS.set(OCTETS.get().wrapping_add(layout.size() as u64));
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if COUNTED.get() {
            // A thread may free what was allocated before it counted.
            OCTETS.set(OCTETS.get().wrapping_sub(layout.size() as u64));
        }
        // SAFETY: likewise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_steady_state_allocates_nothing_and_idle_sessions_are_small() {
    const SESSIONS: u32 = 100_000;
    COUNTED.set(true);
    // The curve, which takes a while where nothing is optimised.
    let curve: &[u32] = if cfg!(debug_assertions) { &[] } else { &[1_000, 10_000, 1_000_000] };
    for &sessions in curve {
        println!("of {sessions} an idle session takes {} octets", measured(sessions).1);
    }
    let (mut steady, each) = measured(SESSIONS);
    println!("of {SESSIONS} an idle session takes {each} octets");
    assert!(each <= 570, "an idle session takes {each} octets");

    let exchanges = steady.exchanges();
    let turns = SESSIONS / exchanges;
    (0..2 * turns).for_each(|_| assert!(steady.turn() >= 3 * exchanges));
    let (calls, sent) = (CALLS.get(), steady.sent());
    (0..turns).for_each(|_| assert!(steady.turn() >= 3 * exchanges));
    assert_eq!(CALLS.get() - calls, 0, "the steady state allocates");
    assert_eq!(steady.sent() - sent, u64::from(turns * exchanges) * 100);
}

/// The report: 32 packets made 564 MB resident. What is charged is what is taken, whatever the pieces look like.
#[test]
fn what_waits_behind_a_gap_takes_what_it_holds() {
    /// What the engine charges for a piece besides its octets.
    const OVERHEAD: u64 = 160;
    /// The least that glibc's allocator takes for a block besides its octets, and what it rounds to.
    const HEADER: u64 = 8 + 15;
    COUNTED.set(true);
    let mut steady = Steady::new(1_000);
    let before = OCTETS.get();
    (0..1_000).for_each(|session| steady.ahead(session, 33_000_000, b"x"));
    let taken = OCTETS.get() - before;
    assert!(taken < 1_000 * 1_024, "{taken} octets for a thousand of them");

    const PIECES: u32 = 30_000;
    // A stride that fills the tree from all sides, and one that fills its nodes by halves.
    for stride in [7_919, 1] {
        for size in [1, 100] {
            let mut steady = Steady::new(1);
            let octets = [b'x'; 100];
            let before = OCTETS.get();
            for piece in 0..PIECES {
                steady.ahead(0, 1 + (piece * stride % PIECES) * 200, &octets[..size]);
            }
            let each = (OCTETS.get() - before) / u64::from(PIECES) + HEADER;
            println!("a piece of {size} octets takes {each}");
            assert!(each <= OVERHEAD + size as u64, "a piece of {size} octets takes {each}");
        }
    }
}

/// An engine with so many idle sessions, and what each takes, octets.
fn measured(sessions: u32) -> (Steady, u64) {
    let before = OCTETS.get();
    let steady = Steady::new(sessions);
    // What surrounds the engine has 16 octets a session for itself.
    let each = (OCTETS.get() - before) / u64::from(sessions) - 16;
    (steady, each)
}
