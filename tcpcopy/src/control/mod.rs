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
pub mod link;
mod log_limit;
mod psk;
mod random;
mod record;
mod registration;
mod server;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{net::TcpStream, sync::Arc, time::Duration};

pub use backoff::Backoff;
pub use client::{ConnectError, Established, connect};
pub use frame::{Frame, FrameError, HURRY, MAX_RESPONSES, Responses, Stats};
pub use handshake::HandshakeError;
pub use link::{Link, LinkError, Sent};
pub use psk::{Psk, PskError};
pub use random::{RandomError, random_bytes};
pub use registration::{Hello, Refusal, RefusalCode, Resume, Token, Welcome};
pub use server::{Accepted, Listener, Registry, ServerCounters, ServerError};
use socket2::{SockRef, TcpKeepalive};

/// Where `intercept` listens unless `-p` says otherwise (the port of tcpcopy 1.0).
pub const DEFAULT_PORT: u16 = 36524;

/// Version of everything in this module that goes over the wire. Both sides must speak the same.
pub const PROTOCOL_VERSION: u16 = 2;

/// How long dialling and the whole handshake may take, on either side.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How a side protects the channel. Both sides must have chosen the same.
#[derive(Clone, Debug)]
pub enum Security {
    /// Encrypted and authenticated in both directions with a pre-shared key.
    Psk(Arc<Psk>),
    /// `--insecure`: whoever can reach the port can register, and whoever sees the packets can read them.
    Insecure,
}

/// Options of every control connection: no delay for small batches, and a dead peer noticed within half a minute.
fn configure(socket: &impl AsSocket) -> std::io::Result<()> {
    let socket = socket.as_socket();
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)).with_retries(3),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))
}

/// tokio's and the standard library's streams alike.
trait AsSocket {
    fn as_socket(&self) -> SockRef<'_>;
}

impl AsSocket for TcpStream {
    fn as_socket(&self) -> SockRef<'_> {
        SockRef::from(self)
    }
}

impl AsSocket for tokio::net::TcpStream {
    fn as_socket(&self) -> SockRef<'_> {
        SockRef::from(self)
    }
}
