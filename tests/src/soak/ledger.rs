//! Whether figures add up.

use crate::Summary;

/// Returns where the figures of a `tcpcopy` that has ended do not add up.
pub(super) fn unbalanced(summary: &Summary) -> Vec<String> {
    let ledgers = ["bytes", "syns", "fins"].map(|ledger| (ledger, "captured", ["sent", "pending", "discarded"]));
    let sessions = ("sessions", "seen", ["finished", "active", "aborted"]);
    let wrong = ledgers.into_iter().chain([sessions]).filter_map(|(section, total, parts)| {
        let [total, parts] =
            [summary.count(section, total), parts.iter().map(|part| summary.count(section, part)).sum::<u64>()];
        (total != parts).then(|| format!("{section} do not add up: {total} came, and {parts} are accounted for"))
    });
    wrong.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_add_up_is_named() {
        let ledger = serde_json::json!({"captured": 7, "sent": 4, "pending": 1, "discarded": 2});
        let mut summary = serde_json::json!({
            "bytes": ledger, "syns": ledger, "fins": ledger,
            "sessions": {"seen": 3, "finished": 1, "active": 0, "aborted": 2},
        });
        assert_eq!(unbalanced(&Summary(summary.clone())), Vec::<String>::new());
        summary["fins"]["sent"] = 5.into();
        summary["sessions"]["seen"] = 4.into();
        let wrong = unbalanced(&Summary(summary));
        assert!(wrong.len() == 2 && wrong[0].contains("fins") && wrong[1].contains("sessions"), "{wrong:?}");
    }
}
