//! `cargo xtask run`

use clap::ValueEnum;

use crate::{build, shell};

/// What to run.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which program.
    program: Program,
    /// Its arguments, after `--`.
    #[arg(last = true)]
    arguments: Vec<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Program {
    Tcpcopy,
    Intercept,
}

/// Builds, then becomes the program, as root.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    build::release()?;
    let name = match arguments.program {
        Program::Tcpcopy => "tcpcopy",
        Program::Intercept => "intercept",
    };
    // sudo empties the environment; the level of the log is all that the programs read from it.
    let mut command = match (shell::is_root(), std::env::var("RUST_LOG")) {
        (false, Ok(level)) => {
            let mut command = shell::as_root("env");
            command.arg(format!("RUST_LOG={level}")).arg(build::program(name));
            command
        }
        _ => shell::as_root(build::program(name)),
    };
    shell::exec(command.args(&arguments.arguments))
}
