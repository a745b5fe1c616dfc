//! `tcpcopy`: copies the requests of live clients to a test host. See `tcpcopy --help`.

use std::{path::Path, process::ExitCode};

use clap::Parser as _;
use tcpcopy::{
    cli::{
        program, report,
        tcpcopy::{Cli, Command, CopyArgs},
    },
    control::{Psk, PskError},
    source,
};

fn main() -> ExitCode {
    match Cli::parse().command() {
        Command::Copy(args) => copy(&args),
        Command::Keygen(file) => keygen(&file),
    }
}

fn copy(args: &CopyArgs) -> ExitCode {
    let settings = match args.validate() {
        Ok(settings) => settings,
        Err(e) => return report(&e.into()),
    };
    program::run(args.process(), |readiness| Ok(source::run(settings, args.security().load()?, readiness)))
}

fn keygen(file: &Path) -> ExitCode {
    let written: Result<(), PskError> = Psk::generate().and_then(|key| key.write_new(file));
    match written {
        Ok(()) => {
            println!("wrote a new key to {}; copy it to the other host, readable by root only", file.display());
            ExitCode::SUCCESS
        }
        Err(e) => report(&e.into()),
    }
}
