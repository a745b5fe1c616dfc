//! The listening side: accepts, authenticates, registers.
//!
//! Strangers get little: a bounded number of handshakes at a time, in total and per network, each with a deadline and a
//! few hundred octets, a log line now and then, and a counter. Established channels are no longer here, so nothing that
//! happens on the port disturbs them.

use std::{
    collections::HashMap,
    future::poll_fn,
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::Duration,
};

use log::{debug, info, warn};
use socket2::{Domain, Protocol, Socket, Type};
use tcpcopy_common::{
    figures,
    figures::{Section, counter},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    frame::{Frame, FrameError},
    handshake::{HandshakeError, read_frame, respond},
    link::{Link, LinkError, Role},
    log_limit::LogLimit,
    parameters::{HANDSHAKE_DEADLINE, Security, configure},
    prefixes,
    record::Cipher,
    registration::{Hello, Refusal, Welcome},
};

/// Handshakes at a time. Each holds a descriptor for at most [`HANDSHAKE_DEADLINE`].
const MAX_PENDING: usize = 256;
/// Handshakes at a time from one IPv4 address or IPv6 /64, so that one stranger cannot use up all: as many as a source
/// has workers.
const MAX_PENDING_PER_NETWORK: usize = tcpcopy_common::capture::MAX_WORKERS as usize;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 256;
/// Pause after accept(2) failed, most likely for want of descriptors: it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

figures! {
    /// What became of the connections to the port. Their sum, with the handshakes under way, is the number of connections.
    #[derive(Debug, Default)]
    pub struct ServerCounters {
        /// Established channels.
        pub accepted: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: another key.
        pub bad_key: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: not our protocol, or not as it should be.
        pub garbage: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: not finished in time.
        pub timeout: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: too many handshakes at a time.
        pub too_many: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: another version of the protocol.
        pub wrong_version: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: one side with a key, the other with `--insecure`.
        pub insecure_mismatch: AtomicU64 = counter(Section::ControlConnections),
        /// Refused although authenticated: no instance is free, the one to resume is not known any more, or what is
        /// asked for cannot be.
        pub refused: AtomicU64 = counter(Section::ControlConnections),
        /// Closed by the peer during the handshake, or broken: port scanners and health checks look like this.
        pub closed: AtomicU64 = counter(Section::ControlConnections),
        /// Failed for a reason of our own, such as no random numbers.
        pub failed: AtomicU64 = counter(Section::ControlConnections),
    }
}

/// Why a connection did not become a channel.
#[derive(Debug, thiserror::Error)]
enum Rejection {
    #[error("too many handshakes at a time")]
    TooMany,
    #[error("the handshake did not finish within {} s", HANDSHAKE_DEADLINE.as_secs())]
    Timeout,
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("cannot use the accepted socket: {0}")]
    Socket(io::Error),
}

impl ServerCounters {
    /// Counts a rejection, and returns the name of what it counts as.
    fn count(&self, rejection: &Rejection) -> &'static str {
        let (counter, name) = match rejection {
            Rejection::TooMany => (&self.too_many, "too_many"),
            Rejection::Timeout => (&self.timeout, "timeout"),
            Rejection::Refused(_) => (&self.refused, "refused"),
            Rejection::Socket(_) => (&self.failed, "failed"),
            Rejection::Handshake(error) => match error {
                HandshakeError::NotTcpcopy | HandshakeError::Frame(_) | HandshakeError::Tampered => {
                    (&self.garbage, "garbage")
                }
                HandshakeError::Version { .. } => (&self.wrong_version, "wrong_version"),
                HandshakeError::SecurityMismatch { .. } => (&self.insecure_mismatch, "insecure_mismatch"),
                HandshakeError::BadKey => (&self.bad_key, "bad_key"),
                HandshakeError::Closed | HandshakeError::Io(_) => (&self.closed, "closed"),
                HandshakeError::Noise(_) => (&self.failed, "failed"),
            },
        };
        counter.fetch_add(1, Ordering::Relaxed);
        name
    }
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
        let desk = Arc::new(Desk {
            security: self.security,
            registry,
            counters,
            pending: Arc::default(),
            log_limits: Mutex::default(),
        });
        let mut handshakes = JoinSet::new();
        // Whose turn it is to be asked first: a flood on one address must not starve the others.
        let mut turn = 0;
        loop {
            turn = (turn + 1) % self.listeners.len();
            tokio::select! {
                accepted = accept(&self.listeners, turn) => match accepted {
                    Ok((stream, peer)) => match Admission::new(&desk.pending, peer.ip()) {
                        Some(admission) => {
                            handshakes.spawn(Arc::clone(&desk).serve(stream, peer, admission));
                        }
                        None => desk.reject(peer, &Rejection::TooMany),
                    },
                    // Of a connection that ended while it waited, or for want of descriptors or memory.
                    Err(cause) => {
                        desk.warn("accept", format_args!("cannot accept a control connection: {cause}; is `ulimit -n` too low?"));
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                // A panic was logged, and ends the program.
                Some(_) = handshakes.join_next() => {}
            }
        }
    }
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
    pending: Arc<Mutex<Pending>>,
    log_limits: Mutex<HashMap<&'static str, LogLimit>>,
}

impl<R: Registry> Desk<R> {
    async fn serve(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr, admission: Admission) {
        let greeted = greet(&mut stream, &self.security).await;
        match greeted.and_then(|(cipher, hello)| self.establish(stream, cipher, hello, peer)) {
            Ok(()) => {
                self.counters.accepted.fetch_add(1, Ordering::Relaxed);
            }
            Err(rejection) => self.reject(peer, &rejection),
        }
        drop(admission);
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
        let reason = self.counters.count(rejection);
        match rejection {
            Rejection::Handshake(HandshakeError::Closed) => debug!("{peer} closed its control connection unregistered"),
            _ => self.warn(reason, format_args!("control connection from {peer} refused: {rejection}")),
        }
    }

    /// A flood of one kind must not hide the others, so each has a limit of its own.
    fn warn(&self, kind: &'static str, message: std::fmt::Arguments<'_>) {
        let mut limits = self.log_limits.lock().unwrap_or_else(PoisonError::into_inner);
        let admitted = limits.entry(kind).or_default().admit(Instant::now());
        match admitted {
            Some(0) => warn!("{message}"),
            Some(suppressed) => warn!("{message} ({suppressed} such lines suppressed before this one)"),
            None => {}
        }
    }
}

/// Everything up to the client's Hello, in time.
async fn greet<S>(stream: &mut S, security: &Security) -> Result<Greeted, Rejection>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    match timeout(HANDSHAKE_DEADLINE, hear_hello(stream, security)).await {
        Ok(heard) => Ok(heard?),
        Err(_) => Err(Rejection::Timeout),
    }
}

/// A client that has said Hello; or, if it has asked for what cannot be, with what it is to be refused.
pub(super) type Greeted = (Cipher, Result<Hello, Refusal>);

/// The handshake up to the hello, however long it takes.
pub(super) async fn hear_hello<S>(stream: &mut S, security: &Security) -> Result<Greeted, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut cipher = respond(stream, security).await?;
    let hello = read_frame(stream, &mut cipher, |frame| match frame {
        Frame::Hello { worker, resume, name, prefixes } => {
            Ok(prefixes::read(prefixes).map(|prefixes| Hello::new(worker, resume, name).with_prefixes(prefixes)))
        }
        other => Err(FrameError::OutOfPlace(other.kind()).into()),
    });
    let hello = hello.await?;
    Ok((cipher, hello))
}

/// Sends the first frame of a link. The socket is new and empty, so it takes all of it.
fn greet_back(link: &mut Link, frame: &Frame<'_>) {
    let written: Result<_, LinkError> = link.send(frame).and_then(|_| link.flush());
    if let Err(cause) = written {
        debug!("{} is gone before its answer: {cause}", link.peer());
    }
}

/// Handshakes under way.
#[derive(Debug, Default)]
struct Pending {
    total: usize,
    by_network: HashMap<IpAddr, usize>,
}

/// The right to one handshake; given back when dropped.
struct Admission {
    pending: Arc<Mutex<Pending>>,
    network: IpAddr,
}

impl Admission {
    fn new(pending: &Arc<Mutex<Pending>>, peer: IpAddr) -> Option<Self> {
        let network = network(peer);
        let mut table = pending.lock().unwrap_or_else(PoisonError::into_inner);
        if table.total == MAX_PENDING || table.by_network.get(&network) == Some(&MAX_PENDING_PER_NETWORK) {
            return None;
        }
        table.total += 1;
        *table.by_network.entry(network).or_default() += 1;
        Some(Self { pending: Arc::clone(pending), network })
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        let mut table = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        table.total -= 1;
        if let Some(count) = table.by_network.get_mut(&self.network) {
            *count -= 1;
            if *count == 0 {
                table.by_network.remove(&self.network);
            }
        }
    }
}

/// What counts as one stranger: an IPv4 address, or the /64 that an IPv6 host commonly has for itself.
fn network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(peer) => Ipv6Addr::from_bits(peer.to_bits() & !u128::from(u64::MAX)).into(),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;
    use crate::control::{handshake::initiate, testing::psk};

    /// What the server makes of a client that does `client` and then keeps its connection open, and how long it took.
    async fn greeted<F>(security: &Security, client: impl FnOnce(DuplexStream) -> F) -> (Rejection, Duration)
    where
        F: Future<Output = DuplexStream>,
    {
        let (ours, mut theirs) = duplex(4096);
        let start = Instant::now();
        // The outer limit only keeps a server without a deadline from hanging the test.
        let greeted = timeout(2 * HANDSHAKE_DEADLINE, greet(&mut theirs, security));
        let (_open, greeted) = tokio::join!(client(ours), greeted);
        (greeted.unwrap().map(|_| ()).unwrap_err(), start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_handshake_that_stops_anywhere_ends_at_the_deadline() {
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
        for (rejection, took) in [silent, half_a_preamble, only_a_preamble, no_hello] {
            assert!(matches!(rejection, Rejection::Timeout), "{rejection}");
            assert_eq!(took, HANDSHAKE_DEADLINE);
        }
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

    #[test]
    fn pending_handshakes_are_bounded_in_total_and_per_network_and_given_back() {
        let pending = Arc::default();
        let admit = |peer: &str| Admission::new(&pending, peer.parse().unwrap());
        let mut held: Vec<_> = (0..64).map(|i| admit(&format!("2001:db8::{i}")).unwrap()).collect();
        assert!(admit("2001:db8::ffff").is_none(), "the same /64");
        held.extend((0..192).map(|i| admit(&format!("2001:db8:{}:{i}::1", 1 + i % 4)).unwrap()));
        assert!(admit("192.0.2.1").is_none(), "all are taken");
        held.pop();
        let last = admit("192.0.2.1").unwrap();
        assert!(admit("192.0.2.2").is_none());
        drop((held, last));
        let pending = pending.lock().unwrap();
        assert!(pending.total == 0 && pending.by_network.is_empty(), "{pending:?}");
    }

    #[test]
    fn a_mapped_address_is_its_ipv4_network() {
        assert_eq!(network("::ffff:192.0.2.1".parse().unwrap()), network("192.0.2.1".parse().unwrap()));
        assert_ne!(network("192.0.2.1".parse().unwrap()), network("192.0.2.2".parse().unwrap()));
    }
}
