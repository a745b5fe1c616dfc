//! The dialling side: one channel per worker.

use std::{io, net::SocketAddr};

use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    time::timeout,
};

use super::{
    frame::{Frame, FrameError},
    handshake::{HandshakeError, initiate, read_frame, write_frame},
    link::{Link, Role},
    parameters::{HANDSHAKE_DEADLINE, Security, configure},
    prefixes::TargetPrefix,
    record::Cipher,
    registration::{Hello, Refusal, RefusalCode, Welcome},
};

/// A channel that is up.
#[derive(Debug)]
pub struct Established {
    /// The channel.
    pub link: Link,
    /// What `intercept` assigned.
    pub welcome: Welcome,
}

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The TCP connection was not made.
    #[error("cannot reach intercept at {address}: {cause}; {}", dialling(.cause))]
    Dial {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        cause: io::Error,
    },
    /// Not finished in [`HANDSHAKE_DEADLINE`].
    #[error(
        "intercept at {address} did not answer within {} s: does it run there, is its port right, and does a \
         firewall let it through?",
        HANDSHAKE_DEADLINE.as_secs()
    )]
    Timeout {
        /// Where to.
        address: SocketAddr,
    },
    /// The two sides did not agree.
    #[error("no channel to intercept at {address}: {cause}")]
    Handshake {
        /// Where to.
        address: SocketAddr,
        /// Why not.
        cause: HandshakeError,
    },
    /// `intercept` turned us away.
    #[error("intercept at {address} refuses this worker: {refusal}")]
    Refused {
        /// Where to.
        address: SocketAddr,
        /// Its reason.
        refusal: Refusal,
    },
}

/// Returns what to look at when a TCP connection was not made: what this host was short of has nothing to do with the
/// other.
fn dialling(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EMFILE | libc::ENFILE) => "this host has no descriptor left for it (`ulimit -n`)",
        Some(libc::ENOBUFS | libc::ENOMEM) => "this host has no memory for it",
        _ => "does intercept run there, is its port right, and does a firewall let it through?",
    }
}

impl ConnectError {
    /// Whether only a change of configuration can help, so that a program that starts should end instead of retrying.
    #[must_use]
    pub const fn is_permanent(&self) -> bool {
        match self {
            Self::Dial { .. } | Self::Timeout { .. } => false,
            Self::Handshake { cause, .. } => match cause {
                HandshakeError::NotTcpcopy
                | HandshakeError::Version { .. }
                | HandshakeError::SecurityMismatch { .. }
                | HandshakeError::BadKey
                | HandshakeError::Frame(_)
                | HandshakeError::Noise(_) => true,
                HandshakeError::Tampered | HandshakeError::Closed | HandshakeError::Io(_) => false,
            },
            // Each may pass: with another hello, with a worker that ends, with a restarted intercept. But what is asked
            // for stays.
            Self::Refused { refusal, .. } => matches!(refusal.code, RefusalCode::BadPrefix),
        }
    }

    /// Whether to try again without [`Hello::resume`].
    #[must_use]
    pub const fn cannot_resume(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if matches!(refusal.code, RefusalCode::CannotResume))
    }
}

/// Dials `intercept` and registers a worker, in at most [`HANDSHAKE_DEADLINE`].
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(address: SocketAddr, security: &Security, hello: &Hello) -> Result<Established, ConnectError> {
    timeout(HANDSHAKE_DEADLINE, establish(address, security, hello))
        .await
        .unwrap_or(Err(ConnectError::Timeout { address }))
}

async fn establish(address: SocketAddr, security: &Security, hello: &Hello) -> Result<Established, ConnectError> {
    let dial = |cause| ConnectError::Dial { address, cause };
    let handshake = |cause| ConnectError::Handshake { address, cause };

    let mut stream = TcpStream::connect(address).await.map_err(dial)?;
    configure(&stream).map_err(dial)?;
    let (cipher, answer) = introduce(&mut stream, security, hello).await.map_err(handshake)?;
    let welcome = answer.map_err(|refusal| ConnectError::Refused { address, refusal })?;
    let link = stream.into_std().and_then(|stream| Link::new(stream, cipher, Role::Client)).map_err(dial)?;
    Ok(Established { link, welcome })
}

/// The whole handshake on a connection that is there.
pub(super) async fn introduce<S>(
    stream: &mut S,
    security: &Security,
    hello: &Hello,
) -> Result<(Cipher, Result<Welcome, Refusal>), HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut cipher = initiate(stream, security).await?;
    let prefixes: Vec<_> = hello.prefixes.iter().map(|&(target, prefix)| TargetPrefix::new(target, prefix)).collect();
    let frame = Frame::Hello { worker: hello.worker, resume: hello.resume, name: hello.name(), prefixes: &prefixes };
    write_frame(stream, &mut cipher, &frame).await?;
    let answer = read_frame(stream, &mut cipher, |frame| match frame {
        Frame::Welcome(welcome) => Ok(Ok(welcome)),
        Frame::Refused { code, text } => Ok(Err(Refusal::new(code, text))),
        other => Err(FrameError::OutOfPlace(other.kind()).into()),
    });
    let answer = answer.await?;
    Ok((cipher, answer))
}
