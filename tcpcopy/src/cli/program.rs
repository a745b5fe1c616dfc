//! What both programs do around their work: daemon, log, process id file, runtime, summary, exit code.

use std::process::ExitCode;

use anyhow::Context as _;

use super::{ProcessArgs, daemon, exit, logging, pidfile::PidFile, report};
use crate::summary::Report;

/// Runs `work` as the process that `args` describe, and prints the figures it returns.
pub fn run<F: Future<Output = anyhow::Result<Report>>>(
    args: &ProcessArgs,
    work: impl FnOnce(daemon::Readiness) -> anyhow::Result<F>,
) -> ExitCode {
    let outcome = daemon::detach(args.daemon).and_then(|role| match role {
        daemon::Role::Parent(code) => Ok(code),
        daemon::Role::Child(readiness) => child(args, readiness, work).map(|()| exit::STOPPED),
    });
    outcome.unwrap_or_else(|e| report(&e))
}

fn child<F: Future<Output = anyhow::Result<Report>>>(
    args: &ProcessArgs,
    readiness: daemon::Readiness,
    work: impl FnOnce(daemon::Readiness) -> anyhow::Result<F>,
) -> anyhow::Result<()> {
    logging::init(args.log_file.as_deref())?;
    let _pid_file = args.pid_file.as_deref().map(PidFile::create).transpose()?;
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the runtime")?;
    let summary = runtime.block_on(async { work(readiness)?.await }).inspect_err(|e| {
        // The terminal may be gone; the log is not.
        if args.log_file.is_some() {
            log::error!("{e:#}");
        }
    })?;
    if let Some(path) = &args.summary_json {
        summary.write_json(path)?;
    }
    if args.daemon {
        summary.to_string().lines().for_each(|line| log::info!("{line}"));
    } else {
        println!("{summary}");
    }
    Ok(())
}
