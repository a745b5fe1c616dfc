//! What the main thread tells the report thread.

use crate::control::Link;

/// What the main thread tells the report thread.
#[derive(Debug)]
pub(super) enum Order {
    /// A channel is up.
    LinkUp(u32, Box<Link>),
    /// Report what is in the ring and end.
    Stop,
}
