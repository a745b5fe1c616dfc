//! The program `intercept`: swallows responses and reports them to their owner.

mod registry;
mod reaper;
mod reporter;
mod summary;

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
    time::Instant,
};

use anyhow::Context as _;
use tokio::{
    io::unix::AsyncFd,
    signal::unix::{SignalKind, signal},
};

pub use self::summary::Summary;
use self::{
    reaper::Reaper,
    registry::{Instances, lock},
    reporter::{Order, Reporter},
};
use crate::{
    bpf::target::{InterceptSetup, Interceptor},
    cli::{daemon::Readiness, intercept::Settings},
    control::{
        Security,
        server::{Listener, ServerCounters},
    },
    mailbox::mailbox,
    net::interface::{LinkMonitor, interfaces},
};

/// Intercepts until SIGINT or SIGTERM; returns what was counted.
///
/// # Errors
/// When something cannot be attached or opened at the start.
pub async fn run(settings: Settings, security: Security, mut readiness: Readiness) -> anyhow::Result<Summary> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen to SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen to SIGINT")?;
    // The port first: it tells a second intercept that there is one already, before anything is attached.
    let listener = Listener::bind(&settings.listen, security).await?;

    let (mut interceptor, ring) = Interceptor::load(&InterceptSetup {
        attach: settings.attach,
        max_sessions: settings.max_sessions,
        ring_bytes: settings.ring_bytes,
        debug: log::log_enabled!(log::Level::Debug),
    })?;
    let logger = crate::bpf::log::forward(&mut interceptor)?;
    // Watching starts before the first look, so that no interface slips through between.
    let monitor = AsyncFd::new(LinkMonitor::open()?).context("cannot watch the interfaces")?;
    for interface in interfaces()?.iter().filter(|i| !i.loopback) {
        interceptor
            .attach_swallow(&interface.name)
            .with_context(|| format!("cannot swallow responses on {}", interface.name))?;
    }
    for name in &settings.interfaces {
        interceptor.attach_learn(name).with_context(|| format!("cannot learn sessions on {name} (-i)"))?;
        warn_of_reverse_path_filter(name);
    }
    let interceptor = Arc::new(Mutex::new(interceptor));
    let instances = Arc::new(Instances::new(Arc::clone(&interceptor)));

    let (orders, inbox) = mailbox().context("cannot make an eventfd")?;
    let reporter = Reporter::new(ring, inbox, Arc::clone(&instances));
    let reporter = spawn("reporter", move || reporter.run())?;
    let (stop_reaper, inbox) = mailbox().context("cannot make an eventfd")?;
    let reaper = Reaper::new(Arc::clone(&interceptor), Arc::clone(&instances), inbox);
    let reaper = spawn("reaper", move || reaper.run())?;

    let orders = Arc::new(orders);
    let refused = Arc::new(ServerCounters::default());
    let serving = tokio::spawn(listener.run(
        Arc::clone(&instances),
        {
            let orders = Arc::clone(&orders);
            move |link, _hello, welcome| orders.send(Order::LinkUp(welcome.instance, Box::new(link)))
        },
        Arc::clone(&refused),
    ));
    for address in &settings.listen {
        log::info!("listening on {address}");
    }
    log::info!("ready");
    readiness.announce()?;

    let began = Instant::now();
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            changed = monitor.readable() => {
                let mut changed = changed.context("cannot watch the interfaces")?;
                follow_interfaces(monitor.get_ref(), &interceptor);
                changed.clear_ready();
            }
        }
    }
    log::info!("stopping");
    serving.abort();
    // Sockets first, then the last reports, then the programs: nothing may answer after they are gone.
    stop_reaper.send(());
    join(reaper, "reaper")?;
    orders.send(Order::Stop);
    let reports = join(reporter, "reporter")?;
    let counters = lock(&interceptor).counters()?;
    let summary = Summary::new(&counters, &instances.total(), &reports, &refused, began.elapsed());
    drop(logger);
    Ok(summary)
}

/// Hooks interfaces that appear, so that no answer leaves by one of them.
fn follow_interfaces(monitor: &LinkMonitor, interceptor: &Mutex<Interceptor>) {
    if let Err(e) = monitor.drain() {
        log::warn!("cannot watch the interfaces: {e}");
    }
    let current = match interfaces() {
        Ok(current) => current,
        Err(e) => return log::error!("cannot list the interfaces: {e}; responses may leave by a new one"),
    };
    let mut interceptor = lock(interceptor);
    interceptor.retain(|name| current.iter().any(|i| i.name == name));
    for interface in current.iter().filter(|i| !i.loopback) {
        if interceptor.swallows_on(interface.index) {
            continue;
        }
        match interceptor.attach_swallow(&interface.name) {
            Ok(()) => log::info!("swallowing on the new interface {} too", interface.name),
            Err(e) => log::error!("cannot swallow responses on the new interface {}: {e}", interface.name),
        }
    }
}

/// A strict reverse-path filter drops replayed packets without a word.
fn warn_of_reverse_path_filter(interface: &str) {
    let read = |name: &str| {
        std::fs::read_to_string(Path::new("/proc/sys/net/ipv4/conf").join(name).join("rp_filter"))
            .ok()
            .and_then(|v| v.trim().parse::<u8>().ok())
            .unwrap_or(0)
    };
    // The kernel uses the larger of the two (Documentation/networking/ip-sysctl.rst).
    if read("all").max(read(interface)) == 1 {
        log::warn!(
            "net.ipv4.conf.{interface}.rp_filter is 1 (strict): the kernel drops replayed packets whose client it would \
             answer by another interface; set it to 2 if the target receives nothing"
        );
    }
}

fn spawn<T: Send + 'static>(name: &str, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<JoinHandle<T>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(f)
        .with_context(|| format!("cannot start the thread {name}"))
}

fn join<T>(thread: JoinHandle<T>, name: &str) -> anyhow::Result<T> {
    thread.join().map_err(|_| anyhow::anyhow!("the thread {name} panicked"))
}
