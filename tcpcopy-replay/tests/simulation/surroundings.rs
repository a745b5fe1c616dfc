//! What a worker meets beside live clients and targets: a ring that is too small, a machine that is slow, channels that
//! break, a sink without room, and its own end.

use std::time::Duration;

use crate::{random::Random, scenario::Part};

/// What becomes of the instance when a channel is established again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Return {
    /// The target knows the sessions.
    Resumed,
    /// Another `intercept` is there, which knows none.
    Afresh,
}

/// A channel breaks.
#[derive(Clone, Copy, Debug)]
pub struct Break {
    /// Since the start.
    pub at: Duration,
    pub copy: usize,
    /// How long until the channel is established again.
    pub down: Duration,
    pub how: Return,
}

#[derive(Clone, Debug)]
pub struct Surroundings {
    /// How often every connection is replayed.
    pub copies: usize,
    /// Octets of the ring.
    pub ring: usize,
    /// How often each segment with octets is captured again at once, as on one interface after the other.
    pub echoes: usize,
    /// Records that contradict themselves, of a thousand.
    pub bad_records: u32,
    /// How many times slower than a good machine.
    pub slowness: u64,
    /// When the worker's thread is not run, since the start.
    pub stalls: Vec<(Duration, Duration)>,
    pub breaks: Vec<Break>,
    /// When the sink has no room, since the start.
    pub full: Vec<(Duration, Duration)>,
    /// Packets that the sink loses, of a thousand.
    pub refused: u32,
    /// When the worker is told to stop, since the start; else when all is over.
    pub stop: Option<Duration>,
    /// Whether the targets answer the farewell.
    pub answers_farewell: bool,
}

impl Surroundings {
    pub fn new(seed: u64) -> Self {
        let mut r = Random::new(seed, 6000);
        let copies = if r.chance(300) { r.within(2..=3) as usize } else { 1 };
        let ring = if r.chance(250) { r.magnitude(2_000..=60_000) as usize } else { 16 << 20 };
        let bad_records = if r.chance(50) { r.within(1..=20) as u32 } else { 0 };
        let slowness = if r.chance(250) { r.magnitude(2..=100) } else { 1 };
        let within = |r: &mut Random| Duration::from_micros(r.magnitude(100..=4_000_000));
        let breaks = if r.chance(350) { r.within(1..=4) } else { 0 };
        let breaks = (0..breaks)
            .map(|_| Break {
                at: within(&mut r),
                copy: r.within(0..=copies as u64 - 1) as usize,
                down: Duration::from_micros(r.magnitude(500..=3_000_000)),
                how: if r.chance(600) { Return::Resumed } else { Return::Afresh },
            })
            .collect();
        let full = if r.chance(300) { r.within(1..=6) } else { 0 };
        let full = (0..full)
            .map(|_| {
                let from = within(&mut r);
                (from, from + Duration::from_micros(r.magnitude(50..=20_000)))
            })
            .collect();
        let refused = if r.chance(150) { r.within(1..=30) as u32 } else { 0 };
        let stalls = if r.chance(300) { r.within(1..=4) } else { 0 };
        let stalls = (0..stalls)
            .map(|_| {
                let from = within(&mut r);
                let longest = if r.chance(300) { 100_000_000 } else { 1_000_000 };
                (from, from + Duration::from_micros(r.magnitude(1_000..=longest)))
            })
            .collect();
        let echoes = if r.chance(200) { r.magnitude(1..=60) as usize } else { 0 };
        let stop = r.chance(400).then(|| within(&mut r));
        let answers_farewell = r.chance(800);
        Self { copies, ring, echoes, bad_records, slowness, stalls, breaks, full, refused, stop, answers_farewell }
    }

    pub fn leave_out(&mut self, part: Part) {
        match part {
            Part::Copies => {
                self.copies = 1;
                self.breaks.iter_mut().for_each(|one| one.copy = 0);
            }
            Part::Ring => (self.ring, self.echoes, self.bad_records) = (16 << 20, 0, 0),
            Part::Machine => {
                self.slowness = 1;
                self.stalls.clear();
            }
            Part::Breaks => self.breaks.clear(),
            Part::Sink => {
                self.full.clear();
                self.refused = 0;
            }
            Part::Stop => self.stop = None,
            _ => {}
        }
    }
}
