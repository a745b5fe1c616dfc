//! Connections that may end when there are as many as allowed; `eviction` finds them.

use crate::{store::id::Id, time::Nanos};

/// Connections to be ended when there is no room, as a search has found them.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    /// The last is the first to go.
    pub found: Vec<Candidate>,
    /// When the last search was, if it has found nobody.
    pub vain: Option<Nanos>,
}

/// A connection that was idle when it was found. It still is if its last activity is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Candidate {
    /// Whether it has a session: what has none goes first.
    pub active: bool,
    pub last_activity: Nanos,
    pub id: Id,
}
