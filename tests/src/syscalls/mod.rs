//! Faults of system calls in a running program: one that the kernel could have refused is refused, and the program does
//! not know why.
//!
//! A program that [`Faults`] were [prepared](Faults::prepare) for has its system calls handed over to a thread here.
//! That lets each happen, but for those to which an [order](Faults::order) applies: they fail with an error number, as
//! often as ordered, and are not made. Calls of the dynamic linker, and of `ip netns exec` before it, are left alone.

mod call;
mod listener;

use std::{
    collections::BTreeMap,
    fs,
    process::Command,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rustix::io::Errno;

pub use self::call::{Call, On};
use self::listener::{Expected, Listener, Waiting};
use crate::PATIENCE;

/// How long the thread waits for the next call before it looks whether its program still runs.
const LOOK: Duration = Duration::from_secs(1);

/// What is to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The call's name.
    pub name: &'static str,
    /// What it works on; anything if `None`.
    pub on: Option<On>,
    /// The thread that makes it, by its name; any if `None`.
    pub thread: Option<&'static str>,
    /// How many such calls happen before.
    pub after: u64,
    /// How it fails.
    pub error: Errno,
    /// How often.
    pub times: u64,
}

impl Fault {
    /// Makes the next call fail.
    pub const fn once(name: &'static str, error: Errno) -> Self {
        Self { name, on: None, thread: None, after: 0, error, times: 1 }
    }

    /// Returns the same, for what works on this.
    #[must_use]
    pub const fn on(self, on: On) -> Self {
        Self { on: Some(on), ..self }
    }

    /// Returns the same, for a thread.
    #[must_use]
    pub const fn by(self, thread: &'static str) -> Self {
        Self { thread: Some(thread), ..self }
    }

    /// Returns the same, for the call that comes after so many others like it.
    #[must_use]
    pub const fn after(self, calls: u64) -> Self {
        Self { after: calls, ..self }
    }

    /// Returns the same, again and again.
    #[must_use]
    pub const fn for_ever(self) -> Self {
        Self { times: u64::MAX, ..self }
    }
}

/// An order in force, or one that is done.
#[derive(Clone, Copy, Debug)]
struct Order {
    fault: Fault,
    passed: u64,
    failed: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Whether the program itself has begun.
    begun: bool,
    orders: Vec<Order>,
    /// Calls that were made so far, while they are recorded.
    recorded: Option<BTreeMap<Call, u64>>,
    ended: bool,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The faults of one program.
#[derive(Clone, Debug)]
pub struct Faults(Arc<Shared>);

impl Faults {
    /// Prepares a command, which must be started within [`PATIENCE`]. Its descendants are looked after as well.
    pub fn prepare(command: &mut Command) -> anyhow::Result<Self> {
        let expected = listener::install(command, &call::numbers()).context("cannot share memory")?;
        let faults = Self(Arc::default());
        let shared = Arc::clone(&faults.0);
        thread::Builder::new().name("syscalls".into()).spawn(move || attend(expected, &shared))?;
        Ok(faults)
    }

    /// Orders a fault. Orders are tried in their order; one that is done stands in the way of none.
    pub fn order(&self, fault: Fault) {
        self.0.lock().orders.push(Order { fault, passed: 0, failed: 0 });
    }

    /// Withdraws all orders; returns how many calls have failed by them.
    pub fn withdraw(&self) -> u64 {
        self.0.lock().orders.drain(..).map(|order| order.failed).sum()
    }

    /// Waits until every order has made a call fail at least, and those for a number of times as often.
    ///
    /// # Errors
    /// Those that have not, after [`PATIENCE`] or when the program has ended.
    pub fn wait_done(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut state = self.0.lock();
        loop {
            let enough =
                |order: &&Order| order.failed < if order.fault.times == u64::MAX { 1 } else { order.fault.times };
            let undone: Vec<_> = state.orders.iter().filter(enough).map(|order| order.fault).collect();
            let left = deadline.saturating_duration_since(Instant::now());
            if undone.is_empty() {
                return Ok(());
            }
            if state.ended || left.is_zero() {
                let what = if state.ended { "the program has ended without" } else { "nobody has made" };
                bail!("{what} the call for {undone:?}");
            }
            state = self.0.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns the orders of which no call has come.
    pub fn undone(&self) -> Vec<Fault> {
        self.0.lock().orders.iter().filter(|order| order.failed == 0).map(|order| order.fault).collect()
    }

    /// Records the calls from here on.
    pub fn record(&self) {
        self.0.lock().recorded = Some(BTreeMap::new());
    }

    /// Returns the calls that were recorded, with how often each was made.
    pub fn recorded(&self) -> BTreeMap<Call, u64> {
        self.0.lock().recorded.take().unwrap_or_default()
    }
}

/// Answers the calls of a program until it has ended.
fn attend(expected: Expected, shared: &Shared) {
    let listener = match expected.take() {
        Ok(listener) => listener,
        Err(error) => return log::error!("no faults of system calls: {error:#}"),
    };
    loop {
        match listener.next(LOOK) {
            Ok(Some(waiting)) => {
                let error = judge(&waiting, &listener, shared);
                listener.answer(&waiting, error);
            }
            Ok(None) => {}
            Err(_) => break,
        }
    }
    shared.lock().ended = true;
    shared.changed.notify_all();
}

/// Decides how a call fails, if it does.
fn judge(waiting: &Waiting, listener: &Listener, shared: &Shared) -> Option<i32> {
    let name = call::name(waiting.number);
    let mut state = shared.lock();
    if !state.begun {
        // Not of `ip netns exec`, which is no Rust program.
        state.begun = name == call::FIRST;
        return None;
    }
    let concerned = state.orders.iter().any(|order| order.fault.name == name && order.failed < order.fault.times);
    if !concerned && state.recorded.is_none() {
        return None;
    }
    let call = Call::of(waiting, listener);
    if let Some(recorded) = &mut state.recorded {
        *recorded.entry(call).or_default() += 1;
    }
    let thread = fs::read_to_string(format!("/proc/{}/comm", waiting.thread)).unwrap_or_default();
    let order = state.orders.iter_mut().find(|order| {
        let Order { fault, failed, .. } = order;
        let applies = fault.name == name
            && fault.on.is_none_or(|on| on == call.on)
            && fault.thread.is_none_or(|name| name == thread.trim_end());
        applies && *failed < fault.times
    })?;
    if order.passed < order.fault.after {
        order.passed += 1;
        return None;
    }
    order.failed += 1;
    let error = order.fault.error.raw_os_error();
    shared.changed.notify_all();
    Some(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Program, laboratory};

    fn shell(script: &str, faults: impl FnOnce(&Faults)) -> (Program, Faults) {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        let ordered = Faults::prepare(&mut command).unwrap();
        // A shell is no Rust program.
        ordered.0.lock().begun = true;
        faults(&ordered);
        (Program::start("sh", &mut command).unwrap(), ordered)
    }

    #[test]
    fn the_call_that_was_ordered_fails_and_no_other() {
        let _guard = laboratory!();
        let fault = Fault::once("write", Errno::NOSPC).on(On::Pipe).after(1);
        let (program, faults) = shell("echo one; echo two; echo three", |faults| faults.order(fault));
        faults.wait_done().unwrap();
        let ended = program.wait(PATIENCE).unwrap();
        assert_eq!(ended.stdout, "one\nthree");
        // Not every shell says which error it was.
        assert!(ended.stderr.contains("echo"), "{}", ended.stderr);
    }

    #[test]
    fn calls_are_recorded_by_what_they_are_about_and_an_order_without_a_call_is_told() {
        let _guard = laboratory!();
        let (program, faults) = shell("read line </etc/passwd; echo one", |faults| {
            faults.record();
            faults.order(Fault::once("accept4", Errno::MFILE));
        });
        assert!(program.wait(PATIENCE).unwrap().status.success());
        assert!(faults.wait_done().unwrap_err().to_string().contains("accept4"));
        assert_eq!(faults.undone().len(), 1);
        let recorded = faults.recorded();
        let made = |name, on| recorded.get(&Call { name, on }).copied().unwrap_or_default();
        assert_eq!(made("write", On::Pipe), 1, "{recorded:?}");
        assert!(made("read", On::File) > 0, "{recorded:?}");
    }
}
