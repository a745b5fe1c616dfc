//! What the engine takes from the allocator: nothing in the steady state, and not much for a session that is idle.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
};

use tcpcopy_replay::testing::steady::Steady;

/// Counts what threads that want it counted allocate: the test harness has threads of its own, which print when a test
/// takes long.
struct Counting;

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

static CALLS: AtomicU64 = AtomicU64::new(0);
static OCTETS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if COUNTED.get() {
            CALLS.fetch_add(1, Ordering::Relaxed);
            OCTETS.fetch_add(layout.size() as u64, Ordering::Relaxed);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if COUNTED.get() {
            OCTETS.fetch_sub(layout.size() as u64, Ordering::Relaxed);
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
    assert!(each <= 552, "an idle session takes {each} octets");

    let exchanges = steady.exchanges();
    let turns = SESSIONS / exchanges;
    (0..2 * turns).for_each(|_| assert!(steady.turn() >= 3 * exchanges));
    let (calls, sent) = (CALLS.load(Ordering::Relaxed), steady.sent());
    (0..turns).for_each(|_| assert!(steady.turn() >= 3 * exchanges));
    assert_eq!(CALLS.load(Ordering::Relaxed) - calls, 0, "the steady state allocates");
    assert_eq!(steady.sent() - sent, u64::from(turns * exchanges) * 100);
}

/// An engine with so many idle sessions, and what each takes, octets.
fn measured(sessions: u32) -> (Steady, u64) {
    let before = OCTETS.load(Ordering::Relaxed);
    let steady = Steady::new(sessions);
    // What surrounds the engine has 16 octets a session for itself.
    let each = (OCTETS.load(Ordering::Relaxed) - before) / u64::from(sessions) - 16;
    (steady, each)
}
