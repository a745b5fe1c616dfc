//! The table at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::UTF8_HORIZONTAL_ONLY};
use hdrhistogram::Histogram;

use crate::requests::Arrivals;

/// One kind of load.
pub struct Row {
    name: String,
    live: usize,
    /// Requests that were answered live and never seen at the target.
    pub lost: usize,
    lag: Histogram<u64>,
}

/// What the mirroring cost.
pub struct Costs {
    /// CPU time of `tcpcopy` per live request.
    pub tcpcopy: Duration,
    /// CPU time of `intercept` per live request.
    pub intercept: Duration,
    /// Packets of the target that reached the client.
    pub leaked: usize,
}

impl Row {
    /// Compares what was answered live with what was seen at both hosts.
    pub fn new(name: &str, answered: &[u64], source: &Arrivals, target: &Arrivals) -> anyhow::Result<Self> {
        let mut row = Self {
            name: name.to_owned(),
            live: answered.len(),
            lost: 0,
            lag: Histogram::new_with_bounds(1, 60_000_000_000, 3)?,
        };
        for id in answered {
            match (source.get(id), target.get(id)) {
                (Some(live), Some(replayed)) => row.lag.saturating_record(replayed.saturating_sub(*live)),
                (None, Some(_)) => (),
                (_, None) => row.lost += 1,
            }
        }
        Ok(row)
    }
}

/// Renders the table, with a line for all together, and the costs below.
pub fn render(rows: &[Row], costs: &Costs) -> anyhow::Result<String> {
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    table.set_header(["", "live requests", "mirrored", "lost", "replay lag p50", "p99"]);
    (1..=5).filter_map(|i| table.column_mut(i).map(|c| c.set_cell_alignment(CellAlignment::Right))).for_each(drop);
    let mut all = Row { name: "all".into(), live: 0, lost: 0, lag: Histogram::new_with_bounds(1, 60_000_000_000, 3)? };
    for row in rows {
        all.live += row.live;
        all.lost += row.lost;
        all.lag.add(&row.lag)?;
    }
    for row in rows.iter().chain([&all]) {
        table.add_row([
            row.name.clone(),
            row.live.to_string(),
            (row.live - row.lost).to_string(),
            row.lost.to_string(),
            quantile(&row.lag, 0.5),
            quantile(&row.lag, 0.99),
        ]);
    }
    let micros = |time: Duration| format!("{:.1} µs", time.as_nanos() as f64 / 1e3);
    Ok(format!(
        "{table}\n\n\
         CPU per request: tcpcopy {}, intercept {}\n\
         Packets from the target that reached the client: {} (must be 0)",
        micros(costs.tcpcopy),
        micros(costs.intercept),
        costs.leaked
    ))
}

fn quantile(lag: &Histogram<u64>, quantile: f64) -> String {
    if lag.is_empty() {
        return "–".into();
    }
    format!("{:.2} ms", lag.value_at_quantile(quantile) as f64 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_only_the_source_saw_is_lost() {
        let source = Arrivals::from([(1, 1_000_000), (2, 2_000_000), (3, 3_000_000)]);
        let target = Arrivals::from([(1, 1_500_000), (3, 3_500_000)]);
        let row = Row::new("x", &[1, 2, 3], &source, &target).unwrap();
        assert_eq!((row.live, row.lost, row.lag.len()), (3, 1, 2));
        let text = render(&[row], &Costs { tcpcopy: Duration::ZERO, intercept: Duration::ZERO, leaked: 0 }).unwrap();
        assert!(text.contains("0.50 ms"), "{text}");
    }
}
