//! What both programs do around their work: limits, daemon, log, signals, process id file, privileges, runtime, summary,
//! exit code.

use std::{io, os::unix::net::UnixStream, panic::catch_unwind, process::ExitCode};

use anyhow::Context as _;
use rustix::{process::geteuid, thread::CapabilitySet};
use tokio::runtime::{Builder, Runtime};

use super::{ProcessArgs, SecurityArgs, exit, remedy, report};
use crate::{
    bpf::BpfError,
    control::Security,
    finding::Finding,
    inject::InjectError,
    log_limit::tell_suppressed,
    privileges,
    process::{
        Ended, Files, Output, Process, SummaryFile,
        daemon::{self, Readiness},
        descriptors, logging, panics,
        pidfile::PidFile,
        signals::Signals,
        user::User,
    },
};

/// What a program takes of its system.
#[derive(Clone, Copy, Debug)]
pub struct Takes {
    /// How many files it opens at the least.
    pub descriptors: usize,
    /// The capabilities by which it starts, on some kernels at least.
    pub capabilities: CapabilitySet,
}

/// Runs `work` as the process that `args` describe, with the key that `security` names, and prints the figures that it
/// returns.
pub fn run<F: Future<Output = anyhow::Result<Ended>>>(
    args: &ProcessArgs,
    security: &SecurityArgs,
    takes: Takes,
    work: impl FnOnce(Process, Security) -> F,
) -> ExitCode {
    // First of all: threads and children take after us.
    let found = privileges::harden();
    let limit = descriptors::prepare(takes.descriptors).map_err(anyhow::Error::from);
    let outcome = limit.and_then(|()| daemon::detach(args.daemon)).and_then(|role| match role {
        daemon::Role::Parent(code) => Ok(code),
        daemon::Role::Child(readiness) => child(args, security, takes, readiness, &found, work).map(|()| exit::STOPPED),
    });
    outcome.unwrap_or_else(|e| report(&e))
}

fn child<F: Future<Output = anyhow::Result<Ended>>>(
    args: &ProcessArgs,
    security: &SecurityArgs,
    takes: Takes,
    readiness: Readiness,
    found: &[Finding],
    work: impl FnOnce(Process, Security) -> F,
) -> anyhow::Result<()> {
    let user = args.user.as_deref().map(User::find).transpose()?;
    let mut files = Files::new(user.clone());
    let log = logging::init(args.log_file.as_deref(), &mut files)?;
    let panics = panics::catch();
    found.iter().for_each(Finding::log);
    let summary = args.summary_json.as_deref().map(|path| SummaryFile::open(path, &mut files)).transpose()?;
    let runtime = runtime().context("cannot start the runtime")?;
    let signals = {
        let _inside = runtime.enter();
        Signals::catch(log)?
    };
    // Only now: whoever reads the process id may send a signal.
    let _pid_file = args.pid_file.as_deref().map(|path| PidFile::create(path, &mut files)).transpose()?;
    let output = if args.daemon { Output::Log } else { Output::Stdout };
    let process = Process::new(readiness, signals, panics, output);
    let security = security.load(user.as_ref().map_or_else(geteuid, User::uid))?;
    user.as_ref().map(User::become_it).transpose()?;
    let missing = privileges::missing(takes.capabilities);
    let outcome = runtime.block_on(async { panics::caught(work(process, security)).await? });
    tell_suppressed();
    let outcome = outcome.map_err(|error| lacking(&missing, error));
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

/// Makes the runtime of the main thread.
fn runtime() -> io::Result<Runtime> {
    // tokio takes a socket pair for signals, and panics when there is none. What it takes next is there as a rule, once
    // this one was, and a panic has a message too.
    drop(UnixStream::pair()?);
    let build = || Builder::new_current_thread().enable_all().build();
    catch_unwind(build).unwrap_or_else(|_| Err(io::Error::other("no pair of sockets to receive signals by")))
}

/// Names all capabilities that are missing where one of them is behind the error: who grants that alone meets the next.
fn lacking(missing: &[&str], error: anyhow::Error) -> anyhow::Error {
    let denied = error.chain().any(|cause| {
        let answer = cause.downcast_ref::<io::Error>().and_then(io::Error::raw_os_error);
        let program = cause.downcast_ref::<BpfError>();
        let socket = cause.downcast_ref::<InjectError>();
        matches!(answer, Some(libc::EPERM | libc::EACCES))
            || matches!(program, Some(BpfError::Permission | BpfError::Perfmon { .. }))
            || matches!(socket, Some(InjectError::NotPermitted { .. }))
    });
    if denied && !missing.is_empty() { error.context(format!("lacking {}", missing.join(", "))) } else { error }
}
