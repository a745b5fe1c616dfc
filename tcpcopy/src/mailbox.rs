//! Orders for a thread that sleeps in poll(2).

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll},
    io::Errno,
};

use crate::{bpf::RingReader, control::Link};

/// The sending end: wakes the thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    orders: Sender<T>,
    wake: Arc<OwnedFd>,
}

/// The thread's end; its file descriptor is readable after an order was sent.
#[derive(Debug)]
pub struct Inbox<T> {
    orders: Receiver<T>,
    wake: Arc<OwnedFd>,
}

/// A mailbox and its inbox.
///
/// # Errors
/// When the process is out of file descriptors.
pub fn mailbox<T>() -> std::io::Result<(Mailbox<T>, Inbox<T>)> {
    let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let (orders, receiver) = channel();
    Ok((Mailbox { orders, wake: Arc::clone(&wake) }, Inbox { orders: receiver, wake }))
}

impl<T> Mailbox<T> {
    /// Hands an order over; one to a thread that has ended is dropped.
    pub fn send(&self, order: T) {
        if self.orders.send(order).is_ok() {
            // Fails only when the counter is at its maximum, and then the thread is awake already.
            let _ = rustix::io::write(&self.wake, &1u64.to_ne_bytes());
        }
    }
}

/// Nobody can send an order any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl<T> Inbox<T> {
    /// The next order, if there is one.
    ///
    /// # Errors
    /// [`Closed`] when all senders are gone and every order was taken.
    pub fn next(&self) -> Result<Option<T>, Closed> {
        match self.orders.try_recv() {
            Ok(order) => Ok(Some(order)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Closed),
        }
    }

    /// Makes the file descriptor unreadable again. Before [`next`](Self::next), or an order would wait for the one after it.
    fn rearm(&self) {
        // Fails only when nothing was sent.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }
}

impl<T> AsFd for Inbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

impl<T> Inbox<T> {
    /// Sleeps until an order or something else comes: one of `links` can be read (or written, where it waits for that), or
    /// `ring` has woken us; or until `timeout` is over, or a signal came. Makes the inbox unreadable again.
    pub fn wait<'a>(&self, ring: Option<&RingReader>, links: impl Iterator<Item = &'a Link>, timeout: Duration) {
        let mut fds = vec![PollFd::from_borrowed_fd(self.as_fd(), PollFlags::IN)];
        fds.extend(ring.map(|ring| PollFd::from_borrowed_fd(ring.as_fd(), PollFlags::IN)));
        fds.extend(links.map(|link| {
            let write = if link.wants_write() { PollFlags::OUT } else { PollFlags::empty() };
            PollFd::from_borrowed_fd(link.as_fd(), PollFlags::IN | write)
        }));
        let timeout = Timespec { tv_sec: timeout.as_secs().cast_signed(), tv_nsec: timeout.subsec_nanos().into() };
        match poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => log::warn!("poll failed: {e}"),
        }
        if fds[0].revents().contains(PollFlags::IN) {
            self.rearm();
        }
    }
}
