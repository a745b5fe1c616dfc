//! A lossy leg between source and target.

use std::time::Duration;

use tcpcopy_replay::Nanos;

use crate::random::Random;

/// What a leg does to packets. Chances are of a thousand.
#[derive(Clone, Debug)]
pub struct Impairment {
    pub loss: u32,
    pub duplication: u32,
    /// Held back for a while, so that later ones overtake it.
    pub reordering: u32,
    pub delay: Duration,
    /// Octets per second, and how many wait at most until the rest is dropped.
    pub bandwidth: Option<(u64, u64)>,
}

impl Impairment {
    /// A leg that only takes its time.
    pub const fn none(delay: Duration) -> Self {
        Self { loss: 0, duplication: 0, reordering: 0, delay, bandwidth: None }
    }
}

/// One direction.
pub struct Leg {
    impairment: Impairment,
    random: Random,
    /// When the last octet accepted so far has left.
    free: Nanos,
    pub lost: u64,
}

impl Leg {
    pub const fn new(impairment: Impairment, random: Random) -> Self {
        Self { impairment, random, free: Nanos(0), lost: 0 }
    }

    /// When a packet of `size` octets arrives: never, once or twice.
    pub fn carry(&mut self, now: Nanos, size: usize) -> [Option<Nanos>; 2] {
        let mut leaves = now;
        if let Some((rate, queue)) = self.impairment.bandwidth {
            let waiting = self.free.since(now);
            if waiting.as_nanos() as u64 / 1000 * rate / 1_000_000 > queue {
                self.lost += 1;
                return [None; 2];
            }
            leaves = self.free.max(now).after(Duration::from_nanos(size as u64 * 1_000_000_000 / rate));
            self.free = leaves;
        }
        if self.random.chance(self.impairment.loss) {
            self.lost += 1;
            return [None; 2];
        }
        let mut arrive = leaves.after(self.impairment.delay);
        if self.random.chance(self.impairment.reordering) {
            arrive = arrive.after(self.random.micros(10..=10_000));
        }
        let again = self.random.chance(self.impairment.duplication);
        [Some(arrive), again.then(|| arrive.after(self.random.micros(0..=2_000)))]
    }
}
