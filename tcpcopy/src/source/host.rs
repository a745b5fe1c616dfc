//! The thread that runs a worker: `CLOCK_MONOTONIC`, poll(2), and the queues to and from the main thread.

use std::{
    os::fd::AsFd as _,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tcpcopy_replay::{
    Nanos,
    worker::{self, Clock},
};
use tokio::sync::mpsc::UnboundedSender;

use super::{capture::Ring, reports::Links};
use crate::{
    clock,
    control::{Link, LinkError, Stats},
    inject::{InjectStats, Injector},
    mailbox::{Closed, Inbox},
    poll::{self, Interest},
};

/// What the main thread tells a worker.
pub(super) type Order = worker::Order<Box<Link>>;
/// What a worker tells the main thread.
pub(super) type Notice = worker::Notice<LinkError>;
/// What a worker has counted.
pub(super) type Snapshot = worker::Snapshot<InjectStats, Stats>;

/// The surroundings of one worker.
pub(super) struct Host {
    /// Index of the worker.
    pub(super) index: u32,
    pub(super) inbox: Inbox<Order>,
    pub(super) notices: UnboundedSender<(u32, Notice)>,
    pub(super) published: Arc<Mutex<Snapshot>>,
}

impl Clock for Host {
    fn now(&self) -> Nanos {
        clock::now()
    }
}

impl worker::Host<Ring, Injector, Links> for Host {
    fn next_order(&mut self) -> Option<Order> {
        match self.inbox.next() {
            Ok(order) => order,
            // When nobody is left who could stop the worker in an orderly way, it stops now.
            Err(Closed) => Some(Order::Stop),
        }
    }

    fn notify(&mut self, notice: Notice) {
        // Nobody listens any more when the program ends.
        let _ = self.notices.send((self.index, notice));
    }

    fn publish(&mut self, snapshot: Snapshot) {
        // A reader that panicked has no bearing on what is written.
        *self.published.lock().unwrap_or_else(PoisonError::into_inner) = snapshot;
    }

    fn nap(&mut self, time: Duration) {
        clock::nap(time);
    }

    fn wait(&mut self, capture: Option<&Ring>, reports: &Links, timeout: Duration) {
        let ring = capture.map(|ring| Interest::read(ring.reader.as_fd()));
        poll::wait(&self.inbox, ring.into_iter().chain(reports.interests()), timeout);
    }
}
