//! Keeps strangers from filling the log.

use std::time::Duration;

use tokio::time::Instant;

/// Lines in one [`PERIOD`].
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// Lets a few lines through per period and counts the rest.
#[derive(Debug, Default)]
pub(super) struct LogLimit {
    period: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

impl LogLimit {
    /// Whether a line may be written at `now`: then how many were suppressed since the last one that might.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.period.is_none_or(|start| now.duration_since(start) >= PERIOD) {
            self.period = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_ten_lines_and_its_size() {
        let mut limit = LogLimit::default();
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(limit.admit(start), Some(0));
        }
        for _ in 0..1000 {
            assert_eq!(limit.admit(start + PERIOD / 2), None);
        }
        assert_eq!(limit.admit(start + PERIOD), Some(1000));
        assert_eq!(limit.admit(start + PERIOD), Some(0));
    }
}
