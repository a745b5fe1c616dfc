//! Several sources to one target, several copies of one source, several targets, and other client addresses: every
//! request arrives as often as it should, and nothing leaks.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program, Shape,
    http::{Limit, Load, Method, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};

/// Load of both versions of IP and both styles on a source; the identifiers that were answered.
fn load(client: &Host, source: &Host) -> BTreeSet<u64> {
    let mut answered = BTreeSet::new();
    for family in Family::BOTH {
        let server = source.socket(family, LIVE_PORT);
        for load in [
            Load::keep_alive(server, 16, Limit::Requests(2_000)),
            Load::per_request(server, 16, Limit::Requests(1_000)),
        ] {
            let report = load.run(client).unwrap();
            assert_eq!(report.failed, Vec::<String>::new());
            answered.extend(report.answered);
        }
    }
    answered
}

/// How often each request came.
fn times(server: &Server) -> BTreeMap<u64, usize> {
    let mut times = BTreeMap::new();
    server.arrivals().iter().for_each(|arrival| *times.entry(arrival.id).or_default() += 1);
    times
}

/// Asserts that each request came so often, no more and no less.
fn assert_times(server: &Server, live: &BTreeSet<u64>, wanted: usize, context: &str) {
    let seen = times(server);
    let wrong: Vec<_> =
        live.iter().map(|id| (id, seen.get(id).copied().unwrap_or(0))).filter(|(_, n)| *n != wanted).collect();
    let shown = &wrong[..wrong.len().min(10)];
    assert!(wrong.is_empty(), "{} of {} came not {wanted} times: {shown:?}\n{context}", wrong.len(), live.len());
    assert_eq!(seen.len(), live.len(), "requests came that nobody sent\n{context}");
}

fn options(tcpcopy: &[&str]) -> MirrorOptions {
    MirrorOptions { tcpcopy: tcpcopy.iter().map(|&argument| argument.to_owned()).collect(), ..MirrorOptions::default() }
}

/// `tcpcopy` on the second source of [`Shape::TwoSources`].
fn second_tcpcopy(lab: &Lab, mirror: &Mirror, arguments: &[&str]) -> Program {
    let source = lab.other("source2");
    let rules = Family::BOTH.map(|family| mirror::rule(source, &lab.target, family)).join(",");
    let mut command = source.command(mirror::program("tcpcopy").unwrap());
    command.args(["-x", &rules, "-s", &lab.target.v4.to_string(), "-i", "eth1", "--psk-file"]).arg(mirror.key());
    let program = Program::start("tcpcopy on source2", command.args(arguments)).unwrap();
    program.wait_ready().unwrap();
    program
}

/// The experiment that TCPCopy's manual shows: two production hosts, one test host, three access logs by the second.
#[test]
fn two_sources_together_are_what_the_target_serves() {
    const RATE: u32 = 1_000;
    const REQUESTS: u64 = 6_000;
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoSources).unwrap();
    let sources = [(&lab.client, &lab.source), (lab.other("client2"), lab.other("source2"))];
    let live = sources.map(|(_, source)| RealServer::nginx(source, LIVE_PORT, 1_000).unwrap());
    let target = RealServer::nginx(&lab.target, TARGET_PORT, 1_000).unwrap();
    let mirror = Mirror::start(&lab, options(&[])).unwrap();
    let second = second_tcpcopy(&lab, &mirror, &[]);
    let loads = sources.map(|(client, source)| {
        [Load::keep_alive, Load::per_request].map(|style| {
            let method = Method::Get("/index.html".into());
            let load = style(source.socket(Family::V4, LIVE_PORT), 16, Limit::Requests(REQUESTS));
            Load { method, rate: Some(RATE), ..load }.start(client).unwrap()
        })
    });
    for report in loads.into_iter().flatten().map(|load| load.join().unwrap()) {
        assert_eq!(report.failed, Vec::<String>::new());
    }
    let mut expected: Vec<String> =
        live.iter().flat_map(|server| server.wait_for_access_log(2 * REQUESTS as usize, PATIENCE).unwrap()).collect();
    target.wait_for_access_log(expected.len(), PATIENCE).unwrap();
    let second = second.stop().unwrap();
    let outcome = mirror.stop().unwrap();

    let logs = [&live[0], &live[1], &target].map(|server| server.served_at().unwrap());
    let began = logs.iter().flatten().copied().fold(f64::MAX, f64::min).floor();
    let last = logs.iter().flatten().copied().fold(0.0, f64::max).floor();
    println!("second  source 1  source 2  together  target");
    for second in 0..=(last - began) as u64 {
        let within = |time: &&f64| (**time - began).floor() as u64 == second;
        let [one, two, target] = logs.each_ref().map(|log| log.iter().filter(within).count());
        println!("{second:>6} {one:>9} {two:>9} {:>9} {target:>7}", one + two);
    }
    let [one, two, served] = logs.map(|log| log.len());
    println!("   all {one:>9} {two:>9} {:>9} {served:>7}", one + two);

    let mut replayed = target.access_log().unwrap();
    expected.sort();
    replayed.sort();
    assert_eq!(expected.len() as u64, 4 * REQUESTS, "the live servers' logs are not whole");
    assert!(expected == replayed, "{one} and {two} live, {served} replayed\n{}\n{}", outcome.table, second.stdout);
    outcome.assert_no_leak();
}

#[test]
fn two_copies_are_exactly_twice_the_requests() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, options(&["-n", "2", "-w", "2"])).unwrap();
    let live = load(&lab.client, &lab.source);
    target.wait_for_requests(2 * live.len(), PATIENCE);
    let outcome = mirror.stop().unwrap();
    assert_times(&target, &live, 2, &outcome.table);
    assert_eq!(outcome.intercept.count("refused_syns", "collision"), 0, "{}", outcome.table);
    assert_eq!(outcome.tcpcopy.count("run", "copies"), 2);
    outcome.assert_no_leak();
}

/// Each has an intercept of its own; when one is killed, the other target goes on as if nothing had happened.
#[test]
fn two_targets_get_everything_and_one_survives_the_other() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let target2 = lab.other("target2");
    let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
    let targets = [&lab.target, target2].map(|host| Server::start(host, TARGET_PORT).unwrap());
    let rule = |target: &Host| Family::BOTH.map(|family| mirror::rule(&lab.source, target, family)).join(",");
    // The first is there already, by its IPv4 address.
    let intercepts = format!("[{}],{},[{}]", lab.target.v6, target2.v4, target2.v6);
    let options = MirrorOptions {
        rules: Some(format!("{},{}", rule(&lab.target), rule(target2))),
        ..options(&["-s", &intercepts])
    };
    let mut mirror = Mirror::prepare(&lab, options).unwrap();
    mirror.start_intercept().unwrap();
    let other = Program::start("intercept on target2", &mut mirror.intercept_on(target2).unwrap()).unwrap();
    other.wait_ready().unwrap();
    mirror.start_tcpcopy().unwrap();

    let mut live = load(&lab.client, &lab.source);
    for target in &targets {
        target.wait_for_requests(live.len(), PATIENCE);
        assert_times(target, &live, 1, &mirror.tcpcopy().log());
    }
    other.kill().unwrap();
    live.extend(load(&lab.client, &lab.source));
    targets[0].wait_for_requests(live.len(), PATIENCE);
    let outcome = mirror.stop().unwrap();
    assert_times(&targets[0], &live, 1, &outcome.table);
    // Connections that were open on the other when its intercept was killed may answer the client.
    let leaked: Vec<_> = outcome.leaked.iter().filter(|packet| packet.source == IpAddr::from(lab.target.v4)).collect();
    assert!(leaked.is_empty(), "{leaked:?}");
}

/// 64 client addresses behind one, and behind a network: all that the target sees are those addresses.
#[test]
fn clients_get_other_addresses_without_collisions() {
    let _guard = laboratory!(1_000);
    for (v4, v6) in
        [("10.90.0.7", "fd90::7"), ("10.90.0.0/28", "fd90::/124"), ("10.90.0.7,10.90.0.16/29", "fd90::7,fd90::10/125")]
    {
        let lab = Lab::bridge().unwrap();
        let clients: Vec<IpAddr> = (0..64).map(|n| IpAddr::from([10, 77, 0, 100 + n])).collect();
        lab.client.ip(&clients.iter().map(|c| format!("address add {c}/24 dev eth0")).collect::<Vec<_>>()).unwrap();
        lab.target
            .ip(&[
                format!("route add 10.90.0.0/24 via {}", lab.source.v4),
                format!("route add fd90::/64 via {}", lab.source.v6),
            ])
            .unwrap();
        let _live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, options(&["-c", v4, "-c", v6, "-w", "2"])).unwrap();
        // All from the same port, so that whoever kept it would collide.
        let server = lab.source.socket(Family::V4, LIVE_PORT);
        let loads: Vec<_> = clients
            .iter()
            .map(|client| {
                let bind = Some(SocketAddr::new(*client, 40_000));
                let load = Load::keep_alive(server, 1, Limit::Requests(50));
                Load { bind, rate: Some(100), ..load }.start(&lab.client).unwrap()
            })
            .collect();
        let mut live = load(&lab.client, &lab.source);
        for report in loads.into_iter().map(|load| load.join().unwrap()) {
            assert_eq!(report.failed, Vec::<String>::new());
            live.extend(report.answered);
        }
        target.wait_for_requests(live.len(), PATIENCE);
        let outcome = mirror.stop().unwrap();
        assert_times(&target, &live, 1, &outcome.table);
        assert_eq!(outcome.intercept.count("refused_syns", "collision"), 0, "{}", outcome.table);
        let seen: BTreeSet<IpAddr> = target.arrivals().iter().map(|arrival| arrival.client.ip()).collect();
        let inside = |address: &IpAddr| match address {
            IpAddr::V4(a) => a.octets()[..3] == [10, 90, 0],
            IpAddr::V6(a) => a.segments()[0] == 0xfd90,
        };
        assert!(seen.iter().all(inside), "{seen:?}");
        let ipv4 = seen.iter().filter(|address| address.is_ipv4()).count();
        assert!(if v4.contains('/') { ipv4 > 5 } else { ipv4 == 1 }, "{seen:?}");
        outcome.assert_no_leak();
    }
}

/// Two tcpcopy that do not know of each other, with the same clients: `-f` lets them share a target without collisions.
#[test]
fn programs_with_the_same_clients_keep_out_of_each_others_way() {
    let _guard = laboratory!(600);
    let lab = Lab::shaped(Shape::TwoSources).unwrap();
    let sources = [(&lab.client, &lab.source), (lab.other("client2"), lab.other("source2"))];
    let _live = sources.map(|(_, source)| Server::start(source, LIVE_PORT).unwrap());
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, options(&["-f", "1"])).unwrap();
    let second = second_tcpcopy(&lab, &mirror, &["-f", "600"]);
    let loads = sources.map(|(client, source)| {
        (40_000..40_016)
            .map(|port| {
                let bind = Some(SocketAddr::new(client.address(Family::V4), port));
                let load = Load::keep_alive(source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(100));
                Load { bind, rate: Some(100), ..load }.start(client).unwrap()
            })
            .collect::<Vec<_>>()
    });
    let mut live = BTreeSet::new();
    for report in loads.into_iter().flatten().map(|load| load.join().unwrap()) {
        assert_eq!(report.failed, Vec::<String>::new());
        live.extend(report.answered);
    }
    target.wait_for_requests(live.len(), PATIENCE);
    let second = second.stop().unwrap();
    let outcome = mirror.stop().unwrap();
    assert_times(&target, &live, 1, &format!("{}\n{}", outcome.table, second.stdout));
    assert_eq!(outcome.intercept.count("refused_syns", "collision"), 0, "{}", outcome.table);
    outcome.assert_no_leak();
}
