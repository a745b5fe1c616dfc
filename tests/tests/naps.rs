//! How the programs rest: woken for each record of a quiet service, napping under load.

use std::time::Duration;

use lab::{
    Family, Lab, Mirror, MirrorOptions, Summary,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

const TIME: Duration = Duration::from_secs(3);

/// What `tcpcopy` says after so many requests per second on 16 connections.
fn mirrored(rate: u32) -> (u64, Summary) {
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 16, Limit::Time(TIME));
    let report = Load { rate: Some(rate), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    let outcome = mirror.stop().unwrap();
    let sent = outcome.tcpcopy.count("sent_segments");
    outcome.assert_no_leak();
    assert!(sent >= report.answered.len() as u64, "{sent} of {} requests were replayed", report.answered.len());
    (sent, outcome.tcpcopy)
}

fn lag(summary: &Summary, percentile: &str) -> Duration {
    let micros = summary.0["lag_us"][percentile].as_f64().unwrap();
    Duration::from_nanos((micros * 1e3) as u64)
}

#[test]
fn under_load_few_records_wake_the_worker_and_the_replay_is_hardly_late() {
    let _guard = laboratory!();
    let (requests, summary) = mirrored(4_000);
    let (wakeups, naps) = (summary.count("wakeups"), summary.count("naps"));
    // One for each request, and more, before there were naps. A twentieth is woken for to compare.
    assert!(wakeups < requests / 3, "{wakeups} wake-ups for {requests} requests");
    assert!(naps > 100, "{naps} naps");
    // A nap takes 0.6 ms; a machine that has other work too takes its time.
    assert!(lag(&summary, "p50") < Duration::from_millis(5), "{:?}", lag(&summary, "p50"));
}

#[test]
fn a_quiet_service_is_followed_at_once() {
    let _guard = laboratory!();
    let (requests, summary) = mirrored(100);
    let (wakeups, naps) = (summary.count("wakeups"), summary.count("naps"));
    assert!(wakeups >= requests / 2, "{wakeups} wake-ups for {requests} requests");
    // When sixteen connections are opened at once a few may be tried.
    assert!(naps < 100, "{naps} naps");
    assert!(lag(&summary, "p50") < Duration::from_millis(1), "{:?}", lag(&summary, "p50"));
}
