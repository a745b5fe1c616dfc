//! `intercept`: swallows the responses of replayed connections on the test host. See `intercept --help`.

use std::process::ExitCode;

use clap::Parser as _;
use tcpcopy::{
    cli::{
        intercept::Cli,
        program::{self, Takes},
        report,
    },
    intercept, privileges,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let settings = match cli.validate() {
        Ok(settings) => settings,
        Err(e) => return report(&e.into()),
    };
    let takes = Takes { descriptors: intercept::descriptors(&settings), capabilities: privileges::LOADING };
    program::run(&cli.process, &cli.security, takes, |process, security| intercept::run(settings, security, process))
}
