//! What a program is to the system that it runs on: a daemon or not, with limits, a log, a process id file, signals,
//! panics and an output.

pub mod daemon;
pub mod descriptors;
mod files;
pub mod logging;
mod output;
pub mod panics;
pub mod pidfile;
pub mod signals;
mod summary_file;
pub mod user;

use self::{daemon::Readiness, panics::Panics, signals::Signals};
pub use self::{
    files::{FileFault, Files},
    output::Output,
    signals::Request,
    summary_file::{SummaryFile, SummaryFileError},
};
use crate::{
    finding::Finding,
    privileges::{self, Need},
    summary::Report,
};

/// What a program's work has come to, once it had begun.
#[derive(Debug)]
pub struct Ended {
    /// The figures of all of it.
    pub figures: Report,
    /// Why it ended before it was asked to, if it did.
    pub failure: Option<anyhow::Error>,
}

/// The process around a program's work: tells of its readiness, shows its figures, passes on what the operator asks
/// for.
#[derive(Debug)]
pub struct Process {
    readiness: Readiness,
    signals: Signals,
    panics: Panics,
    output: Output,
}

impl Process {
    /// Makes a process that is not ready yet.
    #[must_use]
    pub const fn new(readiness: Readiness, signals: Signals, panics: Panics, output: Output) -> Self {
        Self { readiness, signals, panics, output }
    }

    /// Announces to the parent process that everything is attached.
    ///
    /// # Errors
    /// When a daemon cannot let go of the terminal.
    pub fn announce_ready(&mut self) -> anyhow::Result<()> {
        self.readiness.announce()
    }

    /// Waits for the next request, of the operator or of a thread that has panicked. Cancel safe: a request is never
    /// lost with the future.
    pub async fn next_request(&mut self) -> Request {
        tokio::select! {
            biased;
            panicked = self.panics.next() => Request::Fail(panicked),
            request = self.signals.next() => request,
        }
    }

    /// Leaves the main thread what it takes to go on, once everything is set up: it reads figures, hooks interfaces and
    /// takes its programs off again. Looks whether the log can still be rotated.
    pub fn give_up_privileges(&self) {
        privileges::keep(&[Need::Network, Need::Maps]);
        self.signals.check_log().iter().for_each(Finding::log);
    }

    /// Shows the figures of the work so far.
    pub fn show(&self, report: &Report) {
        self.output.show(report);
    }
}
