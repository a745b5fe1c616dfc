//! S3: no packet of a replayed session leaves the target for a client, whatever happens to the programs and services.

use std::{collections::BTreeSet, net::SocketAddr};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program,
    capture::{End, Packet, Sniffer},
    eventually, figure,
    http::{Client, Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// Both styles over both versions of IP, at a rate that leaves the machine some air, until it is [finished](finish).
fn start_load(lab: &Lab) -> Vec<RunningLoad> {
    let server = |family| lab.source.socket(family, LIVE_PORT);
    let keep_alive = Family::BOTH.map(|family| Load::keep_alive(server(family), 8, Limit::Stopped));
    let per_request = Family::BOTH.map(|family| Load::per_request(server(family), 4, Limit::Stopped));
    let loads = keep_alive.into_iter().chain(per_request);
    loads.map(|load| Load { rate: Some(1000), ..load }.start(&lab.client).unwrap()).collect()
}

/// Ends the load, of which every request must have been answered.
fn finish(loads: Vec<RunningLoad>) {
    for load in loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    }
}

/// Waits until so many more requests were answered live.
fn answered(loads: &[RunningLoad], more: u64) {
    let count = || loads.iter().map(RunningLoad::answered).sum::<u64>();
    let goal = count() + more;
    assert!(eventually(PATIENCE, || count() >= goal), "the live side has stopped");
}

#[test]
fn nothing_leaks_in_the_life_of_a_mirror() {
    let _guard = laboratory!(1_000);
    for (attach, ack) in [("tcx", "relay"), ("tcx", "reflect"), ("clsact", "reflect")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let intercept = ["--attach", attach, "--ack", ack].map(str::to_owned).to_vec();
        let mut mirror = Mirror::start(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
        let loads = start_load(&lab);
        answered(&loads, 2000);
        // Connections are open now. Those at the target are destroyed by intercept, before it lets answers through.
        mirror.stop_programs().unwrap();
        finish(loads);
        // Sockets that were left would say goodbye.
        drop(target);
        let outcome = mirror.stop().unwrap();
        assert!(
            outcome.intercept.count("swallowed", "swallowed_segments") > 1000,
            "--attach {attach} --ack {ack}\n{}",
            outcome.table
        );
        outcome.assert_no_leak();
    }
}

#[test]
fn nothing_leaks_while_intercept_is_stopped_by_a_signal() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    // Its ring is full soon.
    let intercept = ["--ring-size", "256K"].map(str::to_owned).to_vec();
    let mirror = Mirror::start(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 2000);
    mirror.intercept().signal(Signal::STOP).unwrap();
    answered(&loads, 10_000);
    mirror.intercept().signal(Signal::CONT).unwrap();
    finish(loads);
    let outcome = mirror.stop().unwrap();
    // Both sides say how many reports the full ring has cost.
    let lost = outcome.intercept.count("reports", "reports_lost");
    assert!(lost > 0, "the ring was never full\n{}", outcome.table);
    assert_eq!(outcome.tcpcopy.count("not_reported", "ring_full"), lost, "{}", outcome.table);
    outcome.assert_no_leak();
}

#[test]
fn nothing_leaks_when_the_service_under_test_is_gone() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 2000);
    // Resets of open connections, then of every SYN.
    drop(target);
    answered(&loads, 4000);
    finish(loads);
    let _back = Server::start(&lab.target, TARGET_PORT).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 1000);
    finish(loads);
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn nothing_leaks_when_tcpcopy_is_killed_with_sessions_open() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 2000);
    mirror.tcpcopy.take().unwrap().kill().unwrap();
    answered(&loads, 2000);
    // A second life: its sessions use other sequence numbers, perhaps on four-tuples that are still known.
    mirror.start_tcpcopy().unwrap();
    answered(&loads, 4000);
    finish(loads);
    // The service closes what the killed process has left open: FINs of sessions without an owner.
    drop(target);
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn without_a_channel_nothing_is_injected() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 2000);
    // Orderly: it destroys the sessions' sockets before it lets go, and tcpcopy sees the channel close.
    mirror.intercept.take().unwrap().stop().unwrap();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("nothing is replayed there")).unwrap();
    // What the service had received before it is told of the end.
    answered(&loads, 1000);
    let now = target.count();
    answered(&loads, 4000);
    assert_eq!(target.count() - now, 0, "requests arrived without intercept");
    mirror.start_intercept().unwrap();
    // The session goes on by itself.
    let goal = target.count() + 1000;
    assert!(eventually(PATIENCE, || target.count() >= goal), "tcpcopy has not come back\n{}", mirror.tcpcopy().log());
    finish(loads);
    mirror.stop().unwrap().assert_no_leak();
}

/// A tcpcopy that gets no processor may have packets ready for the time when it does. It has let go when it has closed
/// its channel.
#[test]
fn intercept_stays_until_tcpcopy_has_let_go() {
    let _guard = laboratory!(1_000);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let loads = start_load(&lab);
    answered(&loads, 2000);
    mirror.tcpcopy().signal(Signal::STOP).unwrap();
    let intercept = mirror.intercept.take().unwrap();
    intercept.signal(Signal::TERM).unwrap();
    intercept.wait_log(PATIENCE, |line| line.contains("waiting for tcpcopy to let go")).unwrap();
    // It ends in less than the time of so many answers if it does not wait, and after five seconds if nobody lets go.
    answered(&loads, 500);
    assert!(intercept.is_running(), "intercept has not waited:\n{}", intercept.log());
    mirror.tcpcopy().signal(Signal::CONT).unwrap();
    let ended = intercept.wait(PATIENCE).unwrap();
    assert!(ended.status.success(), "{}", ended.stderr);
    assert!(!ended.stderr.contains("has not closed its control channel"), "{}", ended.stderr);
    finish(loads);
    mirror.start_intercept().unwrap();
    mirror.stop().unwrap().assert_no_leak();
}

fn ask(client: &mut Client) {
    client.ask().unwrap();
}

/// The clients of the connections to the service under test, TIME-WAIT apart, which says nothing of itself.
fn clients_at(target: &Host) -> BTreeSet<SocketAddr> {
    let listed = target.output(&format!("ss -Htan sport = :{TARGET_PORT}")).unwrap();
    let connections = listed.lines().filter(|line| !line.starts_with("LISTEN") && !line.starts_with("TIME-WAIT"));
    let clients = connections.map(|line| line.split_whitespace().nth(4).unwrap().parse::<SocketAddr>().unwrap());
    clients.map(|client| SocketAddr::new(client.ip().to_canonical(), client.port())).collect()
}

/// How many connections to the service under test have octets in their send queues.
fn unacknowledged(target: &Host) -> usize {
    let listed = target.output(&format!("ss -Htn state established sport = :{TARGET_PORT}")).unwrap();
    listed.lines().filter(|line| line.split_whitespace().nth(1) != Some("0")).count()
}

#[test]
fn a_restarted_intercept_removes_what_the_killed_one_has_left() {
    let _guard = laboratory!(1_500);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut visitors: Vec<Client> = Family::BOTH
        .into_iter()
        .flat_map(|family| std::iter::repeat_n(family, 200))
        .map(|family| Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap())
        .collect();
    visitors.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(400, PATIENCE), 400);
    assert_eq!(clients_at(&lab.target), visitors.iter().map(Client::address).collect());
    // What is not acknowledged would be sent again while nothing swallows it.
    assert!(eventually(PATIENCE, || unacknowledged(&lab.target) == 0), "{} answers", unacknowledged(&lab.target));

    mirror.intercept.take().unwrap().kill().unwrap();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("broke")).unwrap();
    // When intercept is back, the target has lost one by itself, and some clients have gone on.
    let lost = visitors[399].address();
    lab.target.output(&format!("ss -K sport = :{TARGET_PORT} dst {lost}")).unwrap();
    let (active, idle) = visitors.split_at_mut(100);
    active.iter_mut().for_each(ask);
    let sniffer = Sniffer::start(&lab.client, &lab.target, End::Source).unwrap();
    mirror.start_intercept().unwrap();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("is up again")).unwrap();

    let idle: BTreeSet<SocketAddr> = idle.iter().map(Client::address).collect();
    let left = || clients_at(&lab.target).intersection(&idle).copied().collect::<Vec<_>>();
    assert!(eventually(PATIENCE, || left().is_empty()), "sockets are left: {:?}", left());
    // The mirror goes on, also for connections that were idle.
    visitors.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(900, PATIENCE), 900, "{}", mirror.tcpcopy().log());

    // The figures are published once a second.
    let settled = || {
        mirror.tcpcopy().signal(Signal::USR1).unwrap();
        let table = mirror.tcpcopy().output();
        let [orphans, settled] = ["orphans", "orphans settled"].map(|name| figure(&table, name));
        orphans >= Some(300) && settled == orphans
    };
    assert!(eventually(PATIENCE, settled), "{}", mirror.tcpcopy().output());

    // Sockets that were left would say goodbye to the clients.
    drop(target);
    drop(visitors);
    assert!(eventually(PATIENCE, || clients_at(&lab.target).is_empty()), "{:?}", clients_at(&lab.target));
    mirror.stop_programs().unwrap();
    let leaked: Vec<String> = sniffer.stop().unwrap().iter().map(Packet::describe).collect();
    assert!(leaked.is_empty(), "{} packets of the target reached a client: {leaked:#?}", leaked.len());
    let summary = mirror.stop().unwrap().tcpcopy;
    assert!(summary.count("replay", "orphans") >= 300, "{summary:?}");
    assert_eq!(summary.count("replay", "orphans_given_up"), 0, "{summary:?}");
}

/// The kernel is taken for one without SOCK_DESTROY: the services are told that their clients have reset the connections.
#[test]
fn nothing_is_left_at_the_end_where_the_kernel_cannot_destroy_sockets() {
    let _guard = laboratory!();
    for support in ["list", "nothing"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
        let mut command = mirror.intercept_command().unwrap();
        let intercept = Program::start("intercept", command.env("TCPCOPY_TEST_SOCK_DIAG", support)).unwrap();
        intercept.wait_ready().unwrap();
        let warned = |line: &str| line.contains("WARN") && line.contains("destroy sockets of others");
        intercept.wait_log(PATIENCE, warned).unwrap();
        mirror.start_tcpcopy().unwrap();
        let mut clients: Vec<Client> = Family::BOTH
            .into_iter()
            .flat_map(|family| (0..30).map(move |_| family))
            .map(|family| Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap())
            .collect();
        clients.iter_mut().for_each(|client| client.ask().unwrap());
        assert_eq!(target.wait_for_requests(60, PATIENCE), 60);
        assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 60);
        let ended = intercept.stop().unwrap();
        assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 0, "{support}: sockets are left\n{}", ended.stderr);
        assert!(!ended.stderr.contains("may be left"), "{}", ended.stderr);
        clients.iter_mut().for_each(|client| client.ask().unwrap());
        // Sockets that were left would say goodbye.
        drop(target);
        drop(clients);
        mirror.stop().unwrap().assert_no_leak();
    }
}
