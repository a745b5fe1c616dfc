//! `cargo xtask fuzz`: the engine in its simulated world, seed by seed; or a coverage-guided fuzzer on one of its
//! targets.

mod seeds;
mod target;

use std::path::PathBuf;

pub use target::Campaign;

/// What to fuzz.
#[derive(clap::Args)]
#[command(
    after_help = "Without TARGET, the replay engine runs against simulated clients, paths and targets: one seed, one \
                  run."
)]
pub struct Arguments {
    /// Fuzz this part of tcpcopy, guided by coverage, from what its corpus has reached so far; --list shows which there
    /// are
    target: Option<String>,
    /// Run the target on these inputs only: a finding, say
    #[arg(requires = "target", value_name = "FILE")]
    inputs: Vec<PathBuf>,
    /// How long to fuzz the target
    #[arg(
        long,
        requires = "target",
        conflicts_with_all = ["inputs", "minimise"],
        default_value_t = 60,
        value_name = "S"
    )]
    seconds: u64,
    /// Take what fuzzing has found into the committed corpus, and drop what adds no coverage to it
    #[arg(long, requires = "target", conflicts_with = "inputs")]
    minimise: bool,
    /// Show the targets
    #[arg(long, conflicts_with = "target")]
    list: bool,
    /// Tell what happens: with inputs what each means, without a target what the first seed is made of, and each
    /// segment
    #[arg(long)]
    trace: bool,
    #[command(flatten)]
    seeds: seeds::Seeds,
}

/// Runs `cargo xtask fuzz`.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        target::names()?.iter().for_each(|name| println!("{name}"));
        return Ok(());
    }
    let Some(name) = &arguments.target else { return seeds::run(&arguments.seeds, arguments.trace) };
    target::check_name(name)?;
    let target = target::Build::new(Some(name))?.target(name)?;
    if !arguments.inputs.is_empty() {
        target.replay(&arguments.inputs, arguments.trace)
    } else if arguments.minimise {
        target.minimise()
    } else {
        target.fuzz(arguments.seconds)
    }
}
