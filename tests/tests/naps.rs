//! How the programs rest: woken for each record of a quiet service, napping under load.
//!
//! That few records wake the worker under load, and how late a record is, are asserted in virtual time (`nap.rs`),
//! because here they depend on what else the machine does. Here it is counted whether the worker does as it was told.

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Summary,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// Mirrors a load; returns how many requests per second there were, and what `tcpcopy` says of itself.
fn mirrored(connections: usize, rate: u32, requests: u64) -> (f64, Summary) {
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), connections, Limit::Requests(requests));
    let report = Load { rate: Some(rate), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    let arrived = target.wait_for_requests(requests as usize, PATIENCE) as u64;
    let outcome = mirror.stop().unwrap();
    assert_eq!(arrived, requests, "{}", outcome.table);
    outcome.assert_no_leak();
    (report.throughput(), outcome.tcpcopy)
}

fn rests(summary: &Summary) -> [u64; 3] {
    ["wakeups", "sleeps", "naps"].map(|name| summary.count("cost", name))
}

/// A worker that naps does not ask to be woken, so each wake-up ends a sleep. Naps are tried when two records come in
/// the time of one, 3,334 per second, at any time; where there were more on the average, there was such a time.
#[test]
fn under_load_the_worker_naps_and_is_woken_from_sleep_only() {
    let _guard = laboratory!();
    let mut rates = Vec::new();
    for _ in 0..10 {
        let (rate, summary) = mirrored(16, 5_000, 15_000);
        let [wakeups, sleeps, naps] = rests(&summary);
        println!("at {rate:.0} requests per second: {wakeups} wake-ups, {sleeps} sleeps, {naps} naps");
        assert!(wakeups <= sleeps, "{wakeups} wake-ups, {sleeps} sleeps, {naps} naps");
        if rate > 3_500.0 {
            assert!(naps > 0, "no nap at {rate:.0} requests per second");
            return;
        }
        rates.push(rate as u64);
    }
    lab::skip("under_load_the_worker_naps", &format!("this machine does not get above {rates:?} requests per second"));
}

/// A request comes 20 ms after the one before was answered, or later. So it finds the worker asleep, unless that is
/// just looking around between two sleeps of ten milliseconds each, which takes microseconds, and more only where it is
/// preempted in them. If that were so for one request of ten, it would be for half of 150 in one run of 10^30.
#[test]
fn a_quiet_service_wakes_the_worker_for_each_request() {
    let _guard = laboratory!();
    let (_, summary) = mirrored(1, 50, 150);
    let [wakeups, _, naps] = rests(&summary);
    assert!(wakeups >= 75, "{wakeups} wake-ups for 150 requests");
    assert_eq!(naps, 0, "there is nothing to gather");
}
