//! Panics: a bug, and an end in good order.
//!
//! A panic unwinds its thread only. Whichever thread that was, the [hook](catch) logs it and asks the main thread to
//! end the program as SIGTERM does: `intercept` above all must not go on, or end, with sessions that nobody looks
//! after.

use std::{
    any::Any,
    backtrace::{Backtrace, BacktraceStatus},
    env,
    panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook},
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
    task::Poll,
    thread,
};

use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

/// A thread has panicked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the thread {thread} panicked ({message}): this is a bug, please report it with the log")]
pub struct Panicked {
    /// The thread's name.
    thread: String,
    /// What it said.
    message: String,
}

/// Receives the panics of all threads, in their order.
#[derive(Debug)]
pub struct Panics(UnboundedReceiver<Panicked>);

/// Logs the panics of all threads from here on, in place of the standard hook, and passes them on.
#[must_use]
pub fn catch() -> Panics {
    let (sender, receiver) = unbounded_channel();
    set_hook(Box::new(move |info| {
        let panicked = Panicked::new(info.payload());
        log(&panicked, info);
        // Nobody receives it any more while the program ends.
        let _ = sender.send(panicked);
    }));
    Panics(receiver)
}

fn log(panicked: &Panicked, info: &PanicHookInfo<'_>) {
    let place = info.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    log::error!("the thread {} panicked at {place}: {}", panicked.thread, panicked.message);
    let backtrace = Backtrace::capture();
    if backtrace.status() == BacktraceStatus::Captured {
        log::error!("{backtrace}");
    }
}

impl Panicked {
    /// Describes what the present thread panicked with.
    fn new(payload: &(dyn Any + Send)) -> Self {
        let message = payload.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("without a message");
        Self { thread: thread::current().name().unwrap_or("without a name").to_owned(), message: message.to_owned() }
    }
}

impl Panics {
    /// Waits for the next panic. Cancel safe: none is lost with the future.
    pub async fn next(&mut self) -> Panicked {
        match self.0.recv().await {
            Some(panicked) => panicked,
            // Another hook was set: nobody reports any more.
            None => std::future::pending().await,
        }
    }
}

/// Runs a future to its end, or to its panic, which is handed back like an error.
///
/// # Errors
/// [`Panicked`].
pub async fn caught<F: Future>(future: F) -> Result<F::Output, Panicked> {
    let mut future = pin!(future);
    std::future::poll_fn(|context| {
        // Nothing of a future that has panicked is used again.
        match catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
            Ok(poll) => poll.map(Ok),
            Err(payload) => Poll::Ready(Err(Panicked::new(&*payload))),
        }
    })
    .await
}

/// The environment variable that names the thread that panics at SIGUSR2: tests see by it how a program ends.
const PROVOKED: &str = "TCPCOPY_TEST_PANIC";
/// Whether the signal has come.
static DUE: AtomicBool = AtomicBool::new(false);

/// Makes the thread that [`PROVOKED`] names, if it names one, panic at its next [`provoked`].
pub(super) fn provoke() {
    if env::var_os(PROVOKED).is_some() {
        DUE.store(true, Ordering::Relaxed);
        provoked();
    }
}

/// Panics when a test wants this thread to. Costs one load of a flag otherwise.
pub fn provoked() {
    if DUE.load(Ordering::Relaxed) && env::var(PROVOKED).is_ok_and(|name| thread::current().name() == Some(&name)) {
        panic!("{PROVOKED} asks for it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_ends_a_future_like_an_error() {
        assert_eq!(caught(async { 7 }).await, Ok(7));
        let error = caught(async {
            tokio::task::yield_now().await;
            assert_eq!(1 + 1, 3, "arithmetic");
        });
        assert!(error.await.unwrap_err().to_string().contains("arithmetic"));
    }
}
