//! SYNs that the program in the kernel refuses: worth a line in the log, but not one for each.

use std::time::Duration;

use tcpcopy_common::counters::TargetCounter;
use tcpcopy_replay::Nanos;

use crate::finding::Finding;

/// Between two lines about the same thing.
const PERIOD: Duration = Duration::from_secs(60);

/// A kind of refused SYNs that the operator is told about.
struct Kind {
    /// What it counts as.
    counters: &'static [TargetCounter],
    /// What became of them.
    what: &'static str,
    why: Option<&'static str>,
    remedy: Option<&'static str>,
}

const KINDS: [Kind; 3] = [
    Kind {
        counters: &[TargetCounter::BadTag, TargetCounter::UnknownInstance, TargetCounter::Malformed],
        what: "with an invalid mark were dropped",
        why: Some("somebody forges them, or a tcpcopy goes on whose channel was lost for too long"),
        remedy: None,
    },
    Kind {
        counters: &[TargetCounter::Stale],
        what: "with a mark that was made seconds ago were dropped",
        why: Some("somebody repeats recorded ones, or the control channel to a tcpcopy is slow"),
        remedy: None,
    },
    Kind {
        counters: &[TargetCounter::MapFull],
        what: "were dropped because the session map is full",
        why: None,
        remedy: Some("raise --max-sessions"),
    },
];

/// What was counted when the operator was last told, and when that was.
#[derive(Debug, Default)]
pub(super) struct RefusedSyns([(u64, Option<Nanos>); KINDS.len()]);

impl RefusedSyns {
    /// What is due to be told at `now`; `count` gives the value of a counter.
    pub(super) fn findings(&mut self, count: impl Fn(TargetCounter) -> u64, now: Nanos) -> Vec<Finding> {
        let mut findings = Vec::new();
        for ((told, at), kind) in self.0.iter_mut().zip(&KINDS) {
            let count: u64 = kind.counters.iter().map(|&counter| count(counter)).sum();
            if count > *told && at.is_none_or(|at| now.since(at) >= PERIOD) {
                findings.push(Finding {
                    why: kind.why.map(str::to_owned),
                    remedy: kind.remedy.map(str::to_owned),
                    ..Finding::warning(format!("{} SYNs {}", count - *told, kind.what))
                });
                (*told, *at) = (count, Some(now));
            }
        }
        findings
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
        assert!(refused.findings(counted(&[]), second(1)).is_empty());
        let forged =
            |n| move |counter| counted(&[(TargetCounter::BadTag, n), (TargetCounter::UnknownInstance, 1)])(counter);
        assert!(refused.findings(forged(2), second(2))[0].what.starts_with("3 SYNs with an invalid mark"));
        assert!(refused.findings(forged(50), second(30)).is_empty());
        assert!(refused.findings(forged(99), second(62))[0].what.starts_with("97 SYNs"));
        assert!(refused.findings(forged(99), second(200)).is_empty(), "nothing new");
        let full = [(TargetCounter::MapFull, 2)];
        assert_eq!(
            RefusedSyns::default().findings(counted(&full), second(1))[0].to_string(),
            "2 SYNs were dropped because the session map is full; raise --max-sessions"
        );
        let both = [(TargetCounter::BadTag, 100), (TargetCounter::MapFull, 7)];
        assert_eq!(refused.findings(counted(&both), second(201)).len(), 1, "the sum is as it was, but the map is full");
    }
}
