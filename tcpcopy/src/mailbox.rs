//! Orders for a thread that sleeps in poll(2): see [`crate::poll`].

use std::{
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    sync::{
        Arc,
        mpsc::{Receiver, Sender, TryRecvError, channel},
    },
};

use rustix::{
    event::{EventfdFlags, eventfd},
    io::retry_on_intr,
};

/// The sending end, which wakes the thread.
#[derive(Debug)]
pub struct Mailbox<T> {
    orders: Sender<T>,
    wake: Arc<OwnedFd>,
}

/// The receiving end, which the thread owns.
#[derive(Debug)]
pub struct Inbox<T> {
    orders: Receiver<T>,
    wake: Arc<OwnedFd>,
}

/// Creates a mailbox and its inbox.
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
            let _ = retry_on_intr(|| rustix::io::write(&self.wake, &1u64.to_ne_bytes()));
        }
    }
}

/// All senders are gone: no order can come any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

impl<T> Inbox<T> {
    /// Returns the next order, if there is one.
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

    /// Makes the file descriptor unreadable again. Before [`next`](Self::next), or an order would wait for the one
    /// after it.
    pub(crate) fn rearm(&self) {
        // Fails only when nothing was sent.
        let _ = retry_on_intr(|| rustix::io::read(&self.wake, &mut [0; 8]));
    }

    /// Returns the descriptor that is readable after an order was sent, until [`rearm`](Self::rearm).
    pub(crate) fn wake_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}
