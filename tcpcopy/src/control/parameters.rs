//! What both ends of a channel must agree on, and the options of their sockets.

use std::{net::TcpStream, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};

use super::{keyring::Keyring, psk::Psk};
use crate::finding::Finding;

/// Where `intercept` listens unless `-p` says otherwise (the port of tcpcopy 1.0).
pub const DEFAULT_PORT: u16 = 36524;

/// Version of everything in this module that goes over the wire. Both sides must speak the same.
pub const PROTOCOL_VERSION: u16 = 2;

/// How long dialling and the whole handshake may take, on either side.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(5);

/// How a side protects the channel. Both sides must have chosen the same.
#[derive(Clone, Debug)]
pub enum Security {
    /// Encrypted and authenticated in both directions with a pre-shared key. Clones have the same keyring.
    Psk(Arc<Keyring>),
    /// `--insecure`: whoever can reach the port can register, and whoever sees the packets can read them.
    Insecure,
}

impl Security {
    /// Reads the key file again, and finds what has come of it. Channels that are up go on in any case.
    pub fn reload(&self) -> Finding {
        let Self::Psk(keyring) = self else { return Finding::info("there is no key file to read again") };
        match keyring.reload() {
            Ok(1) => Finding::info("read the key file again: 1 key"),
            Ok(count) => Finding::info(format!("read the key file again: {count} keys, of which the first connects")),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(|source| format!(" ({source})")).unwrap_or_default();
                Finding::warning("the keys that were read before stay in use").because(format!("{error}{cause}"))
            }
        }
    }
}

/// A key that is in no file.
impl From<Psk> for Security {
    fn from(key: Psk) -> Self {
        Self::Psk(Arc::new(key.into()))
    }
}

/// Options of every control connection: no delay for small batches, and a dead peer noticed within half a minute.
pub(super) fn configure(socket: &impl AsSocket) -> std::io::Result<()> {
    let socket = socket.as_socket();
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(
        &TcpKeepalive::new().with_time(Duration::from_secs(10)).with_interval(Duration::from_secs(5)).with_retries(3),
    )?;
    socket.set_tcp_user_timeout(Some(Duration::from_secs(30)))
}

/// tokio's and the standard library's streams alike.
pub(super) trait AsSocket {
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
