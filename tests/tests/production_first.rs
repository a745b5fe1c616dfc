//! S1: whatever becomes of the copies, live traffic is served.

use std::time::Duration;

use lab::{
    Family, Lab, Mirror, MirrorOptions,
    http::{Limit, Load, LoadReport, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

fn load_for(lab: &Lab, seconds: u64, method: &Method) -> LoadReport {
    let limit = Limit::Time(Duration::from_secs(seconds));
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 16, limit);
    let report = Load { method: method.clone(), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    report
}

#[test]
fn a_stopped_worker_with_a_tiny_ring_does_not_slow_live_traffic() {
    let _guard = laboratory!();
    for hook in ["tc", "xdp"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        // The smallest that is allowed: a second of this load is many times larger.
        let tcpcopy = ["--ring-size", "256K"].map(str::to_owned).to_vec();
        let options = MirrorOptions { hook: Some(hook), tcpcopy, ..MirrorOptions::default() };
        let mirror = Mirror::start(&lab, options).unwrap();
        let method = Method::Post(1000);
        // What else the machine does moves single measurements by more than a stopped worker may. If it makes no
        // difference, the one is as likely to be the faster as the other, whichever comes first: none of 20 pairs where
        // the stopped one is, is once in 2^20 runs, a million. A worker that slows traffic by more than the
        // measurements scatter does so every time.
        let mut pairs = Vec::new();
        let undisturbed = (0..20).any(|pair| {
            let measure = |stopped: bool| {
                mirror.tcpcopy().signal(if stopped { Signal::STOP } else { Signal::CONT }).unwrap();
                load_for(&lab, 1, &method).throughput()
            };
            let first = measure(pair % 2 == 1);
            let second = measure(pair % 2 == 0);
            mirror.tcpcopy().signal(Signal::CONT).unwrap();
            let (healthy, stopped) = if pair % 2 == 1 { (second, first) } else { (first, second) };
            pairs.push((healthy, stopped));
            stopped >= 0.95 * healthy
        });
        let outcome = mirror.stop().unwrap();
        assert!(undisturbed, "--hook {hook}: requests/s with a healthy and a stopped worker: {pairs:.0?}");
        assert!(outcome.tcpcopy.count("not_copied", "ring_full") > 0, "what was lost is counted\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}

#[test]
fn a_target_that_does_not_exist_any_more_does_not_disturb_live_traffic() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    load_for(&lab, 3, &Method::Get("/size/1000".into()));
    drop(target);
    load_for(&lab, 3, &Method::Get("/size/1000".into()));
    // The whole host now.
    lab.target.ip(&["link set eth0 down"]).unwrap();
    load_for(&lab, 3, &Method::Get("/size/1000".into()));
    lab.target.ip(&["link set eth0 up"]).unwrap();
    mirror.stop().unwrap().assert_no_leak();
}
