//! What the kernel says about the CPU time and the memory of the machine and of processes.

use std::{fs, path::PathBuf, time::Duration};

use anyhow::{Context as _, ensure};

/// Returns the time that the processors of the machine were busy, softirqs included, since it was started.
///
/// It is what is left of the time when idling is taken off, because the kernel measures idling and only samples the
/// rest. `/proc/stat` has a resolution of 10 ms.
pub fn machine_busy() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat").context("cannot read /proc/stat")?;
    let first = stat.lines().next().context("/proc/stat is empty")?;
    let ticks = first.split_ascii_whitespace().skip(1).map(str::parse).collect::<Result<Vec<u64>, _>>()?;
    ensure!(ticks.len() >= 8, "/proc/stat has {} columns", ticks.len());
    // user nice system idle iowait irq softirq steal; guests are in user.
    let busy = ticks[..8].iter().sum::<u64>() - ticks[3] - ticks[4] - ticks[7];
    Ok(Duration::from_millis(busy * 10))
}

/// Returns the memory in the kernel's slabs, in octets.
pub fn slabs() -> anyhow::Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context("cannot read /proc/meminfo")?;
    let line =
        text.lines().find_map(|line| line.strip_prefix("Slab:")).context("the kernel does not tell of its slabs")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<u64>()? << 10)
}

/// A process and its descendants.
#[derive(Clone, Copy, Debug)]
pub struct Tree(pub u32);

impl Tree {
    /// Returns the CPU time of all threads, to the ns. What a process that has ended used is not in it.
    pub fn cpu_time(self) -> anyhow::Result<Duration> {
        let mut total = 0;
        for pid in self.processes() {
            for task in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
                // A thread may end between two calls.
                let schedstat = fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
                total += schedstat.split(' ').next().and_then(|ns| ns.parse::<u64>().ok()).unwrap_or(0);
            }
        }
        ensure!(total > 0, "process {} has ended", self.0);
        Ok(Duration::from_nanos(total))
    }

    /// Returns the most memory that was resident, in octets, the processes added up.
    pub fn peak_memory(self) -> u64 {
        let of = |pid: &u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
            line.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        self.processes().iter().filter_map(of).sum::<u64>() << 10
    }

    /// Returns the memory that is resident now, in octets.
    pub fn memory(self) -> u64 {
        let of = |pid: &u32| {
            let statm = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
            statm.split(' ').nth(1)?.parse::<u64>().ok()
        };
        self.processes().iter().filter_map(of).sum::<u64>() * rustix::param::page_size() as u64
    }

    /// Octets of eBPF maps that are mapped, the rings above all. They count as resident, each view for itself.
    pub fn mapped_rings(self) -> u64 {
        let of = |pid: &u32| {
            let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).ok()?;
            Some(resident_of_maps(&smaps))
        };
        self.processes().iter().filter_map(of).sum()
    }

    /// Returns the threads.
    pub fn threads(self) -> Vec<u32> {
        let tasks = |pid: u32| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
        let ids = self.processes().into_iter().flat_map(tasks);
        ids.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
    }

    fn processes(self) -> Vec<u32> {
        let mut all = vec![self.0];
        let mut next = 0;
        while let Some(&pid) = all.get(next) {
            let path = PathBuf::from(format!("/proc/{pid}/task"));
            for task in fs::read_dir(path).into_iter().flatten().flatten() {
                let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
                all.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
            next += 1;
        }
        all
    }
}

/// Reads the resident octets of eBPF maps in the text of `/proc/PID/smaps`.
fn resident_of_maps(smaps: &str) -> u64 {
    let (mut sum, mut is_map) = (0, false);
    for line in smaps.lines() {
        if let Some(rss) = line.strip_prefix("Rss:") {
            let kibi = rss.trim().strip_suffix(" kB").and_then(|n| n.parse::<u64>().ok());
            sum += if is_map { kibi.unwrap_or(0) << 10 } else { 0 };
        } else if line.split_ascii_whitespace().next().is_some_and(|word| word.contains('-')) {
            is_map = line.contains("bpf-map") || line.contains("bpf_ringbuf");
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use std::{hint::black_box, time::Instant};

    use super::*;

    #[test]
    fn time_that_is_spent_is_measured() {
        let (machine, own) = (machine_busy().unwrap(), Tree(std::process::id()).cpu_time().unwrap());
        let end = Instant::now() + Duration::from_millis(200);
        let mut n = 0u64;
        while Instant::now() < end {
            n = black_box(n + 1);
        }
        let (machine_now, own_now) = (machine_busy().unwrap(), Tree(std::process::id()).cpu_time().unwrap());
        // A machine that is shared gives less than it should.
        assert!(own_now - own > Duration::from_millis(20), "{:?}", own_now - own);
        assert!(machine_now - machine > Duration::from_millis(20), "{:?}", machine_now - machine);
        assert!(Tree(std::process::id()).peak_memory() > 1 << 20);
    }

    #[test]
    fn of_mappings_only_ebpf_maps_are_rings() {
        let smaps = "7f00-7f10 rw-s 00000000 00:0e 1 anon_inode:bpf-map\nSize: 64 kB\nRss: 64 kB\n\
                     7f10-7f20 r--s 00001000 00:0e 1 anon_inode:bpf-map\nRss: 36 kB\n\
                     7f20-7f30 rw-p 00000000 00:00 0 [heap]\nRss: 500 kB\n";
        assert_eq!(resident_of_maps(smaps), 100 << 10);
    }

    #[test]
    fn children_are_counted() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert!(Tree(std::process::id()).processes().contains(&child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
