//! Lists of processors, as `taskset` and cpusets write them.

use std::{fmt, str::FromStr};

/// The most that the C library's sets of processors hold (`CPU_SETSIZE`).
const MAX_CPUS: u32 = libc::CPU_SETSIZE as u32;

/// Processors, each once, in the order in which they were named: `2,4-7`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(Vec<u32>);

impl CpuList {
    /// How many.
    #[must_use]
    pub const fn count(&self) -> usize {
        self.0.len()
    }

    /// Their numbers.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.0.iter().copied()
    }
}

impl From<Vec<u32>> for CpuList {
    fn from(cpus: Vec<u32>) -> Self {
        Self(cpus)
    }
}

impl FromStr for CpuList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| match text.parse::<u32>() {
            Ok(cpu) if cpu < MAX_CPUS => Ok(cpu),
            Ok(cpu) => Err(format!("there is no processor {cpu}: the numbers go up to {}", MAX_CPUS - 1)),
            Err(_) => Err(format!("{text:?} is not the number of a processor; write them like 2,4-7")),
        };
        let mut cpus = Vec::new();
        for entry in text.split(',') {
            let (first, last) = entry.split_once('-').unwrap_or((entry, entry));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(format!("{entry:?} ends before it begins"));
            }
            for cpu in first..=last {
                if cpus.contains(&cpu) {
                    return Err(format!("processor {cpu} is there twice"));
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
