//! `intercept`: swallows the responses of replayed connections on the test host. See `intercept --help`.

use std::process::ExitCode;

use clap::Parser as _;
use tcpcopy::{
    cli::{intercept::Cli, program, report},
    intercept,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match cli.validate() {
        Ok(settings) => settings,
        Err(e) => return report(&e.into()),
    };
    program::run(&cli.process, settings.descriptors(), |process| {
        Ok(intercept::run(settings, cli.security.load()?, process))
    })
}
