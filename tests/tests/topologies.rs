//! Clients behind a router, on a link where nobody has their address, by an asymmetric way, and the same client address
//! at two sources: what can be mirrored is mirrored, what cannot is refused with the reason, and nothing leaks.

use std::{collections::BTreeSet, net::SocketAddr};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program, Shape, eventually,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};

/// Load of both versions of IP and both styles; the identifiers that were answered.
fn load(from: &Host, to: &Host) -> BTreeSet<u64> {
    let mut answered = BTreeSet::new();
    for family in Family::BOTH {
        let server = to.socket(family, LIVE_PORT);
        for load in
            [Load::keep_alive(server, 8, Limit::Requests(500)), Load::per_request(server, 8, Limit::Requests(200))]
        {
            let report = load.run(from).unwrap();
            assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
            answered.extend(report.answered);
        }
    }
    answered
}

fn arrived(target: &Server, expected: usize) -> BTreeSet<u64> {
    target.wait_for_requests(expected, PATIENCE);
    target.arrivals().iter().map(|arrival| arrival.id).collect()
}

fn everything_is_mirrored(shape: Shape) {
    let lab = Lab::shaped(shape).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let live = load(&lab.client, &lab.source);
    let replayed = arrived(&target, live.len());
    let outcome = mirror.stop().unwrap();
    let lost = live.difference(&replayed).count();
    assert_eq!(lost, 0, "of {} requests\n{}\n{}", live.len(), outcome.table, outcome.logs);
    outcome.assert_no_leak();
}

#[test]
fn routed_clients_are_mirrored() {
    let _guard = laboratory!();
    everything_is_mirrored(Shape::RoutedClient);
}

#[test]
fn answers_that_would_leave_by_another_interface_are_swallowed_too() {
    let _guard = laboratory!();
    everything_is_mirrored(Shape::AsymmetricReturn);
}

/// The target asks for the client's link-layer address for ever. `intercept` says so, and what it says helps.
#[test]
fn a_client_address_that_nobody_holds_on_the_targets_link_is_explained_and_the_remedy_helps() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::AbsentClient).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let options = MirrorOptions { interfaces: vec!["eth1"], ..MirrorOptions::default() };
    let mirror = Mirror::start(&lab, options).unwrap();
    load(&lab.client, &lab.source);
    for family in Family::BOTH {
        let client = lab.client.address(family);
        let remedy = format!("neigh replace {client} lladdr 02:00:00:00:00:01 dev eth0 nud permanent");
        let advice = |line: &str| line.contains(&format!("ip {remedy}"));
        mirror.intercept().wait_log(PATIENCE, advice).unwrap();
        lab.target.ip(&[&remedy]).unwrap();
    }
    let live = load(&lab.client, &lab.source);
    target.wait_for_requests(live.len(), PATIENCE);
    let replayed = || target.arrivals().iter().map(|arrival| arrival.id).collect::<BTreeSet<u64>>();
    let complete = eventually(PATIENCE, || live.is_subset(&replayed()));
    let outcome = mirror.stop().unwrap();
    let lost = live.difference(&replayed()).count();
    assert!(complete, "{lost} of {} requests lost\n{}\n{}", live.len(), outcome.table, outcome.logs);
    outcome.assert_no_leak();
}

/// Both clients use the same address and the same port at the same time; the second session gets another port at the
/// target.
#[test]
fn two_sources_whose_clients_share_address_and_port_do_not_mix() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoSources).unwrap();
    let (source2, client2) = (lab.other("source2"), lab.other("client2"));
    let _servers = [&lab.source, source2].map(|host| Server::start(host, LIVE_PORT).unwrap());
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let rules = Family::BOTH.map(|family| mirror::rule(source2, &lab.target, family)).join(",");
    let mut command = source2.command(mirror::program("tcpcopy").unwrap());
    command.args(["-x", &rules, "-s", &lab.target.v4.to_string(), "-i", "eth1", "--psk-file"]).arg(mirror.key());
    let second = Program::start("tcpcopy on source2", &mut command).unwrap();
    second.wait_ready().unwrap();

    let mut live = BTreeSet::new();
    for family in Family::BOTH {
        let running = [(&lab.client, &lab.source), (client2, source2)].map(|(client, source)| {
            let bind = Some(SocketAddr::new(client.address(family), 40_000));
            let limit = Limit::Requests(1000);
            let rate = Some(500);
            let load = Load { bind, rate, ..Load::keep_alive(source.socket(family, LIVE_PORT), 1, limit) };
            load.start(client).unwrap()
        });
        for load in running {
            let report = load.join().unwrap();
            assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
            live.extend(report.answered);
        }
    }
    let replayed = arrived(&target, live.len());
    let second = second.stop().unwrap();
    let outcome = mirror.stop().unwrap();
    let lost = live.difference(&replayed).count();
    assert_eq!(lost, 0, "of {} requests\n{}\n{}\n{}", live.len(), outcome.table, second.stdout, outcome.logs);
    assert!(
        outcome.intercept.count("refused_syns", "collision") >= 2,
        "each family's second session collides\n{}",
        outcome.table
    );
    outcome.assert_no_leak();
}

/// A service that is asked by way of loopback, as behind a proxy on the same host: `-i lo`, and `-H` for the client's
/// address.
#[test]
fn a_service_on_loopback_is_mirrored() {
    let _guard = laboratory!();
    for family in Family::BOTH {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let loopback: SocketAddr = match family {
            Family::V4 => ([127, 0, 0, 1], LIVE_PORT).into(),
            Family::V6 => (std::net::Ipv6Addr::LOCALHOST, LIVE_PORT).into(),
        };
        let options = MirrorOptions {
            interfaces: vec!["lo"],
            rules: Some(format!("{loopback}-{}", lab.target.socket(family, TARGET_PORT))),
            tcpcopy: vec!["-H".into(), lab.client.address(family).to_string()],
            ..MirrorOptions::default()
        };
        let mirror = Mirror::start(&lab, options).unwrap();
        let report = Load::keep_alive(loopback, 8, Limit::Requests(500)).run(&lab.source).unwrap();
        assert_eq!(report.failed.first(), None);
        let live: BTreeSet<u64> = report.answered.into_iter().collect();
        let replayed = arrived(&target, live.len());
        let outcome = mirror.stop().unwrap();
        assert_eq!(live.difference(&replayed).count(), 0, "{family:?}\n{}\n{}", outcome.table, outcome.logs);
        outcome.assert_no_leak();
    }
}
