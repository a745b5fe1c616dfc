//! What a failure needs: everything else is left out, as long as it still fails.

use std::{
    collections::BTreeSet,
    panic::{self, AssertUnwindSafe},
};

use crate::{
    scenario::{Part, Scenario},
    world::Outcome,
};

/// Runs a scenario; `trace`: tells on standard error what happens.
pub type Run = fn(scenario: &Scenario, trace: bool) -> Result<Outcome, String>;

/// Runs a scenario; a panic is an error like any other.
///
/// # Errors
/// What went wrong.
pub fn attempt(run: Run, seed: u64, without: &BTreeSet<Part>) -> Result<Outcome, String> {
    let one = || run(&Scenario::new(seed, without), false);
    panic::catch_unwind(AssertUnwindSafe(one)).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        Err(text.or_else(|| cause.downcast_ref::<&str>().map(|t| (*t).to_owned())).unwrap_or_default())
    })
}

/// The parts without which a failing seed still fails.
pub fn shrink(run: Run, seed: u64, without: &BTreeSet<Part>) -> BTreeSet<Part> {
    let mut left_out = without.clone();
    let hook = panic::take_hook();
    // Each attempt may panic, and only the last one matters.
    panic::set_hook(Box::new(|_| {}));
    loop {
        let before = left_out.len();
        for part in Scenario::new(seed, &left_out).parts() {
            let gone = part.connection().is_some_and(|c| left_out.contains(&Part::Connection(c)));
            if !gone && left_out.insert(part) && attempt(run, seed, &left_out).is_ok() {
                left_out.remove(&part);
            }
        }
        if left_out.len() == before {
            break;
        }
    }
    panic::set_hook(hook);
    left_out
}
