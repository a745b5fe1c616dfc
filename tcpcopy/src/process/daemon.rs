//! Running in the background.
//!
//! The process forks before it starts any thread. The parent waits until the child is ready, or has failed, and exits
//! with the child's verdict: whoever started the daemon sees why it did not start.

use std::{
    fs::File,
    io::{Read as _, Write as _},
    os::fd::OwnedFd,
    process::ExitCode,
};

use anyhow::Context as _;
use rustix::{
    io::retry_on_intr,
    process::{Pid, WaitOptions, waitpid},
};

/// What `fork` made of us.
#[derive(Debug)]
pub enum Role {
    /// The process that the user started: exit with this code.
    Parent(ExitCode),
    /// The daemon: keep the handle and call [`Readiness::announce`].
    Child(Readiness),
}

/// The daemon's line to the process that started it; does nothing in the foreground.
#[derive(Debug, Default)]
pub struct Readiness(Option<File>);

impl Readiness {
    /// Tells the waiting parent that everything is attached, and lets go of the terminal.
    ///
    /// # Errors
    /// When /dev/null cannot be opened.
    pub fn announce(&mut self) -> anyhow::Result<()> {
        if let Some(mut pipe) = self.0.take() {
            let null = File::options().read(true).write(true).open("/dev/null").context("cannot open /dev/null")?;
            rustix::stdio::dup2_stdin(&null)?;
            rustix::stdio::dup2_stdout(&null)?;
            rustix::stdio::dup2_stderr(&null)?;
            // A parent that was killed meanwhile is no reason to stop.
            let _ = pipe.write_all(b"r");
        }
        Ok(())
    }
}

/// Forks when `daemon` is set; must be called before any thread exists.
///
/// # Errors
/// When the process cannot fork.
pub fn detach(daemon: bool) -> anyhow::Result<Role> {
    if !daemon {
        return Ok(Role::Child(Readiness::default()));
    }
    let (read, write): (OwnedFd, OwnedFd) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    // SAFETY: no other thread exists yet, so the child may do whatever the parent might.
    match unsafe { libc::fork() } {
        -1 => Err(std::io::Error::last_os_error()).context("cannot fork into the background"),
        0 => {
            drop(read);
            rustix::process::setsid().context("cannot start a session of its own in the background")?;
            Ok(Role::Child(Readiness(Some(write.into()))))
        }
        pid => {
            drop(write);
            let mut word = Vec::new();
            // Up to the end: a call that a signal interrupts is repeated by it.
            File::from(read).take(1).read_to_end(&mut word).context("cannot read from the daemon")?;
            if !word.is_empty() {
                return Ok(Role::Parent(ExitCode::SUCCESS));
            }
            // The pipe closed without a word: the child has failed and said why on stderr, which is ours too.
            let status = retry_on_intr(|| waitpid(Pid::from_raw(pid), WaitOptions::empty()));
            let code = status.ok().flatten().and_then(|(_, status)| status.exit_status()).unwrap_or(1);
            Ok(Role::Parent(ExitCode::from(u8::try_from(code).unwrap_or(1))))
        }
    }
}
