//! Waiting for interfaces that come and go.

use std::io;

use anyhow::Context as _;
use tokio::io::unix::AsyncFd;

use crate::net::interface::{LinkChange, LinkMonitor};

/// Waits for what the kernel announces of interfaces.
#[derive(Debug)]
pub struct Links(AsyncFd<LinkMonitor>);

impl Links {
    /// Starts to listen. Call this before the first look at the interfaces, so that none slips through between.
    ///
    /// # Errors
    /// When the kernel cannot be listened to.
    pub fn watch() -> anyhow::Result<Self> {
        // SAFETY: the monitor owns its descriptor, which is the same as long as it lives.
        let registered = unsafe { AsyncFd::register(LinkMonitor::open()?) };
        registered.map(Self).map_err(|e| e.into_parts().1).context("cannot watch the interfaces")
    }

    /// Returns what has happened since the last call, as soon as something has. Cancel safe: no change is lost.
    ///
    /// # Errors
    /// When the socket fails for good.
    pub async fn changes(&mut self) -> io::Result<Vec<LinkChange>> {
        let mut ready = self.0.readable_mut().await?;
        let changes = ready.get_inner_mut().changes();
        ready.clear_ready();
        changes
    }
}
