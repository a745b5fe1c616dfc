//! One measurement: a workload under a contender.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::{bail, ensure};
use lab::{
    Family, Lab, Summary, eventually,
    http::LoadReport,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use serde::Serialize;

use crate::{
    contender::{Contender, Stage},
    meter::{Tree, machine_busy},
    workload::Workload,
};

/// Before the measurement the same load runs so long: connections are opened, memory is taken, caches are warm.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long the target may go on without any progress until what is missing counts as lost.
const TRAIL: Duration = Duration::from_secs(3);
/// A ring's data is mapped twice in a row, so that no record is ever split.
const RING_VIEWS: f64 = 2.0;

/// What was measured. Times per request are in µs, of requests that were answered live within the measured time.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    /// Live answers per second.
    pub throughput: f64,
    /// Median latency of live requests, µs.
    pub latency_p50: f64,
    /// 99th percentile of that latency, µs.
    pub latency_p99: f64,
    /// Time per request that the processors of the whole machine were busy.
    pub machine: f64,
    /// CPU time of the contender's process on the source.
    pub source: Option<f64>,
    /// CPU time of the contender's process on the target.
    pub target: Option<f64>,
    /// CPU time of the server under test.
    pub server: Option<f64>,
    /// The most memory that the source's process had beside the rings, in MiB.
    pub source_memory: Option<f64>,
    /// The most memory that the target's process had beside the rings, in MiB.
    pub target_memory: Option<f64>,
    /// The rings of both, in MiB.
    pub rings: Option<f64>,
    /// Live requests, from the start of the warm-up on.
    pub requests: u64,
    /// Live requests that got no answer: a mirror that harms the live service.
    pub failed: u64,
    /// Of the live ones, how many the target has not served when it stood still; `None` where it does not get them.
    pub lost: Option<i64>,
    /// How long after the last live answer the target had all it got, in ms.
    pub trail: f64,
    /// Replay lag without the gate's wait, in µs, as `tcpcopy` counts it.
    pub lag: Option<Lag>,
    /// Times per second that an eBPF program woke a worker.
    pub wakeups: Option<f64>,
    /// The section of `tcpcopy`'s summary that tells of retransmissions, time-outs, reconnections.
    pub replay: Option<serde_json::Value>,
    /// What `tcpcopy` says that it has lost, by reason.
    pub counted: BTreeMap<String, u64>,
}

/// From the capture of a segment to its injection.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Lag {
    /// Percentile 50.
    pub p50: f64,
    /// Percentile 99.
    pub p99: f64,
    /// Percentile 99.9.
    pub p999: f64,
}

/// Counters at one time.
struct Reading {
    at: Instant,
    machine: Duration,
    trees: [Option<Duration>; 3],
}

impl Reading {
    fn take(trees: [Option<Tree>; 3]) -> anyhow::Result<Self> {
        let cpu = |tree: Option<Tree>| tree.map(Tree::cpu_time).transpose();
        let trees = [cpu(trees[0])?, cpu(trees[1])?, cpu(trees[2])?];
        Ok(Self { at: Instant::now(), machine: machine_busy()?, trees })
    }
}

/// Runs a workload once.
pub fn measure(lab: &Lab, workload: &Workload, contender: &Contender, time: Duration) -> anyhow::Result<Sample> {
    let stage = Stage::set(lab, contender)?;
    let processes = stage.processes();
    let trees = [processes.source, processes.target, processes.server];
    let server = lab.source.socket(Family::V4, LIVE_PORT);
    let load = workload.load(server, WARM_UP + time).start(&lab.client)?;
    let beside = match contender {
        Contender::Direct => {
            let target = lab.target.socket(Family::V4, TARGET_PORT);
            Some(workload.load(target, WARM_UP + time).start(&lab.client)?)
        }
        _ => None,
    };
    thread::sleep(WARM_UP);
    let (before, answered) = (Reading::take(trees)?, load.answered());
    thread::sleep(time.saturating_sub(Duration::from_millis(50)));
    let answered = load.answered() - answered;
    let after = Reading::take(trees)?;
    let report = load.join()?;
    if let Some(beside) = beside {
        beside.join()?;
    }
    if let (Contender::Nothing, Some(failure)) = (contender, report.failed.first()) {
        bail!("{} live requests failed without any mirror, such as {failure}", report.failed.len());
    }
    ensure!(answered > 0, "no live request was answered");
    let settled = if contender.mirrors() { Some(settle(&stage)?) } else { None };
    let mebi = |octets: u64| octets as f64 / f64::from(1 << 20);
    let memory = |tree: Option<Tree>| tree.map(|tree| mebi(tree.peak_memory().saturating_sub(tree.mapped_rings())));
    let (source_memory, target_memory) = (memory(trees[0]), memory(trees[1]));
    let rings = trees[0].zip(trees[1]).map(|(a, b)| mebi(a.mapped_rings() + b.mapped_rings()) / RING_VIEWS);
    let summary = stage.clear()?;

    let micros = |time: Duration| time.as_secs_f64() * 1e6 / answered as f64;
    let spent = |i: usize| Some(micros(after.trees[i]?.saturating_sub(before.trees[i]?)));
    let latency = |quantile| report_latency(&report, quantile);
    let figure = |section: &str, name: &str| summary.as_ref()?.0.get(section)?.get(name)?.as_f64();
    // Without samples there is no lag.
    let lag = |name| figure("lag_us", name).filter(|_| figure("lag_us", "count") > Some(0.0));
    Ok(Sample {
        throughput: answered as f64 / (after.at - before.at).as_secs_f64(),
        latency_p50: latency(0.5),
        latency_p99: latency(0.99),
        machine: micros(after.machine.saturating_sub(before.machine)),
        source: spent(0),
        target: spent(1),
        server: spent(2),
        source_memory,
        target_memory,
        rings,
        requests: report.answered.len() as u64,
        failed: report.failed.len() as u64,
        lost: settled.map(|(lost, _)| lost),
        trail: settled.map_or(0.0, |(_, trail)| trail.as_secs_f64() * 1e3),
        lag: lag("p50").zip(lag("p99")).zip(lag("p999")).map(|((p50, p99), p999)| Lag { p50, p99, p999 }),
        wakeups: figure("cost", "wakeups").zip(figure("run", "duration")).map(|(n, time)| n / time),
        replay: summary.as_ref().and_then(|summary| summary.0.get("replay").cloned()),
        counted: summary.as_ref().map(counted).unwrap_or_default(),
    })
}

/// Returns the losses in a summary: what the kernel had no room for, what the engine gave up, what could not be sent.
pub fn counted(summary: &Summary) -> BTreeMap<String, u64> {
    const SECTIONS: [&str; 5] = ["not_copied", "discarded", "aborted", "not_injected", "not_reported"];
    let members = |section: &str| summary.0.get(section).and_then(|s| s.as_object()).cloned().unwrap_or_default();
    SECTIONS
        .iter()
        .flat_map(|section| members(section).into_iter().map(move |(name, n)| (format!("{section}.{name}"), n)))
        .filter_map(|(name, n)| Some((name, n.as_u64().filter(|&n| n > 0)?)))
        .collect()
}

fn report_latency(report: &LoadReport, quantile: f64) -> f64 {
    report.latency.value_at_quantile(quantile) as f64 / 1e3
}

/// Waits until the target has served what the live server has, or does not get further; what is missing, and how long
/// it took.
pub fn settle(stage: &Stage) -> anyhow::Result<(i64, Duration)> {
    let began = Instant::now();
    let mut settled = began;
    let (mut live, mut seen) = stage.served()?;
    while seen < live {
        let before = seen;
        let progress = eventually(TRAIL, || {
            if let Ok((l, s)) = stage.served() {
                (live, seen) = (l, s);
            }
            seen > before
        });
        if !progress {
            break;
        }
        settled = Instant::now();
    }
    Ok((live as i64 - seen as i64, settled - began))
}
