//! What the eBPF programs cost, by the kernel's own statistics (`BPF_ENABLE_STATS`, Linux 5.8).

use std::{collections::HashSet, time::Duration};

use anyhow::Context as _;
use aya::{
    programs::{ProgramInfo, loaded_programs},
    sys::{Stats, enable_stats},
};
use lab::{
    Family, Lab,
    http::{Limit, Load},
    mirror::LIVE_PORT,
    servers::RealServer,
};
use serde::Serialize;

use crate::{
    contender::{Contender, Stage},
    idle::Idle,
};

/// A port of the source that nothing is mirrored of.
const OTHER_PORT: u16 = 81;
/// Requests per second, so that the machine has time left and nothing but the programs is measured.
const RATE: u32 = 2_000;
const TIME: Duration = Duration::from_secs(2);

/// One program under one kind of traffic.
#[derive(Clone, Debug, Serialize)]
pub struct ProgramCost {
    /// Its name in the kernel.
    pub program: String,
    /// What passed through it.
    pub traffic: &'static str,
    /// How often it ran.
    pub runs: u64,
    /// Per run, with what the statistics themselves cost: see what [`Idle`] takes in the same run.
    pub nanoseconds: f64,
}

/// Runs traffic that is mirrored, and traffic that is not, past the programs. The statistics are switched on only here,
/// because they make every program slower.
pub fn measure(lab: &Lab, contender: &Contender) -> anyhow::Result<Vec<ProgramCost>> {
    let before: HashSet<u32> = loaded()?.iter().map(ProgramInfo::id).collect();
    let stage = Stage::set(lab, contender)?;
    let other = RealServer::nginx(&lab.source, OTHER_PORT, 10_000_000)?;
    let _idle = Idle::attach(&lab.source)
        .inspect_err(|error| eprintln!("SKIP {}: no program to compare with: {error:#}", Idle::NAME));
    let _enabled = enable_stats(Stats::RunTime).context("the kernel keeps no statistics of eBPF programs")?;
    let mut costs = Vec::new();
    for (traffic, port) in [("mirrored", LIVE_PORT), ("other", other.port())] {
        let start = loaded()?;
        let load = Load::keep_alive(lab.source.socket(Family::V4, port), 16, Limit::Time(TIME));
        Load { rate: Some(RATE), method: lab::http::Method::Get("/".into()), any_status: true, ..load }
            .run(&lab.client)?;
        for program in loaded()?.into_iter().filter(|program| !before.contains(&program.id())) {
            let earlier = start.iter().find(|p| p.id() == program.id());
            let runs = program.run_count() - earlier.map_or(0, ProgramInfo::run_count);
            let time = program.run_time().saturating_sub(earlier.map_or(Duration::ZERO, ProgramInfo::run_time));
            if runs > 0 {
                let name = program.name_as_str().unwrap_or("?").to_owned();
                let nanoseconds = time.as_nanos() as f64 / runs as f64;
                costs.push(ProgramCost { program: name, traffic, runs, nanoseconds });
            }
        }
    }
    stage.clear()?;
    Ok(costs)
}

fn loaded() -> anyhow::Result<Vec<ProgramInfo>> {
    loaded_programs().collect::<Result<_, _>>().context("cannot list the eBPF programs of this machine")
}
