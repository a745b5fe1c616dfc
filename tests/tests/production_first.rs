//! S1: whatever becomes of the copies, live traffic is served.

use std::time::Duration;

use lab::{
    Family, Lab, Mirror, MirrorOptions,
    http::{Limit, Load, LoadReport, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

fn three_seconds(lab: &Lab, method: &Method) -> LoadReport {
    let limit = Limit::Time(Duration::from_secs(3));
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
        // What else the machine does moves single measurements by several per cent: a worker that slows traffic does so every time.
        let mut pairs = Vec::new();
        let undisturbed = (0..3).any(|_| {
            let healthy = three_seconds(&lab, &method).throughput();
            mirror.tcpcopy().signal(Signal::STOP).unwrap();
            let stopped = three_seconds(&lab, &method).throughput();
            mirror.tcpcopy().signal(Signal::CONT).unwrap();
            pairs.push((healthy, stopped));
            stopped >= 0.95 * healthy
        });
        let outcome = mirror.stop().unwrap();
        assert!(undisturbed, "--hook {hook}: requests/s with a healthy and a stopped worker: {pairs:.0?}");
        assert!(outcome.tcpcopy.count("ring_full") > 0, "what was lost is counted\n{}", outcome.table);
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
    three_seconds(&lab, &Method::Get("/size/1000".into()));
    drop(target);
    three_seconds(&lab, &Method::Get("/size/1000".into()));
    // The whole host now.
    lab.target.ip(&["link set eth0 down"]).unwrap();
    three_seconds(&lab, &Method::Get("/size/1000".into()));
    lab.target.ip(&["link set eth0 up"]).unwrap();
    mirror.stop().unwrap().assert_no_leak();
}
