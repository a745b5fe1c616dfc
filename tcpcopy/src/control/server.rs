//! The listening side: accepts, authenticates, registers.
//!
//! Strangers get little: a bounded number of handshakes at a time ([`admission`]), each phase with a deadline and a few
//! hundred octets, a log line now and then, and a counter. Established channels have left by then, so nothing that
//! happens on the port disturbs them.

mod admission;
mod rejection;

use std::{
    future::poll_fn,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use log::{Level, debug, info};
use rustix::io::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::{JoinSet, yield_now},
    time::{sleep, timeout},
};

pub use self::rejection::ServerCounters;
use self::{
    admission::{Admission, Pending, Phase},
    rejection::Rejection,
};

use super::{
    frame::{Frame, FrameError},
    handshake::{HandshakeError, first_octet, read_frame, respond},
    link::{Link, LinkError, Role},
    parameters::{Security, configure},
    prefixes,
    record::Cipher,
    registration::{Hello, Refusal, Welcome},
};
use crate::log_limit::limited;

/// Connections that wait in the kernel.
const BACKLOG: i32 = 256;
/// Pause after accept(2) failed: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Pause after one that need not fail again.
const MOMENT: Duration = Duration::from_millis(1);

/// Who decides over instances: the main program of `intercept`. Called on tokio's thread, so it must not block.
pub trait Registry: Send + Sync + 'static {
    /// An authenticated worker introduces itself. What is allocated here is handed to [`established`](Self::established)
    /// right after.
    ///
    /// # Errors
    /// A [`Refusal`], which the worker is told.
    fn register(&self, hello: &Hello, peer: SocketAddr) -> Result<Welcome, Refusal>;

    /// The channel of a worker that was just registered. The welcome is queued in its link.
    fn established(&self, accepted: Accepted);
}

/// A channel that is up.
#[derive(Debug)]
pub struct Accepted {
    /// The channel.
    pub link: Link,
    /// Who it is.
    pub hello: Hello,
    /// What it was told.
    pub welcome: Welcome,
}

/// Why `intercept` cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The port is taken.
    #[error(
        "port {} of {} is in use, perhaps by another intercept (`ss -ltnp 'sport = :{}'` shows by whom): stop that, or \
         choose another port on both sides",
        address.port(), address.ip(), address.port()
    )]
    PortInUse {
        /// Where.
        address: SocketAddr,
    },
    /// The address is not of this host.
    #[error("this host has no address {}: listen on one of its own (see `ip address`)", address.ip())]
    NoSuchAddress {
        /// Where.
        address: SocketAddr,
    },
    /// A port below 1024 without the privilege.
    #[error("not permitted to listen on {address}: run as root, or choose a port from 1024 on, on both sides")]
    NotPermitted {
        /// Where.
        address: SocketAddr,
    },
    /// Anything else.
    #[error("cannot listen on {address}: {cause}")]
    Io {
        /// Where.
        address: SocketAddr,
        /// Why not.
        cause: io::Error,
    },
    /// No address was given, or none of them exists on this kernel.
    #[error("no address to listen on: name one of this host")]
    NoAddress,
}

/// The port, open.
#[derive(Debug)]
pub struct Listener {
    listeners: Vec<TcpListener>,
    security: Security,
}

impl Listener {
    /// Opens the port on every address. An IPv6 address takes IPv6 connections only, so to listen everywhere name
    /// `0.0.0.0` and `[::]`; the latter is left out on a kernel without IPv6. Needs a tokio runtime.
    ///
    /// # Errors
    /// [`ServerError`].
    pub fn bind(addresses: &[SocketAddr], security: Security) -> Result<Self, ServerError> {
        let mut listeners = Vec::with_capacity(addresses.len());
        for &address in addresses {
            match listen(address) {
                Ok(listener) => listeners.push(listener),
                Err(error) if addresses.len() > 1 && lacks_ipv6(address, &error) => {
                    info!("this kernel has no IPv6: not listening on {address}");
                }
                Err(cause) => {
                    return Err(match cause.kind() {
                        io::ErrorKind::AddrInUse => ServerError::PortInUse { address },
                        io::ErrorKind::AddrNotAvailable => ServerError::NoSuchAddress { address },
                        io::ErrorKind::PermissionDenied => ServerError::NotPermitted { address },
                        _ => ServerError::Io { address, cause },
                    });
                }
            }
        }
        if listeners.is_empty() { Err(ServerError::NoAddress) } else { Ok(Self { listeners, security }) }
    }

    /// Where it listens: tells the port when 0 was asked for.
    ///
    /// # Errors
    /// What getsockname(2) says.
    pub fn local_addresses(&self) -> io::Result<Vec<SocketAddr>> {
        self.listeners.iter().map(TcpListener::local_addr).collect()
    }

    /// Accepts and registers workers until the future is dropped, which also closes the port and ends the handshakes
    /// that are under way. Needs a tokio runtime with time and IO.
    pub async fn run(self, registry: Arc<impl Registry>, counters: Arc<ServerCounters>) {
        let desk = Arc::new(Desk { security: self.security, registry, counters });
        let pending = Pending::default();
        let mut handshakes = JoinSet::new();
        // Whose turn it is to be asked first: a flood on one address must not starve the others.
        let mut turn = 0;
        loop {
            turn = (turn + 1) % self.listeners.len();
            tokio::select! {
                accepted = accept(&self.listeners, turn) => match accepted {
                    Ok((stream, peer)) => {
                        handshakes.spawn(Arc::clone(&desk).serve(stream, peer, pending.admit(peer.ip())));
                        // Whoever has said something gets on before the next ones come in.
                        yield_now().await;
                    }
                    Err(cause) => accept_failed(&cause, &pending).await,
                },
                // A panic was logged, and ends the program.
                Some(_) = handshakes.join_next() => {}
            }
        }
    }
}

/// Goes on after accept(2) has failed. For want of descriptors a silent connection gives way, and its task lets go of
/// its descriptor as soon as it runs.
async fn accept_failed(cause: &io::Error, pending: &Pending) {
    let error = Errno::from_io_error(cause);
    // The connection ended while it waited, or a signal came: nothing is wrong here.
    if matches!(error, Some(Errno::INTR | Errno::CONNABORTED)) {
        return sleep(MOMENT).await;
    }
    let starved = matches!(error, Some(Errno::MFILE | Errno::NFILE));
    limited!(
        "control connections that could not be accepted",
        Level::Warn,
        "cannot accept a control connection: {cause}{}",
        if starved { "; is the limit on open files (`ulimit -n`) too low?" } else { "" }
    );
    if starved && pending.make_room() { yield_now().await } else { sleep(ACCEPT_PAUSE).await }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // Connections of an earlier run in TIME_WAIT must not keep the port.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(super) fn lacks_ipv6(address: SocketAddr, error: &io::Error) -> bool {
    address.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED)
        && matches!(error.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

/// The next connection to any of `listeners`, of which `first` is asked first.
async fn accept(listeners: &[TcpListener], first: usize) -> io::Result<(TcpStream, SocketAddr)> {
    poll_fn(|context| {
        let (before, after) = listeners.split_at(first);
        for listener in after.iter().chain(before) {
            if let Poll::Ready(accepted) = listener.poll_accept(context) {
                return Poll::Ready(accepted);
            }
        }
        Poll::Pending
    })
    .await
}

/// What the handshakes share.
struct Desk<R> {
    security: Security,
    registry: Arc<R>,
    counters: Arc<ServerCounters>,
}

impl<R: Registry> Desk<R> {
    async fn serve(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, admission: Admission) {
        let greeted = tokio::select! {
            biased;
            greeted = greet(&mut stream, &self.security, |phase| admission.advance(phase)) => greeted,
            () = admission.lost() => Err(Rejection::TooMany),
        };
        match greeted.and_then(|(cipher, hello)| self.establish(stream, cipher, hello, peer)) {
            Ok(()) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(rejection) => self.reject(peer, &rejection),
        }
    }

    fn establish(
        &self,
        stream: TcpStream,
        cipher: Cipher,
        hello: Result<Hello, Refusal>,
        peer: SocketAddr,
    ) -> Result<(), Rejection> {
        configure(&stream).map_err(Rejection::Socket)?;
        let stream = stream.into_std().map_err(Rejection::Socket)?;
        let mut link = Link::new(stream, cipher, Role::Server).map_err(Rejection::Socket)?;
        // From here to `established` nothing can fail, so what the registry allocates is never left alone: the welcome
        // goes into the link's empty buffer, and a connection that is broken by now shows itself to the link's owner.
        let registered = hello.and_then(|hello| Ok((self.registry.register(&hello, peer)?, hello)));
        match registered {
            Ok((welcome, hello)) => {
                greet_back(&mut link, &Frame::Welcome(welcome));
                self.registry.established(Accepted { link, hello, welcome });
                Ok(())
            }
            Err(refusal) => {
                greet_back(&mut link, &Frame::Refused { code: refusal.code, text: refusal.text() });
                Err(Rejection::Refused(refusal))
            }
        }
    }

    fn reject(&self, peer: SocketAddr, rejection: &Rejection) {
        let limit = self.counters.count(rejection);
        match rejection {
            Rejection::Handshake(HandshakeError::Closed) => debug!("{peer} closed its control connection unregistered"),
            _ => limited!(limit, Level::Warn, "control connection from {peer} refused: {rejection}"),
        }
    }
}

/// A client that has said Hello; or, if it has asked for what cannot be, with what it is to be refused.
pub(super) type Greeted = (Cipher, Result<Hello, Refusal>);

/// Everything up to the client's Hello, each phase in time. Tells of the phases after the first.
async fn greet<S>(stream: &mut S, security: &Security, reached: impl Fn(Phase)) -> Result<Greeted, Rejection>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = within(Phase::Silent, first_octet(stream)).await?;
    reached(Phase::Greeting);
    let mut cipher = within(Phase::Greeting, respond(stream, first, security)).await?;
    reached(Phase::Proved);
    let hello = within(Phase::Proved, hear_hello(stream, &mut cipher)).await?;
    Ok((cipher, hello))
}

async fn within<T>(phase: Phase, step: impl Future<Output = Result<T, HandshakeError>>) -> Result<T, Rejection> {
    match timeout(phase.limit(), step).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(Rejection::Timeout(phase)),
    }
}

/// The whole handshake up to the hello, however long it takes.
#[cfg(feature = "fuzzing")]
pub(super) async fn hear<S>(stream: &mut S, security: &Security) -> Result<Greeted, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let first = first_octet(stream).await?;
    let mut cipher = respond(stream, first, security).await?;
    let hello = hear_hello(stream, &mut cipher).await?;
    Ok((cipher, hello))
}

async fn hear_hello<S>(stream: &mut S, cipher: &mut Cipher) -> Result<Result<Hello, Refusal>, HandshakeError>
where
    S: AsyncRead + Unpin,
{
    let hello = read_frame(stream, cipher, |frame| match frame {
        Frame::Hello { worker, resume, name, prefixes } => {
            Ok(prefixes::read(prefixes).map(|prefixes| Hello::new(worker, resume, name).with_prefixes(prefixes)))
        }
        other => Err(FrameError::OutOfPlace(other.kind()).into()),
    });
    hello.await
}

/// Sends the first frame of a link. The socket is new and empty, so it takes all of it.
fn greet_back(link: &mut Link, frame: &Frame<'_>) {
    let written: Result<_, LinkError> = link.send(frame).and_then(|_| link.flush());
    if let Err(cause) = written {
        debug!("{} is gone before its answer: {cause}", link.peer());
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::Instant,
    };

    use super::*;
    use crate::control::{HANDSHAKE_DEADLINE, handshake::initiate, testing::psk};

    /// What the server makes of a client that does `client` and then keeps its connection open, and how long it took.
    async fn greeted<F>(security: &Security, client: impl FnOnce(DuplexStream) -> F) -> (Rejection, Duration)
    where
        F: Future<Output = DuplexStream>,
    {
        let (ours, mut theirs) = duplex(4096);
        let start = Instant::now();
        // The outer limit only keeps a server without a deadline from hanging the test.
        let greeted = async {
            let greeted = timeout(2 * HANDSHAKE_DEADLINE, greet(&mut theirs, security, |_| {})).await;
            (greeted.unwrap().map(|_| ()).unwrap_err(), start.elapsed())
        };
        tokio::join!(client(ours), greeted).1
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_stops_anywhere_ends_at_the_limit_of_its_phase() {
        let security = psk();
        let silent = greeted(&security, async |stream| stream).await;
        let half_a_preamble = greeted(&security, async |mut stream| {
            stream.write_all(b"\x93tcp\x02").await.unwrap();
            stream
        })
        .await;
        let only_a_preamble = greeted(&security, async |mut stream| {
            stream.write_all(b"\x93tcp\x02\0\x01\0").await.unwrap();
            stream.read_exact(&mut [0; 8]).await.unwrap();
            stream
        })
        .await;
        // This much a stranger can do who replays what he recorded: only a Hello proves that he has the key.
        let no_hello = greeted(&security, async |mut stream| {
            initiate(&mut stream, &security).await.unwrap();
            stream
        })
        .await;
        for ((rejection, took), phase) in [
            (silent, Phase::Silent),
            (half_a_preamble, Phase::Greeting),
            (only_a_preamble, Phase::Greeting),
            (no_hello, Phase::Proved),
        ] {
            assert!(matches!(rejection, Rejection::Timeout(at) if at == phase), "{rejection}");
            assert_eq!(took, phase.limit(), "{rejection}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn octets_that_trickle_in_do_not_prolong_a_phase() {
        let (rejection, took) = greeted(&psk(), async |mut stream| {
            for octet in b"\x93tcp\x02\0\x01\0\x30\0" {
                // The other end is gone some time.
                let _ = stream.write_all(&[*octet]).await;
                sleep(Phase::Silent.limit() * 9 / 10).await;
            }
            stream
        })
        .await;
        assert!(matches!(rejection, Rejection::Timeout(Phase::Greeting)), "{rejection}");
        assert_eq!(took, Phase::Greeting.limit());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_handshake_is_refused_at_its_first_wrong_octet() {
        let security = psk();
        for garbage in ["GET / HTTP/1.1\r\n\r\n", "\n", "\0\0\0\0", "t"] {
            let (rejection, took) = greeted(&security, async |mut stream| {
                stream.write_all(garbage.as_bytes()).await.unwrap();
                stream
            })
            .await;
            assert!(matches!(rejection, Rejection::Handshake(HandshakeError::NotTcpcopy)), "{rejection}");
            assert_eq!(took, Duration::ZERO);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_oversized_record_is_refused_before_it_is_read() {
        for (security, mode) in [(psk(), 1), (Security::Insecure, 0)] {
            let (rejection, took) = greeted(&security, async |mut stream| {
                stream.write_all(&[0x93, b't', b'c', b'p', 2, 0, mode, 0, 0xff, 0xff]).await.unwrap();
                stream
            })
            .await;
            let error = HandshakeError::Frame(FrameError::TooLarge(0xffff));
            assert_eq!(rejection.to_string(), error.to_string());
            assert_eq!(took, Duration::ZERO);
        }
    }
}
