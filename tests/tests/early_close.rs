//! The target closes connections much earlier than the live server: every request arrives all the same, and once.

use std::collections::BTreeMap;

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, Method},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};

const REQUESTS: u64 = 20_000;
/// More requests than any connection of these tests carries.
const UNLIMITED: u32 = 10_000_000;
/// Requests that the target serves on a connection.
const KEEP_ALIVE: u32 = 5;

/// nginx, which keeps connections open, to Apache, which does not.
fn nginx_to_apache(rate: Option<u32>) {
    let lab = Lab::bridge().unwrap();
    let nginx = RealServer::nginx(&lab.source, LIVE_PORT, UNLIMITED).unwrap();
    let apache = RealServer::apache(&lab.target, TARGET_PORT, KEEP_ALIVE).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 8, Limit::Requests(REQUESTS));
    let report = Load { method: Method::Get("/index.html".into()), rate, ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    let live = nginx.wait_for_access_log(REQUESTS as usize, PATIENCE).unwrap();
    apache.wait_for_access_log(live.len(), PATIENCE).unwrap();
    // What is sent a second time comes after what it repeats, so the log is read again when all is over.
    let outcome = mirror.stop().unwrap();
    let replayed = apache.access_log().unwrap();
    let mut surplus = BTreeMap::<&str, i64>::new();
    live.iter().for_each(|line| *surplus.entry(line).or_default() -= 1);
    replayed.iter().for_each(|line| *surplus.entry(line).or_default() += 1);
    surplus.retain(|_, n| *n != 0);
    assert!(
        surplus.is_empty(),
        "{} of {REQUESTS} requests were lost or came twice: {surplus:?}\n{}",
        surplus.len(),
        outcome.table
    );
    outcome.assert_no_leak();
}

#[test]
fn every_request_arrives_once_in_a_closed_loop() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(None);
}

#[test]
fn every_request_arrives_once_at_a_steady_rate() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(Some(2_000));
}
