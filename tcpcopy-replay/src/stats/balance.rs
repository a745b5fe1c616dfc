//! The comparison of sums that should be equal.

/// An identity of the counters that does not hold: a bug in the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {seen} seen, but {accounted} accounted for; this is a bug in tcpcopy, please report it")]
pub struct Unbalanced {
    /// Which identity.
    pub what: &'static str,
    /// What came in.
    pub seen: u64,
    /// What is known about where it went.
    pub accounted: u64,
}

pub(super) const fn balance(what: &'static str, seen: u64, accounted: u64) -> Result<(), Unbalanced> {
    if seen == accounted { Ok(()) } else { Err(Unbalanced { what, seen, accounted }) }
}
