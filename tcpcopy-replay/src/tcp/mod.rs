//! The replayed client's TCP endpoint (RFC 9293), as far as a client needs one that only repeats what another has sent.

pub(crate) mod acceptance;
pub(crate) mod congestion;
pub(crate) mod delayed_ack;
pub(crate) mod distance;
pub(crate) mod isn;
pub(crate) mod nagle;
pub(crate) mod receiver;
pub(crate) mod rto;
pub(crate) mod seq;
pub(crate) mod server_profile;
pub(crate) mod session;

pub use self::distance::RoundTrip;
