//! The program `tcpcopy`: workers that capture, replay and inject.

mod capture;
mod channels;
mod host;
mod plan;
mod ramp;
mod reports;
mod settings;
mod stopped;
mod summary;

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use tcpcopy_replay::{
    Checksums, Config, Engine, Identity,
    worker::{Replica, Worker},
};
use tokio::sync::{Notify, mpsc::unbounded_channel};

pub use self::settings::{Clients, Replay, Rule, Selection, Settings, most_targets};
#[cfg(test)]
pub(crate) use self::summary::visit_nothing_counted;
use self::{
    capture::Ring,
    channels::Channels,
    host::{Host, Notice, Order, Snapshot},
    plan::{CopyPlan, Plan},
    ramp::{Ramp, initial_share},
    reports::Links,
    summary::Summary,
};
use crate::{
    affinity,
    bpf::{Capture, CaptureSetup, CounterValues, RingReader, Sampling, Share},
    clock,
    control::{ConnectError, Security, random_bytes},
    finding::Finding,
    inject::{Injector, Paths, Sending},
    mailbox::{Mailbox, mailbox},
    privileges,
    process::{Ended, Process, Request, panics::caught},
};

/// How often a line with the most important figures goes to the log.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(60);

/// Packets in one batch of the injector.
const INJECT_BATCH: usize = 64;

/// Copies until the process is asked to stop; returns what was counted, and what has ended it before its time.
///
/// # Errors
/// When something cannot be attached, opened or reached at the start. Later failures are counted, logged and mended.
pub async fn run(settings: Settings, security: Security, mut process: Process) -> anyhow::Result<Ended> {
    settings.pin.as_ref().map(affinity::check).transpose()?;
    let plan = Plan::new(&settings)?;
    let (mut capture, rings) = Capture::load(&CaptureSetup {
        rules: &plan.capture,
        exclude: &plan.targets,
        clients: settings.selection.clients.as_ref(),
        sampling: sampling(&settings)?,
        handshakes: true,
        promiscuous: settings.promiscuous,
        workers: settings.workers,
        ring_bytes: settings.ring_bytes,
        interfaces: &plan.interfaces,
        hook: settings.hook,
        debug: log::log_enabled!(log::Level::Debug),
    })?;
    let logger = capture.logger().map(crate::bpf::forward_log).transpose()?;

    let (notices, mut notice_receiver) = unbounded_channel();
    let workers = Workers::start(&settings, &plan, rings, capture.checksums(), &notices)?;
    drop(notices);
    let dials = plan.dials(&settings.intercepts);
    let mailboxes = Arc::clone(&workers.mailboxes);
    let mut channels = Channels::new(dials, security.clone(), mailboxes, settings.replay.round_trip);
    let starting = Instant::now();
    {
        let waiting = Notify::new();
        let fuses = settings.workers as usize * plan.copies.iter().map(targets).sum::<usize>();
        let mut dialling = std::pin::pin!(async {
            if settings.require_intercept {
                channels.require_all().await?;
            } else {
                channels.wait_for_some(&waiting).await?;
            }
            channels.prove(&mut notice_receiver, fuses).await;
            Ok::<_, ConnectError>(())
        });
        loop {
            tokio::select! {
                dialled = &mut dialling => break dialled?,
                // Whoever started a daemon need not wait as long.
                () = waiting.notified() => process.announce_ready()?,
                request = process.next_request() => match request {
                    Request::Stop(signal) => anyhow::bail!("stopped by {signal} before it was ready"),
                    Request::Fail(panicked) => return Err(panicked.into()),
                    Request::Reload => security.reload().log(),
                    Request::Report => show_so_far(&process, &workers, &capture, starting),
                },
            }
        }
    }
    let attachments = capture.attach()?;
    for attachment in &attachments {
        log::info!("capturing on {} by {}", attachment.interface, attachment.hook);
    }
    for rule in &settings.rules {
        let service =
            rule.address.map_or_else(|| format!("*:{}", rule.port), |a| SocketAddr::new(a, rule.port).to_string());
        log::info!("copying {service} to {}", rule.target);
    }
    if settings.clients.copies > 1 {
        log::info!("replaying every connection {} times", settings.clients.copies);
    }
    process.give_up_privileges();
    log::info!("ready");
    process.announce_ready()?;

    let began = Instant::now();
    let mut progress = tokio::time::interval_at((began + PROGRESS_INTERVAL).into(), PROGRESS_INTERVAL);
    let stopped_targets = channels.stopped();
    let remind = || {
        let stopped = stopped_targets.lock().unwrap_or_else(PoisonError::into_inner);
        stopped.reminders().for_each(|finding| finding.log());
    };
    let keeping_up = tokio::spawn(channels.keep_up(notice_receiver));
    let mut ramp = Ramp::new(&settings.selection);
    let stopped = caught(async {
        loop {
            tokio::select! {
                request = process.next_request() => match request {
                    Request::Stop(_) => break None,
                    Request::Fail(panicked) => break Some(panicked),
                    Request::Reload => security.reload().log(),
                    Request::Report => show_so_far(&process, &workers, &capture, began),
                },
                share = ramp.next() => {
                    if let Err(e) = capture.set_share(share) {
                        log::warn!("the sample stays as it is until the next step of the ramp: {e}");
                    } else if ramp.is_over() {
                        let percentage = settings.selection.percentage;
                        log::info!("the ramp is over: {percentage} % of the connections are copied from now on");
                    }
                }
                _ = progress.tick() => {
                    match capture.counters() {
                        Ok(counters) => {
                            let summary = Summary::new(&workers.snapshots(), counters, began.elapsed());
                            log::info!("{}", summary.one_line());
                            remind();
                        }
                        Err(e) => log::warn!("{e}"),
                    }
                }
            }
        }
    });
    // A panic here is no reason to leave the end out either.
    let failure = stopped.await.unwrap_or_else(Some).map(anyhow::Error::from);
    log::info!("stopping");
    capture.detach();
    keeping_up.abort();
    remind();
    let snapshots = workers.stop();
    drop(logger);
    let programs = capture.counters().context("the figures of the eBPF programs are lost");
    // All others are as good without them.
    let (programs, unread) = programs.map_or_else(|e| (CounterValues::default(), Some(e)), |read| (read, None));
    let failure = failure.or(unread);
    let summary = Summary::new(&snapshots, programs, began.elapsed());
    // A worker that has panicked has not published what it did last.
    if failure.is_none() {
        summary.verify();
    }
    Ok(Ended { figures: summary.report(), failure })
}

/// Shows the figures so far: those of the kernel as they are, those of the workers of the last second's end.
fn show_so_far(process: &Process, workers: &Workers, capture: &Capture, began: Instant) {
    match capture.counters() {
        Ok(counters) => process.show(&Summary::new(&workers.snapshots(), counters, began.elapsed()).report()),
        Err(e) => log::warn!("cannot show the figures so far: {e}"),
    }
}

/// The worker threads.
struct Workers {
    mailboxes: Arc<[Mailbox<Order>]>,
    threads: Vec<JoinHandle<()>>,
    published: Vec<Arc<Mutex<Snapshot>>>,
}

impl Workers {
    fn start(
        settings: &Settings,
        plan: &Plan,
        rings: Vec<RingReader>,
        checksums: Checksums,
        notices: &tokio::sync::mpsc::UnboundedSender<(u32, Notice)>,
    ) -> anyhow::Result<Self> {
        let mut mailboxes = Vec::new();
        let mut threads = Vec::new();
        let mut published = Vec::new();
        let targets: Vec<IpAddr> = plan.targets.iter().map(SocketAddr::ip).collect();
        let paths = Arc::new(Paths::open(settings.inject, &targets)?);
        for (index, ring) in rings.into_iter().enumerate() {
            let sending = Sending { batch: INJECT_BATCH, bypass_qdisc: settings.bypass_qdisc };
            let injector = Injector::open(Arc::clone(&paths), sending)?;
            let mut replicas = Vec::new();
            for (copy, planned) in plan.copies.iter().enumerate() {
                let config = engine_config(settings, plan, index as u32, copy, &injector);
                let engine = Engine::new(config, u64::from_ne_bytes(random_bytes()?));
                replicas.push(Replica::new(engine, planned.table.clone()));
            }
            let (mailbox, inbox) = mailbox().context("cannot make an eventfd")?;
            let snapshot = Arc::new(Mutex::new(Snapshot::default()));
            let channels = plan.channels.iter().map(|channel| channel.copy);
            let ring = Ring { reader: ring, checksums };
            let worker = Worker::new(clock::now(), ring, replicas, injector, Links::default(), channels);
            let host = Host { index: index as u32, inbox, notices: notices.clone(), published: Arc::clone(&snapshot) };
            let cpu = settings.pin.as_ref().and_then(|pin| pin.iter().nth(index));
            let thread = std::thread::Builder::new()
                .name(format!("worker-{index}"))
                .spawn(move || {
                    privileges::keep(&[]);
                    cpu.and_then(affinity::pin).iter().for_each(Finding::log);
                    worker.run(host);
                })
                .context("cannot start a worker thread")?;
            mailboxes.push(mailbox);
            threads.push(thread);
            published.push(snapshot);
        }
        Ok(Self { mailboxes: mailboxes.into(), threads, published })
    }

    fn snapshots(&self) -> Vec<Snapshot> {
        self.published.iter().map(|s| s.lock().unwrap_or_else(PoisonError::into_inner).clone()).collect()
    }

    fn stop(mut self) -> Vec<Snapshot> {
        self.join();
        self.snapshots()
    }

    fn join(&mut self) {
        for mailbox in self.mailboxes.iter() {
            mailbox.send(Order::Stop);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                log::error!("the figures of a worker that has panicked are of up to a second before");
            }
        }
    }
}

impl Drop for Workers {
    /// Ends workers that a failed start left running.
    fn drop(&mut self) {
        self.join();
    }
}

/// The lottery that the connections take part in, unless all of them are copied.
fn sampling(settings: &Settings) -> anyhow::Result<Option<Sampling>> {
    let share = initial_share(&settings.selection);
    if share == Share::WHOLE {
        return Ok(None);
    }
    Ok(Some(Sampling { seed: u32::from_ne_bytes(random_bytes()?), share }))
}

/// The settings of the engine that replays one copy in one worker.
fn engine_config(settings: &Settings, plan: &Plan, worker: u32, copy: usize, injector: &Injector) -> Config {
    let replay = &settings.replay;
    // IP and TCP headers without options (RFC 9293, section 3.7.1). A path that cannot be known yet is an Ethernet.
    let mss = |ipv4: bool, headers: u16| {
        let targets = settings.rules.iter().map(|r| r.target.ip()).filter(|a| a.is_ipv4() == ipv4);
        let path = targets.map(|a| injector.path_mtu(a)).min().unwrap_or(1500);
        segment_size(replay, path, headers)
    };
    // The caps are the program's, shared out among its engines.
    let defaults = Config::default();
    let engines = settings.workers as usize * plan.copies.len();
    Config {
        rules: plan.copies[copy].rules.clone(),
        probe_from: plan.copies[copy].rules.iter().map(|rule| own_address(rule.address)).collect(),
        identity: Identity { addresses: settings.clients.addresses.clone(), ports: plan.ports(settings, worker, copy) },
        proxy_protocol: settings.clients.proxy_protocol,
        session_timeout: replay.session_timeout,
        keepalive_timeout: replay.keepalive_timeout,
        complete_only: replay.complete_only,
        join_open: settings.selection.ramp.is_none(),
        gate: replay.wait,
        round_trip: replay.round_trip,
        max_memory: replay.memory / engines,
        loopback_client: settings.loopback_client,
        mss_v4: mss(true, 40),
        mss_v6: mss(false, 60),
        max_sessions: defaults.max_sessions / engines,
        ..defaults
    }
}

/// How many targets the rules of a copy have.
fn targets(copy: &CopyPlan) -> usize {
    copy.rules.iter().map(|rule| (rule.target, rule.address)).collect::<HashSet<_>>().len()
}

/// The address that this host has for another; unspecified when it knows no way there.
fn own_address(peer: SocketAddr) -> IpAddr {
    let unspecified = if peer.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // Nothing is sent: the kernel only looks for the route.
    let local = UdpSocket::bind(SocketAddr::new(unspecified, 0)).and_then(|socket| {
        socket.connect(peer)?;
        socket.local_addr()
    });
    local.map_or(unspecified, |local| local.ip())
}

/// The maximum segment size on a path with this MTU, for so many octets of headers.
fn segment_size(replay: &Replay, path_mtu: u16, headers: u16) -> u16 {
    let mtu = replay.mtu.unwrap_or(u16::MAX).min(path_mtu);
    mtu.saturating_sub(headers).min(replay.mss.unwrap_or(u16::MAX))
}

#[cfg(test)]
mod tests {
    use tcpcopy_replay::RoundTrip;

    use super::*;

    #[test]
    fn no_option_makes_segments_larger_than_the_path_carries() {
        let replay = |mtu, mss| Replay {
            complete_only: false,
            wait: true,
            round_trip: RoundTrip::Near,
            session_timeout: Duration::ZERO,
            keepalive_timeout: None,
            memory: 0,
            mtu,
            mss,
        };
        for (mtu, mss, size) in [
            (None, None, 1460),
            (Some(1400), None, 1360),
            (Some(9000), None, 1460),
            (None, Some(1000), 1000),
            (None, Some(9000), 1460),
            (Some(1400), Some(1400), 1360),
        ] {
            assert_eq!(segment_size(&replay(mtu, mss), 1500, 40), size, "-M {mtu:?} -D {mss:?}");
        }
    }
}
