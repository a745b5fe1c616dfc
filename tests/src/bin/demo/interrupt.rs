//! SIGINT and SIGTERM.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
    mpsc,
};

use anyhow::Context as _;
use tokio::signal::unix::{SignalKind, signal};

/// Takes the laboratory down on a signal, unless a thread [waits](Self::wait) for one.
pub struct Interrupt {
    awaited: Arc<AtomicBool>,
    arrived: mpsc::Receiver<()>,
}

impl Interrupt {
    /// Starts listening to the signals.
    pub fn install() -> anyhow::Result<Self> {
        let awaited = Arc::new(AtomicBool::new(false));
        let waiting = Arc::clone(&awaited);
        let (sender, arrived) = mpsc::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let mut signals = {
            let _context = runtime.enter();
            [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?]
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    loop {
                        let [interrupt, terminate] = &mut signals;
                        tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () };
                        // The second signal does not wait for anybody.
                        if !waiting.swap(false, Ordering::AcqRel) || sender.send(()).is_err() {
                            lab::namespace::remove_all();
                            std::process::exit(130);
                        }
                    }
                });
            })
            .context("cannot start a thread")?;
        Ok(Self { awaited, arrived })
    }

    /// Waits for a signal, which then does nothing else.
    pub fn wait(&self) {
        self.awaited.store(true, Ordering::Release);
        // An error means that the thread is gone, and with it the process.
        let _ = self.arrived.recv();
    }
}
