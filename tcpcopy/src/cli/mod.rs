//! Command lines of both programs: arguments as typed, and arguments as validated.
//!
//! [`tcpcopy`] and [`intercept`] hold the arguments as clap reads them and turn them into the settings that the
//! programs run with ([`source::Settings`](crate::source::Settings),
//! [`intercept::Settings`](crate::intercept::Settings)); everything a program needs to know is in the settings, already
//! checked. Nothing below knows options: an error from there says in its own terms what is wrong, and `remedy` adds
//! which option changes that.

mod address;
pub mod clients;
pub mod intercept;
pub mod program;
mod remedy;
pub mod replay;
pub mod retired;
pub mod rules;
pub mod selection;
mod size;
pub mod tcpcopy;

use std::{io::Write as _, net::IpAddr, path::PathBuf, process::ExitCode, sync::Arc};

use clap::Args;
use rustix::process::Uid;

use crate::{
    affinity::CpuList,
    bpf::Network,
    control::{ConnectError, Keyring, PskError, Security},
    finding::Finding,
};

/// Where the pre-shared key is looked for when `--psk-file` is absent.
pub const DEFAULT_PSK_FILE: &str = "/etc/tcpcopy/psk";

/// A command line that cannot be carried out; exit code 2.
#[derive(Debug, thiserror::Error)]
pub enum UsageError {
    /// A rule of `-x`.
    #[error(transparent)]
    Rule(#[from] rules::RuleError),
    /// An entry of `-s`.
    #[error("-s {entry:?}: {fault}")]
    Server {
        /// The entry as typed.
        entry: String,
        /// What is wrong with it.
        fault: tcpcopy::ServerFault,
    },
    /// No server of `-s` can vouch for a target of `-x`.
    #[error(
        "-x names the target {0}, but none of the several addresses in -s is that host's, so it is unclear which \
         intercept swallows its responses; give -s the same addresses as -x"
    )]
    NoServerFor(IpAddr),
    /// A letter of tcpcopy 1.0 that means nothing here.
    #[error("-{letter} of tcpcopy 1.0: {reason}")]
    Retired {
        /// The letter.
        letter: &'static str,
        /// Why, and what to use instead.
        reason: &'static str,
    },
    /// A name of `-i`.
    #[error("-i {0:?}: the interface is empty or there twice")]
    Interface(String),
    /// An address of `-b`.
    #[error("-b {text:?}: {fault}")]
    Bind {
        /// As typed.
        text: String,
        /// What is wrong with it.
        fault: address::AddressError,
    },
    /// The address of `-H`.
    #[error("-H {text}: {fault}")]
    StandIn {
        /// As typed.
        text: String,
        /// What is wrong with it.
        fault: tcpcopy::StandInError,
    },
    /// Loopback clients, with their own addresses.
    #[error(
        "-i lo: a target drops packets from 127.0.0.1 and ::1 as martian; name the address that stands in for them \
         with -H ADDRESS, or those for all clients with -c"
    )]
    LoopbackWithoutStandIn,
    /// `-H` and `-c`.
    #[error("-H with -c: the addresses of -c stand in for loopback clients too; leave -H away")]
    TwoStandIns,
    /// `-c`, `-n` and `-f`.
    #[error(transparent)]
    Clients(#[from] clients::ClientsError),
    /// Not one processor for each worker.
    #[error(
        "--pin {pin}: that is {} for {} (-w); name one for each",
        counted(pin.count(), "processor"), counted(*workers as usize, "worker")
    )]
    Pin {
        /// As typed.
        pin: CpuList,
        /// Of `-w`.
        workers: u32,
    },
    /// `--bypass-qdisc` and `--inject raw`.
    #[error("--bypass-qdisc: raw sockets always go through the queueing discipline; leave --inject raw away")]
    BypassOfRaw,
    /// Less memory than the workers take empty.
    #[error(
        "-m {megabytes}: each of the {workers} workers{} needs a megabyte at least; give more, or fewer workers with \
         -w",
        if *copies > 1 { format!(" for each of {copies} copies") } else { String::new() }
    )]
    Memory {
        /// As typed.
        megabytes: u32,
        /// Of `-w`.
        workers: u32,
        /// How often each connection is replayed.
        copies: u32,
    },
    /// A network that is wanted and not wanted.
    #[error("{0} is both in --clients and in --exclude")]
    SelectedAndExcluded(Network),
}

/// Writes a number with its noun.
fn counted(n: usize, noun: &str) -> String {
    format!("{n} {noun}{}", if n == 1 { "" } else { "s" })
}

/// Checks that each interface has a name, and is named once.
fn named_once(interfaces: &[String]) -> Result<(), UsageError> {
    for (i, name) in interfaces.iter().enumerate() {
        if name.is_empty() || interfaces[..i].contains(name) {
            return Err(UsageError::Interface(name.clone()));
        }
    }
    Ok(())
}

/// How the peers of the control channel prove who they are.
#[derive(Debug, Args)]
pub struct SecurityArgs {
    /// File with the pre-shared key; `tcpcopy keygen` makes one. While keys are rotated it holds several, one a line: the
    /// first connects, each is accepted [default: /etc/tcpcopy/psk]
    #[arg(long, value_name = "FILE", conflicts_with = "insecure", help_heading = "Control channel")]
    psk_file: Option<PathBuf>,
    /// Neither encrypt nor authenticate the control channel: whoever reaches the port can make the target swallow
    /// traffic
    #[arg(long, help_heading = "Control channel")]
    insecure: bool,
}

impl SecurityArgs {
    /// Reads the keys, for a process of `user`.
    ///
    /// # Errors
    /// When the key file is missing, malformed or readable by others.
    pub fn load(&self, user: Uid) -> Result<Security, PskError> {
        if self.insecure {
            insecure().log();
            return Ok(Security::Insecure);
        }
        let path = self.psk_file.clone().unwrap_or_else(|| DEFAULT_PSK_FILE.into());
        Ok(Security::Psk(Arc::new(Keyring::read(path, user)?)))
    }
}

/// Warns of a control channel that anybody may use.
fn insecure() -> Finding {
    Finding::warning("--insecure: whoever reaches the control channel can make the target swallow traffic")
}

/// How the program runs as a process: the letters are those of tcpcopy 1.0.
#[derive(Debug, Args)]
pub struct ProcessArgs {
    /// Write the log to FILE instead of stderr
    #[arg(short = 'l', long = "log-file", value_name = "FILE", help_heading = "Process")]
    pub log_file: Option<PathBuf>,
    /// Write the process id to FILE, locked as long as the program runs
    #[arg(short = 'P', long, value_name = "FILE", help_heading = "Process")]
    pub pid_file: Option<PathBuf>,
    /// Run in the background, once everything is attached; needs -l
    #[arg(short = 'd', long, requires = "log_file", help_heading = "Process")]
    pub daemon: bool,
    /// Also write the summary to FILE, as JSON
    #[arg(long, value_name = "FILE", help_heading = "Process")]
    pub summary_json: Option<PathBuf>,
    /// Become this user once the files are open and the key is read, and keep only the capabilities that the work takes
    #[arg(long, value_name = "NAME|UID|UID:GID", help_heading = "Process")]
    pub user: Option<String>,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version, help_heading = "Process")]
    version: Option<bool>,
}

/// Exit codes of both programs, also in the help.
pub mod exit {
    use super::ExitCode;

    /// Stopped by a signal.
    pub const STOPPED: ExitCode = ExitCode::SUCCESS;
    /// Returns the code of a program that could not start, or failed while running.
    #[must_use]
    pub fn failed() -> ExitCode {
        ExitCode::from(1)
    }
    /// Returns the code of a wrong command line.
    #[must_use]
    pub fn usage() -> ExitCode {
        ExitCode::from(2)
    }
    /// Returns the code of a program that was not to wait for an `intercept` which is not there.
    #[must_use]
    pub fn no_intercept() -> ExitCode {
        ExitCode::from(3)
    }
}

/// Text at the end of each program's help.
pub const AFTER_HELP: &str = "\
Exit codes: 0 stopped by SIGTERM, SIGINT, SIGQUIT or the end of the terminal, 1 failed, 2 wrong command line,
3 no intercept was there (--require-intercept).
Signals: SIGHUP reads the key file again, and opens the log file of -l again; channels that are up go on.
SIGUSR1 shows the figures so far where those of the end are shown: on standard output, or with -d in
the log. SIGUSR2 is ignored.
RUST_LOG sets the log level (error, warn, info, debug, trace).";

/// Prints `error` with its causes, and the option that removes them, to stderr and yields the exit code that fits it.
pub fn report(error: &anyhow::Error) -> ExitCode {
    // A terminal that is gone is no reason for another exit code.
    let _ = writeln!(std::io::stderr(), "error: {}", remedy::finding(error));
    let may_come = |e: &ConnectError| !e.is_permanent();
    if error.chain().any(|e| e.is::<UsageError>() || e.is::<PskError>()) {
        exit::usage()
    } else if error.chain().any(|e| e.downcast_ref().is_some_and(may_come)) {
        exit::no_intercept()
    } else {
        exit::failed()
    }
}

#[cfg(test)]
mod tests {
    use super::insecure;
    use crate::finding::Severity;

    #[test]
    fn an_open_control_channel_is_a_warning_that_names_its_danger() {
        let finding = insecure();
        assert_eq!(finding.severity, Severity::Warning);
        assert_eq!(
            finding.to_string(),
            "--insecure: whoever reaches the control channel can make the target swallow traffic"
        );
    }
}
