//! The client that produces load.

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use hdrhistogram::Histogram;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{MissedTickBehavior, interval_at, timeout},
};

use super::head;
use crate::Host;

/// How requests are spread over connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// One after the other on connections that stay.
    KeepAlive,
    /// A connection for each, closed by the server after its answer.
    PerRequest,
    /// So many at once on connections that stay.
    Pipelined(usize),
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Limit {
    /// After so many requests.
    Requests(u64),
    /// After so much time.
    Time(Duration),
}

/// What to ask for.
#[derive(Clone, Debug)]
pub enum Method {
    /// GET of a path, to which `?id=N` is added.
    Get(String),
    /// POST of so many octets to `/upload?id=N`.
    Post(usize),
}

/// Load on a server. Every request has an identifier of its own.
#[derive(Clone, Debug)]
pub struct Load {
    /// Whom to ask.
    pub server: SocketAddr,
    /// From which address and port instead of the kernel's choice.
    pub bind: Option<SocketAddr>,
    /// How many connections at once.
    pub connections: usize,
    /// How requests are spread over them.
    pub style: Style,
    /// When to stop.
    pub limit: Limit,
    /// What to ask for.
    pub method: Method,
    /// At most so many requests per second, all connections together. Otherwise as fast as answers come.
    pub rate: Option<u32>,
    /// Count every answer, not only those with status 200.
    pub any_status: bool,
}

/// What came of it.
#[derive(Debug)]
pub struct LoadReport {
    /// The identifiers of the requests that were answered, with status 200 unless any counts.
    pub answered: Vec<u64>,
    /// What went wrong with the others.
    pub failed: Vec<String>,
    /// From the request's first octet to the answer's last, ns.
    pub latency: Histogram<u64>,
    /// From the first connection to the last answer.
    pub elapsed: Duration,
}

impl LoadReport {
    /// Answers per second.
    pub fn throughput(&self) -> f64 {
        self.answered.len() as f64 / self.elapsed.as_secs_f64()
    }
}

/// Load in progress.
pub struct RunningLoad {
    answered: Arc<AtomicU64>,
    thread: JoinHandle<anyhow::Result<LoadReport>>,
}

impl RunningLoad {
    /// How many requests were answered until now.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits for its end.
    pub fn join(self) -> anyhow::Result<LoadReport> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Identifiers are unique in the process, so that loads which run side by side do not collide.
fn next_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Load {
    /// Keep-alive requests for a small answer.
    pub fn keep_alive(server: SocketAddr, connections: usize, limit: Limit) -> Self {
        let method = Method::Get("/size/64".into());
        Self { server, bind: None, connections, style: Style::KeepAlive, limit, method, rate: None, any_status: false }
    }

    /// The same with a connection for each request.
    pub fn per_request(server: SocketAddr, connections: usize, limit: Limit) -> Self {
        Self { style: Style::PerRequest, ..Self::keep_alive(server, connections, limit) }
    }

    /// Produces the load from a host and waits for its end.
    pub fn run(self, from: &Host) -> anyhow::Result<LoadReport> {
        self.start(from)?.join()
    }

    /// Starts producing the load.
    pub fn start(self, from: &Host) -> anyhow::Result<RunningLoad> {
        let answered = Arc::<AtomicU64>::default();
        let progress = Arc::clone(&answered);
        let thread = from.spawn("load", move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(self.produce(progress))
        })?;
        Ok(RunningLoad { answered, thread })
    }

    async fn produce(self, progress: Arc<AtomicU64>) -> anyhow::Result<LoadReport> {
        ensure!(self.connections > 0, "a load needs a connection");
        let started = Instant::now();
        let budget = Arc::new(Budget::new(self.limit, started));
        let load = Arc::new(self);
        let mut clients = JoinSet::new();
        for index in 0..load.connections {
            clients.spawn(Client::new(index, &load, &budget, &progress)?.run());
        }
        let mut report =
            LoadReport { answered: Vec::new(), failed: Vec::new(), latency: latencies()?, elapsed: Duration::ZERO };
        while let Some(client) = clients.join_next().await {
            let client = client?;
            report.answered.extend(client.answered);
            report.failed.extend(client.failed);
            report.latency.add(&client.latency)?;
        }
        report.elapsed = started.elapsed();
        Ok(report)
    }
}

fn latencies() -> anyhow::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1_000, 60_000_000_000, 3).context("the bounds of the histogram are wrong")
}

/// What is left to be asked.
struct Budget {
    requests: AtomicU64,
    deadline: Option<Instant>,
}

impl Budget {
    fn new(limit: Limit, started: Instant) -> Self {
        match limit {
            Limit::Requests(n) => Self { requests: n.into(), deadline: None },
            Limit::Time(time) => Self { requests: u64::MAX.into(), deadline: Some(started + time) },
        }
    }

    fn take(&self) -> bool {
        if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return false;
        }
        self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// A request that waits for its answer.
struct Pending {
    id: u64,
    sent: Instant,
}

/// One connection at a time, and what came of its requests.
struct Client {
    index: usize,
    load: Arc<Load>,
    budget: Arc<Budget>,
    progress: Arc<AtomicU64>,
    answered: Vec<u64>,
    failed: Vec<String>,
    latency: Histogram<u64>,
    input: Vec<u8>,
}

impl Client {
    fn new(index: usize, load: &Arc<Load>, budget: &Arc<Budget>, progress: &Arc<AtomicU64>) -> anyhow::Result<Self> {
        Ok(Self {
            index,
            load: Arc::clone(load),
            budget: Arc::clone(budget),
            progress: Arc::clone(progress),
            answered: Vec::new(),
            failed: Vec::new(),
            latency: latencies()?,
            input: Vec::with_capacity(16 << 10),
        })
    }

    /// Works until the budget is used up. A client gives up after three failures in a row.
    async fn run(mut self) -> Self {
        const PATIENCE: Duration = Duration::from_secs(15);
        let mut pace = self.load.rate.map(|rate| {
            let between = Duration::from_secs(1) * self.load.connections as u32 / rate.max(1);
            // Evenly spread, or all connections would ask at the same time.
            let first = tokio::time::Instant::now() + between * self.index as u32 / self.load.connections as u32;
            let mut pace = interval_at(first, between.max(Duration::from_micros(1)));
            pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
            pace
        });
        let depth = match self.load.style {
            Style::Pipelined(depth) => depth.max(1),
            Style::KeepAlive | Style::PerRequest => 1,
        };
        let mut connection: Option<TcpStream> = None;
        let mut failures = 0;
        while failures < 3 {
            if let Some(pace) = &mut pace {
                pace.tick().await;
            }
            let now = Instant::now();
            let batch = (0..depth).take_while(|_| self.budget.take()).map(|_| Pending { id: next_id(), sent: now });
            let mut pending: VecDeque<Pending> = batch.collect();
            if pending.is_empty() {
                break;
            }
            let exchange = timeout(PATIENCE, self.exchange(connection.take(), &mut pending)).await;
            match exchange.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {PATIENCE:?}"))) {
                Ok(open) => {
                    connection = open;
                    failures = 0;
                }
                Err(error) => {
                    failures += 1;
                    self.failed.extend(pending.iter().map(|request| format!("request {}: {error:#}", request.id)));
                }
            }
        }
        self
    }

    /// Sends all pending requests at once and reads their answers; those that the server did not get to before it closed
    /// go over another connection. Returns the connection if it stays open.
    async fn exchange(
        &mut self,
        mut connection: Option<TcpStream>,
        pending: &mut VecDeque<Pending>,
    ) -> anyhow::Result<Option<TcpStream>> {
        while !pending.is_empty() {
            let mut stream = match connection.take() {
                Some(stream) => stream,
                None => {
                    self.input.clear();
                    connect(self.load.server, self.load.bind).await?
                }
            };
            let mut output = Vec::new();
            pending.iter().for_each(|request| self.load.write(request.id, &mut output));
            stream.write_all(&output).await.context("sending")?;
            let mut open = true;
            while open && !pending.is_empty() {
                open = self.answer(&mut stream).await?;
                if let Some(request) = pending.pop_front() {
                    self.answered.push(request.id);
                    self.latency.saturating_record(request.sent.elapsed().as_nanos() as u64);
                    self.progress.fetch_add(1, Ordering::Relaxed);
                }
            }
            connection = open.then_some(stream);
        }
        Ok(connection)
    }

    /// Reads one answer; whether the connection stays open.
    async fn answer(&mut self, stream: &mut TcpStream) -> anyhow::Result<bool> {
        let (length, close) = loop {
            if let Some(head) = head::parse(&self.input).map_err(anyhow::Error::msg)? {
                let ok = self.load.any_status || head.first_line.split(' ').nth(1) == Some("200");
                ensure!(ok, "answer `{}`", head.first_line);
                ensure!(!head.chunked, "a chunked answer, which this client does not know");
                let length = head.content_length.context("an answer without Content-Length")?;
                let close = head.close;
                self.input.drain(..head.length);
                break (length, close);
            }
            if stream.read_buf(&mut self.input).await.context("waiting for the answer")? == 0 {
                bail!("the server closed the connection before its answer");
            }
        };
        let mut left = length;
        loop {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.input.len());
            self.input.drain(..here);
            left -= here as u64;
            if left == 0 {
                return Ok(!close);
            }
            if stream.read_buf(&mut self.input).await.context("reading the answer")? == 0 {
                bail!("the server closed the connection within its answer");
            }
        }
    }
}

impl Load {
    fn write(&self, id: u64, output: &mut Vec<u8>) {
        use std::io::Write as _;
        let close = if self.style == Style::PerRequest { "Connection: close\r\n" } else { "" };
        let server = self.server;
        // Writing to a Vec cannot fail.
        let _ = match &self.method {
            Method::Get(path) => write!(output, "GET {path}?id={id} HTTP/1.1\r\nHost: {server}\r\n{close}\r\n"),
            Method::Post(length) => {
                let head = format!("POST /upload?id={id} HTTP/1.1\r\nHost: {server}\r\nContent-Length: {length}\r\n");
                output.extend(head.bytes().chain(close.bytes()).chain(*b"\r\n"));
                // A body that depends on the request and on the place, so that a mix-up changes its digest.
                output.extend(
                    (0..*length).map(|at| (id as usize).wrapping_mul(31).wrapping_add(at * 7 + at / 251) as u8),
                );
                Ok(())
            }
        };
    }
}

async fn connect(server: SocketAddr, bind: Option<SocketAddr>) -> anyhow::Result<TcpStream> {
    let socket = match server.ip() {
        IpAddr::V4(_) => TcpSocket::new_v4()?,
        IpAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(address) = bind {
        socket.set_reuseaddr(true)?;
        socket.bind(address).with_context(|| format!("cannot bind to {address}"))?;
    }
    let stream = socket.connect(server).await.with_context(|| format!("cannot connect to {server}"))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Family, Lab, http::Server, laboratory};

    #[test]
    fn every_request_of_every_style_arrives_once() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let server = Server::start(&lab.source, 80).unwrap();
        let mut expected = BTreeSet::new();
        for family in Family::BOTH {
            for style in [Style::KeepAlive, Style::PerRequest, Style::Pipelined(8)] {
                let limit = Limit::Requests(400);
                let load = Load { style, ..Load::keep_alive(lab.source.socket(family, 80), 4, limit) };
                let report = load.run(&lab.client).unwrap();
                assert_eq!(report.failed, Vec::<String>::new());
                assert_eq!(report.answered.len(), 400);
                assert_eq!(report.latency.len(), 400);
                expected.extend(report.answered);
            }
        }
        assert_eq!(server.wait_for_requests(2400, Duration::from_secs(5)), 2400);
        let arrived: BTreeSet<u64> = server.arrivals().iter().map(|arrival| arrival.id).collect();
        assert_eq!(arrived, expected);
    }

    #[test]
    fn uploads_and_downloads_of_any_size_are_whole() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let server = Server::start(&lab.source, 80).unwrap();
        let address = lab.source.socket(Family::V6, 80);
        for size in [0, 1, 1 << 10, 1 << 20] {
            let post = Load { method: Method::Post(size), ..Load::keep_alive(address, 2, Limit::Requests(4)) };
            assert_eq!(post.run(&lab.client).unwrap().failed, Vec::<String>::new());
            let method = Method::Get(format!("/size/{size}"));
            let get = Load { method, ..Load::per_request(address, 2, Limit::Requests(4)) };
            assert_eq!(get.run(&lab.client).unwrap().failed, Vec::<String>::new());
        }
        let uploads = server.uploads();
        assert_eq!(uploads.len(), 16);
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(uploads.iter().filter(|u| u.length == 0 && u.sha256 == empty).count(), 4);
    }

    #[test]
    fn a_server_that_is_not_there_is_a_failure_of_the_requests() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let report =
            Load::keep_alive(lab.source.socket(Family::V4, 80), 1, Limit::Requests(10)).run(&lab.client).unwrap();
        assert!(report.answered.is_empty());
        assert!(report.failed[0].contains("cannot connect to"), "{}", report.failed[0]);
    }

    #[test]
    fn the_rate_is_kept() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let _server = Server::start(&lab.source, 80).unwrap();
        let load = Load::keep_alive(lab.source.socket(Family::V4, 80), 4, Limit::Requests(100));
        let report = Load { rate: Some(500), ..load }.run(&lab.client).unwrap();
        assert!(report.elapsed >= Duration::from_millis(150), "{:?}", report.elapsed);
    }
}
