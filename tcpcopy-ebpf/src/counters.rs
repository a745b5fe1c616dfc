//! Counting: what both objects have.

use crate::maps::{self, HostCounter};

/// Something that counts, in a per-CPU array.
pub trait Count: Copy {
    /// Adds `n`.
    fn add(self, n: u64);

    /// Adds one.
    #[inline(always)]
    fn count(self) {
        self.add(1);
    }
}

impl Count for HostCounter {
    #[inline(always)]
    fn add(self, n: u64) {
        if let Some(cell) = maps::counter(self) {
            // SAFETY: the cell belongs to this CPU, on which programs of this type do not interrupt each other.
            unsafe { *cell = (*cell).wrapping_add(n) };
        }
    }
}
