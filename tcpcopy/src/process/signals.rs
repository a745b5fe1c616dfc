//! What the operator asks for by signals, and what each means to both programs.
//!
//! | signal | meaning |
//! |---|---|
//! | TERM, INT, QUIT | end, in good order |
//! | HUP | the same; with a log file, open it again, for logrotate(8) |
//! | USR1 | show the figures so far, and go on |
//! | USR2 | nothing |
//! | XFSZ | nothing: a file that may not grow any more is written no further |
//!
//! By default each of them ends a process on the spot. `intercept` must not end like that: answers of connections that
//! are still open would reach real clients.

use std::{io, mem::zeroed, ptr};

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    logging::LogFile,
    panics::{self, Panicked},
};
use crate::finding::Finding;

/// What a running program has to do beside its work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// End in good order; by which signal.
    Stop(&'static str),
    /// End in good order, with an error: a thread has panicked.
    Fail(Panicked),
    /// Show the figures so far.
    Report,
}

/// The signals of the process, caught.
///
/// They stay caught when this is dropped (tokio never gives a signal its default back), so that none of them interrupts
/// the end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    /// `None` when it is to be ignored.
    hangup: Option<Signal>,
    user1: Signal,
    /// Caught, and asked for by tests only.
    user2: Signal,
    log: Option<LogFile>,
}

impl Signals {
    /// Catches the signals from here on. `log` is the file that SIGHUP opens again. Needs a tokio runtime.
    ///
    /// A SIGHUP that was ignored when the process started stays ignored, unless there is a log file: nohup(1) has asked
    /// for that.
    ///
    /// # Errors
    /// When the system refuses a handler, or the process is out of file descriptors.
    pub fn catch(log: Option<LogFile>) -> anyhow::Result<Self> {
        let catch = |kind, name| signal(kind).with_context(|| format!("cannot catch {name}"));
        ignore(libc::SIGXFSZ).context("cannot ignore SIGXFSZ")?;
        let ignore_hangup = log.is_none() && is_ignored(libc::SIGHUP).context("cannot ask what SIGHUP does")?;
        Ok(Self {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "SIGINT")?,
            quit: catch(SignalKind::quit(), "SIGQUIT")?,
            hangup: if ignore_hangup { None } else { Some(catch(SignalKind::hangup(), "SIGHUP")?) },
            user1: catch(SignalKind::user_defined1(), "SIGUSR1")?,
            user2: catch(SignalKind::user_defined2(), "SIGUSR2")?,
            log,
        })
    }

    /// Looks whether the log file can be opened again as the operator will expect it.
    pub(super) fn check_log(&self) -> Option<Finding> {
        self.log.as_ref().and_then(LogFile::check_rotation)
    }

    /// Waits for the next request; opens the log file again by itself. Cancel safe, as [`Signal::recv`] is.
    pub async fn next(&mut self) -> Request {
        loop {
            tokio::select! {
                biased;
                _ = self.terminate.recv() => return Request::Stop("SIGTERM"),
                _ = self.interrupt.recv() => return Request::Stop("SIGINT"),
                _ = self.quit.recv() => return Request::Stop("SIGQUIT"),
                () = received(&mut self.hangup) => match &self.log {
                    None => return Request::Stop("SIGHUP"),
                    Some(log) => match log.reopen() {
                        Ok(()) => log::info!("opened the log file again at SIGHUP"),
                        Err(e) => log::warn!("the log stays in the file that is open: {e}"),
                    },
                },
                _ = self.user1.recv() => return Request::Report,
                _ = self.user2.recv() => panics::provoke(),
            }
        }
    }
}

/// Waits for a signal; for ever, if it is ignored.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Ignores a signal.
fn ignore(signal: libc::c_int) -> io::Result<()> {
    // SAFETY: to ignore a signal touches nothing of this process's memory.
    match unsafe { libc::signal(signal, libc::SIG_IGN) } {
        libc::SIG_ERR => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Returns whether a signal is ignored.
fn is_ignored(signal: libc::c_int) -> io::Result<bool> {
    // SAFETY: all zeros is a valid `sigaction`, of the default action.
    let mut action: libc::sigaction = unsafe { zeroed() };
    // SAFETY: no action is set, and the place for the present one is a local variable.
    match unsafe { libc::sigaction(signal, ptr::null(), &raw mut action) } {
        0 => Ok(action.sa_sigaction == libc::SIG_IGN),
        _ => Err(io::Error::last_os_error()),
    }
}
