//! While one thing after another goes wrong the live side loses nothing, nothing leaks, and the mirror comes back.

use std::time::Duration;

use lab::{laboratory, soak};

/// Two minutes, always of the same seed: what comes in which order is the same in each run. `cargo xtask soak` takes as
/// long as one likes, and draws.
#[test]
fn two_minutes_of_faults_cost_production_nothing() {
    let _guard = laboratory!(1_000);
    let report = soak::run(&soak::Options { time: Duration::from_secs(120), seed: 1 }).unwrap();
    println!("{}", report.table());
    assert_eq!(report.violations, Vec::<String>::new());
    assert!(report.faults.len() >= 8 && report.answered > 0, "{report:?}");
}
