//! The client that produces load.

use std::{
    collections::VecDeque,
    io::ErrorKind,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
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
use crate::{Host, PATIENCE, eventually};

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
    /// After that many requests.
    Requests(u64),
    /// After that time.
    Time(Duration),
    /// When [`RunningLoad::stop`] is called. For tests that do something while there is load: however slow the machine
    /// is, there is load until they have done it.
    Stopped,
}

/// What to ask for.
#[derive(Clone, Debug)]
pub enum Method {
    /// GET of a path, to which `?id=N` is added.
    Get(String),
    /// POST of that many octets to `/upload?id=N`.
    Post(usize),
}

/// A load of more connections has open files of its own, so that several side by side may have more than a process may.
const MANY: usize = 8_192;

/// Load on a server. Every request has an identifier of its own.
#[derive(Clone, Debug)]
pub struct Load {
    /// The server to ask.
    pub server: SocketAddr,
    /// From which address and port instead of the kernel's choice; port 0 leaves the port to the kernel.
    pub bind: Option<SocketAddr>,
    /// How many connections at once.
    pub connections: usize,
    /// How requests are spread over them.
    pub style: Style,
    /// When to stop.
    pub limit: Limit,
    /// What to ask for.
    pub method: Method,
    /// Maximum requests per second, all connections together. `None`: as fast as answers come.
    pub rate: Option<u32>,
    /// With a rate, an open loop: requests are due at their times whatever became of those before. A connection that is
    /// late catches up, and the latency of its requests counts from when they were due.
    pub open: bool,
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
    /// From the request's first octet (in an open loop: from when it was due) to the answer's last, ns.
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
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<LoadReport>>,
}

impl RunningLoad {
    /// Returns how many requests were answered until now.
    pub fn answered(&self) -> u64 {
        self.answered.load(Ordering::Relaxed)
    }

    /// Waits until that many more requests were answered.
    ///
    /// # Errors
    /// When that takes longer than [`PATIENCE`].
    pub fn wait_for_answers(&self, more: u64) -> anyhow::Result<()> {
        let goal = self.answered() + more;
        ensure!(eventually(PATIENCE, || self.answered() >= goal), "the load does not get on");
        Ok(())
    }

    /// Asks no more, waits for the answers that are due and returns what came of the load.
    pub fn stop(self) -> anyhow::Result<LoadReport> {
        self.stop.store(true, Ordering::Relaxed);
        self.join()
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
    /// Makes a load of keep-alive requests for a small answer.
    pub fn keep_alive(server: SocketAddr, connections: usize, limit: Limit) -> Self {
        let method = Method::Get("/size/64".into());
        let style = Style::KeepAlive;
        Self { server, bind: None, connections, style, limit, method, rate: None, open: false, any_status: false }
    }

    /// Returns the same with a connection for each request.
    pub fn per_request(server: SocketAddr, connections: usize, limit: Limit) -> Self {
        Self { style: Style::PerRequest, ..Self::keep_alive(server, connections, limit) }
    }

    /// Produces the load from a host and waits for its end.
    pub fn run(self, from: &Host) -> anyhow::Result<LoadReport> {
        self.start(from)?.join()
    }

    /// Starts producing the load.
    pub fn start(self, from: &Host) -> anyhow::Result<RunningLoad> {
        let (answered, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (progress, stopped) = (Arc::clone(&answered), Arc::clone(&stop));
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build();
        if self.connections > MANY {
            // The first runtime of a process opens what later ones use, so it must not be one with files of its own.
            drop(runtime()?);
        }
        let thread = from.spawn("load", move || {
            if self.connections > MANY {
                // SAFETY: whatever this thread opens from now on is used by it alone.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::FILES)? };
            }
            runtime()?.block_on(self.produce(progress, stopped))
        })?;
        Ok(RunningLoad { answered, stop, thread })
    }

    async fn produce(self, progress: Arc<AtomicU64>, stop: Arc<AtomicBool>) -> anyhow::Result<LoadReport> {
        ensure!(self.connections > 0, "a load needs a connection");
        let started = Instant::now();
        let budget = Arc::new(Budget::new(self.limit, started, stop));
        let load = Arc::new(self);
        let latency = Histogram::new_with_bounds(1_000, 60_000_000_000, 3)?;
        let latency = Arc::new(Mutex::new(latency));
        let mut clients = JoinSet::new();
        for index in 0..load.connections {
            clients.spawn(Client::new(index, &load, &budget, &progress, &latency).run());
        }
        let (mut answered, mut failed) = (Vec::new(), Vec::new());
        while let Some(client) = clients.join_next().await {
            let client = client?;
            answered.extend(client.answered);
            failed.extend(client.failed);
        }
        let latency = lock(&latency).clone();
        Ok(LoadReport { answered, failed, latency, elapsed: started.elapsed() })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is left to be asked.
struct Budget {
    requests: AtomicU64,
    deadline: Option<Instant>,
    stop: Arc<AtomicBool>,
}

impl Budget {
    fn new(limit: Limit, started: Instant, stop: Arc<AtomicBool>) -> Self {
        let (requests, deadline) = match limit {
            Limit::Requests(n) => (n, None),
            Limit::Time(time) => (u64::MAX, Some(started + time)),
            Limit::Stopped => (u64::MAX, None),
        };
        Self { requests: requests.into(), deadline, stop }
    }

    /// Waits for something, unless the time is up before.
    async fn before_the_end<F: Future>(&self, what: F) -> Result<F::Output, tokio::time::error::Elapsed> {
        match self.deadline {
            Some(deadline) => tokio::time::timeout_at(deadline.into(), what).await,
            None => Ok(what.await),
        }
    }

    fn take(&self) -> bool {
        if self.stop.load(Ordering::Relaxed) || self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return false;
        }
        self.requests.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// A request that waits for its answer.
struct Pending {
    id: u64,
    /// When its latency begins.
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
    /// Of all clients: one of its own would take more memory than everything else of a connection.
    latency: Arc<Mutex<Histogram<u64>>>,
    input: Vec<u8>,
}

impl Client {
    fn new(
        index: usize,
        load: &Arc<Load>,
        budget: &Arc<Budget>,
        progress: &Arc<AtomicU64>,
        latency: &Arc<Mutex<Histogram<u64>>>,
    ) -> Self {
        Self {
            index,
            load: Arc::clone(load),
            budget: Arc::clone(budget),
            progress: Arc::clone(progress),
            answered: Vec::new(),
            failed: Vec::new(),
            latency: Arc::clone(latency),
            input: Vec::new(),
        }
    }

    /// Works until the budget is used up. A client gives up after three failures in a row.
    async fn run(mut self) -> Self {
        let mut pace = self.load.rate.map(|rate| {
            let between = Duration::from_secs(1) * self.load.connections as u32 / rate.max(1);
            // Evenly spread, or all connections would ask at the same time.
            let first = Instant::now() + between.mul_f64(self.index as f64 / self.load.connections as f64);
            let mut pace = interval_at(first.into(), between.max(Duration::from_micros(1)));
            let behind = if self.load.open { MissedTickBehavior::Burst } else { MissedTickBehavior::Delay };
            pace.set_missed_tick_behavior(behind);
            pace
        });
        let depth = match self.load.style {
            Style::Pipelined(depth) => depth.max(1),
            Style::KeepAlive | Style::PerRequest => 1,
        };
        let mut connection: Option<TcpStream> = None;
        let mut failures = 0;
        while failures < 3 {
            let mut sent = Instant::now();
            if let Some(pace) = &mut pace {
                let Ok(due) = self.budget.before_the_end(pace.tick()).await else { break };
                let due = due.into_std();
                // Who waited for the timer is not late, however coarse the timer is.
                sent = if self.load.open && due < sent { due } else { Instant::now() };
            }
            let batch = (0..depth).take_while(|_| self.budget.take()).map(|_| Pending { id: next_id(), sent });
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

    /// Sends all pending requests at once and reads their answers; those that the server did not get to before it
    /// closed go over another connection. Returns the connection if it stays open.
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
                    lock(&self.latency).saturating_record(request.sent.elapsed().as_nanos() as u64);
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
            self.input.reserve(1 << 10);
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
            self.input.reserve(16 << 10);
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
    let stream = loop {
        let socket = match server.ip() {
            IpAddr::V4(_) => TcpSocket::new_v4()?,
            IpAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if let Some(address) = bind {
            socket.set_reuseaddr(true)?;
            if address.port() == 0 {
                // The port is chosen when it is known to whom it connects; so several connections can share one.
                leave_the_port_open(&socket)?;
            }
            socket.bind(address).with_context(|| format!("cannot bind to {address}"))?;
        }
        match socket.connect(server).await {
            // The last acknowledgement of the connection before, from the same port, is still on its way. Who waits for
            // the answer has a time-out.
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable && bind.is_some_and(|a| a.port() != 0) => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            connected => break connected.with_context(|| format!("cannot connect to {server}"))?,
        }
    };
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Sets `IP_BIND_ADDRESS_NO_PORT`.
fn leave_the_port_open(socket: &TcpSocket) -> std::io::Result<()> {
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the value is a local variable of the length that is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
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
        assert_eq!(server.wait_for_requests(2400, PATIENCE), 2400);
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
        // Each connection asks every 8 ms at most, and one of them at least 25 times.
        assert!(report.elapsed >= Duration::from_millis(150), "{:?}", report.elapsed);
    }

    /// A server that answers everything 300 ms late holds a paced client up, but not the clock of an open loop. One
    /// connection asks one thing at a time, so what it waits for its answers, all together, is no more than the time
    /// that passes. Where requests are due meanwhile, their waits overlap: of five that are due every 100 ms the
    /// answers come after 300 ms at the earliest, then 600 to 1,500, which is 3.5 s of waiting. However slow the
    /// machine is: what it adds to the time, it adds to the waits.
    #[test]
    fn in_an_open_loop_requests_that_had_to_wait_are_late() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let listener = lab.source.run(|| std::net::TcpListener::bind((lab.source.v4, 80))).unwrap().unwrap();
        let server = lab.source.spawn("sluggish", move || {
            use std::io::{Read as _, Write as _};
            for _ in 0..2 {
                let (mut stream, _) = listener.accept()?;
                let mut request = [0; 512];
                while stream.read(&mut request)? > 0 {
                    std::thread::sleep(Duration::from_millis(300));
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")?;
                }
            }
            Ok(())
        });
        for open in [false, true] {
            let load = Load::keep_alive(lab.source.socket(Family::V4, 80), 1, Limit::Requests(5));
            let report = Load { rate: Some(10), open, ..load }.run(&lab.client).unwrap();
            assert_eq!(report.failed, Vec::<String>::new());
            let waited = Duration::from_nanos((report.latency.mean() * report.latency.len() as f64) as u64);
            // The histogram is exact to a thousandth.
            let overlap = waited > report.elapsed + report.elapsed / 100;
            assert_eq!(overlap, open, "open {open}: {waited:?} of waiting in {:?}", report.elapsed);
        }
        server.unwrap().join().unwrap().unwrap();
    }

    #[test]
    fn a_load_without_limit_goes_on_until_it_is_stopped() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let server = Server::start(&lab.source, 80).unwrap();
        let load = Load::keep_alive(lab.source.socket(Family::V4, 80), 2, Limit::Stopped).start(&lab.client).unwrap();
        load.wait_for_answers(1_000).unwrap();
        let report = load.stop().unwrap();
        assert_eq!(report.failed, Vec::<String>::new());
        assert!(report.answered.len() >= 1_000);
        assert_eq!(server.count(), report.answered.len(), "a request was given up");
    }

    #[test]
    fn connections_from_one_address_get_ports_of_their_own() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let server = Server::start(&lab.source, 80).unwrap();
        lab.client.ip(&["address add 10.77.0.100/24 dev eth0"]).unwrap();
        let bind = Some(SocketAddr::from(([10, 77, 0, 100], 0)));
        let load = Load::per_request(lab.source.socket(Family::V4, 80), 8, Limit::Requests(100));
        assert_eq!(Load { bind, ..load }.run(&lab.client).unwrap().failed, Vec::<String>::new());
        let arrivals = server.arrivals();
        assert!(arrivals.iter().all(|arrival| Some(arrival.client.ip()) == bind.map(|b| b.ip())));
        assert_eq!(arrivals.iter().map(|arrival| arrival.client.port()).collect::<BTreeSet<_>>().len(), 100);
    }
}
