//! What a soak has come to.

use std::{collections::BTreeMap, thread, time::Duration};

use comfy_table::{Cell, CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde::Serialize;

use super::{
    fault::Fault,
    forgery::FORGED,
    ledger::unbalanced,
    world::{LIVE_WITNESS, Soak},
};
use crate::{
    Family, PATIENCE,
    capture::{Packet, Sniffer},
    eventually,
    http::{Limit, Load, RunningLoad},
    traces::{BpfObjects, differences, network_state},
};

/// Requests of the last test, of each family.
const LAST_REQUESTS: u64 = 50;
/// What follows the last fault is calm, and is watched for so long.
const CALM: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
/// The most memory of a program beside its rings, octets.
const MOST_MEMORY: u64 = 64 * MIB;
/// How long half of the restarted programs may take from readiness to the first request that they mirror: what else the
/// machine does may hold up some of them.
const RETURN: Duration = Duration::from_secs(2);
/// How much it may grow in [`CALM`].
const MOST_GROWTH: u64 = 2 * MIB;
/// How many more descriptors it may have after [`CALM`]: of a connection that is being made just then.
const MOST_DESCRIPTORS: usize = 2;

/// The figures of a soak, and what was violated.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Decided which faults came, and when.
    pub seed: u64,
    /// How long things went wrong, s.
    pub seconds: u64,
    /// How often each fault came.
    pub faults: BTreeMap<Fault, u64>,
    /// Live requests that were answered.
    pub answered: u64,
    /// The longest of them, ms.
    pub slowest_ms: u64,
    /// Packets of the target at clients while an `intercept` that was killed was missed.
    pub leaked_in_windows: usize,
    /// How long restarted programs took from readiness to their first request, ms: half of them, and all.
    pub returns_ms: (u64, u64),
    /// The most memory of each program beside its rings, octets.
    pub memory: BTreeMap<&'static str, u64>,
    /// What must not have happened.
    pub violations: Vec<String>,
}

/// Lets the programs come to rest, tests whether they still do what they are for, ends everything, and looks at what is
/// left.
pub(super) fn reach(
    mut soak: Soak,
    seed: u64,
    loads: Vec<RunningLoad>,
    strangers: Sniffer,
    before: [Vec<String>; 2],
) -> anyhow::Result<Report> {
    let seconds = soak.began.elapsed().as_secs();
    soak.tell("calm");
    let first = soak.sizes()?;
    thread::sleep(CALM);
    for ((name, then), (_, now)) in first.into_iter().zip(soak.sizes()?) {
        let grown = now.memory.saturating_sub(then.memory);
        if grown > MOST_GROWTH || now.descriptors > then.descriptors + MOST_DESCRIPTORS {
            soak.violations.push(format!("{name} grows although nothing happens: {then:?}, after {CALM:?} {now:?}"));
        }
    }
    soak.weigh()?;
    for (name, &most) in &soak.memory {
        if most > MOST_MEMORY {
            soak.violations.push(format!("{name} took {} MiB beside its rings", most / MIB));
        }
    }
    soak.returns.sort_unstable();
    let median = soak.returns.get(soak.returns.len() / 2).copied().unwrap_or_default();
    let longest = soak.returns.last().copied().unwrap_or_default();
    if median > RETURN {
        soak.violations.push(format!("half of the restarted programs mirrored only after {median:.1?}"));
    }
    everything_arrives(&mut soak)?;
    let (mut answered, mut slowest) = (0, 0);
    for load in loads {
        let report = load.stop()?;
        answered += report.answered.len() as u64;
        slowest = slowest.max(report.latency.max());
        if let Some(failure) = report.failed.first() {
            soak.violations.push(format!("{} live requests failed, the first: {failure}", report.failed.len()));
        }
    }
    if soak.witness.arrivals().iter().any(|arrival| arrival.id == FORGED) {
        soak.violations.push("the target has executed a forged request".into());
    }

    let objects = [soak.mirror.tcpcopy(), soak.mirror.intercept()].map(|program| BpfObjects::of(program.pid()));
    let Soak { mirror, lab, began_ns, windows, faults, memory, mut violations, .. } = soak;
    let outcome = mirror.stop()?;
    violations.extend(unbalanced(&outcome.tcpcopy));
    let (inside, outside): (Vec<Packet>, Vec<Packet>) = outcome
        .leaked
        .into_iter()
        .chain(strangers.stop()?)
        .partition(|packet| windows.iter().any(|(begin, end)| (*begin..=*end).contains(&packet.time_ns)));
    if !outside.is_empty() {
        let time = |packet: &Packet| packet.time_ns.saturating_sub(began_ns) as f64 / 1e9;
        let shown: Vec<String> =
            outside.iter().take(10).map(|packet| format!("{:.1} s: {}", time(packet), packet.describe())).collect();
        violations.push(format!("{} packets of the target reached somebody: {shown:#?}", outside.len()));
    }
    for objects in objects {
        let objects = objects?;
        if !eventually(PATIENCE, || objects.remaining().is_empty()) {
            violations.push(format!("kernel objects are left: {:?}", objects.remaining()));
        }
    }
    for (host, before) in [&lab.source, &lab.target].into_iter().zip(before) {
        let changes = || network_state(host).map(|after| differences(&before, &after));
        eventually(PATIENCE, || changes().is_ok_and(|changes| changes.is_empty()));
        let changes = changes()?;
        if !changes.is_empty() {
            violations.push(format!("the {}'s network is not as before: {changes:#?}", host.role));
        }
    }
    Ok(Report {
        seed,
        seconds,
        faults,
        answered,
        slowest_ms: slowest / 1_000_000,
        leaked_in_windows: inside.len(),
        returns_ms: (median.as_millis() as u64, longest.as_millis() as u64),
        memory,
        violations,
    })
}

/// With nothing wrong, every request arrives once.
fn everything_arrives(soak: &mut Soak) -> anyhow::Result<()> {
    let mut asked = Vec::new();
    for family in Family::BOTH {
        let server = soak.lab.source.socket(family, LIVE_WITNESS);
        let report = Load::per_request(server, 2, Limit::Requests(LAST_REQUESTS)).run(&soak.lab.client)?;
        asked.extend(report.answered);
        if let Some(failure) = report.failed.first() {
            soak.violations.push(format!("a live request failed at the end: {failure}"));
        }
    }
    let times = |id: &u64| soak.witness.arrivals().iter().filter(|arrival| arrival.id == *id).count();
    eventually(PATIENCE, || asked.iter().all(|id| times(id) > 0));
    let wrong: Vec<(u64, usize)> = asked.iter().map(|id| (*id, times(id))).filter(|(_, times)| *times != 1).collect();
    if !wrong.is_empty() {
        let what = format!("of the last {} requests these did not arrive once (number, times): {wrong:?}", asked.len());
        soak.violations.push(what);
    }
    Ok(())
}

impl Report {
    /// Returns the report as tables.
    pub fn table(&self) -> String {
        let number = |n: u64| Cell::new(n).set_alignment(CellAlignment::Right);
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED);
        table.set_header(["fault", "times"]);
        for (fault, times) in &self.faults {
            table.add_row([Cell::new(fault), number(*times)]);
        }
        let mut figures = Table::new();
        figures.load_style(UTF8_FULL_CONDENSED);
        figures.set_header(["figure", "value", "unit"]);
        let mut add = |name: &str, value: u64, unit: &str| {
            figures.add_row([Cell::new(name), number(value), Cell::new(unit)]);
        };
        add("live requests answered", self.answered, "");
        add("the slowest of them", self.slowest_ms, "ms");
        add("half of the restarted programs mirror after", self.returns_ms.0, "ms");
        add("all of them", self.returns_ms.1, "ms");
        add("packets at clients, intercept having been killed", self.leaked_in_windows as u64, "");
        for (name, octets) in &self.memory {
            add(&format!("most memory of {name} beside its rings"), octets >> 10, "KiB");
        }
        format!("{table}\n{figures}")
    }
}
