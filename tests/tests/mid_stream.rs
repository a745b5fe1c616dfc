//! `tcpcopy` started while clients are at work: connections that are open are joined at a request, never in the middle
//! of one.

use std::collections::BTreeSet;

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program,
    http::{Limit, Load, Method},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::{PYTHON, RealServer, python_has},
};

const CONNECTIONS: usize = 64;
const UNLIMITED: u32 = 10_000_000;
/// Keep-alive load with bodies, so that most segments are not the beginning of a request.
fn uploads(lab: &Lab, limit: Limit) -> Load {
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), CONNECTIONS, limit);
    Load { method: Method::Post(5_000), rate: Some(2_000), any_status: true, ..load }
}

/// The identifiers in an access log, and the lines that are not those of a request that was sent.
fn read(log: &[String]) -> (Vec<u64>, Vec<&String>) {
    let wellformed = |line: &&String| line.starts_with("POST /upload?id=") && line.ends_with(" 404");
    let (good, bad): (Vec<&String>, Vec<&String>) = log.iter().partition(wellformed);
    (good.into_iter().filter_map(|line| lab::http::request_id(line)).collect(), bad)
}

/// Starts `tcpcopy` under load with `arguments`; returns what the live server and the target have logged, and how much
/// the live one had at the time when `tcpcopy` was ready.
fn started_under_load(arguments: &[&str], fresh: bool) -> (Vec<String>, Vec<String>, usize) {
    let lab = Lab::bridge().unwrap();
    let live = RealServer::nginx(&lab.source, LIVE_PORT, UNLIMITED).unwrap();
    let target = RealServer::nginx(&lab.target, TARGET_PORT, UNLIMITED).unwrap();
    let old = uploads(&lab, Limit::Stopped).start(&lab.client).unwrap();
    old.wait_for_answers(500).unwrap();
    let tcpcopy = arguments.iter().map(|&argument| argument.to_owned()).collect();
    let mirror = Mirror::start(&lab, MirrorOptions { tcpcopy, ..MirrorOptions::default() }).unwrap();
    old.wait_for_answers(500).unwrap();
    let before = live.access_log().unwrap().len();
    let new = fresh.then(|| uploads(&lab, Limit::Requests(1_000)).run(&lab.client).unwrap());
    old.wait_for_answers(1_000).unwrap();
    let mut answered = 0;
    for report in new.into_iter().chain([old.stop().unwrap()]) {
        assert_eq!(report.failed, Vec::<String>::new());
        answered += report.answered.len();
    }
    let sent = live.wait_for_access_log(answered, PATIENCE).unwrap();
    // Not only as many, but these: some from before have come as well.
    let due: BTreeSet<u64> = if fresh { BTreeSet::new() } else { read(&sent[before..]).0.into_iter().collect() };
    let least = if fresh { 1_000 } else { due.len() };
    lab::eventually(PATIENCE, || {
        let arrived = target.access_log().unwrap();
        arrived.len() >= least && due.is_subset(&read(&arrived).0.into_iter().collect())
    });
    let outcome = mirror.stop().unwrap();
    outcome.assert_no_leak();
    (sent, target.access_log().unwrap(), before)
}

#[test]
fn open_connections_are_joined_at_a_request() {
    let _guard = laboratory!();
    let (live, replayed, before) = started_under_load(&[], false);
    let (sent, _) = read(&live);
    let (arrived, malformed) = read(&replayed);
    assert!(malformed.is_empty(), "{} of {}: {:?}", malformed.len(), replayed.len(), malformed.first());
    let unique: BTreeSet<u64> = arrived.iter().copied().collect();
    assert_eq!(unique.len(), arrived.len(), "requests came twice");
    let known: BTreeSet<u64> = sent.iter().copied().collect();
    assert!(unique.is_subset(&known), "requests came that nobody sent");
    let missing: Vec<_> = sent[before..].iter().filter(|id| !unique.contains(id)).collect();
    assert!(missing.is_empty(), "{} of {} after the join are missing", missing.len(), sent.len() - before);
}

/// A protocol that begins with a preface, on connections that are older than the start: each call of theirs was a
/// connection to the target, which closed it.
#[test]
fn open_connections_of_a_protocol_with_a_memory_are_left_alone_after_a_few_tries() {
    let _guard = laboratory!();
    if !python_has("grpc") {
        return lab::skip("open_connections_of_a_protocol_with_a_memory", "Python has no grpc (python3-grpcio)");
    }
    const OLD: u64 = 7;
    let directory = tempfile::tempdir().unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scripts/grpc_notes.py");
    let lab = Lab::bridge().unwrap();
    let notes = |port: u16| directory.path().join(port.to_string());
    let serve = |host: &Host, port: u16| {
        let line = format!("{PYTHON} {script} serve {port} {}", notes(port).display());
        RealServer::custom(host, port, &line).unwrap()
    };
    let (_live, _target) = (serve(&lab.source, LIVE_PORT), serve(&lab.target, TARGET_PORT));
    let server = lab.source.socket(Family::V4, LIVE_PORT);
    let mut chain = lab.client.command(PYTHON);
    let old =
        Program::start("chain", chain.arg(script).args(["chain", &server.to_string(), &OLD.to_string()])).unwrap();
    let round = |old: &Program, least: u64| {
        old.wait_output(PATIENCE, |line| line.parse().is_ok_and(|round: u64| round >= least)).unwrap();
        old.output().lines().last().and_then(|line| line.parse::<u64>().ok()).unwrap()
    };
    round(&old, 3);
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let line = mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("ends connections that are joined")).unwrap();
    assert!(line.contains("WARN"), "{line}");
    let now = round(&old, 0);
    round(&old, now + 20);
    // Who connects after the start is replayed.
    lab.client.output(&format!("{PYTHON} {script} burst {server} 2 10")).unwrap();
    let fresh = || std::fs::read_to_string(notes(TARGET_PORT)).unwrap_or_default().matches("burst").count();
    assert!(lab::eventually(PATIENCE, || fresh() == 20), "{} of 20", fresh());
    old.stop().unwrap();
    let outcome = mirror.stop().unwrap();
    outcome.assert_no_leak();
    // Each old connection is tried once at most, as some may be under way when the third is refused.
    let connected = outcome.tcpcopy.count("replay", "connected");
    assert!((3 + 2..=OLD + 2).contains(&connected), "{connected} connections\n{}", outcome.table);
    assert!(!std::fs::read_to_string(notes(TARGET_PORT)).unwrap().contains("chain"), "half a conversation was served");
}

#[test]
fn with_complete_only_open_connections_stay_out() {
    let _guard = laboratory!();
    let (live, replayed, _) = started_under_load(&["-O"], true);
    let (arrived, malformed) = read(&replayed);
    assert!(malformed.is_empty(), "{:?}", malformed.first());
    let unique: BTreeSet<u64> = arrived.iter().copied().collect();
    assert_eq!((unique.len(), arrived.len()), (1_000, 1_000), "of {} live requests", live.len());
}
