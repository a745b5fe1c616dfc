//! Which processor a thread runs on, when the command line says so.

use std::io;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::cli::cpus::CpuList;

/// Why threads cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel does not let this process have it.
    #[error(
        "--pin: processor {cpu} is not online, or this process may not run on it (cpuset, taskset); it may run on {allowed}"
    )]
    NotAllowed {
        /// Its number.
        cpu: u32,
        /// Those that could be named.
        allowed: CpuList,
    },
    /// The question failed.
    #[error("--pin: the kernel does not tell on which processors this process may run: {0}")]
    Unknown(#[source] io::Error),
}

/// Checks that this process may run on all of `cpus`.
///
/// # Errors
/// [`PinError`] names the first that it may not run on.
pub fn check(cpus: &CpuList) -> Result<(), PinError> {
    let set = sched_getaffinity(None).map_err(|e| PinError::Unknown(e.into()))?;
    let allowed: Vec<u32> = (0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(|cpu| cpu as u32).collect();
    match cpus.iter().find(|cpu| !allowed.contains(cpu)) {
        Some(cpu) => Err(PinError::NotAllowed { cpu, allowed: allowed.into() }),
        None => Ok(()),
    }
}

/// Keeps the calling thread on one processor. A thread that cannot be kept there any more, because the processor went away since
/// [`check`], runs elsewhere, with a warning.
pub fn pin(cpu: u32) {
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    if let Err(e) = sched_setaffinity(None, &set) {
        let thread = std::thread::current();
        log::warn!("{} cannot be kept on processor {cpu} (--pin): {e}", thread.name().unwrap_or("a thread"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_stays_where_it_is_pinned() {
        let set = sched_getaffinity(None).unwrap();
        let last = (0..CpuSet::MAX_CPU).rfind(|&cpu| set.is_set(cpu)).unwrap();
        check(&vec![last as u32].into()).unwrap();
        let now = std::thread::spawn(move || {
            pin(last as u32);
            let set = sched_getaffinity(None).unwrap();
            (set.count(), set.is_set(last))
        });
        assert_eq!(now.join().unwrap(), (1, true));
    }

    #[test]
    fn a_processor_that_is_not_there_is_named_beside_those_that_are() {
        let error = check(&"0-1023".parse().unwrap()).unwrap_err().to_string();
        let count = sched_getaffinity(None).unwrap().count();
        assert!(error.contains("may run on") && (count == 1024 || error.contains("processor ")), "{error}");
    }
}
