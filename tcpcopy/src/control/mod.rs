//! The authenticated control channel between tcpcopy and intercept.
//!
//! ```text
//!            client::connect                    server::Listener
//!                  │   preamble, Noise, Hello         │
//!   (tokio)        ├─────────────────────────────────►│ Registry::register
//!                  │◄─────────────────────────────────┤
//!                  ▼   Welcome                        ▼ Registry::established
//!             link::Link ◄── Responses, Stats ── link::Link      (worker thread, report thread: poll(2))
//! ```
//!
//! tokio dials, accepts, authenticates and keeps the deadlines; once both sides know each other the socket leaves tokio
//! as a non-blocking [`Link`] for the thread that owns the sessions. Bottom up: [`frame`] is the messages, `record` puts
//! each into a length-prefixed and (with a key) encrypted record, `handshake` agrees on the keys, [`link`] moves records
//! over an established channel. `docs/wire-protocol.md` has the octets.

mod backoff;
mod client;
pub mod frame;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod handshake;
mod keyring;
pub mod link;
mod locked;
mod parameters;
mod prefixes;
mod psk;
mod random;
mod record;
mod registration;
mod responses;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

pub use backoff::Backoff;
pub use client::{ConnectError, Established, connect};
pub use frame::{Frame, FrameError, HURRY, Stats};
pub use handshake::HandshakeError;
pub use keyring::Keyring;
pub use link::{Link, LinkError, Sent};
pub use parameters::{DEFAULT_PORT, HANDSHAKE_DEADLINE, PROTOCOL_VERSION, Security};
pub use prefixes::{MAX_TARGETS, TargetPrefix};
pub use psk::{GenerateError, Psk, PskError};
pub use random::{RandomError, random_bytes};
pub use registration::{Hello, Refusal, RefusalCode, Resume, Token, Welcome};
pub use responses::{Batch, MAX_RESPONSES, Responses};
pub use server::{Accepted, Listener, Registry, ServerCounters, ServerError};
