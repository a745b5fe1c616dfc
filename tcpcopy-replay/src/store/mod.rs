//! Storage of a million connections: the slab that holds them, the tables that find them by four-tuple, the timers that
//! wake them, and prefetching.

pub(crate) mod id;
pub(crate) mod moment;
#[allow(unsafe_code, reason = "prefetching is an instruction that no safe function offers")]
pub(crate) mod prefetch;
pub(crate) mod slab;
pub(crate) mod table;
pub(crate) mod timers;
