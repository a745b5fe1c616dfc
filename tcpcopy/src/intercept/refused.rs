//! SYNs that the program in the kernel refuses: worth a line in the log, but not one for each.

use std::time::Duration;

use tcpcopy_common::counters::TargetCounter;

use tcpcopy_replay::Nanos;

/// Between two lines about the same thing.
const PERIOD: Duration = Duration::from_secs(60);

/// What the operator is told about, and what it counts.
const MATTERS: [(&[TargetCounter], &str); 2] = [
    (
        &[TargetCounter::BadTag, TargetCounter::UnknownInstance, TargetCounter::Malformed],
        "with an invalid mark were dropped: somebody forges them, or a tcpcopy goes on whose channel was lost for too long",
    ),
    (&[TargetCounter::MapFull], "were dropped because the session map is full: raise --max-sessions"),
];

/// What was counted when the operator was last told, and when that was.
#[derive(Debug, Default)]
pub(super) struct RefusedSyns([(u64, Option<Nanos>); MATTERS.len()]);

impl RefusedSyns {
    /// The lines that are due at `now`; `count` gives the value of a counter.
    pub(super) fn lines(&mut self, count: impl Fn(TargetCounter) -> u64, now: Nanos) -> Vec<String> {
        let mut lines = Vec::new();
        for ((told, at), (reasons, what)) in self.0.iter_mut().zip(MATTERS) {
            let count: u64 = reasons.iter().map(|&reason| count(reason)).sum();
            if count > *told && at.is_none_or(|at| now.since(at) >= PERIOD) {
                lines.push(format!("{} SYNs {what}", count - *told));
                (*told, *at) = (count, Some(now));
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(counts: &[(TargetCounter, u64)]) -> impl Fn(TargetCounter) -> u64 {
        |counter| counts.iter().find(|(c, _)| *c == counter).map_or(0, |(_, n)| *n)
    }

    #[test]
    fn the_operator_is_told_at_once_and_then_once_a_minute() {
        let mut refused = RefusedSyns::default();
        let second = |n: u64| Nanos(n * 1_000_000_000);
        assert!(refused.lines(counted(&[]), second(1)).is_empty());
        let forged =
            |n| move |counter| counted(&[(TargetCounter::BadTag, n), (TargetCounter::UnknownInstance, 1)])(counter);
        assert!(refused.lines(forged(2), second(2))[0].starts_with("3 SYNs with an invalid mark"));
        assert!(refused.lines(forged(50), second(30)).is_empty());
        assert!(refused.lines(forged(99), second(62))[0].starts_with("97 SYNs"));
        assert!(refused.lines(forged(99), second(200)).is_empty(), "nothing new");
        let both = [(TargetCounter::BadTag, 100), (TargetCounter::MapFull, 7)];
        assert_eq!(refused.lines(counted(&both), second(201)).len(), 1, "the sum is as it was, but the map is full");
    }
}
