//! Counting.

use tcpcopy_common::counters::{CaptureCounter, TargetCounter};

use crate::maps;

/// Something with a place in a per-CPU array of counters.
pub trait Counter: Copy {
    fn cell(self) -> Option<*mut u64>;

    /// Adds `n`.
    #[inline(always)]
    fn add(self, n: u64) {
        if let Some(cell) = self.cell() {
            // SAFETY: the cell belongs to this CPU, on which programs of this type do not interrupt each other.
            unsafe { *cell = (*cell).wrapping_add(n) };
        }
    }

    /// Adds one.
    #[inline(always)]
    fn count(self) {
        self.add(1);
    }
}

impl Counter for CaptureCounter {
    #[inline(always)]
    fn cell(self) -> Option<*mut u64> {
        maps::capture_counter(self)
    }
}

impl Counter for TargetCounter {
    #[inline(always)]
    fn cell(self) -> Option<*mut u64> {
        maps::target_counter(self)
    }
}
