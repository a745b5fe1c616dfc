//! The program `intercept`: swallows responses and reports them to their owner.

mod checks;
mod interfaces;
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
mod ways;

use std::{
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context as _;
use tcpcopy_common::counters::TargetCounter;

pub use self::settings::{Ack, Settings};
#[cfg(test)]
pub(crate) use self::summary::visit_nothing_counted;
use self::{
    interfaces::Interfaces,
    reaper::Reaper,
    registry::{Instances, lock},
    reporter::{ReportCounts, Reporter},
    resets::Resets,
    ways::Ways,
};
use crate::{
    affinity,
    bpf::{CounterValues, Intercept, InterceptSetup, Interceptor, RingReader, Sessions},
    control::{Listener, Security, ServerCounters},
    finding::Finding,
    mailbox::mailbox,
    net::{interface::interfaces, sockdiag::SockDiag},
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
    let interfaces = Interfaces::open(&settings.interfaces)?;

    let Intercept { programs: mut interceptor, instances, sessions, counters, reports: ring } =
        Interceptor::load(&InterceptSetup {
            attach: settings.attach,
            max_sessions: settings.max_sessions,
            ring_bytes: settings.ring_bytes,
            reflect: settings.ack == Ack::Reflect,
            debug: log::log_enabled!(log::Level::Debug),
        })?;
    let logger = interceptor.logger().map(crate::bpf::forward_log).transpose()?;
    let mut interfaces = interfaces.hook_all(interceptor)?;
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
    let ways = Ways::new(settings.interfaces);
    let reaper = Reaper::new(sessions, Arc::clone(&counters), Arc::clone(&instances), support, ways, inbox);
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
                e = interfaces.follow() => break Err(e),
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
