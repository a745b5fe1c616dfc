//! `cargo xtask demo`, `soak` and `bench`: build the programs and the laboratory, then become one of its programs.

use crate::{build, packages, setup, shell};

/// Passed on to the laboratory's program.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the program; `--help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds everything, then becomes the laboratory's `program`, which needs what `purpose` does.
pub fn run(program: &str, purpose: packages::Purpose, arguments: &Arguments) -> anyhow::Result<()> {
    setup::toolchain()?;
    packages::install(purpose)?;
    let programs = ["--bin", "tcpcopy", "--bin", "intercept", "--bin", program];
    shell::run(shell::cargo().args(["build", "--release", "--package", "tcpcopy", "--package", "lab"]).args(programs))?;
    shell::exec(shell::as_root(build::program(program)).args(&arguments.arguments))
}
