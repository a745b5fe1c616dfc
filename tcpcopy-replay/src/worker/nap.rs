//! How a loop that empties a ring waits for more: woken by the first record, or by naps.
//!
//! To wake a sleeper costs 3 to 6 µs in the softirq of a live packet (measured on 6.18), then a context switch, and
//! what the sleeper finds is a batch of one. So while records flow the loop *naps*: it sleeps for a fixed time without
//! asking to be woken, and handles all that has come meanwhile at once. Where naps gather too little, the loop asks to
//! be woken again, and a quiet service is followed within microseconds.
//!
//! ```text
//!          enough records in a window                 naps do as well as being woken
//!   Woken ───────────────────────────► Trial ───────────────────────────────────────► Napping
//!     ▲                                  │                                               │
//!     │   naps gather too little, or     │         naps gather too little, or            │
//!     └── hold the other side up ◄───────┴────────── it is time for another look ◄───────┘
//! ```
//!
//! Some traffic waits for *us*: when each request is replayed only after the answer to the one before was reported,
//! records come as slowly as we nap. Therefore the rate in naps is compared with the rate just before them; when it
//! falls, naps are given up, for longer each time. A look now and then notices traffic that becomes like that.
//!
//! Pure: the loop says what time it is and how much it found.

use std::time::Duration;

use crate::Nanos;

/// A rate is measured over so many records, so that chance alone moves it by a sixteenth,
const ENOUGH: u64 = 256;
/// but at least over this time,
const SHORT: Duration = Duration::from_millis(5);
/// and at most over this.
const WINDOW: Duration = Duration::from_millis(50);
/// Naps must promise so many records each to be begun,
const ENTER: u64 = 2;
/// and gather so many each, over [`FEW`] of them, to go on. With one each they cost as much as wake-ups, and are late.
const STAY: u64 = 1;
/// So many naps are enough to see that traffic has gone.
const FEW: u64 = 16;
/// So much longer than the loop has asked to be woken, to measure the rate before, it naps until it looks again.
const REVIEW: u32 = 20;
/// How long naps are left alone after they have held traffic up once; doubled each time, up to the other.
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(4);
/// The shortest nap, when longer ones find the ring too full.
const SHORTEST: Duration = Duration::from_micros(50);

/// What to do when there is nothing left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rest {
    /// Ask to be woken, and sleep.
    Sleep,
    /// Sleep so long without asking.
    Nap(Duration),
}

/// How one loop rests.
#[derive(Debug)]
pub struct Naps {
    longest: Duration,
    /// What is taken of that, so that the ring does not fill meanwhile.
    length: Duration,
    mode: Mode,
    window: Window,
    /// The next pause.
    pause: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// Sleeps until woken. No naps before `until`.
    Woken { until: Nanos },
    /// The first naps, when records came at `before` while the loop was woken, which took so long to measure.
    Trial { before: Rate, took: Duration },
    /// Naps until it is time for a look.
    Napping { review: Nanos },
}

/// What has come since a rate was measured last.
#[derive(Clone, Copy, Debug)]
struct Window {
    since: Nanos,
    records: u64,
    rests: u64,
}

/// Records per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rate(u64);

impl Naps {
    /// A loop that is awake since `now` and will never nap longer than `longest`.
    #[must_use]
    pub const fn new(now: Nanos, longest: Duration) -> Self {
        Self {
            longest,
            length: longest,
            mode: Mode::Woken { until: now },
            window: Window { since: now, records: 0, rests: 0 },
            pause: PAUSE,
        }
    }

    /// Notes what the loop found: so many records, and of the ring's `size` octets so many used by then.
    pub fn found(&mut self, records: usize, used: usize, size: usize) {
        self.window.records += records as u64;
        if used > size / 4 {
            self.length = (self.length / 2).max(SHORTEST);
        } else if used < size / 16 && self.length < self.longest {
            self.length = (self.length * 2).min(self.longest);
        }
    }

    /// No naps before `until`: somebody waits.
    pub fn suspend(&mut self, now: Nanos, until: Nanos) {
        let until = match self.mode {
            Mode::Woken { until: already } => until.max(already),
            Mode::Trial { .. } | Mode::Napping { .. } => {
                self.window = Window { since: now, records: 0, rests: 0 };
                until
            }
        };
        self.mode = Mode::Woken { until };
    }

    /// How to rest now.
    pub fn rest(&mut self, now: Nanos) -> Rest {
        self.mode = self.next_mode(now);
        self.window.rests += 1;
        match self.mode {
            Mode::Woken { .. } => Rest::Sleep,
            Mode::Trial { .. } | Mode::Napping { .. } => Rest::Nap(self.length),
        }
    }

    /// The mode from now on; a new window begins when there was enough to judge by.
    fn next_mode(&mut self, now: Nanos) -> Mode {
        let Window { since, records, rests } = self.window;
        let took = now.since(since);
        let is_full = took >= WINDOW || records >= ENOUGH && took >= SHORT;
        let gathers_little = rests >= FEW && records < rests * STAY;
        let next = match self.mode {
            Mode::Woken { until } if is_full => {
                let before = self.window.rate(now);
                if now >= until && before.within(self.longest) >= ENTER {
                    Mode::Trial { before, took }
                } else {
                    Mode::Woken { until }
                }
            }
            Mode::Trial { before, .. } if gathers_little || is_full && self.window.rate(now).is_slower_than(before) => {
                let until = now.after(self.pause);
                self.pause = (self.pause * 2).min(LONGEST_PAUSE);
                Mode::Woken { until }
            }
            Mode::Trial { took, .. } if is_full => {
                self.pause = PAUSE;
                Mode::Napping { review: now.after(took * REVIEW) }
            }
            Mode::Napping { .. } if gathers_little => Mode::Woken { until: now },
            Mode::Napping { review } if now >= review => Mode::Woken { until: now },
            // The next few naps are judged by themselves.
            Mode::Napping { .. } if rests >= FEW => self.mode,
            unchanged => return unchanged,
        };
        self.window = Window { since: now, records: 0, rests: 0 };
        next
    }
}

impl Window {
    fn rate(&self, now: Nanos) -> Rate {
        let ns = now.since(self.since).as_nanos().max(1);
        Rate(u64::try_from(u128::from(self.records) * 1_000_000_000 / ns).unwrap_or(u64::MAX))
    }
}

impl Rate {
    /// Records in so long.
    fn within(self, time: Duration) -> u64 {
        u64::try_from(u128::from(self.0) * time.as_nanos() / 1_000_000_000).unwrap_or(u64::MAX)
    }

    /// By more than chance.
    const fn is_slower_than(self, other: Self) -> bool {
        self.0 < other.0 / 4 * 3
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAP: Duration = Duration::from_micros(700);
    const RING: usize = 1 << 20;
    const HALF: Duration = Duration::from_millis(25);

    /// A loop in virtual time, and records that come to it.
    struct Loop {
        naps: Naps,
        now: Nanos,
        wakeups: u64,
        rests: u64,
        records: u64,
        /// The longest that a record waited.
        lag: Duration,
    }

    impl Loop {
        fn new() -> Self {
            Self {
                naps: Naps::new(Nanos(0), NAP),
                now: Nanos(0),
                wakeups: 0,
                rests: 0,
                records: 0,
                lag: Duration::ZERO,
            }
        }

        /// Rests once while `next` says when the next record comes after the given time; returns when the loop has
        /// handled what there was. As in a ring, records that come while nobody asks to be woken wait.
        fn turn(&mut self, arrival: &mut Nanos, next: &mut impl FnMut(Nanos) -> Nanos) {
            let end = match self.naps.rest(self.now) {
                Rest::Sleep => {
                    let bound = self.now.after(Duration::from_millis(10));
                    self.wakeups += u64::from(*arrival <= bound);
                    bound.min((*arrival).max(self.now))
                }
                Rest::Nap(time) => self.now.after(time),
            };
            self.rests += 1;
            self.now = end;
            let mut found = 0;
            while *arrival <= end {
                self.lag = self.lag.max(end.since(*arrival));
                *arrival = next(end);
                found += 1;
            }
            self.records += found;
            self.naps.found(found as usize, found as usize * 128, RING);
        }

        /// Records at fixed times, whatever the loop does: the live side's.
        fn open(&mut self, time: Duration, rate: u64) {
            self.count_anew();
            let gap = Duration::from_nanos(1_000_000_000 / rate);
            let end = self.now.after(time);
            let mut at = self.now.after(gap);
            let mut arrival = at;
            while self.now < end {
                self.turn(&mut arrival, &mut |_| {
                    at = at.after(gap);
                    at
                });
            }
        }

        /// `clients` records in flight, each coming again `gap` after it was handled: traffic that waits for us.
        fn closed(&mut self, time: Duration, clients: usize, gap: Duration) {
            self.count_anew();
            let end = self.now.after(time);
            let mut waiting = std::collections::BinaryHeap::new();
            for n in 0..clients as u64 {
                waiting.push(std::cmp::Reverse(Nanos(self.now.0 + 1 + n * gap.as_nanos() as u64 / clients as u64)));
            }
            let mut arrival = waiting.pop().unwrap().0;
            while self.now < end {
                self.turn(&mut arrival, &mut |handled| {
                    waiting.push(std::cmp::Reverse(handled.after(gap)));
                    waiting.pop().unwrap().0
                });
            }
        }

        fn count_anew(&mut self) {
            (self.wakeups, self.rests, self.records, self.lag) = (0, 0, 0, Duration::ZERO);
        }
    }

    const fn seconds(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_quiet_service_is_followed_at_once() {
        let mut quiet = Loop::new();
        quiet.open(seconds(10), 100);
        assert_eq!((quiet.records, quiet.wakeups, quiet.lag), (1000, 1000, Duration::ZERO));
    }

    #[test]
    fn under_load_nobody_wakes_the_loop_but_for_a_look_now_and_then() {
        let mut busy = Loop::new();
        busy.open(seconds(1), 5_000);
        busy.open(seconds(10), 5_000);
        assert!(busy.wakeups < 50_000 / 15, "{} wake-ups", busy.wakeups);
        assert!(busy.rests < 50_000 * 10 / 35 + busy.wakeups, "{} rests", busy.rests);
        assert!(busy.lag <= NAP, "{:?}", busy.lag);
    }

    #[test]
    fn naps_end_with_the_load() {
        let mut l = Loop::new();
        l.open(seconds(1), 20_000);
        l.open(Duration::from_millis(15), 100);
        l.open(seconds(1), 100);
        assert_eq!(l.lag, Duration::ZERO);
    }

    #[test]
    fn one_client_that_waits_for_us_is_not_slowed() {
        let gap = Duration::from_micros(150);
        let mut serial = Loop::new();
        serial.closed(seconds(20), 1, gap);
        let most = 20_000_000 / 150;
        assert!(serial.records > most * 97 / 100, "{} of {most}", serial.records);
    }

    #[test]
    fn few_clients_that_wait_for_us_are_not_slowed_although_each_nap_gathers_all_of_them() {
        let gap = Duration::from_micros(400);
        let mut few = Loop::new();
        few.closed(seconds(20), 8, gap);
        let most = 8 * 20_000_000 / 400;
        assert!(few.records > most * 95 / 100, "{} of {most}", few.records);
    }

    #[test]
    fn clients_that_begin_to_wait_for_us_during_naps_are_noticed() {
        let gap = Duration::from_micros(400);
        let mut l = Loop::new();
        l.open(seconds(1), 10_000);
        l.closed(seconds(1), 8, gap);
        l.closed(seconds(20), 8, gap);
        let most = 8 * 20_000_000 / 400;
        assert!(l.records > most * 95 / 100, "{} of {most}", l.records);
    }

    #[test]
    fn clients_that_do_not_mind_are_napped_for() {
        // A hundred clients whose rounds take 20 ms: a nap makes a round 2 % longer.
        let mut l = Loop::new();
        l.closed(seconds(1), 100, Duration::from_millis(20));
        l.closed(seconds(10), 100, Duration::from_millis(20));
        assert!(l.wakeups < l.records / 15, "{} wake-ups for {} records", l.wakeups, l.records);
    }

    #[test]
    fn naps_can_be_suspended() {
        let mut l = Loop::new();
        l.open(seconds(1), 5_000);
        for _ in 0..10 {
            l.naps.suspend(l.now, l.now.after(HALF));
            l.open(HALF, 5_000);
            assert_eq!(l.lag, Duration::ZERO);
        }
        l.open(seconds(1), 5_000);
        assert!(l.wakeups < 5_000 / 5, "{} wake-ups", l.wakeups);
    }

    #[test]
    fn naps_are_shorter_the_faster_the_ring_fills() {
        let mut naps = Naps::new(Nanos(0), NAP);
        for _ in 0..100 {
            naps.found(100, RING / 4 + 1, RING);
        }
        assert_eq!(naps.length, SHORTEST);
        naps.found(100, RING / 8, RING);
        assert_eq!(naps.length, SHORTEST, "neither too full nor nearly empty");
        for _ in 0..100 {
            naps.found(1, 128, RING);
        }
        assert_eq!(naps.length, NAP);
    }
}
