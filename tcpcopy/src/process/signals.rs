//! What the operator asks for by signals, and what each means to both programs.
//!
//! | signal | meaning |
//! |---|---|
//! | TERM, INT, QUIT | end, in good order |
//! | HUP | read the key file again, and open the log file again, for logrotate(8); when the terminal is gone, end |
//! | USR1 | show the figures so far, and go on |
//! | USR2 | nothing |
//! | XFSZ | nothing: a file that may not grow any more is written no further |
//!
//! SIGHUP has two meanings, which the controlling terminal tells apart: it is sent when that hangs up (a dropped ssh
//! session), and by operators and service managers, whose programs have none. A shell passes it on before or after the
//! terminal has gone, so a moment is waited before it is looked at.
//!
//! By default each of them ends a process on the spot. `intercept` must not end like that: answers of connections that
//! are still open would reach real clients.

use std::{fs::OpenOptions, io, mem::zeroed, os::unix::fs::OpenOptionsExt as _, ptr, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::{Instant, sleep_until},
};

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
    /// Read the key file again.
    Reload,
}

/// How long after a SIGHUP the terminal is looked at.
const HANGUP_SETTLES: Duration = Duration::from_millis(100);

/// The signals of the process, caught.
///
/// They stay caught when this is dropped (tokio never gives a signal its default back), so that none of them interrupts
/// the end.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    quit: Signal,
    hangup: Signal,
    /// When the last SIGHUP is to be obeyed, if it has not been.
    hung_up: Option<Instant>,
    /// Whether the program ends with its terminal.
    ends_with_terminal: bool,
    user1: Signal,
    /// Caught, and asked for by tests only.
    user2: Signal,
    log: Option<LogFile>,
}

impl Signals {
    /// Catches the signals from here on. `log` is the file that SIGHUP opens again. Needs a tokio runtime.
    ///
    /// A program that ignored SIGHUP when it was started goes on without its terminal: nohup(1) has asked for that.
    ///
    /// # Errors
    /// When the system refuses a handler, or the process is out of file descriptors.
    pub fn catch(log: Option<LogFile>) -> anyhow::Result<Self> {
        let catch = |kind, name| signal(kind).with_context(|| format!("cannot catch {name}"));
        ignore(libc::SIGXFSZ).context("cannot ignore SIGXFSZ")?;
        let ignored = is_ignored(libc::SIGHUP).context("cannot ask what SIGHUP does")?;
        Ok(Self {
            terminate: catch(SignalKind::terminate(), "SIGTERM")?,
            interrupt: catch(SignalKind::interrupt(), "SIGINT")?,
            quit: catch(SignalKind::quit(), "SIGQUIT")?,
            hangup: catch(SignalKind::hangup(), "SIGHUP")?,
            hung_up: None,
            ends_with_terminal: !ignored && open_terminal().is_ok(),
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
                _ = self.hangup.recv() => self.hung_up = Some(Instant::now() + HANGUP_SETTLES),
                () = passed(self.hung_up) => {
                    self.hung_up = None;
                    return self.obey_hangup();
                }
                _ = self.user1.recv() => return Request::Report,
                _ = self.user2.recv() => panics::provoke(),
            }
        }
    }

    fn obey_hangup(&self) -> Request {
        if self.ends_with_terminal && terminal_is_gone() {
            return Request::Stop("the end of the terminal");
        }
        match self.log.as_ref().map(LogFile::reopen) {
            None => {}
            Some(Ok(())) => log::info!("opened the log file again at SIGHUP"),
            Some(Err(e)) => log::warn!("the log stays in the file that is open: {e}"),
        }
        Request::Reload
    }
}

/// Waits for a moment; for ever, if there is none.
async fn passed(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
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

/// Opens the controlling terminal of the process.
fn open_terminal() -> io::Result<()> {
    OpenOptions::new().read(true).custom_flags(libc::O_NOCTTY | libc::O_NONBLOCK).open("/dev/tty").map(drop)
}

/// Returns whether the process has no controlling terminal any more, or one that has hung up. Other errors, such as a
/// want of descriptors, say nothing.
fn terminal_is_gone() -> bool {
    open_terminal().is_err_and(|e| matches!(e.raw_os_error(), Some(libc::ENXIO | libc::EIO)))
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
