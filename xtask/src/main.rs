//! Commands for working on tcpcopy: `cargo xtask --help`.

mod build;
mod figures;
mod fuzz;
mod kernels;
mod laboratory;
mod lint;
mod packages;
mod run;
mod setup;
mod shell;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use packages::Purpose;

/// Set-up, build, run, demo and test of tcpcopy.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Install what the other commands need and this machine lacks (they all do it by themselves).
    Setup,
    /// Build tcpcopy and intercept, optimised.
    Build,
    /// Build, then run one of the programs as root.
    Run(run::Arguments),
    /// Run every test: unit, property, fuzz and end-to-end.
    Test(test::Arguments),
    /// Fuzz: the replay engine in a simulated world, or any of the targets guided by coverage.
    Fuzz(fuzz::Arguments),
    /// Mirror live traffic between namespaces of this machine and show what arrived.
    Demo(laboratory::Arguments),
    /// Mirror while one thing after another goes wrong, and see whether anything was lost, leaked or left behind.
    Soak(laboratory::Arguments),
    /// Compare what mirroring costs: nothing, tcpcopy, nginx's mirror, and others.
    Bench(laboratory::Arguments),
    /// Write docs/figures.md from the declarations of figures.
    Figures,
    /// Check formatting and lints, of the eBPF programs too.
    Lint,
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    std::env::set_current_dir(shell::workspace())?;
    match Arguments::parse().command {
        Command::Setup => setup::everything(),
        Command::Build => build::release(),
        Command::Run(arguments) => run::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Fuzz(arguments) => fuzz::run(&arguments),
        Command::Demo(arguments) => laboratory::run("demo", Purpose::Demo, &arguments),
        Command::Soak(arguments) => laboratory::run("soak", Purpose::Test, &arguments),
        Command::Bench(arguments) => laboratory::run("bench", Purpose::Test, &arguments),
        Command::Figures => figures::write(),
        Command::Lint => lint::run(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        super::Arguments::command().debug_assert();
    }
}
