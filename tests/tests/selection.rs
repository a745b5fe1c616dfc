//! Which connections are mirrored: a sample of them, a growing sample, or those of some clients; each whole or not at
//! all.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    time::Duration,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE,
    chance::binomial,
    eventually,
    http::{Client, Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// Requests on one connection.
const REQUESTS: u64 = 3;

/// A live connection, whose requests can be told from those of others at the target.
struct Connection {
    number: u64,
    asked: u64,
    client: Client,
}

impl Connection {
    fn open(number: u64, lab: &Lab, family: Family) -> Self {
        let client = Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap();
        Self { number, asked: 0, client }
    }

    /// Asks and reads the answer.
    fn ask(&mut self) {
        self.client.request(self.number * REQUESTS + self.asked).unwrap();
        self.asked += 1;
    }

    /// Asks all that is left.
    fn finish(mut self) {
        while self.asked < REQUESTS {
            self.ask();
        }
    }
}

/// By the number of the connection: how many of its requests have arrived.
fn mirrored(target: &Server) -> BTreeMap<u64, u64> {
    let mut requests = BTreeMap::new();
    target.arrivals().iter().for_each(|arrival| *requests.entry(arrival.id / REQUESTS).or_default() += 1);
    requests
}

/// Waits until each mirrored connection is whole, and returns their numbers.
fn whole(target: &Server) -> BTreeSet<u64> {
    let is_whole = || mirrored(target).values().all(|&requests| requests == REQUESTS);
    assert!(eventually(PATIENCE, is_whole), "not whole: {:?}", mirrored(target));
    mirrored(target).into_keys().collect()
}

fn mirror(lab: &Lab, arguments: &str) -> Mirror {
    Mirror::start(lab, MirrorOptions::arguments(arguments, "")).unwrap()
}

#[test]
fn a_sample_has_the_wanted_size_and_its_connections_are_whole() {
    let _guard = laboratory!();
    const CONNECTIONS: u64 = 400;
    for hook in ["tc", "xdp"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = mirror(&lab, &format!("-r 30 --hook {hook}"));
        let ask = |numbers: std::ops::Range<u64>| {
            for number in numbers {
                Connection::open(number, &lab, Family::BOTH[(number % 2) as usize]).finish();
            }
        };
        // The first connections of each IP version wait for a greeting, and would be overtaken by those that follow.
        // That of 200 of a version none is in the sample happens once in 10^30 runs.
        let mut number = CONNECTIONS;
        let mut ask_until = |done: &dyn Fn(&BTreeMap<u64, u64>) -> bool| {
            let limit = number + 400;
            while !done(&mirrored(&target)) {
                assert!(number < limit, "of 400 connections not enough are mirrored: {:?}", mirrored(&target));
                ask(number..number + 1);
                number += 1;
            }
            number
        };
        let greeted = ask_until(&|mirrored| [0, 1].iter().all(|family| mirrored.keys().any(|n| n % 2 == *family)));
        ask(0..CONNECTIONS);
        // The worker takes segments in their order, so when one of these has come, none of those above is still to be
        // captured.
        let asked = ask_until(&|mirrored| mirrored.keys().any(|&n| n >= greeted));
        let mirrored = whole(&target);
        let outcome = mirror.stop().unwrap();
        let sample = mirrored.iter().filter(|&&number| number < CONNECTIONS).count();
        let expected = binomial(CONNECTIONS, 0.3);
        assert!(
            expected.contains(&(sample as u64)),
            "--hook {hook}: {sample} of {CONNECTIONS} are mirrored, not {expected:?}\n{}",
            outcome.table
        );
        assert_eq!(outcome.tcpcopy.count("sessions", "seen"), mirrored.len() as u64, "{}", outcome.table);
        assert_eq!(
            outcome.tcpcopy.count("bytes", "discarded"),
            0,
            "what is not in the sample is no loss\n{}",
            outcome.table
        );
        // At least SYN, ACK, requests and FIN of each.
        let left_out = asked - mirrored.len() as u64;
        assert!(outcome.tcpcopy.count("not_selected", "not_sampled") >= left_out * (3 + REQUESTS), "{}", outcome.table);
        outcome.assert_no_leak();
    }
}

#[test]
fn a_ramp_admits_more_and_more_connections_but_none_half_way() {
    let _guard = laboratory!(2_200);
    const EARLY: u64 = 600;
    const LATE: u64 = 20;
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let open = |number| {
        let mut connection = Connection::open(number, &lab, Family::V4);
        connection.ask();
        connection
    };
    // Open before there is a tcpcopy: it stays out.
    let before = open(0);
    let mirror = mirror(&lab, "-g 4");
    // In three quarters of the ramp, a connection every 5 ms. The sleep only sets the pace.
    let pace = Duration::from_millis(5);
    let mut early: Vec<_> = (1..=EARLY).map(|number| (open(number), std::thread::sleep(pace)).0).collect();
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("the ramp is over")).unwrap();
    // Now all of them would be admitted; those that were not do not get in.
    early.push(before);
    early.into_iter().for_each(Connection::finish);
    (1000..1000 + LATE).for_each(|number| open(number).finish());
    let all_late = || mirrored(&target).range(1000..).count() as u64 == LATE;
    assert!(eventually(PATIENCE, all_late), "after the ramp all connections are mirrored: {:?}", mirrored(&target));
    let mirrored = whole(&target);
    let outcome = mirror.stop().unwrap();
    assert!(!mirrored.contains(&0), "one that was open before was joined\n{}", outcome.table);
    // In the first second the share grows to a quarter, in the third from a half to three quarters. So of the first 200
    // connections 25 are expected and of the last 125, with a standard deviation of 8 of their difference: that it is
    // none is once in 10^30 runs. On a slower machine the ramp is further with each connection: at half the pace it is
    // 50 and 200, at a tenth 160 and 200, which is still ten standard deviations.
    let admitted = |numbers| mirrored.range::<u64, std::ops::Range<u64>>(numbers).count();
    let (first, last) = (admitted(1..EARLY / 3 + 1), admitted(2 * EARLY / 3 + 1..EARLY + 1));
    assert!(0 < first && first < last, "of the first third {first}, of the last {last}\n{}", outcome.table);
    // Each that stayed out has sent two requests after the ramp.
    assert!(outcome.tcpcopy.count("discarded", "not_admitted") > 0, "{}", outcome.table);
    outcome.assert_no_leak();
}

fn ask_from(lab: &Lab, client: &str) -> BTreeSet<u64> {
    let client: SocketAddr = client.parse().unwrap();
    let family = if client.is_ipv4() { Family::V4 } else { Family::V6 };
    let load = Load::per_request(lab.source.socket(family, LIVE_PORT), 2, Limit::Requests(20));
    let report = Load { bind: Some(client), ..load }.run(&lab.client).unwrap();
    assert_eq!(report.failed, Vec::<String>::new());
    report.answered.into_iter().collect()
}

fn add_address(host: &Host, address: &str) {
    host.ip(&[format!("address add {address} dev {}", host.interface)]).unwrap();
}

#[test]
fn only_the_clients_asked_for_are_mirrored() {
    let _guard = laboratory!();
    for hook in ["tc", "xdp"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        add_address(&lab.client, "10.77.0.101/24");
        add_address(&lab.client, "fd77::101/64");
        let arguments = format!("--clients 10.77.0.0/24,fd77::1 --exclude 10.77.0.96/28 --hook {hook}");
        let mirror = mirror(&lab, &arguments);
        // First those that must not arrive, so that they would be there when the others are.
        let unwanted = &ask_from(&lab, "10.77.0.101:0") | &ask_from(&lab, "[fd77::101]:0");
        let wanted = &ask_from(&lab, "10.77.0.1:0") | &ask_from(&lab, "[fd77::1]:0");
        target.wait_for_requests(wanted.len(), PATIENCE);
        let outcome = mirror.stop().unwrap();
        let arrived: BTreeSet<u64> = target.arrivals().iter().map(|arrival| arrival.id).collect();
        assert_eq!(arrived.intersection(&unwanted).count(), 0, "--hook {hook}\n{}", outcome.table);
        assert_eq!(arrived, wanted, "--hook {hook}\n{}", outcome.table);
        assert!(outcome.tcpcopy.count("not_selected", "filtered") >= unwanted.len() as u64 * 5, "{}", outcome.table);
        assert_eq!(outcome.tcpcopy.count("bytes", "discarded"), 0, "who is not wanted is no loss\n{}", outcome.table);
        outcome.assert_no_leak();
    }
}
