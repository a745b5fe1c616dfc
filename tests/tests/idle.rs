//! A mirror that has nothing to do costs next to no CPU time, whatever it did before and whatever is broken.

use std::{
    net::TcpListener,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually,
    http::{Client, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// How long the programs are watched.
const TIME: Duration = Duration::from_secs(3);
/// The CPU time that a thread with a ring may use in [`TIME`].
///
/// It wakes up a hundred times a second to look at its ring and its channels: 25 to 45 ms of CPU time in a build
/// without optimisation on a machine with five times as much to do as it can. One that spins uses all of [`TIME`], or
/// its share of a busy machine. The scheduler counts CPU time to the ns, and none while a thread waits for a processor,
/// so that other work on the machine adds no more than cold caches.
const RING_THREAD: Duration = Duration::from_millis(120);
/// What the other threads of a program may use together: they sleep for a second and more.
const OTHERS: Duration = Duration::from_millis(30);

fn connect(lab: &Lab) -> Client {
    Client::connect(&lab.client, lab.source.socket(Family::V4, LIVE_PORT)).unwrap()
}

fn ask(client: &mut Client) {
    client.ask().unwrap();
}

fn wait_for_replayed(lab: &Lab, connections: usize) {
    let open = || lab.target.connections(TARGET_PORT).unwrap();
    assert!(eventually(PATIENCE, || open() == connections), "{} of {connections} connections are replayed", open());
}

/// Asserts that programs, each with so many rings, use hardly any CPU time while `during` runs, which takes [`TIME`].
fn assert_idle(what: &str, programs: &[(&str, &Program, u32)], during: impl FnOnce()) {
    let used = || programs.iter().map(|(_, program, _)| program.cpu_time().unwrap()).collect::<Vec<_>>();
    let (before, start) = (used(), Instant::now());
    during();
    let took = start.elapsed();
    for (((name, program, rings), before), after) in programs.iter().zip(before).zip(used()) {
        let used = after - before;
        eprintln!("{what}: {name} used {used:?} of CPU time in {took:?}");
        // In proportion, when the machine has kept us from looking in time.
        let bound = (RING_THREAD * *rings + OTHERS).mul_f64((took.as_secs_f64() / TIME.as_secs_f64()).max(1.0));
        assert!(used <= bound, "{what}: {name} used {used:?} of CPU time in {took:?}\n{}", program.log());
    }
}

fn wait() {
    thread::sleep(TIME);
}

#[test]
fn a_silent_connection_costs_nothing() {
    let _guard = laboratory!();
    for (tcpcopy, rings, copies, intercept) in [("", 1, 1, ""), ("-w 2 -n 2", 2, 2, "--ack reflect")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, MirrorOptions::arguments(tcpcopy, intercept)).unwrap();
        let what = |what: &str| format!("{what}, {tcpcopy:?}, {intercept:?}");
        let programs = [("tcpcopy", mirror.tcpcopy(), rings), ("intercept", mirror.intercept(), 1)];
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
    let programs = [("tcpcopy", mirror.tcpcopy(), 1), ("intercept", mirror.intercept(), 1)];
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
    assert_idle("intercept stopped", &[("tcpcopy", mirror.tcpcopy(), 2)], wait);
    mirror.intercept().signal(Signal::CONT).unwrap();

    mirror.intercept.take().unwrap().kill().unwrap();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("broke")).unwrap();
    clients.iter_mut().for_each(ask);
    let late = connect(&lab);
    assert_idle("intercept killed", &[("tcpcopy", mirror.tcpcopy(), 2)], wait);
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
    assert_idle("tcpcopy stopped", &[("intercept", mirror.intercept(), 1)], wait);
    mirror.tcpcopy().signal(Signal::CONT).unwrap();

    mirror.tcpcopy.take().unwrap().kill().unwrap();
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("broke")).unwrap();
    assert_idle("tcpcopy killed", &[("intercept", mirror.intercept(), 1)], wait);
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
    let programs = [("tcpcopy", mirror.tcpcopy(), 1), ("intercept", mirror.intercept(), 1)];
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
