//! `cargo xtask demo`: builds the programs and the laboratory, then becomes the laboratory's `demo`.

use crate::{build, packages, setup, shell};

/// Passed on to the laboratory's program.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the demo; `cargo xtask demo --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds everything, then shows it.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::toolchain()?;
    packages::install(packages::Purpose::Demo)?;
    shell::run(shell::cargo().args(["build", "--release", "--package", "tcpcopy", "--package", "lab"]).args([
        "--bin",
        "tcpcopy",
        "--bin",
        "intercept",
        "--bin",
        "demo",
    ]))?;
    shell::exec(shell::as_root(build::program("demo")).args(&arguments.arguments))
}
