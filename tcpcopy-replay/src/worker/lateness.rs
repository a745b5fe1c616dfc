//! Whether requests that wait for a response are late, so that responses should be reported at once.

use std::time::Duration;

use crate::Nanos;

/// How long naps stay interruptible by reports after a request that had to wait for one was late.
const ALERT: Duration = Duration::from_millis(10);

/// Detects gated requests that run late, to suspend the batching of reports.
#[derive(Debug)]
pub(super) struct Lateness {
    /// How long the targets go without batching after they were asked.
    holds: Duration,
    /// Late requests that were counted.
    seen: u64,
    until: Nanos,
    /// When the targets should be asked next.
    ask_at: Nanos,
}

impl Lateness {
    /// Makes a detector; nothing is late yet. Once asked, the targets go without batching for `holds`.
    pub(super) const fn new(holds: Duration) -> Self {
        Self { holds, seen: 0, until: Nanos(0), ask_at: Nanos(0) }
    }

    /// Notes that `late` requests were late up to `now`; returns whether some were within the last [`ALERT`].
    pub(super) fn note(&mut self, now: Nanos, late: u64) -> bool {
        if late != self.seen {
            self.seen = late;
            self.until = now.after(ALERT);
        }
        now < self.until
    }

    /// Reports whether the targets should be asked now to report at once: again before what they were asked runs out.
    pub(super) fn is_news(&mut self, now: Nanos) -> bool {
        let due = now < self.until && now >= self.ask_at;
        if due {
            self.ask_at = now.after(self.holds / 2);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intercepts_are_told_of_late_requests_before_they_forget_and_only_while_there_are_some() {
        let mut lateness = Lateness::new(Duration::from_millis(50));
        let (mut told, mut at) = (Vec::new(), Nanos(1_000_000_000));
        let start = at;
        // A late request every millisecond, for a tenth of a second.
        for ms in 0..300 {
            assert_eq!(lateness.note(at, 1 + ms.min(100)), ms < 110, "after {ms} ms");
            if lateness.is_news(at) {
                told.push(at.since(start));
            }
            at = at.after(Duration::from_millis(1));
        }
        assert_eq!(told, [0, 25, 50, 75, 100].map(Duration::from_millis));
    }
}
