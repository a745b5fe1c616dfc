//! The tables on the terminal.

use std::collections::BTreeMap;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};

use crate::{
    crowd::Crowd,
    measure::Sample,
    statistics::{Results, Spread, machine},
};

/// One table with what belongs to it.
pub struct Section {
    /// Above it.
    pub title: String,
    /// The figures.
    pub table: Table,
    /// Below it.
    pub note: String,
}

/// What the columns mean.
pub const COLUMNS: &str = "CPU beyond: of the whole machine, softirqs and the target's serving included, less that \
    without a mirror; median (least–most). source, target: of the mirror's processes; server: of the one under test. \
    Lag: from capture to injection, the wait for the target's answers apart. MiB: the most that the mirror's processes \
    had beside their rings.";

/// Renders everything for the terminal.
pub fn render(results: &Results) -> String {
    let mut text = format!("{}\n", machine());
    for Section { title, table, note } in sections(results) {
        text += &format!("\n{title}\n{table}\n{note}");
        text += if note.is_empty() { "" } else { "\n" };
    }
    if results.workloads.is_empty() { text } else { format!("{text}\n{COLUMNS}\n") }
}

/// Returns all tables, medians with the spread of what matters most.
pub fn sections(results: &Results) -> Vec<Section> {
    let mut all = Vec::new();
    for (w, workload) in results.workloads.iter().enumerate() {
        let pace = workload.describe_pace();
        let title = format!("{}: {}; {} connections, {pace}", workload.name, workload.purpose, workload.connections);
        all.push(Section { title, table: of_workload(results, w), note: counted_losses(results, w) });
    }
    let mut further = |title: &str, table: Table, note: &str| {
        if !table.is_empty() {
            all.push(Section { title: title.into(), table, note: note.into() });
        }
    };
    further("eBPF programs, by the kernel's statistics", programs(results), "");
    further(
        "Softirqs within the processes",
        softirqs(results),
        "On a veth a sender does the receiver's work, up to the target's socket, in its own time.",
    );
    if let Some(crowd) = &results.crowd {
        further(&crowd.title(), of_crowd(crowd), "");
    }
    all
}

fn programs(results: &Results) -> Table {
    let mut table = table(&["eBPF program", "traffic", "runs", "ns per run"]);
    for cost in &results.programs {
        let ns = format!("{:.0}", cost.nanoseconds);
        table.add_row([cost.program.clone(), cost.traffic.into(), cost.runs.to_string(), ns]);
    }
    table
}

fn softirqs(results: &Results) -> Table {
    let mut table = table(&["process", "workload", "CPU µs/req", "of it NET_RX softirq", "share"]);
    for share in &results.softirqs {
        table.add_row([
            share.process.to_owned(),
            share.workload.to_owned(),
            format!("{:.1}", share.cpu),
            format!("{:.1}", share.softirq),
            format!("{:.0} %", 100.0 * share.softirq / share.cpu),
        ]);
    }
    table
}

fn of_crowd(crowd: &Crowd) -> Table {
    let mut table = table(&["memory", "MiB", "octets per connection"]);
    for part in &crowd.memory {
        table.add_row([
            part.what.clone(),
            format!("{:.0}", part.octets / f64::from(1 << 20)),
            format!("{:.0}", part.octets / crowd.connections as f64),
        ]);
    }
    table
}

/// Returns what `tcpcopy` itself says that it has lost, all rounds together.
fn counted_losses(results: &Results, w: usize) -> String {
    let mut text = String::new();
    for c in results.lines(w) {
        let mut sum = BTreeMap::<&str, u64>::new();
        for (name, n) in results.samples(w, c).iter().flat_map(|sample| &sample.counted) {
            *sum.entry(name).or_default() += n;
        }
        if !sum.is_empty() {
            let list: Vec<String> = sum.into_iter().map(|(name, n)| format!("{name} {n}")).collect();
            text += &format!("Counted by {}: {}. ", results.contenders[c].name(), list.join(", "));
        }
    }
    text
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
        "failed",
        "lost",
        "lag p50 µs",
        "p99",
        "p99.9",
        "MiB",
        "rings",
        "wake-ups/s",
    ]);
    for c in results.lines(w) {
        let figure = |f: fn(&Sample) -> Option<f64>, digits| number(results.spread(w, c, f), digits);
        let samples = results.samples(w, c);
        let failed: u64 = samples.iter().map(|s| s.failed).sum();
        let lost: Option<i64> = samples.iter().map(|s| s.lost).sum();
        let requests: u64 = samples.iter().map(|s| s.requests).sum();
        let memory = [figure(|s| s.source_memory, 1), figure(|s| s.target_memory, 1)];
        table.add_row([
            results.contenders[c].name().to_owned(),
            figure(|s| Some(s.throughput), 0),
            figure(|s| Some(s.latency_p50), 0),
            figure(|s| Some(s.latency_p99), 0),
            spread(results.beyond(w, c)),
            figure(|s| s.source, 1),
            figure(|s| s.target, 1),
            figure(|s| s.server, 1),
            failed.to_string(),
            lost.map_or_else(|| "–".into(), |lost| format!("{lost} of {requests}")),
            figure(|s| s.lag.map(|l| l.p50), 0),
            figure(|s| s.lag.map(|l| l.p99), 0),
            figure(|s| s.lag.map(|l| l.p999), 0),
            if samples.iter().any(|s| s.source_memory.is_some()) { memory.join(" + ") } else { "–".into() },
            figure(|s| s.rings, 0),
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
