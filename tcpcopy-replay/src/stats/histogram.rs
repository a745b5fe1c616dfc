//! A histogram of durations that costs an increment per sample and never allocates.

use std::time::Duration;

use tcpcopy_common::figures::{Distribution, Family, Figure, Value, Visit};

/// Sub-buckets per power of two: percentiles are at most 1/8 too high.
const STEPS: u32 = 8;
const STEP_BITS: u32 = STEPS.trailing_zeros();
/// 1 ns to 2^42 ns (73 minutes); what is longer falls into the last bucket.
const BUCKETS: usize = (42 * STEPS) as usize;

/// Durations, counted in buckets that grow with their value.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Box<[u64; BUCKETS]>,
    count: u64,
    max_ns: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), count: 0, max_ns: 0 }
    }
}

impl Histogram {
    /// Adds one sample.
    pub fn record(&mut self, d: Duration) {
        let ns = u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        self.counts[bucket(ns)] += 1;
        self.count += 1;
        self.max_ns = self.max_ns.max(ns);
    }

    /// Returns how many samples there are.
    #[must_use]
    pub const fn count(&self) -> u64 {
        self.count
    }

    /// Returns the longest sample, exactly.
    #[must_use]
    pub const fn max(&self) -> Duration {
        Duration::from_nanos(self.max_ns)
    }

    /// Returns an upper bound, at most an eighth too high, of the duration that `percent` (0 to 100) of the samples do
    /// not exceed; zero without samples.
    #[must_use]
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (self.count as f64 * percent / 100.0).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (i, n) in self.counts.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return Duration::from_nanos(upper(i).min(self.max_ns));
            }
        }
        Duration::ZERO
    }
}

impl Distribution for Histogram {
    fn count(&self) -> u64 {
        self.count()
    }

    fn max(&self) -> Duration {
        self.max()
    }

    fn percentile(&self, percent: f64) -> Duration {
        self.percentile(percent)
    }
}

impl Figure for Histogram {
    type Declaration = Family;

    /// Adds the samples of another.
    fn add(&mut self, other: &Self) {
        let Self { counts, count, max_ns } = other;
        for (mine, theirs) in self.counts.iter_mut().zip(counts.iter()) {
            *mine += theirs;
        }
        self.count += count;
        self.max_ns = self.max_ns.max(*max_ns);
    }

    fn hand_out(&self, family: &'static Family, visitor: &mut dyn Visit) {
        visitor.figure(family, &[], Value::Distribution(self));
    }
}

fn bucket(ns: u64) -> usize {
    if ns < u64::from(STEPS) {
        return ns as usize;
    }
    let exponent = ns.ilog2() - STEP_BITS;
    // The leading one bit selects the power of two, the STEP_BITS after it the step.
    let index = u64::from(exponent * STEPS) + (ns >> exponent);
    (index as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
const fn upper(index: usize) -> u64 {
    let index = index as u64;
    let steps = STEPS as u64;
    if index < steps {
        return index;
    }
    let exponent = index / steps - 1;
    ((index % steps + steps + 1) << exponent) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_gapless_and_at_most_an_eighth_wide() {
        for ns in (0..5000).chain([1 << 20, (1 << 20) - 1, 123_456_789, (1 << 42) - 1]) {
            let i = bucket(ns);
            assert!(ns <= upper(i), "{ns}");
            assert!(i == 0 || ns > upper(i - 1), "{ns}");
            assert!(upper(i) - ns <= ns / 8, "{ns}");
        }
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn percentiles_bound_the_samples_from_above() {
        let mut h = Histogram::default();
        assert_eq!(h.percentile(99.0), Duration::ZERO);
        for us in 1..=1000 {
            h.record(Duration::from_micros(us));
        }
        for (percent, us) in [(50.0, 500), (99.0, 990), (100.0, 1000)] {
            let p = h.percentile(percent);
            assert!(p >= Duration::from_micros(us) && p <= Duration::from_micros(us + us / 8 + 1), "{percent}: {p:?}");
        }
        assert_eq!((h.count(), h.max()), (1000, Duration::from_micros(1000)));
    }

    #[test]
    fn merging_adds_sample_by_sample() {
        let (mut h, mut others) = (Histogram::default(), Histogram::default());
        (0..1000).for_each(|_| h.record(Duration::from_micros(10)));
        (0..3000).for_each(|_| others.record(Duration::from_micros(1000)));
        for _ in 0..2 {
            h.add(&others);
        }
        assert_eq!((h.count(), h.max()), (7000, Duration::from_micros(1000)));
        let near = |percent, us: u64| {
            let p = h.percentile(percent);
            p >= Duration::from_micros(us) && p <= Duration::from_micros(us + us / 8 + 1)
        };
        // A seventh is short.
        assert!(near(14.0, 10) && near(14.5, 1000), "{:?} {:?}", h.percentile(14.0), h.percentile(14.5));
    }
}
