//! The congestion window on the way to the target (RFC 5681).

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
