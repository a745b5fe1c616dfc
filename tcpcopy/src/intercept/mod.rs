//! The program `intercept`: swallows responses and reports them to their owner.

mod checks;
mod orders;
mod reaper;
mod refused;
mod registry;
mod reporter;
mod resets;
mod services;
mod settings;
mod summary;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context as _;
use tokio::io::unix::AsyncFd;

pub use self::settings::{Ack, Settings};
#[cfg(test)]
pub(crate) use self::summary::visit_nothing_counted;
use self::{
    reaper::Reaper,
    registry::{Instances, lock},
    reporter::{ReportCounts, Reporter},
    resets::Resets,
};
use crate::{
    affinity,
    bpf::{BpfError, Intercept, InterceptSetup, Interceptor, RingReader, Sessions},
    control::{Listener, Security, ServerCounters},
    finding::Finding,
    mailbox::mailbox,
    net::{
        NetError,
        interface::{self, Interface, LinkChange, LinkMonitor, interfaces},
        sockdiag::SockDiag,
    },
    privileges::{self, Need},
    process::{Ended, Process, Request, panics::caught},
    summary::Report,
};

/// Returns the descriptors that a start takes on this host at the least.
#[must_use]
pub fn descriptors(settings: &Settings) -> usize {
    // Who has not even one to ask with has too few in any case.
    settings.descriptors(interfaces().map_or(0, |present| present.iter().filter(|i| !i.loopback).count()))
}

/// Intercepts until the process is asked to stop; returns what was counted, and what has ended it before its time.
///
/// # Errors
/// When something cannot be attached or opened at the start.
pub async fn run(settings: Settings, security: Security, mut process: Process) -> anyhow::Result<Ended> {
    settings.pin.as_ref().map(affinity::check).transpose()?;
    // The port first: it tells a second intercept that there is one already, before anything is attached.
    let listener = Listener::bind(&settings.listen, security.clone())?;

    // Known before anything depends on it: at the end replayed connections are destroyed, or reset.
    let support = SockDiag::open()?.preflight()?;
    let unsupported = checks::socket_support(support);
    unsupported.iter().for_each(Finding::log);
    let resets = unsupported.map(|_| Resets::open()).transpose()?;
    // Watching starts before the first look, so that no interface slips through between.
    let mut monitor = watch(LinkMonitor::open()?)?;
    let present = interfaces()?;
    for name in &settings.interfaces {
        anyhow::ensure!(
            !interface::named(&present, name)?.loopback,
            "-i {name}: the kernel answers clients on a loopback interface by that interface, where responses are not \
             swallowed; replay from another host, or through a veth pair"
        );
    }

    let Intercept { programs: mut interceptor, instances, sessions, counters, reports: ring } =
        Interceptor::load(&InterceptSetup {
            attach: settings.attach,
            max_sessions: settings.max_sessions,
            ring_bytes: settings.ring_bytes,
            reflect: settings.ack == Ack::Reflect,
            debug: log::log_enabled!(log::Level::Debug),
        })?;
    let logger = interceptor.logger().map(crate::bpf::forward_log).transpose()?;
    for interface in present.iter().filter(|i| !i.loopback) {
        match interceptor.attach_swallow(&interface.name) {
            // It went while we looked; the monitor knows.
            Ok(()) | Err(BpfError::Net(NetError::NoInterface { .. })) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot swallow responses on {}", interface.name)),
        }
    }
    for name in &settings.interfaces {
        interceptor.attach_learn(name).with_context(|| format!("cannot learn sessions on {name} (-i)"))?;
        checks::reverse_path_filter(name).iter().for_each(Finding::log);
    }
    let counters = Arc::new(counters);
    let (orders, inbox) = mailbox().context("cannot make an eventfd")?;
    let instances = Arc::new(Instances::new(instances, orders));
    let reports = Arc::new(Mutex::new(ReportCounts::default()));
    let reporter = Reporter::new(ring, inbox, Arc::clone(&instances), Arc::clone(&reports));
    let cpu = settings.pin.as_ref().and_then(|pin| pin.iter().next());
    let reporter = spawn("reporter", move || {
        privileges::keep(&[Need::Maps]);
        cpu.and_then(affinity::pin).iter().for_each(Finding::log);
        reporter.run()
    })?;
    let (stop_reaper, inbox) = mailbox().context("cannot make an eventfd")?;
    let reaper = Reaper::new(sessions, Arc::clone(&counters), Arc::clone(&instances), support, inbox);
    let reaper = spawn("reaper", move || {
        privileges::keep(&[Need::Network, Need::Maps]);
        reaper.run()
    })?;

    let refused = Arc::new(ServerCounters::default());
    let serving = tokio::spawn(listener.run(Arc::clone(&instances), Arc::clone(&refused)));
    for address in &settings.listen {
        log::info!("listening on {address}");
    }
    process.give_up_privileges();
    log::info!("ready");
    process.announce_ready()?;

    let began = Instant::now();
    let figures = || -> Result<Report, BpfError> {
        let programs = counters.read()?;
        Ok(summary::summarise(&programs, &instances.total(), &lock(&reports), &refused, began.elapsed()))
    };
    // A panic here is no reason to leave sessions behind either.
    let ended = caught(async {
        loop {
            tokio::select! {
                request = process.next_request() => match request {
                    Request::Stop(_) => break Ok(()),
                    Request::Fail(panicked) => break Err(panicked.into()),
                    Request::Reload => security.reload().log(),
                    Request::Report => match figures() {
                        Ok(report) => process.show(&report),
                        Err(e) => log::warn!("cannot show the figures so far: {e}"),
                    },
                },
                // Without it a new interface could leak: better to end, in good order.
                e = follow_interfaces(&mut monitor, &mut interceptor) => {
                    break Err(e).context("cannot watch the interfaces any more");
                }
            }
        }
    });
    let ended = ended.await.map_err(anyhow::Error::from).flatten();
    log::info!("stopping");
    serving.abort();
    // First the channels, so that tcpcopy sends no more; then the keys, so that no more sessions are learned; then the
    // sockets; and the programs last, when nothing is left that could answer.
    instances.stop_reporting();
    let ring = join(reporter);
    instances.forget_all();
    stop_reaper.send(());
    let sessions = join(reaper);
    if let (Some(resets), Some(ring), Some(sessions)) = (resets, ring, sessions) {
        reset_all(resets, ring, sessions);
    }
    let figures = figures()?;
    drop(logger);
    Ok(Ended { figures, failure: ended.err() })
}

fn watch(monitor: LinkMonitor) -> anyhow::Result<AsyncFd<LinkMonitor>> {
    // SAFETY: the monitor owns its descriptor, which is the same as long as it lives.
    unsafe { AsyncFd::register(monitor) }.map_err(|e| e.into_parts().1).context("cannot watch the interfaces")
}

/// Hooks interfaces that appear, so that no answer leaves by one of them; ends only when it fails. Cancel safe: no change is lost.
async fn follow_interfaces(monitor: &mut AsyncFd<LinkMonitor>, interceptor: &mut Interceptor) -> std::io::Error {
    loop {
        let changes = match monitor.readable_mut().await {
            Ok(mut ready) => {
                let changes = ready.get_inner_mut().changes();
                ready.clear_ready();
                changes
            }
            Err(e) => Err(e),
        };
        match changes {
            Ok(changes) => apply(&changes, interceptor),
            Err(e) => return e,
        }
    }
}

fn apply(changes: &[LinkChange], interceptor: &mut Interceptor) {
    for change in changes {
        match change {
            LinkChange::Present(interface) => swallow_on(interceptor, interface),
            LinkChange::Removed { index, .. } => interceptor.detach(*index),
            LinkChange::Missed => match interfaces() {
                Ok(present) => {
                    let gone: Vec<u32> =
                        interceptor.attached().filter(|index| present.iter().all(|i| i.index != *index)).collect();
                    gone.into_iter().for_each(|index| interceptor.detach(index));
                    present.iter().for_each(|interface| swallow_on(interceptor, interface));
                }
                Err(e) => log::error!("cannot list the interfaces: {e}; responses may leave by a new one"),
            },
        }
    }
}

/// Idempotent: an interface is announced again whenever something about it changes.
fn swallow_on(interceptor: &mut Interceptor, interface: &Interface) {
    if interface.loopback || interceptor.attached().any(|index| index == interface.index) {
        return;
    }
    match interceptor.attach_swallow(&interface.name) {
        Ok(()) => log::info!("swallowing on the new interface {} too", interface.name),
        // It was there for a moment only.
        Err(BpfError::Net(NetError::NoInterface { .. })) => {}
        Err(e) => log::error!("cannot swallow responses on the new interface {}: {e}", interface.name),
    }
}

fn spawn<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .with_context(|| format!("cannot start the thread {name}"))
}

/// Waits for a thread to end. A panic of it was logged, and is what has ended the program: the end goes on all the same,
/// without what the thread had.
fn join<T>(thread: JoinHandle<T>) -> Option<T> {
    thread.join().ok()
}

/// Resets the replayed connections, where sockets cannot be destroyed.
fn reset_all(mut resets: Resets, mut ring: RingReader, mut sessions: Sessions) {
    match resets.reset_all(&mut sessions, &mut ring) {
        Ok(0) => {}
        Ok(left) => log::warn!("{left} replayed connections may be left; their answers may reach clients"),
        Err(e) => log::error!("cannot reset the replayed connections: {e}"),
    }
}
