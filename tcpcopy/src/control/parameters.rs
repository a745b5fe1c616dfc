//! What both ends of a channel must agree on, and the options of their sockets.

use std::{net::TcpStream, sync::Arc, time::Duration};

use socket2::{SockRef, TcpKeepalive};

use super::psk::Psk;

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
