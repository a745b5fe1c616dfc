//! The emulated round trip: what was asked for, and the distance of one client.
//!
//! A live client's own round trip shows in its handshake: the acknowledgement that ends it answers the live server's
//! SYN, which leaves this host as soon as the client's SYN is in. Later ones cannot be told from the time that the
//! client takes.

use std::time::Duration;

/// The round trip that replayed clients emulate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RoundTrip {
    /// They are next to the target, and acknowledge its answers by the next request, where one follows soon.
    #[default]
    Near,
    /// Each of them acknowledges this much later than an answer has come.
    Same(Duration),
    /// Each of them is as far away as its live client, which the end of the live handshake shows.
    Live,
}

/// The emulated distance of one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Distance {
    /// So near that it makes no difference, or unknown.
    Near,
    Far(Ticks),
}

/// A round trip in units of 200 µs: there are many sessions, and reports are no more precise than that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ticks(u16);

/// The minimum round trip of a distant client. Nearer ones would gain nothing: reports may take as long as that
/// themselves.
const FAR: Duration = Duration::from_millis(1);
/// The maximum round trip that can be measured: above, both ends have retransmitted their SYNs (RFC 6298, section 2.1),
/// and which of them was answered cannot be told (Karn's rule).
const AMBIGUOUS: Duration = Duration::from_secs(1);

impl Ticks {
    const TICK: Duration = Duration::from_micros(200);

    fn new(time: Duration) -> Self {
        Self(u16::try_from((time + Self::TICK / 2).as_micros() / Self::TICK.as_micros()).unwrap_or(u16::MAX))
    }

    pub(crate) fn time(self) -> Duration {
        Self::TICK * u32::from(self.0)
    }
}

impl Distance {
    /// The distance of a client whose SYN was captured just now; `None` until its live handshake has ended.
    pub(crate) fn of_new(wanted: RoundTrip) -> Option<Self> {
        (wanted != RoundTrip::Live).then(|| Self::of_joined(wanted))
    }

    /// The distance of a client whose handshake was not captured.
    pub(crate) fn of_joined(wanted: RoundTrip) -> Self {
        match wanted {
            RoundTrip::Same(time) if !time.is_zero() => Self::Far(Ticks::new(time)),
            RoundTrip::Near | RoundTrip::Same(_) | RoundTrip::Live => Self::Near,
        }
    }

    /// The distance of a client whose first segment after the last of its SYNs came `time` after that.
    pub(crate) fn measured(time: Duration) -> Self {
        if (FAR..AMBIGUOUS).contains(&time) { Self::Far(Ticks::new(time)) } else { Self::Near }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_difference_and_what_nobody_can_tell_is_near() {
        for (micros, far) in [(0, false), (999, false), (1_000, true), (999_999, true), (1_000_000, false)] {
            let distance = Distance::measured(Duration::from_micros(micros));
            assert_eq!(distance != Distance::Near, far, "{micros} µs: {distance:?}");
        }
    }

    #[test]
    fn every_round_trip_that_can_be_asked_for_is_kept_to_a_tick() {
        for micros in [1_000, 1_234, 29_999, 999_999, 10_000_000] {
            let time = Duration::from_micros(micros);
            let Some(Distance::Far(ticks)) = Distance::of_new(RoundTrip::Same(time)) else { panic!("{micros} µs") };
            assert!(ticks.time().abs_diff(time) <= Ticks::TICK / 2, "{micros} µs: {:?}", ticks.time());
        }
    }

    #[test]
    fn only_a_handshake_that_is_seen_is_waited_for() {
        let of = |wanted| (Distance::of_new(wanted), Distance::of_joined(wanted));
        assert_eq!(of(RoundTrip::Live), (None, Distance::Near));
        for wanted in [RoundTrip::Near, RoundTrip::Same(Duration::ZERO)] {
            assert_eq!(of(wanted), (Some(Distance::Near), Distance::Near), "{wanted:?}");
        }
    }
}
