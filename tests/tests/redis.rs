//! A mirrored Redis holds what the live one holds, though its protocol is not HTTP and its commands are pipelined.

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, eventually, laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};

/// A hash of the whole data set, asked by way of `lo`, which nobody captures.
fn digest(host: &Host, port: u16) -> String {
    let digest = host.output(&format!("redis-cli -p {port} DEBUG DIGEST")).unwrap();
    assert_eq!(digest.trim().len(), 40, "{digest}");
    digest
}

#[test]
fn a_mirrored_redis_has_the_same_data_set() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _live = RealServer::redis(&lab.source, LIVE_PORT).unwrap();
    let _test = RealServer::redis(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for family in Family::BOTH {
        let host = lab.source.address(family);
        // INCR and LPUSH tell a command that was lost or came twice, which SET and SADD do not.
        let command =
            format!("redis-benchmark -q -h {host} -p {LIVE_PORT} -P 16 -c 20 -n 50000 -r 5000 -t set,incr,lpush,sadd");
        lab.client.output(&command).unwrap();
    }
    let expected = digest(&lab.source, LIVE_PORT);
    assert_ne!(expected.trim(), "0".repeat(40), "the benchmark has written nothing");
    let equal = eventually(PATIENCE, || digest(&lab.target, TARGET_PORT) == expected);
    let sizes = [(&lab.source, LIVE_PORT), (&lab.target, TARGET_PORT)]
        .map(|(host, port)| host.output(&format!("redis-cli -p {port} INFO commandstats")).unwrap());
    let outcome = mirror.stop().unwrap();
    assert!(equal, "the data sets differ; live:\n{}\ntarget:\n{}\n{}", sizes[0], sizes[1], outcome.table);
    outcome.assert_no_leak();
}
