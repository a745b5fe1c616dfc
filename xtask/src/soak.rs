//! `cargo xtask soak`: builds the programs and the laboratory, then becomes the laboratory's `soak`.

use crate::{build, packages, setup, shell};

/// Passed on to the laboratory's program.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub struct Arguments {
    /// Options of the soak; `cargo xtask soak --help` lists them.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Builds everything, then begins.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::toolchain()?;
    packages::install(packages::Purpose::Test)?;
    shell::run(shell::cargo().args(["build", "--release", "--package", "tcpcopy", "--package", "lab"]).args([
        "--bin",
        "tcpcopy",
        "--bin",
        "intercept",
        "--bin",
        "soak",
    ]))?;
    shell::exec(shell::as_root(build::program("soak")).args(&arguments.arguments))
}
