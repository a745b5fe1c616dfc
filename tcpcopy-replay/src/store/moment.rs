//! A deadline, or none.

use crate::time::Nanos;

/// A point in time or never, in eight octets; never is the latest of all. It has the alignment of a smaller number, so
/// that an enum with one takes twelve octets, not sixteen: a session has many of them, and there are many sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(Rust, packed(4))]
pub(crate) struct Moment(Nanos);

impl Moment {
    pub(crate) const NEVER: Self = Self(Nanos(u64::MAX));

    pub(crate) const fn at(time: Nanos) -> Self {
        Self(time)
    }

    /// Returns the point in time; the last of [`Nanos`] for never.
    pub(crate) const fn time(self) -> Nanos {
        self.0
    }

    pub(crate) fn is_set(self) -> bool {
        self != Self::NEVER
    }

    pub(crate) fn is_due(self, now: Nanos) -> bool {
        self.is_set() && self.time() <= now
    }

    /// Sets it, unless it is set.
    pub(crate) fn set_once(&mut self, time: Nanos) {
        if !self.is_set() {
            self.0 = time;
        }
    }
}

impl From<Option<Nanos>> for Moment {
    fn from(time: Option<Nanos>) -> Self {
        time.map_or(Self::NEVER, Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn never_comes_last_and_is_never_due() {
        let soon = Moment::at(Nanos(5));
        assert_eq!(soon.min(Moment::NEVER), soon);
        assert_eq!((soon.is_due(Nanos(4)), soon.is_due(Nanos(5))), (false, true));
        assert!(!Moment::NEVER.is_due(Nanos(u64::MAX)));
    }

    #[test]
    fn what_is_set_stays() {
        let mut deadline = Moment::from(None);
        deadline.set_once(Nanos(1));
        deadline.set_once(Nanos(2));
        assert_eq!(deadline, Moment::at(Nanos(1)));
    }
}
