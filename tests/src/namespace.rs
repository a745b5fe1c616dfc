//! Network namespaces that are always removed: when dropped, on SIGINT and SIGTERM, and at the next start when the
//! process was killed.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io::Write as _,
    path::PathBuf,
    process::{Command, Stdio},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context as _, bail};
use rustix::{
    process::{Pid, Signal},
    thread::{LinkNameSpaceType, move_into_link_name_space},
};

/// Every namespace is called `tclab-<pid>-<number of the laboratory>-<role>`.
const PREFIX: &str = "tclab-";

static OURS: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

fn ours() -> MutexGuard<'static, BTreeSet<String>> {
    OURS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns what the names of one laboratory's namespaces begin with.
pub fn unique_prefix() -> String {
    static LABORATORIES: AtomicU32 = AtomicU32::new(0);
    format!("{PREFIX}{}-{}", std::process::id(), LABORATORIES.fetch_add(1, Ordering::Relaxed))
}

/// A network namespace with `lo` up.
#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes one.
    pub fn create(name: String) -> anyhow::Result<Self> {
        ip(None, &[format!("netns add {name}")]).context("network namespaces need root and `/run/netns`")?;
        ours().insert(name.clone());
        let namespace = Self { name };
        namespace.ip(&["link set lo up".into()])?;
        Ok(namespace)
    }

    /// Returns its name, for `ip netns exec`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs lines of `ip` in it.
    pub fn ip(&self, lines: &[String]) -> anyhow::Result<()> {
        ip(Some(&self.name), lines)
    }

    /// Returns what one `ip` (or `tc`, `ss` …) command in it prints.
    pub fn output(&self, command: &str) -> anyhow::Result<String> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name])
            .args(command.split_whitespace())
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("could not start `{command}`"))?;
        if !output.status.success() {
            bail!("`{command}` in {} failed: {}", self.name, String::from_utf8_lossy(&output.stderr).trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Moves the calling thread into it, for good: use a thread that is made for this.
    pub fn enter(&self) -> anyhow::Result<()> {
        let path = PathBuf::from("/run/netns").join(&self.name);
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the namespace {}", self.name))
    }

    /// Returns the processes in it.
    pub fn processes(&self) -> Vec<i32> {
        processes(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if ours().remove(&self.name) {
            remove(&self.name);
        }
    }
}

/// Runs lines of `ip` in a namespace, or in ours, with one process.
fn ip(namespace: Option<&str>, lines: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    if let Some(name) = namespace {
        command.args(["-netns", name]);
    }
    let mut child = command
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("could not start `ip`; install iproute2")?;
    let script = lines.join("\n") + "\n";
    // When ip ends early the pipe breaks; its own message says more.
    let _ = child.stdin.take().map(|mut stdin| stdin.write_all(script.as_bytes()));
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`ip` in {} failed: {}\n{script}", namespace.unwrap_or("the host"), complaint.trim());
    }
    Ok(())
}

fn processes(name: &str) -> Vec<i32> {
    let output = Command::new("ip").args(["netns", "pids", name]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Kills what still runs in a namespace of ours, and deletes it.
fn remove(name: &str) {
    for pid in processes(name) {
        if pid != std::process::id() as i32
            && let Some(pid) = Pid::from_raw(pid)
        {
            // It may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    if let Err(error) = ip(None, &[format!("netns delete {name}")]) {
        log::warn!("the namespace {name} is left: {error:#}");
    }
}

/// Removes all namespaces of this process, for a signal handler's use; dropping them later does nothing.
pub fn remove_all() {
    let names = std::mem::take(&mut *ours());
    names.iter().for_each(|name| remove(name));
}

/// Removes the namespaces that dead processes have left. A process that got the identifier of a dead one keeps its
/// namespaces alive until the start after its own end, which does no harm.
pub fn remove_stale() {
    let Ok(directory) = fs::read_dir("/run/netns") else { return };
    for entry in directory.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let owner = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if let Some(owner) = owner.and_then(|pid| pid.parse::<u32>().ok())
            && !PathBuf::from(format!("/proc/{owner}")).exists()
        {
            log::info!("removing the namespace {name}, which a killed process has left");
            remove(&name);
        }
    }
}
