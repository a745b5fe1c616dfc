//! The embedded server.
//!
//! `GET /size/N` answers N octets, `POST` and `PUT` answer the length and the SHA-256 of the body, every other request
//! a short text. Whatever has an `id=` in its URI is remembered with the time at which its head was read.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use socket2::{Domain, Socket, Type};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
};

use super::head::{self, request_id};
use crate::{Host, monotonic_ns};

/// A request that was received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arrival {
    /// From its URI.
    pub id: u64,
    /// When its head was read, ns of `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    /// Who asked.
    pub client: SocketAddr,
}

/// A body that was received whole.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Upload {
    /// The request's URI.
    pub uri: String,
    /// Octets.
    pub length: u64,
    /// The SHA-256, in hexadecimal digits.
    pub sha256: String,
}

#[derive(Default)]
struct Journal {
    arrivals: Vec<Arrival>,
    uploads: Vec<Upload>,
}

#[derive(Default)]
struct Shared {
    journal: Mutex<Journal>,
    grown: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Journal> {
        self.journal.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server that runs in a thread of its own until it is dropped.
pub struct Server {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Server {
    /// Listens on a port of a host, IPv4 and IPv6. At return it accepts connections.
    pub fn start(host: &Host, port: u16) -> anyhow::Result<Self> {
        let listener =
            host.run(|| listen(port))?.with_context(|| format!("cannot listen on port {port} of {}", host.role))?;
        let shared = Arc::<Shared>::default();
        let (stop, stopped) = oneshot::channel();
        let state = Arc::clone(&shared);
        let thread = host.spawn("http", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(async {
                tokio::select! {
                    result = accept(listener, state) => result,
                    _ = stopped => Ok(()),
                }
            })
        })?;
        Ok(Self { shared, stop: Some(stop), thread: Some(thread) })
    }

    /// Returns all requests so far, in the order of their arrival.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.lock().arrivals.clone()
    }

    /// Returns how many requests there were so far.
    pub fn count(&self) -> usize {
        self.shared.lock().arrivals.len()
    }

    /// Returns all bodies so far, sorted.
    pub fn uploads(&self) -> Vec<Upload> {
        let mut uploads = self.shared.lock().uploads.clone();
        uploads.sort();
        uploads
    }

    /// Waits until there were that many requests; how many there are then.
    pub fn wait_for_requests(&self, count: usize, limit: Duration) -> usize {
        self.wait(limit, |journal| journal.arrivals.len() >= count).arrivals.len()
    }

    /// Waits until there were that many bodies; how many there are then.
    pub fn wait_for_uploads(&self, count: usize, limit: Duration) -> usize {
        self.wait(limit, |journal| journal.uploads.len() >= count).uploads.len()
    }

    fn wait(&self, limit: Duration, enough: impl Fn(&Journal) -> bool) -> MutexGuard<'_, Journal> {
        let deadline = Instant::now() + limit;
        let mut journal = self.shared.lock();
        while !enough(&journal) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            journal = self.shared.grown.wait_timeout(journal, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        journal
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            log::error!("the embedded server failed: {error:#}");
        }
    }
}

fn listen(port: u16) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::from(([0u16; 8], port)).into())?;
    socket.listen(4096)?;
    Ok(socket.into())
}

async fn accept(listener: std::net::TcpListener, shared: Arc<Shared>) -> anyhow::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, client) = listener.accept().await.context("the server cannot accept")?;
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            if let Err(error) = serve(stream, client, &shared).await {
                log::debug!("a connection of the embedded server ended: {error}");
            }
        });
    }
}

/// Serves one connection. Answers of pipelined requests leave together.
async fn serve(mut stream: TcpStream, client: SocketAddr, shared: &Shared) -> io::Result<()> {
    stream.set_nodelay(true)?;
    // IPv4 clients come in mapped form.
    let client = SocketAddr::new(client.ip().to_canonical(), client.port());
    let mut input = Vec::with_capacity(16 << 10);
    let mut output = Vec::new();
    loop {
        let invalid = |what| io::Error::new(io::ErrorKind::InvalidData, what);
        let Some(head) = head::parse(&input).map_err(invalid)? else {
            if !output.is_empty() {
                stream.write_all(&output).await?;
                output.clear();
            }
            if stream.read_buf(&mut input).await? == 0 {
                return Ok(());
            }
            continue;
        };
        let time_ns = monotonic_ns();
        let mut words = head.first_line.split(' ');
        let (method, uri) = (words.next().unwrap_or_default(), words.next().unwrap_or_default().to_owned());
        let close = head.close;
        let reads_body = method == "POST" || method == "PUT";
        let (length, expected) = (head.content_length.unwrap_or(0), head.expects_continue);
        let head_length = head.length;
        if let Some(id) = request_id(&uri) {
            shared.lock().arrivals.push(Arrival { id, time_ns, client });
            shared.grown.notify_all();
        }
        input.drain(..head_length);
        if reads_body {
            if expected {
                stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
            }
            let sha256 = digest(&mut stream, &mut input, length).await?;
            let body = format!("{{\"length\":{length},\"sha256\":\"{sha256}\"}}\n");
            respond(&mut output, body.len(), close);
            output.extend_from_slice(body.as_bytes());
            shared.lock().uploads.push(Upload { uri, length, sha256 });
            shared.grown.notify_all();
        } else {
            let path = uri.split('?').next().unwrap_or_default();
            match path.strip_prefix("/size/").and_then(|n| n.parse::<usize>().ok()) {
                Some(size) => {
                    respond(&mut output, size, close);
                    output.resize(output.len() + size, b'x');
                }
                None => {
                    respond(&mut output, 3, close);
                    output.extend_from_slice(b"ok\n");
                }
            }
        }
        if close {
            stream.write_all(&output).await?;
            return stream.shutdown().await;
        }
        if output.len() > 1 << 20 {
            stream.write_all(&output).await?;
            output.clear();
        }
    }
}

/// Reads a body, of which the beginning may be in `input`, and returns its SHA-256.
async fn digest(stream: &mut TcpStream, input: &mut Vec<u8>, length: u64) -> io::Result<String> {
    let mut sha256 = Sha256::new();
    let mut left = length;
    loop {
        let here = usize::try_from(left).unwrap_or(usize::MAX).min(input.len());
        sha256.update(&input[..here]);
        input.drain(..here);
        left -= here as u64;
        if left == 0 {
            return Ok(format!("{:x}", sha256.finalize()));
        }
        if stream.read_buf(input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

fn respond(output: &mut Vec<u8>, length: usize, close: bool) {
    use std::io::Write as _;
    let connection = if close { "Connection: close\r\n" } else { "" };
    // Writing to a Vec cannot fail.
    let _ = write!(output, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n{connection}\r\n");
}
