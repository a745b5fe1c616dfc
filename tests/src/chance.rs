//! Bounds for what chance decides, so wide that a right program does not cross them.

use std::ops::RangeInclusive;

/// How likely an assertion may fail although nothing is wrong. A run of all tests has fewer than a hundred such
/// assertions, so it is one run of a million that fails by chance.
pub const RARE: f64 = 1e-8;

/// Returns the range outside of which the number of successes in `n` independent trials, each with probability `p`, is
/// with a probability of less than [`RARE`]: half of it on either side, from the exact binomial distribution.
///
/// A bound taken from the expectation alone (70 to 130 % of it, say) is far too narrow where few are expected: of 1,900
/// frames of which one in a hundred is lost 19 are expected, and 11 or fewer are every thirtieth time.
pub fn binomial(n: u64, p: f64) -> RangeInclusive<u64> {
    least(n, p)..=n - least(n, 1.0 - p)
}

/// Returns the largest number of which fewer successes are rarer than half of [`RARE`].
fn least(n: u64, p: f64) -> u64 {
    if p <= 0.0 {
        return 0;
    }
    if p >= 1.0 {
        return n;
    }
    // Logarithms, because the probability of no success in ten thousand trials is no number that a float holds.
    let (mut log, odds) = (n as f64 * (-p).ln_1p(), p.ln() - (-p).ln_1p());
    let mut fewer = 0.0;
    for k in 0..n {
        fewer += log.exp();
        if fewer > RARE / 2.0 {
            return k;
        }
        log += odds + ((n - k) as f64 / (k + 1) as f64).ln();
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of 40 throws of a coin: 0 to 2 heads in 821 of 2^40 cases, which is 7.5 in 10^10; 0 to 3 in 10,701, which is 9.7
    /// in 10^9.
    #[test]
    fn the_bounds_are_those_of_the_distribution() {
        assert_eq!(binomial(40, 0.5), 3..=37);
        assert_eq!(binomial(20, 0.5), 0..=20, "even no head at all is not rare enough");
    }

    #[test]
    fn what_is_certain_has_no_width() {
        assert_eq!(binomial(1000, 0.0), 0..=0);
        assert_eq!(binomial(1000, 1.0), 1000..=1000);
        assert_eq!(binomial(0, 0.3), 0..=0);
    }

    /// Far from the middle the distribution is not normal: six standard deviations below 19 would be negative.
    #[test]
    fn few_of_many_have_a_range_that_is_wide_above_and_narrow_below() {
        let range = binomial(1_900, 0.01);
        assert!(range.contains(&1) && range.contains(&45) && !range.contains(&60), "{range:?}");
        // 100 and six times 9.9.
        let range = binomial(10_000, 0.01);
        assert!((45..=55).contains(range.start()) && (155..=168).contains(range.end()), "{range:?}");
    }
}
