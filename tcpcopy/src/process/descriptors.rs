//! The limit on open files (`RLIMIT_NOFILE`): raised as far as allowed, and checked before anything depends on it.

use rustix::{
    io::{Errno, fcntl_dupfd_cloexec},
    process::{Resource, Rlimit, getrlimit, setrlimit},
    stdio::stdin,
};

/// Descriptors that either program opens while it starts, whatever its options: of the runtime, the log, eBPF maps and
/// programs, sockets. More than it keeps (about 35), because some are open only while something is looked up.
pub const BASE: usize = 48;
/// Descriptors of a worker but for its control channels: of the ring, the mailbox and the sockets that packets leave
/// by.
pub const WORKER: usize = 5;
/// What to do about too few.
pub const REMEDY: &str =
    "raise the limit on open files (`ulimit -n`, `LimitNOFILE=` of systemd, `--ulimit nofile=` of a container)";

/// The limit on open files leaves no room to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the limit on open files, {limit}, leaves room for {free} more, but at least {needed} are needed; {REMEDY}")]
pub struct TooFew {
    /// The limit, which is the hard one.
    limit: u64,
    /// How many more files can be opened.
    free: usize,
    /// How many have to be.
    needed: usize,
}

/// Raises the limit on open files to the hard limit, and checks that `needed` more can be opened. Comes before
/// everything that opens one, because tokio aborts the process when it gets no socket pair for its signals.
///
/// # Errors
/// [`TooFew`] when the limit leaves less.
pub fn prepare(needed: usize) -> Result<(), TooFew> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current != maximum {
        // Raising a soft limit to the hard one is always allowed, unless a sandbox forbids the system call. What counts
        // is what can be opened.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
    let mut opened = Vec::with_capacity(needed);
    while opened.len() < needed {
        // A duplicate costs nothing but its descriptor, and has no other reason to fail.
        match fcntl_dupfd_cloexec(stdin(), 0) {
            Ok(fd) => opened.push(fd),
            Err(Errno::MFILE) => {
                let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
                return Err(TooFew { limit, free: opened.len(), needed });
            }
            // Standard input is closed: there is nothing to duplicate, and nothing to say against a start.
            Err(_) => break,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_is_checked_and_given_back() {
        let limit = getrlimit(Resource::Nofile).maximum.unwrap_or(1 << 20).min(1 << 20) as usize;
        for _ in 0..3 {
            prepare(limit / 2).unwrap();
        }
        let error = prepare(limit.saturating_mul(2)).unwrap_err();
        assert!(error.free > limit / 2 && error.needed == limit * 2, "{error:?}");
        let text = error.to_string();
        assert!(text.contains("ulimit -n") && text.contains(&limit.to_string()), "{text}");
        assert_eq!(
            getrlimit(Resource::Nofile).current,
            getrlimit(Resource::Nofile).maximum,
            "the soft limit is raised"
        );
    }
}
