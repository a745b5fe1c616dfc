//! The tables on the terminal.

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::statistics::{Results, Spread, machine};

/// Everything, medians with the spread of what matters most.
pub fn render(results: &Results) -> String {
    let mut text = format!("{}\n", machine());
    for (w, workload) in results.workloads.iter().enumerate() {
        let loop_ = workload.rate.map_or("closed loop".into(), |rate| format!("{rate} requests/s"));
        text += &format!("\n{}: {}; {} connections, {loop_}\n", workload.name, workload.purpose, workload.connections);
        text += &format!("{}\n", of_workload(results, w));
    }
    text += "\nCPU beyond no mirror: the whole machine, softirqs and the target's serving included; median (least–most)\n\n";
    let mut table = table(&["eBPF program", "traffic", "runs", "ns per run"]);
    for cost in &results.programs {
        let ns = format!("{:.0}", cost.nanoseconds);
        table.add_row([cost.program.clone(), cost.traffic.into(), cost.runs.to_string(), ns]);
    }
    text + &table.to_string()
}

fn of_workload(results: &Results, w: usize) -> Table {
    let mut table = table(&[
        "",
        "live req/s",
        "p50 µs",
        "p99 µs",
        "CPU beyond µs/req",
        "source",
        "target",
        "server",
        "live failed",
        "lost",
        "lag p50 µs",
        "p99",
        "p99.9",
        "MiB",
        "wake-ups/s",
    ]);
    for (c, contender) in results.contenders.iter().enumerate() {
        let figure = |f: fn(&crate::measure::Sample) -> Option<f64>, digits| number(results.spread(w, c, f), digits);
        let failed: u64 = results.samples(w, c).iter().map(|s| s.failed).sum();
        let lost: i64 = results.samples(w, c).iter().map(|s| s.lost).sum();
        let requests: u64 = results.samples(w, c).iter().map(|s| s.requests).sum();
        let memory = [figure(|s| s.source_memory, 0), figure(|s| s.target_memory, 0)];
        table.add_row([
            contender.name().to_owned(),
            figure(|s| Some(s.throughput), 0),
            figure(|s| Some(s.latency_p50), 0),
            figure(|s| Some(s.latency_p99), 0),
            spread(results.beyond(w, c)),
            figure(|s| s.source, 1),
            figure(|s| s.target, 1),
            figure(|s| s.server, 1),
            failed.to_string(),
            if c == 0 { "–".into() } else { format!("{lost} of {requests}") },
            figure(|s| s.lag.map(|l| l.p50), 0),
            figure(|s| s.lag.map(|l| l.p99), 0),
            figure(|s| s.lag.map(|l| l.p999), 0),
            memory.join(" + "),
            figure(|s| s.wakeups, 0),
        ]);
    }
    table
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header(header.to_vec());
    let right = CellAlignment::Right;
    (1..header.len()).filter_map(|i| table.column_mut(i).map(|c| c.set_cell_alignment(right))).for_each(drop);
    table
}

fn number(figure: Option<Spread>, digits: usize) -> String {
    figure.map_or_else(|| "–".into(), |f| format!("{:.digits$}", f.median))
}

fn spread(figure: Option<Spread>) -> String {
    figure.map_or_else(|| "–".into(), |f| format!("{:.1} ({:.1}–{:.1})", f.median, f.min, f.max))
}
