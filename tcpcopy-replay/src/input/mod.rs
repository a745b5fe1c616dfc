//! What a live client has sent: captured segments, reassembled into a stream of octets.

pub(crate) mod adapter;
pub(crate) mod buffer;
pub(crate) mod offset;
pub(crate) mod stream;
