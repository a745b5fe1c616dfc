//! Farewells: whether the end of a live connection waits for answers that the target owes.
//!
//! A client with many requests under way at once (gRPC) closes when it has read all answers. The end of the first of
//! the target's answers looks like the end of all, and a server gives up what a client that is gone has asked for. So
//! the FIN waits until the target has sent as many octets as the live server had, or is quiet for long. A target whose
//! answers are shorter would be waited for in vain; that is learned.

use crate::time::Nanos;

/// Farewells in a row that waited in vain, after which few wait.
const MOST_IN_VAIN: u8 = 3;
/// Of those, 1 in this many is tried.
const EVERY: u8 = 32;

/// What the farewells to the servers of a rule have shown so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Farewells {
    vain: u8,
    skipped: u8,
}

impl Farewells {
    /// Decides whether a farewell waits for a target that has sent less than the live server.
    pub(crate) const fn is_to_wait(&mut self) -> bool {
        if self.vain < MOST_IN_VAIN {
            return true;
        }
        self.skipped = self.skipped.wrapping_add(1);
        self.skipped.is_multiple_of(EVERY)
    }

    /// Records what came of it. `owed`: the target has sent the rest.
    pub(crate) const fn judge(&mut self, owed: bool) {
        self.vain = if owed { 0 } else { self.vain.saturating_add(1) };
    }
}

/// What was decided when the live client's end was first looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Parting {
    #[default]
    Undecided,
    /// It waits, since then.
    Waits(Nanos),
    /// It waits for no more than the gate.
    Goes,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_three_in_vain_few_wait_until_one_was_not_in_vain() {
        let mut farewells = Farewells::default();
        for _ in 0..3 {
            assert!(farewells.is_to_wait());
            farewells.judge(false);
        }
        assert_eq!((0..64).filter(|_| farewells.is_to_wait()).count(), 2);
        farewells.judge(true);
        assert!(farewells.is_to_wait());
    }
}
