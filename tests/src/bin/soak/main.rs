//! Mirrors while one thing after another goes wrong, and says what came of it: `cargo xtask soak`.

use std::{process::ExitCode, time::Duration};

use anyhow::ensure;
use clap::Parser;
use lab::soak::{self, Options};

/// Mirrors a mixed load between network namespaces of this machine while one thing after another goes wrong.
#[derive(Parser)]
#[command(name = "cargo xtask soak", bin_name = "cargo xtask soak")]
struct Arguments {
    /// How long things go wrong
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=10_080))]
    minutes: u64,
    /// Decides which faults come, and when; without it one that is new each time
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Write the report to standard output as JSON, and what happens to standard error
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns whether nothing was violated.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    ensure!(rustix::process::geteuid().is_root(), "the soak needs root for its network namespaces: use sudo");
    lab::allow_open_files()?;
    let seed = arguments.seed.unwrap_or_else(|| fastrand::u64(..1 << 32));
    eprintln!("{} minutes, seed {seed}", arguments.minutes);
    let report = soak::run(&Options { time: Duration::from_secs(60 * arguments.minutes), seed })?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}", report.table());
    }
    for violation in &report.violations {
        eprintln!("violated: {violation}");
    }
    if !report.violations.is_empty() {
        eprintln!("the same faults again: cargo xtask soak --minutes {} --seed {seed}", arguments.minutes);
    }
    Ok(report.violations.is_empty())
}
