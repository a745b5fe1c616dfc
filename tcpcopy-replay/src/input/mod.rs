//! What a live client has sent: captured segments, reassembled into a stream of octets.

pub(crate) mod buffer;
pub(crate) mod stream;
