//! Where the figures go.

use std::io::{self, Write as _};

use crate::summary::Report;

/// Where the table of figures is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Standard output.
    Stdout,
    /// The log: a daemon has nothing else.
    Log,
}

impl Output {
    /// Shows a table. When standard output is gone, with the terminal or the reader of a pipe, the log has it.
    pub fn show(self, report: &Report) {
        if self == Self::Stdout {
            match print(report) {
                Ok(()) => return,
                Err(e) => log::warn!("cannot write the figures to standard output: {e}"),
            }
        }
        report.to_string().lines().for_each(|line| log::info!("{line}"));
    }
}

/// Prints like `println!`, which would panic, and so end `intercept` with its sessions open, where standard output is
/// gone.
fn print(report: &Report) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "{report}")?;
    stdout.flush()
}
