//! S3: where answers would not be swallowed, nothing is sent, and where nothing is answered, no more is; each with the
//! reason in the log.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    time::Duration,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Shape,
    bad_path::{BadPath, Weather},
    capture::{End, Packet, Sniffer},
    eventually,
    http::Server,
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

const RST: u8 = 0x04;

/// What the log says of a target that is stopped because its programs do not see probes.
const UNSEEN: &str = "intercept does not see what is sent there";

/// A client with one request on a connection of its own.
fn visit(from: &Host, server: SocketAddr) {
    let mut stream = from.run(|| TcpStream::connect_timeout(&server, PATIENCE)).unwrap().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET /size/5?id=1 HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.ends_with(b"xxxxx"), "the live server has not answered");
}

fn rule(source: &Host, target: IpAddr) -> String {
    let family = if target.is_ipv4() { Family::V4 } else { Family::V6 };
    format!("{}-{}", source.socket(family, LIVE_PORT), SocketAddr::new(target, TARGET_PORT))
}

fn service(target: IpAddr) -> String {
    SocketAddr::new(target, TARGET_PORT).to_string()
}

fn said(mirror: &Mirror, target: IpAddr, what: &str) {
    let address = service(target);
    mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains(&address) && line.contains(what)).unwrap();
}

/// What `client` seems to send to the service under test, and what that could answer.
fn answerable(packet: &Packet, client: IpAddr) -> bool {
    packet.source == client && packet.destination_port == TARGET_PORT && packet.flags & RST == 0
}

/// Two targets, one of which has no `intercept`: no SYN of a client goes there.
#[test]
fn a_target_of_another_host_than_that_of_intercept_is_said_and_left_alone() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let other = lab.other("target2");
    let stranger = Server::start(other, TARGET_PORT).unwrap();
    let sniffer = Sniffer::start(other, &lab.client, End::Source).unwrap();
    let targets = Family::BOTH.into_iter().flat_map(|family| [lab.target.address(family), other.address(family)]);
    let rules: Vec<String> = targets.map(|target| rule(&lab.source, target)).collect();
    let mirror =
        Mirror::start(&lab, MirrorOptions { rules: Some(rules.join(",")), ..MirrorOptions::default() }).unwrap();
    for family in Family::BOTH {
        let log = mirror.tcpcopy().log();
        assert!(log.contains(&format!("nothing is replayed to {}: {UNSEEN}", service(other.address(family)))), "{log}");
        for _ in 0..20 {
            visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        }
    }
    assert_eq!(target.wait_for_requests(40, PATIENCE), 40, "the other target has all\n{}", mirror.tcpcopy().log());
    let outcome = mirror.stop().unwrap();
    let seen = sniffer.stop().unwrap();
    assert!(!seen.iter().any(|packet| packet.destination_port == TARGET_PORT), "nothing in a client's name");
    assert_eq!(stranger.count(), 0, "{}", outcome.table);
    assert!(!outcome.logs.contains(&format!("replayed to {}", lab.target.v4)), "{}", outcome.logs);
    let summary = &outcome.tcpcopy;
    assert!(summary.count("stopped_targets", "stopped_now") >= 2, "{}", outcome.table);
    assert!(summary.count("stopped_targets", "probe_unseen") >= 2 && outcome.table.contains("probe unseen"));
    outcome.assert_no_leak();
}

/// Nobody has the address; later the test host gets it.
#[test]
fn a_target_that_nobody_has_is_said_before_ready_and_replayed_to_when_intercept_sees_probes() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let nobody: [IpAddr; 2] = ["10.77.0.99".parse().unwrap(), "fd77::99".parse().unwrap()];
    let rules = nobody.map(|target| rule(&lab.source, target)).join(",");
    let mirror = Mirror::start(&lab, MirrorOptions { rules: Some(rules), ..MirrorOptions::default() }).unwrap();
    let log = mirror.tcpcopy().log();
    for target in nobody {
        assert!(log.contains(&format!("nothing is replayed to {}", service(target))), "{log}");
    }
    lab.target.ip(&["address add 10.77.0.99/24 dev eth0", "address add fd77::99/64 dev eth0 nodad"]).unwrap();
    for (family, address) in Family::BOTH.into_iter().zip(nobody) {
        said(&mirror, address, "is replayed to from now on");
        let before = target.count();
        visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        assert!(target.wait_for_requests(before + 1, PATIENCE) > before, "{}", mirror.tcpcopy().log());
    }
    mirror.stop().unwrap().assert_no_leak();
}

/// The address of `-x` is a load balancer's, behind which the test host is: it passes requests on, on connections of
/// its own.
#[test]
fn a_load_balancer_in_front_of_the_target_is_said_and_gets_nothing_of_a_client() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let balancer = lab.other("target2");
    let behind = lab.target.socket(Family::V4, TARGET_PORT);
    let any = SocketAddr::new("::".parse().unwrap(), TARGET_PORT);
    let front = balancer.run(|| TcpListener::bind(any)).unwrap().unwrap();
    // Not joined: it ends with the test.
    let _passing = balancer
        .spawn("balancer", move || {
            while let Ok((mut client, _)) = front.accept() {
                let mut server = TcpStream::connect(behind)?;
                let mut request = [0; 1024];
                while let Ok(n @ 1..) = client.read(&mut request) {
                    if server.write_all(&request[..n]).is_err() {
                        break;
                    }
                }
            }
            Ok(())
        })
        .unwrap();
    let rules = Family::BOTH.map(|family| rule(&lab.source, balancer.address(family))).join(",");
    let sniffer = Sniffer::start(balancer, &lab.client, End::Source).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions { rules: Some(rules), ..MirrorOptions::default() }).unwrap();
    for family in Family::BOTH {
        said(&mirror, balancer.address(family), UNSEEN);
        for _ in 0..20 {
            visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        }
    }
    let outcome = mirror.stop().unwrap();
    assert!(!sniffer.stop().unwrap().iter().any(|packet| packet.destination_port == TARGET_PORT));
    assert_eq!(target.count(), 0, "{}", outcome.table);
    outcome.assert_no_leak();
}

/// What was sent to the target in a client's name, and could be answered, since the last call.
fn sent(sniffer: &Sniffer, client: IpAddr) -> usize {
    sniffer.take().iter().filter(|packet| answerable(packet, client)).count()
}

/// Visits until the log says `what` of the target of `family`; asserts that nothing of a client goes there afterwards
/// that could be answered, while the service of the other family goes on.
fn stops(lab: &Lab, mirror: &Mirror, target: &Server, family: Family, what: &str) {
    let client = lab.client.address(family);
    let sniffer = Sniffer::start(&lab.target, &lab.client, End::Source).unwrap();
    let (address, live) = (service(lab.target.address(family)), lab.source.socket(family, LIVE_PORT));
    let is_said = || {
        visit(&lab.client, live);
        std::thread::sleep(Duration::from_millis(100));
        mirror.tcpcopy().log().lines().any(|line| line.contains(&address) && line.contains(what))
    };
    assert!(eventually(PATIENCE, is_said), "{}", mirror.tcpcopy().log());
    let arrives = |family| {
        let before = target.count();
        visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        target.wait_for_requests(before + 1, PATIENCE) > before
    };
    let other = if family == Family::V4 { Family::V6 } else { Family::V4 };
    // With this the packets have arrived that were sent before the log said so.
    assert!(arrives(other), "{}", mirror.tcpcopy().log());
    assert!(sent(&sniffer, client) > 0, "there was something to stop");
    for _ in 0..50 {
        visit(&lab.client, live);
    }
    assert!(arrives(other), "{}", mirror.tcpcopy().log());
    assert_eq!(sent(&sniffer, client), 0, "after the fuse had blown\n{}", mirror.tcpcopy().log());
}

/// A new channel brings the target back.
fn goes_on(lab: &Lab, mirror: &mut Mirror, target: &Server, family: Family) {
    mirror.intercept.take().unwrap().stop().unwrap();
    mirror.start_intercept().unwrap();
    let before = target.count();
    let is_back = || {
        visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        std::thread::sleep(Duration::from_millis(100));
        target.count() > before
    };
    assert!(eventually(PATIENCE, is_back), "the replay has not begun again\n{}", mirror.tcpcopy().log());
    said(mirror, lab.target.address(family), "is replayed to from now on");
}

/// With a route to the clients by which their answers do not come to where intercept looks, the target is stopped, with
/// these words and this figure, until intercept is started again.
fn is_left_alone(route: &str, said: &str, figure: &str) {
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for family in Family::BOTH {
        let bits = if family == Family::V4 { 32 } else { 128 };
        let route = route.replace("CLIENT", &format!("{}/{bits}", lab.client.address(family)));
        lab.target.ip(&[format!("route add {route}")]).unwrap();
        stops(&lab, &mirror, &target, family, said);
        lab.target.ip(&[format!("route del {route}")]).unwrap();
        goes_on(&lab, &mut mirror, &target, family);
    }
    let outcome = mirror.stop().unwrap();
    assert!(outcome.tcpcopy.count("stopped_targets", figure) >= 2, "{}", outcome.table);
    assert_eq!(outcome.tcpcopy.get("stopped_targets", "stopped_now"), Some(0), "{}", outcome.table);
    outcome.assert_no_leak();
}

/// The answers have no way back to the clients: SYNs are learned, nothing is swallowed.
#[test]
fn a_target_that_answers_no_syn_is_left_alone_until_intercept_is_started_again() {
    let _guard = laboratory!();
    is_left_alone("blackhole CLIENT", "has seen no answer to any of them", "unanswered");
}

/// The service answers, and its answers leave by the loopback interface, where nobody looks and where they end.
#[test]
fn a_target_whose_answers_are_not_seen_is_left_alone_until_intercept_is_started_again() {
    let _guard = laboratory!();
    is_left_alone("CLIENT dev lo", "intercept has not seen that", "answers_unseen");
}

/// The network lets packets pass only from where they seem to come.
#[test]
fn a_network_that_drops_foreign_source_addresses_is_said() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let own = Family::BOTH.map(|family| lab.source.address(family));
    let _path = BadPath::new(&lab, Weather { only_from: Some(own), ..Weather::default() }).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for family in Family::BOTH {
        visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        said(&mirror, lab.target.address(family), "none of the SYNs");
    }
    let outcome = mirror.stop().unwrap();
    assert!(outcome.tcpcopy.count("stopped_targets", "syns_unseen") >= 2, "{}", outcome.table);
    outcome.assert_no_leak();
}

/// A twentieth of all packets is lost, and each takes a quarter of a second.
#[test]
fn a_long_and_lossy_way_is_not_taken_for_a_broken_one() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let weather = Weather { lose: 50, delay: Duration::from_millis(125), seed: 7, ..Weather::default() };
    let _path = BadPath::new(&lab, weather).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for _ in 0..20 {
        for family in Family::BOTH {
            visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    assert_eq!(target.wait_for_requests(40, PATIENCE), 40, "{}", mirror.tcpcopy().log());
    let outcome = mirror.stop().unwrap();
    // Seven packets of a client in a row would have to be lost; the path loses no more than four of a connection.
    assert!(!outcome.logs.contains("nothing more is replayed"), "{}", outcome.logs);
    outcome.assert_no_leak();
}

/// A service whose queue is full drops SYNs, and is well all the same.
#[test]
fn a_service_that_is_slow_to_accept_is_not_taken_for_a_broken_way() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    lab.target.set_sysctls(&[("core/somaxconn", "2")]).unwrap();
    let any = SocketAddr::new("::".parse().unwrap(), TARGET_PORT);
    let listener = lab.target.run(|| TcpListener::bind(any)).unwrap().unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for _ in 0..10 {
        for family in Family::BOTH {
            visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        }
    }
    // For SYNs to be repeated, and for a wrong conclusion to show: what is late on a loaded machine does no harm.
    std::thread::sleep(Duration::from_secs(8));
    let accepted: Vec<_> = (0..20).map(|_| listener.accept().unwrap()).collect();
    assert_eq!(accepted.len(), 20);
    let outcome = mirror.stop().unwrap();
    assert!(outcome.tcpcopy.count("replay", "timeouts") > 10, "SYNs were repeated\n{}", outcome.table);
    assert!(!outcome.logs.contains("nothing more is replayed"), "{}", outcome.logs);
    assert_eq!(outcome.tcpcopy.get("stopped_targets", "stopped_now"), Some(0), "{}", outcome.table);
    outcome.assert_no_leak();
}

/// Where nothing listens, each SYN is refused, which is an answer.
#[test]
fn a_service_that_is_down_is_not_taken_for_a_broken_way() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    for _ in 0..15 {
        for family in Family::BOTH {
            visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    for family in Family::BOTH {
        let before = target.count();
        visit(&lab.client, lab.source.socket(family, LIVE_PORT));
        assert!(target.wait_for_requests(before + 1, PATIENCE) > before, "{}", mirror.tcpcopy().log());
    }
    let outcome = mirror.stop().unwrap();
    assert_eq!(outcome.tcpcopy.count("aborted", "target_refused"), 30, "{}", outcome.table);
    assert!(!outcome.logs.contains("nothing more is replayed"), "{}", outcome.logs);
    outcome.assert_no_leak();
}
