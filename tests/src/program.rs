//! Processes of the laboratory: the programs under test, and other people's servers.

use std::{
    io::{BufRead as _, BufReader, Read},
    os::fd::{AsFd as _, OwnedFd},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};

use crate::PATIENCE;

/// Lines that a program wrote so far.
#[derive(Default)]
struct Lines {
    lines: Mutex<(Vec<String>, bool)>,
    changed: Condvar,
}

impl Lines {
    /// Collects in a thread until the program has closed its end.
    fn collect(self: &Arc<Self>, from: impl Read + Send + 'static) -> JoinHandle<()> {
        let lines = Arc::clone(self);
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            let mut line = Vec::new();
            while from.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(&line).trim_end().to_owned();
                lines.lock().0.push(text);
                lines.changed.notify_all();
                line.clear();
            }
            lines.lock().1 = true;
            lines.changed.notify_all();
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, (Vec<String>, bool)> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn text(&self) -> String {
        self.lock().0.join("\n")
    }

    /// Waits for a line; `None` when the program ended or the time is up.
    fn wait_for(&self, limit: Duration, matches: impl Fn(&str) -> bool) -> Option<String> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        let mut seen = 0;
        loop {
            if let Some(line) = state.0[seen..].iter().find(|line| matches(line)) {
                return Some(line.clone());
            }
            seen = state.0.len();
            let left = deadline.saturating_duration_since(Instant::now());
            if state.1 || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

/// A running process whose output is kept. Killed when dropped.
pub struct Program {
    name: String,
    child: Child,
    pidfd: OwnedFd,
    stdout: Arc<Lines>,
    stderr: Arc<Lines>,
    readers: Vec<JoinHandle<()>>,
    ended: Option<ExitStatus>,
}

/// What a process that ended has left.
#[derive(Debug)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error: its log.
    pub stderr: String,
}

impl Program {
    /// Starts a command. `name` is for messages.
    pub fn start(name: &str, command: &mut Command) -> anyhow::Result<Self> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("could not start {name}"))?;
        let (stdout, stderr) = (Arc::<Lines>::default(), Arc::<Lines>::default());
        let readers = [
            child.stdout.take().map(|pipe| stdout.collect(pipe)),
            child.stderr.take().map(|pipe| stderr.collect(pipe)),
        ];
        let pidfd = Pid::from_raw(child.id() as i32)
            .context("a process has an identifier")
            .and_then(|pid| Ok(pidfd_open(pid, PidfdFlags::empty())?))?;
        let readers = readers.into_iter().flatten().collect();
        Ok(Self { name: name.to_owned(), child, pidfd, stdout, stderr, readers, ended: None })
    }

    /// Returns its process identifier.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Returns its log so far.
    pub fn log(&self) -> String {
        self.stderr.text()
    }

    /// Returns what it wrote to standard output so far.
    pub fn output(&self) -> String {
        self.stdout.text()
    }

    /// Waits until its log says `ready`.
    pub fn wait_ready(&self) -> anyhow::Result<()> {
        let is_ready = |line: &str| line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ready");
        self.wait_log(PATIENCE, is_ready).map(|_| ()).context("it never got ready")
    }

    /// Waits for a line of its log.
    pub fn wait_log(&self, limit: Duration, matches: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        self.stderr.wait_for(limit, matches).with_context(|| {
            let what = if self.is_running() { "has not written" } else { "ended without" };
            format!("{} {what} the expected line (limit {limit:?}); its log:\n{}", self.name, self.log())
        })
    }

    /// Waits for a line on its standard output.
    pub fn wait_output(&self, limit: Duration, matches: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        let context =
            || format!("{} has not printed the expected line (limit {limit:?}); its log:\n{}", self.name, self.log());
        self.stdout.wait_for(limit, matches).with_context(context)
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        pidfd_send_signal(&self.pidfd, signal).with_context(|| format!("cannot signal {}", self.name))
    }

    /// Returns whether it still runs.
    pub fn is_running(&self) -> bool {
        !self.ends_within(Duration::ZERO).unwrap_or(true)
    }

    fn ends_within(&self, limit: Duration) -> anyhow::Result<bool> {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) };
            match poll(&mut [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)], Some(&timeout)) {
                Ok(n) => return Ok(n > 0),
                Err(rustix::io::Errno::INTR) => (),
                Err(error) => return Err(error).context("cannot wait for a process"),
            }
        }
    }

    /// Waits until it ends by itself.
    pub fn wait(mut self, limit: Duration) -> anyhow::Result<Ended> {
        ensure!(self.ends_within(limit)?, "{} still runs after {limit:?}; its log:\n{}", self.name, self.log());
        let status = self.child.wait()?;
        self.ended = Some(status);
        for reader in self.readers.drain(..) {
            // A reader only ends by the pipe's end; it cannot fail.
            let _ = reader.join();
        }
        Ok(Ended { status, stdout: self.stdout.text(), stderr: self.stderr.text() })
    }

    /// Asks it to stop with SIGTERM and waits. It must end with success and without an ERROR in its log.
    pub fn stop(self) -> anyhow::Result<Ended> {
        self.stop_by(Signal::TERM)
    }

    /// Stops it by another signal.
    pub fn stop_by(self, signal: Signal) -> anyhow::Result<Ended> {
        self.signal(signal)?;
        let name = self.name.clone();
        let ended = self.wait(PATIENCE)?;
        if !ended.status.success() {
            bail!("{name} ended with {}; its log:\n{}", ended.status, ended.stderr);
        }
        if ended.stderr.contains("ERROR") || ended.stderr.contains("panicked") {
            bail!("{name} logged an error:\n{}", ended.stderr);
        }
        Ok(ended)
    }

    /// Kills it with SIGKILL and waits.
    pub fn kill(self) -> anyhow::Result<Ended> {
        self.signal(Signal::KILL)?;
        self.wait(PATIENCE)
    }

    /// Returns the CPU time of all its threads, to the ns.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut clock: libc::clockid_t = 0;
        // SAFETY: the pointer is to a local variable.
        let error = unsafe { libc::clock_getcpuclockid(self.child.id() as libc::pid_t, &mut clock) };
        ensure!(error == 0, "{} has no CPU clock: {}", self.name, std::io::Error::from_raw_os_error(error));
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the pointer is to a local variable.
        let result = unsafe { libc::clock_gettime(clock, &mut time) };
        ensure!(result == 0, "cannot read the CPU clock of {}: {}", self.name, std::io::Error::last_os_error());
        Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if thread::panicking() {
                eprintln!("--- log of {} ---\n{}\n{}", self.name, self.stdout.text(), self.log());
            }
            // It may have ended by itself, which is as good.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Returns the figure `name` in the last table of figures in a text; zeros are not in it.
pub fn figure(text: &str, name: &str) -> Option<u64> {
    let cells = |line: &str| line.split(['│', '┆', '|']).map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
    let row = text.lines().rev().map(cells).find(|row| row.iter().any(|cell| cell == name))?;
    let count = row.into_iter().skip_while(|cell| cell != name).nth(1)?;
    // Between the digits are thin spaces.
    count.chars().filter(char::is_ascii_digit).collect::<String>().parse().ok()
}

/// The JSON summary that `tcpcopy` or `intercept` has written.
#[derive(Clone, Debug, Default)]
pub struct Summary(pub serde_json::Value);

impl Summary {
    /// Returns the figure `name` of a section; `None` where the summary has none.
    pub fn get(&self, section: &str, name: &str) -> Option<u64> {
        self.0.get(section)?.get(name)?.as_u64()
    }

    /// Returns the figure `name` of a section.
    ///
    /// # Panics
    /// When it is absent: the summary has every figure, zeros included.
    pub fn count(&self, section: &str, name: &str) -> u64 {
        self.get(section, name).unwrap_or_else(|| panic!("the summary has no {name} in {section}: {:#}", self.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_table_of_figures_counts() {
        let text = "│ seen ┆ 4 │\nready\n│ seen ┆ 1\u{202f}234 │\n│       ┆ seen late ┆ 5 │\n";
        assert_eq!(
            (figure(text, "seen"), figure(text, "seen late"), figure(text, "late")),
            (Some(1234), Some(5), None)
        );
    }

    fn shell(script: &str) -> Program {
        Program::start("sh", Command::new("sh").args(["-c", script])).unwrap()
    }

    #[test]
    fn readiness_is_a_word_of_the_log() {
        let program = shell("echo already >&2; echo 'INFO intercept is ready.' >&2; exec cat /dev/zero >/dev/null");
        program.wait_ready().unwrap();
        assert!(program.is_running());
        let ended = program.kill().unwrap();
        assert!(!ended.status.success());
        assert_eq!(ended.stderr, "already\nINFO intercept is ready.");
    }

    #[test]
    fn an_end_before_readiness_is_noticed_at_once() {
        let started = Instant::now();
        let program = shell("echo 'ERROR no such interface' >&2; exit 1");
        let error = program.wait_ready().unwrap_err();
        assert!(format!("{error:#}").contains("no such interface"), "{error:#}");
        assert!(started.elapsed() < PATIENCE / 2);
    }

    #[test]
    fn an_error_in_the_log_fails_the_stop() {
        let program = shell("trap 'exit 0' TERM; echo ERROR: ready >&2; while :; do sleep 0.01; done");
        program.wait_ready().unwrap();
        assert!(program.stop().is_err());
    }

    #[test]
    fn a_figure_is_that_of_its_section_alone() {
        let summary = Summary(serde_json::json!({"bytes": {"captured": 7, "lag": 0.5}, "syns": {"captured": 2}}));
        assert_eq!((summary.count("bytes", "captured"), summary.count("syns", "captured")), (7, 2));
        assert_eq!(summary.get("fins", "captured"), None);
        assert_eq!(summary.get("bytes", "lag"), None);
    }
}
