//! Hot backup: a connection for each request, as fast as the machine sustains, and nothing is lost.

use std::collections::BTreeSet;

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// TCPCopy promises to lose one of 100,000 such requests.
#[test]
fn a_connection_for_each_request_loses_none() {
    let _guard = laboratory!(1_000);
    let requests = if std::env::var_os("LAB_FULL_MATRIX").is_some() { 200_000 } else { 10_000 };
    let lab = Lab::bridge().unwrap();
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    // The client has 64,512 ports (`Lab` sees to that), which TIME-WAIT of one second makes free again.
    let load = Load::per_request(lab.source.socket(Family::V4, LIVE_PORT), 16, Limit::Requests(requests));
    let report = Load { rate: Some(2_500), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    target.wait_for_requests(requests as usize, PATIENCE);
    let outcome = mirror.stop().unwrap();
    let arrivals = target.arrivals();
    let arrived: BTreeSet<u64> = arrivals.iter().map(|arrival| arrival.id).collect();
    let lost: Vec<_> = report.answered.iter().filter(|id| !arrived.contains(id)).collect();
    println!("{} of {requests} lost at {:.0} connections/s", lost.len(), report.throughput());
    assert!(lost.is_empty(), "{} of {requests} lost: {lost:?}\n{}", lost.len(), outcome.table);
    assert_eq!(arrivals.len(), arrived.len(), "requests came twice\n{}", outcome.table);
    outcome.assert_no_leak();
}
