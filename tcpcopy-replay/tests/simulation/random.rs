//! The only source of chance: the same seed and stream give the same numbers on every machine.

use std::{ops::RangeInclusive, time::Duration};

/// A generator of pseudo-random numbers (SplitMix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The generator number `stream` of a seed. Different parts of the simulation have streams of their own, so that
    /// leaving one out does not change what the others do.
    pub const fn new(seed: u64, stream: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ stream.wrapping_mul(0xd1b5_4a32_d192_ed03))
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One of `range`, all alike.
    pub fn within(&mut self, range: RangeInclusive<u64>) -> u64 {
        let span = range.end() - range.start() + 1;
        range.start() + self.next() % span
    }

    /// One of `range`, small ones as often as large ones: every doubling is as likely as the next.
    pub fn magnitude(&mut self, range: RangeInclusive<u64>) -> u64 {
        let doublings = (range.end() / range.start().max(&1)).ilog2();
        let low = range.start().max(&1) << self.within(0..=u64::from(doublings));
        self.within(low.min(*range.end())..=(2 * low).min(*range.end()))
    }

    /// True so many times of a thousand.
    pub fn chance(&mut self, of_thousand: u32) -> bool {
        self.next() % 1000 < u64::from(of_thousand)
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[(self.next() % of.len() as u64) as usize]
    }

    pub fn micros(&mut self, range: RangeInclusive<u64>) -> Duration {
        Duration::from_micros(self.within(range))
    }
}
