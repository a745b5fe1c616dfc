//! How long to wait before dialling again.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(250);
/// A restarted `intercept` is found again within as long.
const LONGEST: Duration = Duration::from_secs(2);

/// Delays between attempts: each step doubles from 250 ms to 2 s, and a delay is drawn from the upper half of its
/// step, so that the workers of many sources do not all knock on a restarted `intercept` in the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    step: Duration,
    state: u64,
}

impl Backoff {
    /// Starts at the shortest delay. Give each worker another `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self { step: FIRST, state: seed }
    }

    /// How long to wait before the next attempt.
    pub fn next_delay(&mut self) -> Duration {
        let step = self.step;
        self.step = (step * 2).min(LONGEST);
        let half = step / 2;
        half + half.mul_f64(self.random())
    }

    /// SplitMix64, as a fraction of 1. Spreading attempts needs no secret randomness.
    fn random(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        (z >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_stay_in_the_upper_half() {
        for seed in 0..100 {
            let mut backoff = Backoff::new(seed);
            for step in [250, 500, 1000, 2000, 2000, 2000] {
                let step = Duration::from_millis(step);
                let delay = backoff.next_delay();
                assert!(delay >= step / 2 && delay <= step, "seed {seed}: {delay:?} of {step:?}");
            }
        }
    }

    #[test]
    fn seeds_spread_the_attempts() {
        let mut delays: Vec<_> = (0..64).map(|seed| Backoff::new(seed).next_delay().as_millis()).collect();
        delays.sort_unstable();
        delays.dedup();
        assert!(delays.len() > 30, "{delays:?}");
    }
}
