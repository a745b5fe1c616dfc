//! How much of a process's CPU time is its packets' way through the receiver.
//!
//! A veth hands a packet to the other end in a softirq that runs at once, within the sender's system call: bridge,
//! programs, the receiving TCP up to the waking of the server. On two machines that is the other one's work, and here
//! it is in the sender's bill. The tracepoints `irq:softirq_entry` and `irq:softirq_exit` tell how long each NET_RX
//! softirq took, and in whose time.

use std::{
    collections::HashMap,
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lab::{Family, Lab, mirror::LIVE_PORT};
use serde::Serialize;
use tempfile::TempDir;

use crate::{
    contender::{Contender, Stage},
    workload::Workload,
};

/// Load that has begun is measured from here on.
const WARM_UP: Duration = Duration::from_millis(500);
const TIME: Duration = Duration::from_secs(2);
/// Of the kernel's `softirq_to_name`.
const NET_RX: u32 = 3;

/// One process under one workload, µs per request.
#[derive(Clone, Debug, Serialize)]
pub struct SoftirqShare {
    /// Which program.
    pub process: &'static str,
    /// Under what.
    pub workload: &'static str,
    /// All its CPU time, tracing included.
    pub cpu: f64,
    /// Of that, within NET_RX softirqs.
    pub softirq: f64,
}

/// Measures `tcpcopy` and `intercept` under each workload.
pub fn measure(lab: &Lab, contender: &Contender, workloads: &[Workload]) -> anyhow::Result<Vec<SoftirqShare>> {
    let mut shares = Vec::new();
    for workload in workloads {
        let stage = Stage::set(lab, contender)?;
        let processes = stage.processes();
        let source = processes.source.context("tcpcopy does not run")?;
        let target = processes.target.context("intercept does not run")?;
        let threads = [source.threads(), target.threads()];
        let load = workload.load(lab.source.socket(Family::V4, LIVE_PORT), WARM_UP + TIME).start(&lab.client)?;
        thread::sleep(WARM_UP);
        let trace = Trace::start(&threads.concat())?;
        let (before, answered) = ([source.cpu_time()?, target.cpu_time()?], load.answered());
        thread::sleep(TIME / 2);
        let (after, answered) = ([source.cpu_time()?, target.cpu_time()?], load.answered() - answered);
        let softirqs = trace.stop()?;
        load.join()?;
        stage.clear()?;
        ensure!(answered > 0, "no live request was answered");
        for (i, process) in ["tcpcopy", "intercept"].into_iter().enumerate() {
            let micros = |time: Duration| time.as_secs_f64() * 1e6 / answered as f64;
            let softirq = threads[i].iter().filter_map(|thread| softirqs.get(thread)).sum();
            let cpu = after[i].saturating_sub(before[i]);
            shares.push(SoftirqShare { process, workload: workload.name, cpu: micros(cpu), softirq: micros(softirq) });
        }
    }
    Ok(shares)
}

/// A trace buffer of our own. Removed in `Drop`.
struct Trace {
    instance: PathBuf,
    _mount: Mount,
}

impl Trace {
    /// Traces the softirqs within some threads.
    fn start(threads: &[u32]) -> anyhow::Result<Self> {
        let mount = Mount::new()?;
        let instance = mount.0.path().join(format!("instances/tcpcopy-bench-{}", std::process::id()));
        fs::create_dir(&instance).context("cannot make a trace buffer")?;
        let trace = Self { instance, _mount: mount };
        let ids: Vec<String> = threads.iter().map(u32::to_string).collect();
        trace.set("set_event_pid", &ids.join(" "))?;
        trace.set("buffer_size_kb", "16384")?;
        for event in ["softirq_entry", "softirq_exit"] {
            trace.set(&format!("events/irq/{event}/filter"), &format!("vec == {NET_RX}"))?;
            trace.set(&format!("events/irq/{event}/enable"), "1")?;
        }
        Ok(trace)
    }

    fn set(&self, file: &str, value: &str) -> anyhow::Result<()> {
        fs::write(self.instance.join(file), value).with_context(|| format!("the kernel does not take {file}"))
    }

    /// Returns how long they took together, by thread.
    fn stop(self) -> anyhow::Result<HashMap<u32, Duration>> {
        self.set("tracing_on", "0")?;
        let mut text = String::new();
        fs::File::open(self.instance.join("trace")).and_then(|mut file| file.read_to_string(&mut text))?;
        ensure!(is_complete(&text), "the trace buffer was too small");
        Ok(time_within(&text))
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.instance) {
            log::warn!("the trace buffer {} is left: {error}", self.instance.display());
        }
    }
}

/// The tracing file system, mounted for as long as this lives.
struct Mount(TempDir);

impl Mount {
    fn new() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tclab-").tempdir()?;
        run("mount", &["-t", "tracefs", "none"], directory.path())?;
        Ok(Self(directory))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = run("umount", &[], self.0.path()) {
            log::warn!("{error:#}");
            // What would be removed is the kernel's.
            self.0.disable_cleanup(true);
        }
    }
}

fn run(program: &str, arguments: &[&str], path: &Path) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).arg(path).output()?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {}: {}", path.display(), complaint.trim());
    Ok(())
}

/// Returns whether the buffer still has everything that was written:
/// `# entries-in-buffer/entries-written: 12/12   #P:2`.
fn is_complete(trace: &str) -> bool {
    let counts = trace.lines().find_map(|line| line.strip_prefix("# entries-in-buffer/entries-written: "));
    let (kept, written) = counts.and_then(|line| line.split_whitespace().next()?.split_once('/')).unwrap_or(("", "-"));
    kept == written
}

/// Adds the times between entries and exits up, thread by thread, from lines such as
/// `worker-0-1234  [001] ..s1.  5046.123456: softirq_entry: vec=3 [action=NET_RX]`. The times are cut to µs at both
/// ends of each interval, which comes to nothing in the sum.
fn time_within(trace: &str) -> HashMap<u32, Duration> {
    let mut entered = HashMap::<u32, f64>::new();
    let mut total = HashMap::<u32, f64>::new();
    for line in trace.lines().filter(|line| !line.starts_with('#')) {
        let Some((head, event)) = line.split_once(": softirq_") else { continue };
        let Some((head, time)) = head.rsplit_once(' ') else { continue };
        // The name may have spaces and brackets in it, but the processor comes after the identifier.
        let Some((task, _)) = head.rsplit_once('[') else { continue };
        let Some(thread) = task.trim_end().rsplit('-').next().and_then(|id| id.parse().ok()) else { continue };
        let Ok(time) = time.parse::<f64>() else { continue };
        if event.starts_with("entry") {
            entered.insert(thread, time);
        } else if let Some(entered) = entered.remove(&thread) {
            *total.entry(thread).or_default() += time - entered;
        }
    }
    total.into_iter().map(|(thread, seconds)| (thread, Duration::from_secs_f64(seconds.max(0.0)))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_and_exits_of_a_thread_belong_together() {
        let trace = "# tracer: nop\n\
                     worker-0-12    [000] ..s1.  10.000100: softirq_entry: vec=3 [action=NET_RX]\n\
                     worker-0-13    [001] ..s1.  10.000102: softirq_entry: vec=3 [action=NET_RX]\n\
                     worker-0-12    [000] ..s1.  10.000110: softirq_exit: vec=3 [action=NET_RX]\n\
                     worker-0-12    [000] ..s1.  10.000120: softirq_exit: vec=3 [action=NET_RX]\n\
                     worker-0-13    [001] ..s1.  10.000105: softirq_exit: vec=3 [action=NET_RX]\n";
        let micros = |thread| time_within(trace)[&thread].as_secs_f64() * 1e6;
        assert!((micros(12) - 10.0).abs() < 0.01 && (micros(13) - 3.0).abs() < 0.01, "{:?}", time_within(trace));
    }

    #[test]
    fn a_buffer_that_was_too_small_is_noticed() {
        assert!(is_complete("# tracer: nop\n#\n# entries-in-buffer/entries-written: 12/12   #P:2\n"));
        assert!(!is_complete("# entries-in-buffer/entries-written: 12/13   #P:2\n"));
        assert!(!is_complete(""));
    }
}
