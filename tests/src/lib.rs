//! A laboratory of network namespaces for tcpcopy: hosts on a network of their own, real and embedded servers, clients,
//! sniffers, and the programs under test. The end-to-end tests, the demo and the benchmark use it.
//!
//! Start at [`Lab`], which builds the hosts and the network between them, then [`Mirror`], which runs `intercept` and
//! `tcpcopy` in it. Everything is taken down in `Drop`.

pub mod bad_path;
pub mod cable;
pub mod capture;
pub mod chance;
pub mod classifier;
pub mod forge;
pub mod frames;
pub mod host;
pub mod http;
pub mod mirror;
pub mod namespace;
pub mod postgres;
pub mod program;
pub mod servers;
pub mod soak;
pub mod streams;
pub mod syscalls;
pub mod terminal;
pub mod topology;
pub mod traces;
mod wait;

use anyhow::Context as _;

pub use host::{Family, Host};
pub use mirror::{Mirror, MirrorOptions};
pub use program::{Program, Summary, figure};
pub use topology::{Lab, Options, Shape};
pub use wait::{PATIENCE, eventually, monotonic_ns};

/// Leaves a test with a loud SKIP when it cannot run here; otherwise keeps other tests of this process waiting until
/// the returned guard is dropped, because each loads the whole machine. A test with hundreds of connections says how
/// many open files it needs, about: those of clients and servers are all in this process.
#[macro_export]
macro_rules! laboratory {
    () => {
        $crate::laboratory!(0)
    };
    ($open_files:expr) => {
        match $crate::may_run($open_files) {
            Ok(guard) => guard,
            Err(reason) => {
                $crate::skip(std::thread::current().name().unwrap_or(module_path!()), &reason);
                return;
            }
        }
    };
}

static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Returns whether namespaces can be made and so many files opened here; if so, the right to be the only test that
/// runs. Use [`laboratory!`].
pub fn may_run(open_files: u64) -> Result<std::sync::MutexGuard<'static, ()>, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    settle();
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit.filter(|limit| *limit < open_files) {
        return Err(format!("it needs {open_files} open files, but the limit is {limit} (`ulimit -Hn`)"));
    }
    // A test that failed poisons the lock; the next one builds a laboratory of its own.
    Ok(ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Makes the process, and so the programs that it starts, independent of how it was started: servers read files of
/// ours, hundreds of connections take as many descriptors, and what `ip`, `ss` or `psql` say is read as English.
fn settle() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        rustix::process::umask(rustix::fs::Mode::WGRP | rustix::fs::Mode::WOTH);
        if let Err(error) = allow_open_files() {
            log::warn!("{error:#}");
        }
    });
}

/// Open files of a process that has hundreds of connections, or many thousands (the benchmark).
const OPEN_FILES: u64 = 65_536;

/// Allows this process, and those that it starts, [`OPEN_FILES`] open files; or as many as the hard limit, without
/// root.
///
/// # Errors
/// When the limit cannot be raised.
pub fn allow_open_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current.is_none_or(|current| current >= OPEN_FILES) {
        return Ok(());
    }
    let maximum = limit.maximum.map(|maximum| maximum.max(OPEN_FILES));
    let raised = setrlimit(Resource::Nofile, Rlimit { current: Some(OPEN_FILES), maximum });
    let within = Rlimit { current: limit.maximum.map(|maximum| maximum.min(OPEN_FILES)), maximum: limit.maximum };
    raised.or_else(|_| setrlimit(Resource::Nofile, within)).context("cannot allow more open files")
}

/// Says on a line of its own, past the test harness's capturing, that a test did not run.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    // Nobody is left to be told when standard output is gone.
    let _ = writeln!(std::io::stdout(), "\nSKIP {test}: {reason}");
}
