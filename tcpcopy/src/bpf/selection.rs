//! Which connections are copied of those that the rules match.

use std::time::Duration;

use aya::maps::Array;
use tcpcopy_common::capture::WHOLE_SAMPLE;

use super::{BpfError, names::map, object::Object};

/// A part of all connections, as the threshold of the lottery in which each draws a number of 32 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share(u64);

impl Share {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All of them.
    pub const WHOLE: Self = Self(WHOLE_SAMPLE);

    /// Makes a share of `percent`, 0 to 100; more than that is all.
    #[must_use]
    pub const fn percent(percent: u8) -> Self {
        let percent = if percent > 100 { 100 } else { percent as u64 };
        Self(WHOLE_SAMPLE * percent / 100)
    }

    /// Returns what an even growth from nothing to this share over `duration` has come to after `elapsed`.
    #[must_use]
    pub fn grown(self, elapsed: Duration, duration: Duration) -> Self {
        if elapsed >= duration {
            return self;
        }
        // Less than `self.0`, so it fits.
        Self((u128::from(self.0) * elapsed.as_nanos() / duration.as_nanos()) as u64)
    }

    /// Returns whether a connection that has drawn this number is in it.
    #[cfg(test)]
    pub(super) fn includes(self, draw: u32) -> bool {
        u64::from(draw) < self.0
    }

    /// Tells the programs.
    pub(super) fn write(self, object: &mut Object) -> Result<(), BpfError> {
        let write = BpfError::write(map::SAMPLE_THRESHOLD);
        let mut threshold: Array<_, u64> = object.map_mut(map::SAMPLE_THRESHOLD)?.try_into().map_err(write)?;
        threshold.set(0, self.0, 0).map_err(BpfError::write(map::SAMPLE_THRESHOLD))
    }
}

/// A lottery that decides by connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Another seed draws another sample.
    pub seed: u32,
    /// The share of connections to begin with.
    pub share: Share,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_parts_of_the_whole() {
        assert_eq!(Share::percent(100), Share::WHOLE);
        assert_eq!(Share::percent(0), Share::NONE);
        assert_eq!(Share::percent(25).0, 1 << 30);
    }

    #[test]
    fn a_share_grows_evenly_and_then_stays() {
        let (full, ten) = (Share::percent(50), Duration::from_secs(10));
        assert_eq!(full.grown(Duration::ZERO, ten), Share::NONE);
        assert_eq!(full.grown(ten / 2, ten), Share::percent(25));
        assert_eq!(full.grown(ten, ten), full);
        assert_eq!(full.grown(ten * 3, ten), full);
        assert_eq!(full.grown(Duration::ZERO, Duration::ZERO), full);
    }
}
