//! Seeds of the simulation.

use crate::{setup, shell};

/// Which seeds.
#[derive(clap::Args)]
#[command(next_help_heading = "Simulation")]
pub struct Seeds {
    /// How many seeds to run; the first that fails ends it
    #[arg(long, conflicts_with = "target", default_value_t = 1, value_name = "N")]
    seeds: u64,
    /// The first seed
    #[arg(long, conflicts_with = "target", default_value_t = 0, value_name = "SEED")]
    from: u64,
    /// Parts to leave out of every run, as a failure prints them
    #[arg(long, conflicts_with = "target", default_value = "", value_name = "PARTS")]
    without: String,
}

/// Runs the simulation, optimised but with all checks. A failing seed is shrunk, and printed with the command that
/// replays it.
pub fn run(arguments: &Seeds, trace: bool) -> anyhow::Result<()> {
    setup::toolchain()?;
    let mut command = shell::cargo();
    command.args(["test", "--quiet", "--profile", "fuzz", "--package", "tcpcopy-replay", "--test", "simulation", "--"]);
    command.args(["--ignored", "--exact", "seeds_of_the_environment", "--nocapture"]);
    // What a failure prints is long enough.
    command.env("RUST_BACKTRACE", "0");
    command.env("SIMULATION_SEEDS", arguments.seeds.to_string());
    command.env("SIMULATION_FROM", arguments.from.to_string());
    command.env("SIMULATION_WITHOUT", &arguments.without);
    if trace {
        command.env("SIMULATION_TRACE", "1");
    } else {
        command.env_remove("SIMULATION_TRACE");
    }
    shell::run(&mut command)
}
