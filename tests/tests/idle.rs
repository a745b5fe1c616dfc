//! A mirror that has nothing to do costs next to no CPU time, whatever it did before and whatever is broken.

use std::{
    net::TcpListener,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually,
    http::{Client, Limit, Load, Method, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    servers::RealServer,
};
use rustix::process::Signal;

/// How long the programs are watched.
const TIME: Duration = Duration::from_secs(3);
/// The CPU time that a program may use in [`TIME`]: one percent of a core, whatever it has to wait for.
///
/// Ten times a second a thread looks into its ring, and once a second others look around: 2 to 5 ms in [`TIME`], in a
/// build without optimisation and on a machine with five times as much to do as it can. One that spins uses all of
/// [`TIME`], or its share of a busy machine. The scheduler counts CPU time to the ns, and none while a thread waits for a
/// processor, so that other work on the machine adds no more than cold caches.
const BOUND: Duration = Duration::from_millis(30);

/// Connects by the two versions of IP in turn.
fn connect(lab: &Lab) -> Client {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let family = Family::BOTH[NEXT.fetch_add(1, Ordering::Relaxed) % 2];
    Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap()
}

fn ask(client: &mut Client) {
    client.ask().unwrap();
}

fn wait_for_replayed(lab: &Lab, connections: usize) {
    let open = || lab.target.connections(TARGET_PORT).unwrap();
    assert!(eventually(PATIENCE, || open() == connections), "{} of {connections} connections are replayed", open());
}

/// Asserts that programs use hardly any CPU time while `during` runs, which takes [`TIME`].
fn assert_idle(what: &str, programs: &[(&str, &Program)], during: impl FnOnce()) {
    let used = || programs.iter().map(|(_, program)| program.cpu_time().unwrap()).collect::<Vec<_>>();
    let (before, start) = (used(), Instant::now());
    during();
    let took = start.elapsed();
    for (((name, program), before), after) in programs.iter().zip(before).zip(used()) {
        let used = after - before;
        eprintln!("{what}: {name} used {used:?} of CPU time in {took:?}");
        // In proportion, when the machine has kept us from looking in time.
        let bound = BOUND.mul_f64((took.as_secs_f64() / TIME.as_secs_f64()).max(1.0));
        assert!(used <= bound, "{what}: {name} used {used:?} of CPU time in {took:?}\n{}", program.log());
    }
}

fn wait() {
    thread::sleep(TIME);
}

#[test]
fn a_silent_connection_costs_nothing() {
    let _guard = laboratory!();
    for (tcpcopy, copies, intercept) in [("", 1, ""), ("-w 4 -n 2", 2, "--ack reflect")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, MirrorOptions::arguments(tcpcopy, intercept)).unwrap();
        let what = |what: &str| format!("{what}, {tcpcopy:?}, {intercept:?}");
        let programs = [("tcpcopy", mirror.tcpcopy()), ("intercept", mirror.intercept())];
        assert_idle(&what("before anything came"), &programs, wait);

        // One record each, which finds its worker asleep: two would be looked for at once.
        let clients: Vec<Client> = (1..=2)
            .map(|n| {
                let client = connect(&lab);
                wait_for_replayed(&lab, n * copies);
                assert_idle(&what(&format!("{n} silent connections")), &programs, wait);
                client
            })
            .collect();
        drop(clients);
        wait_for_replayed(&lab, 0);
        assert_idle(&what("after the last connection"), &programs, wait);
        mirror.stop().unwrap().assert_no_leak();
    }
}

#[test]
fn a_request_a_second_costs_next_to_nothing() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let programs = [("tcpcopy", mirror.tcpcopy()), ("intercept", mirror.intercept())];
    let mut client = connect(&lab);
    assert_idle("a request a second", &programs, || {
        // Each is one record, and finds the worker asleep.
        for _ in 0..3 {
            ask(&mut client);
            thread::sleep(TIME / 3);
        }
    });
    assert_eq!(target.wait_for_requests(3, PATIENCE), 3);
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn without_a_channel_tcpcopy_waits_and_does_not_spin() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::arguments("-w 2", "")).unwrap();
    let mut clients: Vec<Client> = (0..8).map(|_| connect(&lab)).collect();
    clients.iter_mut().for_each(ask);
    wait_for_replayed(&lab, 8);

    // A channel that is up, and at whose end nobody reads.
    mirror.intercept().signal(Signal::STOP).unwrap();
    clients.iter_mut().for_each(ask);
    assert_idle("intercept stopped", &[("tcpcopy", mirror.tcpcopy())], wait);
    mirror.intercept().signal(Signal::CONT).unwrap();

    mirror.intercept.take().unwrap().kill().unwrap();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("broke")).unwrap();
    clients.iter_mut().for_each(ask);
    let late = connect(&lab);
    assert_idle("intercept killed", &[("tcpcopy", mirror.tcpcopy())], wait);
    drop((clients, late));
    mirror.tcpcopy.take().unwrap().stop().unwrap();
}

#[test]
fn without_a_channel_intercept_waits_and_does_not_spin() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients: Vec<Client> = (0..8).map(|_| connect(&lab)).collect();
    clients.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(8, PATIENCE), 8);

    mirror.tcpcopy().signal(Signal::STOP).unwrap();
    clients.iter_mut().for_each(ask);
    assert_idle("tcpcopy stopped", &[("intercept", mirror.intercept())], wait);
    mirror.tcpcopy().signal(Signal::CONT).unwrap();

    mirror.tcpcopy.take().unwrap().kill().unwrap();
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("broke")).unwrap();
    assert_idle("tcpcopy killed", &[("intercept", mirror.intercept())], wait);
    drop(clients);
    mirror.intercept.take().unwrap().stop().unwrap();
}

#[test]
fn a_target_that_does_not_answer_costs_next_to_nothing() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let mut target = Some(Server::start(&lab.target, TARGET_PORT).unwrap());
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let programs = [("tcpcopy", mirror.tcpcopy()), ("intercept", mirror.intercept())];
    let mut clients: Vec<Client> = (0..8).map(|_| connect(&lab)).collect();
    clients.iter_mut().for_each(ask);
    wait_for_replayed(&lab, 8);
    // Refused: the service is gone.
    drop(target.take());
    clients.iter_mut().for_each(ask);
    assert_idle("refused", &programs, wait);
    // Taken, and never answered: requests wait.
    let silent = lab.target.run(|| TcpListener::bind(("::", TARGET_PORT))).unwrap().unwrap();
    clients = (0..8).map(|_| connect(&lab)).collect();
    for _ in 0..2 {
        clients.iter_mut().for_each(ask);
    }
    wait_for_replayed(&lab, 8);
    assert_idle("not answered", &programs, wait);
    drop(silent);
    mirror.stop().unwrap().assert_no_leak();
}

/// A full ring wakes nobody who is not there, and when it was emptied nothing is left to be done.
#[test]
fn after_its_ring_was_full_tcpcopy_sleeps() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::arguments("-w 2 --ring-size 256K", "")).unwrap();
    let mut client = connect(&lab);
    ask(&mut client);
    wait_for_replayed(&lab, 1);
    mirror.tcpcopy().signal(Signal::STOP).unwrap();
    let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 16, Limit::Requests(2_000));
    let report = Load { method: Method::Post(1000), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    mirror.tcpcopy().signal(Signal::CONT).unwrap();
    // What comes while the rings are still full is lost as well. A connection that is replayed shows that one has been
    // read; the other is, at the latest, in the seconds that are watched.
    let mut late = Vec::new();
    let is_replayed = || {
        let mut client = connect(&lab);
        ask(&mut client);
        late.push(client);
        let arrived = |id: u64| target.arrivals().iter().any(|arrival| arrival.id == id);
        late.iter().any(|client| arrived(client.port().into()))
    };
    assert!(eventually(PATIENCE, is_replayed), "{} requests are replayed", target.count());
    let programs = [("tcpcopy", mirror.tcpcopy()), ("intercept", mirror.intercept())];
    assert_idle("after a full ring", &programs, wait);
    let outcome = mirror.stop().unwrap();
    assert!(outcome.tcpcopy.count("not_copied", "ring_full") > 0, "the ring was full\n{}", outcome.table);
    outcome.assert_no_leak();
}

#[test]
fn ten_thousand_idle_connections_cost_nothing() {
    const CONNECTIONS: usize = 10_000;
    // Of the clients; the servers are other processes.
    let _guard = laboratory!(CONNECTIONS as u64 + 1_000);
    let lab = Lab::bridge().unwrap();
    let [_source, target] = [(&lab.source, LIVE_PORT), (&lab.target, TARGET_PORT)]
        .map(|(host, port)| RealServer::nginx(host, port, 1_000).unwrap());
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients: Vec<Client> = (0..CONNECTIONS).map(|_| connect(&lab)).collect();
    for client in &mut clients {
        client.send("GET / HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
    }
    target.wait_for_access_log(CONNECTIONS, PATIENCE).unwrap();
    wait_for_replayed(&lab, CONNECTIONS);
    let programs = [("tcpcopy", mirror.tcpcopy()), ("intercept", mirror.intercept())];
    assert_idle("10,000 idle connections", &programs, wait);
    mirror.stop().unwrap().assert_no_leak();
}
