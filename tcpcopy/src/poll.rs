//! What a thread sleeps on: its inbox, and descriptors of whatever else it serves.

use std::{os::fd::BorrowedFd, time::Duration};

use log::Level;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{clock::nap, log_limit::limited, mailbox::Inbox, process::panics};

/// The longest sleep instead of one that the kernel has refused: descriptors are looked at blindly then.
const BLIND: Duration = Duration::from_millis(10);

/// A descriptor, and what of it ends a sleep.
#[derive(Clone, Copy, Debug)]
pub struct Interest<'a> {
    fd: BorrowedFd<'a>,
    flags: PollFlags,
}

impl<'a> Interest<'a> {
    /// Waits until `fd` can be read.
    #[must_use]
    pub const fn read(fd: BorrowedFd<'a>) -> Self {
        Self { fd, flags: PollFlags::IN }
    }

    /// Waits until `fd` can be read or written.
    #[must_use]
    pub const fn read_or_write(fd: BorrowedFd<'a>) -> Self {
        Self { fd, flags: PollFlags::IN.union(PollFlags::OUT) }
    }
}

/// Sleeps until an order comes to `inbox` or one of `interests` is ready, until `timeout` is over, or until a signal
/// comes. Level-triggered: what is ready already ends the sleep at once. Of an order this is true until the sleep that
/// it ends; take all of them before the next one.
pub fn wait<'a, T>(inbox: &Inbox<T>, interests: impl Iterator<Item = Interest<'a>>, timeout: Duration) {
    panics::provoked();
    let mut fds = vec![PollFd::from_borrowed_fd(inbox.wake_fd(), PollFlags::IN)];
    fds.extend(interests.map(|interest| PollFd::from_borrowed_fd(interest.fd, interest.flags)));
    ready(&mut fds, timeout);
    if fds[0].revents().contains(PollFlags::IN) {
        inbox.rearm();
    }
}

/// Sleeps until one of `fds` is ready, `timeout` is over, or a signal comes. Where the kernel has no memory to wait
/// with (ENOMEM) a little time passes all the same, so that its caller does not spin.
pub fn ready(fds: &mut [PollFd<'_>], timeout: Duration) {
    let limit = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    match poll(fds, Some(&limit)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => {
            limited!("failed polls", Level::Warn, "poll failed: {e}");
            nap(timeout.min(BLIND));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Write as _,
        os::{fd::AsFd as _, unix::net::UnixStream},
        time::Instant,
    };

    use super::*;
    use crate::mailbox::mailbox;

    /// Longer than any test takes: a sleep that this ends has been missed.
    const FOREVER: Duration = Duration::from_secs(600);

    #[test]
    fn an_order_that_was_sent_before_ends_a_sleep_once() {
        let (mailbox, inbox) = mailbox().unwrap();
        mailbox.send(7);
        wait(&inbox, std::iter::empty(), FOREVER);
        assert_eq!(inbox.next(), Ok(Some(7)));
        let began = Instant::now();
        wait(&inbox, std::iter::empty(), Duration::from_millis(20));
        assert!(began.elapsed() >= Duration::from_millis(20), "the same order ended two sleeps");
    }

    #[test]
    fn a_sleep_that_the_kernel_refuses_is_none_that_spins() {
        // More descriptors than the process may have are refused (EINVAL); so would any be without memory.
        let (near, _far) = UnixStream::pair().unwrap();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()).filter(|limit| *limit < 1 << 24) else {
            return crate::net::testing::skip("the limit on open files is too high to be exceeded");
        };
        let mut fds = vec![PollFd::from_borrowed_fd(near.as_fd(), PollFlags::IN); limit + 1];
        let began = Instant::now();
        ready(&mut fds, FOREVER);
        assert!(began.elapsed() >= BLIND, "no time has passed");
        let began = Instant::now();
        ready(&mut fds, Duration::from_millis(1));
        assert!(began.elapsed() >= Duration::from_millis(1), "no time has passed");
    }

    #[test]
    fn a_descriptor_ends_sleeps_as_long_as_it_is_ready() {
        let (_mailbox, inbox) = mailbox::<()>().unwrap();
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"x").unwrap();
        for _ in 0..2 {
            wait(&inbox, [Interest::read(near.as_fd())].into_iter(), FOREVER);
        }
        wait(&inbox, [Interest::read_or_write(far.as_fd())].into_iter(), FOREVER);
    }
}
