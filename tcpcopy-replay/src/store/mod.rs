//! Where a million connections are kept: in a slab, found by four-tuple, woken by timers, fetched before they are needed.

pub(crate) mod id;
pub(crate) mod moment;
#[allow(unsafe_code, reason = "prefetching is an instruction that no safe function offers")]
pub(crate) mod prefetch;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod timers;
