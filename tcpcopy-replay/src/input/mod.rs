//! Reassembly: captured segments of a live client become a stream of octets; and the seam between that and what is
//! sent.

pub(crate) mod adapter;
pub(crate) mod buffer;
pub(crate) mod holders;
pub(crate) mod mark;
pub(crate) mod offset;
mod out_of_order;
pub(crate) mod proxy_protocol;
pub(crate) mod stream;
