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
    time::{Duration, Instant},
};

use anyhow::Context as _;
use log::Level;
use tcpcopy_common::counters::TargetCounter;
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
    bpf::{BpfError, CounterValues, Intercept, InterceptSetup, Interceptor, RingReader, Sessions},
    control::{Listener, Security, ServerCounters},
    finding::Finding,
    log_limit::limited,
    mailbox::mailbox,
    net::{
        NetError,
        interface::{self, Interface, LinkChange, LinkMonitor, interfaces},
        sockdiag::SockDiag,
    },
    privileges::{self, Need},
    process::{Ended, Process, Request, panics::caught},
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
    let summarise = |programs: CounterValues<TargetCounter>| {
        summary::summarise(&programs, &instances.total(), &lock(&reports), &refused, began.elapsed())
    };
    let mut again = None;
    // A panic here is no reason to leave sessions behind either.
    let ended = caught(async {
        loop {
            tokio::select! {
                request = process.next_request() => match request {
                    Request::Stop(_) => break Ok(()),
                    Request::Fail(panicked) => break Err(panicked.into()),
                    Request::Reload => security.reload().log(),
                    Request::Report => match counters.read() {
                        Ok(programs) => process.show(&summarise(programs)),
                        Err(e) => log::warn!("cannot show the figures so far: {e}"),
                    },
                },
                // Without it a new interface could leak: better to end, in good order.
                e = follow_interfaces(&mut monitor, &mut interceptor, &mut again) => {
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
    drop(logger);
    let programs = counters.read().context("the figures of the eBPF programs are lost");
    // All others are as good without them.
    let (programs, unread) = programs.map_or_else(|e| (CounterValues::default(), Some(e)), |read| (read, None));
    Ok(Ended { figures: summarise(programs), failure: ended.err().or(unread) })
}

fn watch(monitor: LinkMonitor) -> anyhow::Result<AsyncFd<LinkMonitor>> {
    // SAFETY: the monitor owns its descriptor, which is the same as long as it lives.
    unsafe { AsyncFd::register(monitor) }.map_err(|e| e.into_parts().1).context("cannot watch the interfaces")
}

/// How soon interfaces are looked at again when that, or the hooking of one, has failed, or announcements were lost.
const AGAIN: Duration = Duration::from_millis(200);

/// Hooks interfaces that appear, so that no answer leaves by one of them; ends only when it fails. Cancel safe: no
/// change is lost, and `again` says when all are to be looked at once more, for want of memory or descriptors up to
/// now.
async fn follow_interfaces(
    monitor: &mut AsyncFd<LinkMonitor>,
    interceptor: &mut Interceptor,
    again: &mut Option<Instant>,
) -> std::io::Error {
    loop {
        let due = *again;
        let changes = tokio::select! {
            ready = monitor.readable_mut() => ready.and_then(|mut ready| {
                let changes = ready.get_inner_mut().changes();
                ready.clear_ready();
                changes
            }),
            // What came behind a gap may still be there, and is announced no more.
            () = passed(due) => monitor.get_mut().changes().map(|mut changes| {
                *again = None;
                changes.push(LinkChange::Missed);
                changes
            }),
        };
        match changes {
            Ok(changes) if apply(&changes, interceptor) => {}
            Ok(_) => *again = Some(Instant::now() + AGAIN),
            Err(e) => return e,
        }
    }
}

/// Waits for a moment; for ever, if there is none.
async fn passed(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

/// Returns whether every interface that is there is known to be hooked by now.
fn apply(changes: &[LinkChange], interceptor: &mut Interceptor) -> bool {
    let mut all = true;
    for change in changes {
        match change {
            LinkChange::Present(interface) => all &= swallow_on(interceptor, interface),
            LinkChange::Removed { index, .. } => interceptor.detach(*index),
            LinkChange::Missed => match interfaces() {
                Ok(present) => {
                    let gone: Vec<u32> =
                        interceptor.attached().filter(|index| present.iter().all(|i| i.index != *index)).collect();
                    gone.into_iter().for_each(|index| interceptor.detach(index));
                    for interface in &present {
                        all &= swallow_on(interceptor, interface);
                    }
                }
                Err(e) => {
                    limited!(
                        "interfaces that cannot be listed",
                        Level::Warn,
                        "cannot list the interfaces: {e}; until that is mended, responses may leave by a new one"
                    );
                    all = false;
                }
            },
        }
    }
    all
}

/// Idempotent: an interface is announced again whenever something about it changes. Returns whether it is hooked, or
/// need not be.
fn swallow_on(interceptor: &mut Interceptor, interface: &Interface) -> bool {
    if interface.loopback || interceptor.swallows_on(interface.index) {
        return true;
    }
    match interceptor.attach_swallow(&interface.name) {
        Ok(()) => log::info!("swallowing on the new interface {} too", interface.name),
        // It was there for a moment only.
        Err(BpfError::Net(NetError::NoInterface { .. })) => {}
        Err(e) => {
            limited!(
                "interfaces that are not hooked",
                Level::Warn,
                "cannot swallow responses on the new interface {} yet: {e}; until that is mended, they may leave by it",
                interface.name
            );
            return false;
        }
    }
    true
}

fn spawn<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .with_context(|| format!("cannot start the thread {name}"))
}

/// Waits for a thread to end. A panic of it was logged, and is what has ended the program: the end goes on all the
/// same, without what the thread had.
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
