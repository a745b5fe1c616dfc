//! The retransmission time-out (RFC 6298), from the measured round trips to the target.

use std::{num::NonZeroU32, time::Duration};

/// The RTO before the first measurement (RFC 6298, section 2.1).
const INITIAL_RTO: Duration = Duration::from_secs(1);
/// The minimum RTO. RFC 6298 says one second; a target in a data centre answers within one millisecond, and Linux uses
/// this.
const MIN_RTO: Duration = Duration::from_millis(200);
/// The maximum RTO (RFC 6298, section 2.5).
const MAX_RTO: Duration = Duration::from_secs(60);

/// The retransmission time-out (RFC 6298), in microseconds: a session has many of these, and they are short.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rto {
    /// `None` before the first sample.
    smoothed_us: Option<NonZeroU32>,
    variation_us: u32,
    /// How often it has been doubled. Kept until a round trip has been measured again: an acknowledgement of something
    /// sent twice does not tell that the time-out was too short (RFC 6298, section 5.7, and Karn's rule).
    backoff: u8,
    /// How often it has expired since the target last acknowledged something.
    expirations: u8,
}

impl Rto {
    pub(crate) const fn new() -> Self {
        Self { smoothed_us: None, variation_us: 0, backoff: 0, expirations: 0 }
    }

    /// Returns the current time-out, back-off included.
    pub(crate) fn current(&self) -> Duration {
        let base = match self.smoothed_us {
            None => INITIAL_RTO,
            Some(s) => Duration::from_micros(u64::from(s.get()) + 4 * u64::from(self.variation_us)).max(MIN_RTO),
        };
        base.saturating_mul(1 << self.backoff.min(16)).min(MAX_RTO)
    }

    /// Returns about the shortest round trip: the mean less the variation, which delayed acknowledgements make large.
    pub(crate) fn shortest(&self) -> Duration {
        let mean = self.smoothed_us.map_or(0, NonZeroU32::get);
        Duration::from_micros(mean.saturating_sub(self.variation_us).into())
    }

    /// Returns how often in a row it has expired.
    pub(crate) const fn expirations(&self) -> u8 {
        self.expirations
    }

    /// Backs off: the timer has expired (RFC 6298, section 5.5).
    pub(crate) fn expire(&mut self) {
        self.backoff = self.backoff.saturating_add(1);
        self.expirations = self.expirations.saturating_add(1);
    }

    /// Records that the target has acknowledged something.
    pub(crate) const fn progress(&mut self) {
        self.expirations = 0;
    }

    /// Resets the back-off after a zero-window probe: the delay was not caused by loss.
    #[must_use]
    pub(crate) const fn reset_backoff(self) -> Self {
        Self { backoff: 0, expirations: 0, ..self }
    }

    /// Adds the round-trip time of a segment that was sent only once (Karn's rule).
    pub(crate) fn sample(&mut self, rtt: Duration) {
        self.backoff = 0;
        let rtt = u32::try_from(rtt.as_micros()).unwrap_or(u32::MAX).min(MAX_RTO.as_micros() as u32);
        match self.smoothed_us {
            None => {
                self.smoothed_us = NonZeroU32::new(rtt).or(Some(NonZeroU32::MIN));
                self.variation_us = rtt / 2;
            }
            Some(smoothed) => {
                let smoothed = smoothed.get();
                self.variation_us = (3 * (self.variation_us / 4)).saturating_add(smoothed.abs_diff(rtt) / 4);
                self.smoothed_us = NonZeroU32::new(smoothed - smoothed / 8 + rtt / 8).or(Some(NonZeroU32::MIN));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_out_follows_the_samples_within_its_bounds() {
        let mut rto = Rto::new();
        assert_eq!(rto.current(), INITIAL_RTO);
        rto.sample(Duration::from_millis(100));
        assert_eq!(rto.current(), Duration::from_millis(300));
        for _ in 0..100 {
            rto.sample(Duration::from_millis(1));
        }
        assert_eq!(rto.current(), MIN_RTO);
        rto.sample(Duration::MAX);
        assert!(rto.current() <= MAX_RTO);
    }

    #[test]
    fn the_shortest_round_trip_is_that_of_a_steady_path_and_not_of_delayed_acknowledgements() {
        let after = |samples: [u64; 4]| {
            let mut rto = Rto::new();
            samples.iter().cycle().take(400).for_each(|&ms| rto.sample(Duration::from_millis(ms)));
            rto.shortest()
        };
        assert_eq!(Rto::new().shortest(), Duration::ZERO);
        assert!((25..=31).contains(&(after([30, 31, 30, 29]).as_millis())), "{:?}", after([30, 31, 30, 29]));
        assert_eq!(after([1, 1, 1, 40]), Duration::ZERO);
    }

    #[test]
    fn the_time_out_doubles_until_a_round_trip_is_measured() {
        let mut rto = Rto::new();
        rto.sample(Duration::from_micros(300));
        let steps: Vec<_> = (0..4)
            .map(|_| {
                rto.expire();
                rto.current().as_millis()
            })
            .collect();
        assert_eq!(steps, [400, 800, 1600, 3200]);
        (0..300).for_each(|_| rto.expire());
        assert_eq!(rto.current(), MAX_RTO);
        rto.progress();
        assert_eq!((rto.current(), rto.expirations()), (MAX_RTO, 0));
        rto.sample(Duration::from_micros(300));
        assert_eq!(rto.current(), MIN_RTO);
    }

    #[test]
    fn the_time_out_is_that_of_rfc_6298() {
        let ms = Duration::from_millis;
        let mut rto = Rto::new();
        rto.sample(ms(100));
        rto.sample(ms(200));
        // SRTT 112.5 ms, RTTVAR 62.5 ms.
        assert_eq!(rto.current(), Duration::from_micros(362_500));
        rto.sample(ms(100));
        assert_eq!(rto.current(), Duration::from_micros(110_938 + 4 * (46_875 + 3125)));
    }

    #[test]
    fn an_opened_window_takes_the_doubling_back() {
        let mut rto = Rto::new();
        rto.sample(Duration::from_millis(300));
        let before = rto.current();
        (0..3).for_each(|_| rto.expire());
        assert_eq!((rto.reset_backoff().current(), rto.reset_backoff().expirations()), (before, 0));
    }
}
