//! `tcpcopy`: copies the requests of live clients to a test host. See `tcpcopy --help`.

use std::{
    io::{self, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use clap::Parser as _;
use tcpcopy::{
    cli::{
        DEFAULT_PSK_FILE,
        program::{self, Takes},
        report,
        tcpcopy::{Cli, Command, CopyArgs},
    },
    control::Psk,
    memory::HugePages,
    privileges, source,
};

/// Sessions are many, and touched at random.
#[global_allocator]
static ALLOCATOR: HugePages = HugePages;

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
    let capabilities = privileges::LOADING | privileges::SENDING;
    let takes = Takes { descriptors: settings.descriptors(), capabilities };
    program::run(&args.process, &args.security, takes, |process, security| source::run(settings, security, process))
}

fn keygen(file: &Path) -> ExitCode {
    match write_key(file) {
        Ok(()) => {
            // The key is there, whether anybody hears of it or not.
            let _ = writeln!(
                io::stdout(),
                "wrote a new key to {}; copy it to the other host, readable by root only",
                file.display()
            );
            ExitCode::SUCCESS
        }
        Err(e) => report(&e),
    }
}

fn write_key(file: &Path) -> anyhow::Result<()> {
    // Only the default's own directory: a directory that the user has mistyped is not for us to make.
    if file == Path::new(DEFAULT_PSK_FILE)
        && let Some(directory) = file.parent()
    {
        std::fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(Psk::generate()?.write_new(file)?)
}
