//! Loss on the way to the target: the retransmission timer (RFC 6298) and the congestion window (RFC 5681).

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

/// The initial window, in segments (RFC 6928).
const INITIAL_SEGMENTS: u32 = 10;
/// The maximum window, in octets: more is never needed on a path of a millisecond, and would only flood queues.
const MAX_WINDOW: u32 = 4 << 20;

/// The congestion window (RFC 5681), in octets; which losses halve it is for the caller to say, and how large a segment
/// is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Congestion {
    window: u32,
    threshold: u32,
}

impl Congestion {
    pub(crate) fn new(segment: u16) -> Self {
        Self { window: INITIAL_SEGMENTS * u32::from(segment), threshold: u32::MAX }
    }

    /// Returns how much may be in flight.
    pub(crate) const fn window(&self) -> u32 {
        self.window
    }

    /// Grows the window: `acked` octets were acknowledged while `flight` were under way.
    pub(crate) fn acknowledge(&mut self, acked: u32, flight: u32, segment: u16) {
        // Only a window that was used says something about the path (RFC 7661's concern, in its simplest form).
        if flight.saturating_mul(2) < self.window {
            return;
        }
        let growth = if self.window < self.threshold {
            acked
        } else {
            (u64::from(segment) * u64::from(acked) / u64::from(self.window.max(1))).max(1) as u32
        };
        self.window = self.window.saturating_add(growth).min(MAX_WINDOW);
    }

    /// Halves the window: a segment was lost, but others arrived (RFC 5681, section 3.2).
    pub(crate) fn handle_loss(&mut self, flight: u32, segment: u16) {
        self.threshold = (flight / 2).max(2 * u32::from(segment));
        self.window = self.threshold;
    }

    /// Starts slowly again: the retransmission timer has expired (RFC 5681, section 3.1).
    pub(crate) fn handle_timeout(&mut self, flight: u32, segment: u16) {
        self.threshold = (flight / 2).max(2 * u32::from(segment));
        self.window = u32::from(segment);
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
    fn the_window_doubles_per_round_trip_then_grows_by_a_segment() {
        let mut c = Congestion::new(1000);
        c.acknowledge(10_000, 10_000, 1000);
        assert_eq!(c.window(), 20_000);
        c.handle_loss(20_000, 1000);
        assert_eq!(c.window(), 10_000);
        for _ in 0..10 {
            c.acknowledge(1000, 10_000, 1000);
        }
        assert!((10_900..=11_000).contains(&c.window()), "{}", c.window());
        c.handle_timeout(11_000, 1000);
        assert_eq!(c.window(), 1000);
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut c = Congestion::new(1000);
        (0..100).for_each(|_| c.acknowledge(1000, 1000, 1000));
        assert_eq!(c.window(), 10_000);
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

    #[test]
    fn a_window_used_by_half_grows() {
        let mut c = Congestion::new(1000);
        c.acknowledge(1000, 5000, 1000);
        assert_eq!(c.window(), 11_000);
    }

    #[test]
    fn losses_leave_half_of_the_flight_but_two_segments() {
        let mut c = Congestion::new(1000);
        c.handle_loss(1000, 1000);
        assert_eq!(c.window(), 2000);
        // Slow start up to half of what was under way, then a segment per round trip.
        c.handle_timeout(20_000, 1000);
        let windows: Vec<_> = (0..6)
            .map(|_| {
                c.acknowledge(c.window(), c.window(), 1000);
                c.window()
            })
            .collect();
        assert_eq!(windows, [2000, 4000, 8000, 16_000, 17_000, 18_000]);
        c.handle_timeout(0, 1000);
        c.acknowledge(500, 1000, 1000);
        c.acknowledge(1000, 1500, 1000);
        assert_eq!(c.window(), 2500, "slow start up to two segments");
    }
}
