//! `--proxy-protocol`: servers at the target that read the header log the live clients, whoever the connections come
//! from; what a server gets after the header is what the live client has sent.

use std::{
    collections::BTreeMap,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpListener, TcpStream},
    time::Duration,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, Method},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::{Named, RealServer},
};

const VERSIONS: [&str; 2] = ["v1", "v2"];
/// Requests that Apache serves on a connection.
const KEEP_ALIVE: u32 = 5;
/// Of each load.
const REQUESTS: u64 = 300;

fn options(line: &str) -> MirrorOptions {
    MirrorOptions::arguments(line, "")
}

/// Load of both versions of IP and both styles; how many requests were answered.
fn load(lab: &Lab) -> usize {
    let mut answered = 0;
    for family in Family::BOTH {
        let server = lab.source.socket(family, LIVE_PORT);
        for load in [
            Load::keep_alive(server, 8, Limit::Requests(REQUESTS)),
            Load::per_request(server, 8, Limit::Requests(REQUESTS)),
        ] {
            let report = Load { method: Method::Get("/index.html".into()), ..load }.run(&lab.client).unwrap();
            assert_eq!(report.failed, Vec::<String>::new());
            answered += report.answered.len();
        }
    }
    answered
}

/// Lines that are not there `times` times for each time that the live server has logged them.
fn surplus(live: &[String], replayed: &[String], times: i64) -> BTreeMap<String, i64> {
    let mut surplus = BTreeMap::<String, i64>::new();
    live.iter().for_each(|line| *surplus.entry(line.clone()).or_default() -= times);
    replayed.iter().for_each(|line| *surplus.entry(line.clone()).or_default() += 1);
    surplus.retain(|_, n| *n != 0);
    surplus
}

/// Replays to a server that has its clients named by the header; both access logs must be the same.
fn logs_agree(version: &str, start: impl Fn(&Host) -> RealServer) {
    let lab = Lab::bridge().unwrap();
    let live = RealServer::nginx_naming_clients(&lab.source, LIVE_PORT, Named::ByConnection).unwrap();
    let target = start(&lab.target);
    let mirror = Mirror::start(&lab, options(&format!("--proxy-protocol {version}"))).unwrap();
    let answered = load(&lab);
    let sent = live.wait_for_access_log(answered, PATIENCE).unwrap();
    target.wait_for_access_log(answered, PATIENCE).unwrap();
    let outcome = mirror.stop().unwrap();
    let wrong = surplus(&sent, &target.access_log().unwrap(), 1);
    let first = wrong.first_key_value();
    assert!(wrong.is_empty(), "{version}: {} of {answered} differ, {first:?}\n{}", wrong.len(), outcome.table);
    let clients = [lab.client.address(Family::V4), lab.client.address(Family::V6)];
    for client in clients {
        assert!(sent.iter().any(|line| line.starts_with(&format!("{client} "))), "no request of {client}");
    }
    assert!(outcome.tcpcopy.count("replay", "inserted_bytes") > 0, "{}", outcome.table);
    outcome.assert_no_leak();
}

#[test]
fn nginx_logs_the_live_clients() {
    let _guard = laboratory!(1_000);
    for version in VERSIONS {
        logs_agree(version, |host| RealServer::nginx_naming_clients(host, TARGET_PORT, Named::ByHeader).unwrap());
    }
}

/// It closes each connection after a few requests: those that go on elsewhere begin with the header again.
#[test]
fn apache_logs_the_live_clients_also_after_early_closes() {
    let _guard = laboratory!(1_000);
    for version in VERSIONS {
        logs_agree(version, |host| {
            RealServer::apache_naming_clients(host, TARGET_PORT, KEEP_ALIVE, Named::ByHeader).unwrap()
        });
    }
}

/// Two workers, two copies, other addresses: the target sees none of the clients' own, and logs them all the same.
#[test]
fn clients_with_other_addresses_are_named_by_their_own() {
    let _guard = laboratory!(1_000);
    for version in VERSIONS {
        let lab = Lab::bridge().unwrap();
        let routes = [
            format!("route add 10.90.0.0/24 via {}", lab.source.v4),
            format!("route add fd90::/64 via {}", lab.source.v6),
        ];
        lab.target.ip(&routes).unwrap();
        let live = RealServer::nginx_naming_clients(&lab.source, LIVE_PORT, Named::ByConnection).unwrap();
        let target = RealServer::nginx_naming_clients(&lab.target, TARGET_PORT, Named::ByHeader).unwrap();
        let line = format!("--proxy-protocol {version} -c 10.90.0.0/28,fd90::/124 -n 2 -f 7 -w 2");
        let mirror = Mirror::start(&lab, options(&line)).unwrap();
        let answered = load(&lab);
        let sent = live.wait_for_access_log(answered, PATIENCE).unwrap();
        target.wait_for_access_log(2 * answered, PATIENCE).unwrap();
        let outcome = mirror.stop().unwrap();
        let wrong = surplus(&sent, &target.access_log().unwrap(), 2);
        let first = wrong.first_key_value();
        assert!(wrong.is_empty(), "{version}: {} of {answered} differ, {first:?}\n{}", wrong.len(), outcome.table);
        let services = Family::BOTH.map(|family| format!("{} {LIVE_PORT} ", lab.source.address(family)));
        for line in target.services().unwrap() {
            let peer = services.iter().find_map(|service| line.strip_prefix(service));
            let peer: IpAddr = peer.unwrap_or_else(|| panic!("another service: {line}")).parse().unwrap();
            let stands_in = match peer {
                IpAddr::V4(a) => a.octets()[..3] == [10, 90, 0],
                IpAddr::V6(a) => a.segments()[0] == 0xfd90,
            };
            assert!(stands_in, "{line}");
        }
        outcome.assert_no_leak();
    }
}

#[test]
fn a_connection_that_is_joined_names_its_client() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let live = RealServer::nginx_naming_clients(&lab.source, LIVE_PORT, Named::ByConnection).unwrap();
    let target = RealServer::nginx_naming_clients(&lab.target, TARGET_PORT, Named::ByHeader).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 16, Limit::Stopped);
    let load =
        Load { method: Method::Get("/index.html".into()), rate: Some(1_000), ..load }.start(&lab.client).unwrap();
    load.wait_for_answers(200).unwrap();
    let mirror = Mirror::start(&lab, options("--proxy-protocol v2")).unwrap();
    load.wait_for_answers(500).unwrap();
    let report = load.stop().unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    let sent = live.wait_for_access_log(report.answered.len(), PATIENCE).unwrap();
    target.wait_for_access_log(300, PATIENCE).unwrap();
    let outcome = mirror.stop().unwrap();
    let replayed = target.access_log().unwrap();
    assert!(replayed.len() >= 300, "{} requests\n{}", replayed.len(), outcome.table);
    let wrong: Vec<_> = surplus(&sent, &replayed, 1).into_iter().filter(|(_, n)| *n > 0).collect();
    assert!(wrong.is_empty(), "nobody has sent {:?}\n{}", wrong.first(), outcome.table);
    assert!(outcome.tcpcopy.count("replay", "joined") > 0, "{}", outcome.table);
    outcome.assert_no_leak();
}

/// Reads up to the end of a line.
fn line_of(stream: &mut TcpStream) -> String {
    let mut line = Vec::new();
    let mut octet = [0];
    while !line.ends_with(b"\n") {
        stream.read_exact(&mut octet).unwrap();
        line.push(octet[0]);
    }
    String::from_utf8(line).unwrap()
}

fn listen(host: &Host, port: u16) -> TcpListener {
    host.run(move || TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))).unwrap().unwrap()
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// As of mail servers: it says nothing before it has read the header, and the client says nothing before it.
#[test]
fn a_server_that_speaks_first_does_not_wait_for_the_client() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let (live, target) = (listen(&lab.source, LIVE_PORT), listen(&lab.target, TARGET_PORT));
    let mirror = Mirror::start(&lab, options("--proxy-protocol v1")).unwrap();
    let service = lab.source.socket(Family::V4, LIVE_PORT);
    for _ in 0..3 {
        let mut client = lab.client.run(|| TcpStream::connect(service)).unwrap().unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut served = accept(&live);
        let mut tested = accept(&target);
        let own = client.local_addr().unwrap();
        let header = format!("PROXY TCP4 {} {} {} {LIVE_PORT}\r\n", own.ip(), service.ip(), own.port());
        // The client has said nothing yet, and will not before it is greeted.
        assert_eq!(line_of(&mut tested), header);
        tested.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        served.write_all(b"220 live\r\n").unwrap();
        assert_eq!(line_of(&mut client), "220 live\r\n");
        client.write_all(b"EHLO lab\r\n").unwrap();
        assert_eq!(line_of(&mut served), "EHLO lab\r\n");
        // The greeting at the target is late, and waited for.
        assert!(tested.read(&mut [0]).is_err(), "the client did not wait for the greeting");
        tested.set_read_timeout(Some(PATIENCE)).unwrap();
        tested.write_all(b"220 target\r\n").unwrap();
        assert_eq!(line_of(&mut tested), "EHLO lab\r\n");
    }
    let outcome = mirror.stop().unwrap();
    assert_eq!(outcome.tcpcopy.count("replay", "gate_expired"), 0, "{}", outcome.table);
    outcome.assert_no_leak();
}
