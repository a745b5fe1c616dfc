//! What both programs do around their work: limits, daemon, log, signals, process id file, runtime, summary, exit code.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{ProcessArgs, exit, remedy, report};
use crate::process::{
    Ended, Output, Process, SummaryFile, Taken,
    daemon::{self, Readiness},
    descriptors, logging, panics,
    pidfile::PidFile,
    signals::Signals,
};

/// Runs `work`, which opens at least `descriptors` files, as the process that `args` describe, and prints the figures
/// it returns.
pub fn run<F: Future<Output = anyhow::Result<Ended>>>(
    args: &ProcessArgs,
    descriptors: usize,
    work: impl FnOnce(Process) -> anyhow::Result<F>,
) -> ExitCode {
    let limit = descriptors::prepare(descriptors).map_err(anyhow::Error::from);
    let outcome = limit.and_then(|()| daemon::detach(args.daemon)).and_then(|role| match role {
        daemon::Role::Parent(code) => Ok(code),
        daemon::Role::Child(readiness) => child(args, readiness, work).map(|()| exit::STOPPED),
    });
    outcome.unwrap_or_else(|e| report(&e))
}

fn child<F: Future<Output = anyhow::Result<Ended>>>(
    args: &ProcessArgs,
    readiness: Readiness,
    work: impl FnOnce(Process) -> anyhow::Result<F>,
) -> anyhow::Result<()> {
    let mut taken = Taken::default();
    let log = logging::init(args.log_file.as_deref(), &mut taken)?;
    let summary = args.summary_json.as_deref().map(|path| SummaryFile::open(path, &mut taken)).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let signals = {
        let _inside = runtime.enter();
        Signals::catch(log)?
    };
    // Only now: whoever reads the process id may send a signal.
    let _pid_file = args.pid_file.as_deref().map(|path| PidFile::create(path, &mut taken)).transpose()?;
    let output = if args.daemon { Output::Log } else { Output::Stdout };
    let process = Process::new(readiness, signals, panics::catch(), output);
    let outcome = runtime.block_on(async { panics::caught(work(process)?).await? });
    let outcome = outcome.and_then(|Ended { figures, failure }| {
        // The table first: a disk that is full must not take it away.
        output.show(&figures);
        let written = summary.map_or(Ok(()), |summary| summary.write(&figures));
        failure.map_or(Ok(()), Err).and(written.map_err(Into::into))
    });
    outcome.inspect_err(|e| {
        // The terminal may be gone; the log is not.
        if args.log_file.is_some() {
            remedy::finding(e).log();
        }
    })
}
