//! What a thread sleeps on: its inbox, and descriptors of whatever else it serves.

use std::{os::fd::BorrowedFd, time::Duration};

use log::Level;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
};

use crate::{log_limit::limited, mailbox::Inbox, process::panics};

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
    let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
    match poll(&mut fds, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(e) => limited!("failed polls", Level::Warn, "poll failed: {e}"),
    }
    if fds[0].revents().contains(PollFlags::IN) {
        inbox.rearm();
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
