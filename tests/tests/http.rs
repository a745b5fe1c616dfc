//! Every request that is answered live arrives at the target, whatever the hook, the backend and the version of IP.
//!
//! Environment: `LAB_FULL_MATRIX=1` runs the full number of requests for every combination, not only for the default.

use std::{collections::BTreeMap, fs};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, LoadReport, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};

/// More requests than any connection of these tests carries.
const UNLIMITED: u32 = 10_000_000;

/// Requests of each kind.
struct Amount {
    keep_alive: u64,
    connections: u64,
    downloads: u64,
}

const FULL: Amount = Amount { keep_alive: 50_000, connections: 5_000, downloads: 50 };
const SHORT: Amount = Amount { keep_alive: 5_000, connections: 500, downloads: 10 };

fn amount_of_variant() -> Amount {
    if std::env::var_os("LAB_FULL_MATRIX").is_some() { FULL } else { SHORT }
}

fn succeeded(report: anyhow::Result<LoadReport>) -> LoadReport {
    let report = report.unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    report
}

/// Lines which one side has more often than the other.
fn difference(live: &[String], replayed: &[String]) -> Vec<String> {
    let mut count = BTreeMap::<&str, i64>::new();
    live.iter().for_each(|line| *count.entry(line).or_default() += 1);
    replayed.iter().for_each(|line| *count.entry(line).or_default() -= 1);
    count.retain(|_, n| *n != 0);
    count.iter().map(|(line, n)| format!("{line}: {}", if *n > 0 { "lost" } else { "not asked for" })).collect()
}

fn nginx_to_apache(options: MirrorOptions, amount: &Amount) {
    let lab = Lab::bridge().unwrap();
    let nginx = RealServer::nginx(&lab.source, LIVE_PORT, UNLIMITED).unwrap();
    let apache = RealServer::apache(&lab.target, TARGET_PORT, UNLIMITED).unwrap();
    let mirror = Mirror::start(&lab, options).unwrap();
    let get = |path: &str, load: Load| Load { method: Method::Get(path.into()), ..load };
    for family in Family::BOTH {
        let server = lab.source.socket(family, LIVE_PORT);
        let limit = Limit::Requests(amount.keep_alive);
        succeeded(get("/index.html", Load::keep_alive(server, 32, limit)).run(&lab.client));
        let limit = Limit::Requests(amount.connections);
        succeeded(get("/index.html", Load::per_request(server, 16, limit)).run(&lab.client));
        let limit = Limit::Requests(amount.downloads);
        succeeded(get("/big.bin", Load::keep_alive(server, 4, limit)).run(&lab.client));
    }
    // A server writes its line after the answer has left.
    let asked = 2 * (amount.keep_alive + amount.connections + amount.downloads) as usize;
    let live = nginx.wait_for_access_log(asked, PATIENCE).unwrap();
    assert_eq!(live.len(), asked);
    let replayed = apache.wait_for_access_log(live.len(), PATIENCE).unwrap();
    let outcome = mirror.stop().unwrap();
    let different = difference(&live, &replayed);
    assert!(
        different.is_empty(),
        "{} of {} requests differ, for example {:#?}\n{}\n{}",
        different.len(),
        live.len(),
        &different[..different.len().min(5)],
        outcome.table,
        outcome.logs
    );
    outcome.assert_no_leak();
}

fn variant(hook: &'static str, inject: &'static str) -> MirrorOptions {
    MirrorOptions { hook: Some(hook), inject: Some(inject), ..MirrorOptions::default() }
}

#[test]
fn nginx_to_apache_by_default() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(MirrorOptions::default(), &FULL);
}

#[test]
fn nginx_to_apache_by_tc_and_raw_sockets() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(variant("tc", "raw"), &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_native_xdp_and_packet_sockets() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(variant("xdp", "packet"), &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_native_xdp_and_raw_sockets() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(variant("xdp", "raw"), &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_generic_xdp_and_packet_sockets() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(variant("xdp-generic", "packet"), &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_generic_xdp_and_raw_sockets() {
    let _guard = laboratory!(1_000);
    nginx_to_apache(variant("xdp-generic", "raw"), &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_several_workers() {
    let _guard = laboratory!(1_000);
    let options = MirrorOptions { tcpcopy: ["-w", "3"].map(str::to_owned).to_vec(), ..MirrorOptions::default() };
    nginx_to_apache(options, &amount_of_variant());
}

#[test]
fn nginx_to_apache_by_the_clsact_fallback() {
    let _guard = laboratory!(1_000);
    let intercept = ["--attach", "clsact"].map(str::to_owned).to_vec();
    nginx_to_apache(MirrorOptions { intercept, ..MirrorOptions::default() }, &amount_of_variant());
}

/// Octets without a period, so that a slice in the wrong place changes the digest.
fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

#[test]
fn uploads_from_an_octet_to_ten_megabytes_arrive_whole() {
    let _guard = laboratory!(1_000);
    for inject in ["packet", "raw"] {
        let lab = Lab::bridge().unwrap();
        let source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, variant("auto", inject)).unwrap();
        let file = mirror.directory().join("upload");
        let mut count = 0;
        for family in Family::BOTH {
            for length in [1, 1 << 10, 1 << 20, 10 << 20] {
                fs::write(&file, noise(length)).unwrap();
                let url = format!("http://{}/upload?id={length}", lab.source.socket(family, LIVE_PORT));
                // Without a limit of its own a transfer that hangs would hang the test.
                let command = format!("curl -gsSf --noproxy * --max-time 30 --data-binary @{} {url}", file.display());
                let answer = lab.client.output(&command).unwrap();
                assert!(answer.contains(&format!("\"length\":{length},")), "{answer}");
                count += 1;
            }
        }
        target.wait_for_uploads(count, PATIENCE);
        let outcome = mirror.stop().unwrap();
        assert_eq!(source.uploads().len(), count);
        assert_eq!(source.uploads(), target.uploads(), "--inject {inject}\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}

/// Apache closes a connection after 100 requests, nginx after 1000, and the session goes on with another one.
#[test]
fn keep_alive_limits_of_the_servers_may_differ() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let nginx = RealServer::nginx(&lab.source, LIVE_PORT, 1000).unwrap();
    let apache = RealServer::apache(&lab.target, TARGET_PORT, 100).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 8, Limit::Requests(10_000));
    succeeded(Load { method: Method::Get("/index.html".into()), ..load }.run(&lab.client));
    let mut live = nginx.wait_for_access_log(10_000, PATIENCE).unwrap();
    let mut replayed = apache.wait_for_access_log(live.len(), PATIENCE).unwrap();
    let outcome = mirror.stop().unwrap();
    // A request whose answer was cut off by the end of its connection is asked again.
    live.sort();
    replayed.sort();
    replayed.dedup();
    let different = difference(&live, &replayed);
    assert!(different.is_empty(), "{} requests differ: {:?}\n{}", different.len(), different.first(), outcome.table);
    outcome.assert_no_leak();
}

#[test]
fn jumbo_frames_are_mirrored() {
    let _guard = laboratory!(1_000);
    let lab = Lab::new(lab::Options { mtu: Some(9000), ..lab::Options::default() }).unwrap();
    for hook in ["tc", "xdp"] {
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, variant(hook, "packet")).unwrap();
        let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 4, Limit::Requests(40));
        let report = succeeded(Load { method: Method::Post(100_000), ..load }.run(&lab.client));
        let arrived = target.wait_for_uploads(report.answered.len(), PATIENCE);
        let outcome = mirror.stop().unwrap();
        assert_eq!(arrived, report.answered.len(), "--hook {hook}\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}
