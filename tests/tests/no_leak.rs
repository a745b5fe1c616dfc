//! S3: no packet of a replayed session leaves the target for a client, whatever happens to the programs and services.

use std::time::Duration;

use lab::{
    Family, Lab, Mirror, MirrorOptions, eventually,
    http::{Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// Both styles over both versions of IP, at a rate that leaves the machine some air.
fn start_load(lab: &Lab, seconds: u64) -> Vec<RunningLoad> {
    let limit = Limit::Time(Duration::from_secs(seconds));
    let server = |family| lab.source.socket(family, LIVE_PORT);
    let keep_alive = Family::BOTH.map(|family| Load::keep_alive(server(family), 8, limit));
    let per_request = Family::BOTH.map(|family| Load::per_request(server(family), 4, limit));
    let loads = keep_alive.into_iter().chain(per_request);
    loads.map(|load| Load { rate: Some(1000), ..load }.start(&lab.client).unwrap()).collect()
}

fn finish(loads: Vec<RunningLoad>) -> usize {
    let reports = loads.into_iter().map(|load| load.join().unwrap());
    reports
        .map(|report| {
            assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
            report.answered.len()
        })
        .sum()
}

/// Waits until so many more requests were answered live.
fn answered(loads: &[RunningLoad], more: u64) {
    let count = || loads.iter().map(RunningLoad::answered).sum::<u64>();
    let goal = count() + more;
    assert!(eventually(Duration::from_secs(10), || count() >= goal), "the live side has stopped");
}

#[test]
fn nothing_leaks_in_the_life_of_a_mirror() {
    let _guard = laboratory!();
    for attach in ["tcx", "clsact"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let intercept = ["--attach", attach].map(str::to_owned).to_vec();
        let mut mirror = Mirror::start(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
        let loads = start_load(&lab, 3);
        answered(&loads, 2000);
        // Connections are open now. Those at the target are destroyed by intercept, before it lets answers through.
        mirror.stop_programs().unwrap();
        finish(loads);
        // Sockets that were left would say goodbye.
        drop(target);
        let outcome = mirror.stop().unwrap();
        assert!(outcome.intercept.count("swallowed_segments") > 1000, "--attach {attach}\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}

#[test]
fn nothing_leaks_while_intercept_is_stopped_by_a_signal() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    // Its ring is full soon.
    let intercept = ["--ring-size", "256K"].map(str::to_owned).to_vec();
    let mirror = Mirror::start(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
    let loads = start_load(&lab, 6);
    answered(&loads, 2000);
    mirror.intercept().signal(Signal::STOP).unwrap();
    answered(&loads, 10_000);
    mirror.intercept().signal(Signal::CONT).unwrap();
    assert!(finish(loads) > 12_000);
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn nothing_leaks_when_the_service_under_test_is_gone() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab, 4);
    answered(&loads, 2000);
    // Resets of open connections, then of every SYN.
    drop(target);
    answered(&loads, 4000);
    finish(loads);
    let _back = Server::start(&lab.target, TARGET_PORT).unwrap();
    finish(start_load(&lab, 1));
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn nothing_leaks_when_tcpcopy_is_killed_with_sessions_open() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab, 5);
    answered(&loads, 2000);
    mirror.tcpcopy.take().unwrap().kill().unwrap();
    answered(&loads, 2000);
    // A second life: its sessions use other sequence numbers, perhaps on four-tuples that are still known.
    mirror.start_tcpcopy().unwrap();
    answered(&loads, 4000);
    finish(loads);
    // The service closes what the killed process has left open: FINs of sessions without an owner.
    drop(target);
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn without_a_channel_nothing_is_injected() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab, 8);
    answered(&loads, 2000);
    // Orderly: it destroys the sessions' sockets before it lets go, and tcpcopy sees the channel close.
    mirror.intercept.take().unwrap().stop().unwrap();
    let now = target.count();
    answered(&loads, 4000);
    assert!(target.count() <= now + 200, "{} requests arrived without intercept", target.count() - now);
    mirror.start_intercept().unwrap();
    // The session goes on by itself.
    let goal = target.count() + 1000;
    assert!(
        eventually(Duration::from_secs(15), || target.count() >= goal),
        "tcpcopy has not come back\n{}",
        mirror.tcpcopy().log()
    );
    finish(loads);
    mirror.stop().unwrap().assert_no_leak();
}
