//! Which processors threads run on, where the operator has chosen them.

use std::{fmt, io, str::FromStr};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::finding::Finding;

/// The most that the C library's sets of processors hold (`CPU_SETSIZE`).
const MAX_CPUS: u32 = libc::CPU_SETSIZE as u32;

/// Processors, each once, in the order in which they were named; written as `taskset` and cpusets write them: `2,4-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<u32>);

impl CpuList {
    /// Returns how many there are.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// Returns their numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

impl From<Vec<u32>> for CpuList {
    fn from(cpus: Vec<u32>) -> Self {
        Self(cpus)
    }
}

/// Why a text is no list of processors.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CpuListError {
    /// Something other than a number where one belongs.
    #[error("{0:?} is not the number of a processor; write them like 2,4-7")]
    NotANumber(String),
    /// A number that no processor can have.
    #[error("there is no processor {0}: the numbers go up to {last}", last = MAX_CPUS - 1)]
    TooLarge(u32),
    /// A range whose first number is larger than its last.
    #[error("{0:?} ends before it begins")]
    Backwards(String),
    /// A processor that is named more than once.
    #[error("processor {0} is there twice")]
    Twice(u32),
}

impl FromStr for CpuList {
    type Err = CpuListError;

    fn from_str(text: &str) -> Result<Self, CpuListError> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(cpu) if cpu < MAX_CPUS => Ok(cpu),
            Ok(cpu) => Err(CpuListError::TooLarge(cpu)),
            Err(_) => Err(CpuListError::NotANumber(text.to_owned())),
        };
        let mut cpus = Vec::new();
        for entry in text.split(',') {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(CpuListError::Backwards(entry.to_owned()));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(CpuListError::Twice(cpu));
                }
                cpus.push(cpu);
            }
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for CpuList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut separator = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().zip(first..).take_while(|(cpu, expected)| *cpu == expected).count();
            write!(f, "{separator}{first}")?;
            if run > 1 {
                write!(f, "-{}", rest[run - 1])?;
            }
            rest = &rest[run..];
            separator = ",";
        }
        Ok(())
    }
}

/// Why threads cannot be pinned.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    /// The kernel does not let this process have it.
    #[error(
        "processor {cpu} is not online, or this process may not run on it (cpuset, taskset); it may run on {allowed}"
    )]
    NotAllowed {
        /// Its number.
        cpu: u32,
        /// Those that could be named.
        allowed: CpuList,
    },
    /// The question failed.
    #[error("the kernel does not tell on which processors this process may run: {0}")]
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

/// Keeps the calling thread on one processor. A thread that cannot be kept there any more, because the processor went
/// away since [`check`], runs elsewhere; that is found.
pub fn pin(cpu: u32) -> Option<Finding> {
    let mut set = CpuSet::new();
    set.set(cpu as usize);
    sched_setaffinity(None, &set).err().map(|e| {
        let thread = std::thread::current();
        Finding::warning(format!("{} cannot be kept on processor {cpu}", thread.name().unwrap_or("a thread")))
            .because(e.to_string())
            .remedy("it runs wherever the kernel puts it; name processors that are online")
    })
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
            assert_eq!(pin(last as u32), None);
            let set = sched_getaffinity(None).unwrap();
            (set.count(), set.is_set(last))
        });
        assert_eq!(now.join().unwrap(), (1, true));
    }

    #[test]
    fn a_processor_that_went_away_is_found_and_the_thread_runs_on() {
        // No machine of ours has so many.
        let found =
            std::thread::Builder::new().name("worker-3".into()).spawn(|| pin(MAX_CPUS - 1)).unwrap().join().unwrap();
        let text = found.unwrap().to_string();
        assert!(text.starts_with("worker-3 cannot be kept on processor 1023: Invalid argument"), "{text}");
    }

    #[test]
    fn a_processor_that_is_not_there_is_named_beside_those_that_are() {
        let error = check(&"0-1023".parse().unwrap()).unwrap_err().to_string();
        let count = sched_getaffinity(None).unwrap().count();
        assert!(error.contains("may run on") && (count == 1024 || error.contains("processor ")), "{error}");
    }

    #[test]
    fn lists_keep_their_order_and_are_written_as_they_are_read() {
        for (text, cpus) in [("0", &[0][..]), ("2,4-7", &[2, 4, 5, 6, 7]), ("9,0-1", &[9, 0, 1]), ("3-3", &[3])] {
            let list: CpuList = text.parse().unwrap();
            assert_eq!(list.iter().collect::<Vec<_>>(), cpus);
            assert_eq!(list.count(), cpus.len());
            assert_eq!(list.to_string(), text.replace("3-3", "3"));
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        for (text, part) in [
            ("", "not the number"),
            ("1,", "not the number"),
            ("a", "2,4-7"),
            ("-1", "not the number"),
            ("1-2-3", "not the number"),
            ("3-1", "before it begins"),
            ("1,0-2", "processor 1 is there twice"),
            ("1024", "up to 1023"),
        ] {
            let error = text.parse::<CpuList>().unwrap_err();
            assert!(error.to_string().contains(part), "{text:?}: {error}");
        }
    }
}
