//! `cargo xtask bench`: builds the programs and the laboratory, then becomes the laboratory's `bench`.

use crate::{build, packages, setup, shell};

/// Passed on to the laboratory's program.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the benchmark; `cargo xtask bench --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds everything, then measures.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::toolchain()?;
    packages::install(packages::Purpose::Test)?;
    let programs = ["--bin", "tcpcopy", "--bin", "intercept", "--bin", "bench"];
    shell::run(shell::cargo().args(["build", "--release", "--package", "tcpcopy", "--package", "lab"]).args(programs))?;
    shell::exec(shell::as_root(build::program("bench")).args(&arguments.arguments))
}
