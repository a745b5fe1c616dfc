//! S3: whatever way replayed packets come by, and answers leave by, no answer leaves for a client.

use std::net::SocketAddr;

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    capture::{End, Sniffer},
    eventually, forge,
    http::{Client, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// Clients of both families with a connection each.
fn connect(lab: &Lab, each: usize) -> Vec<Client> {
    let families = Family::BOTH.into_iter().flat_map(|family| std::iter::repeat_n(family, each));
    families.map(|family| Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap()).collect()
}

fn ask(clients: &mut [Client]) {
    clients.iter_mut().for_each(|client| client.ask().unwrap());
}

/// Packets to the target's addresses come by an interface of which `intercept` was told nothing.
#[test]
fn connections_that_come_by_an_interface_that_was_not_named_are_mirrored() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    lab.add_link(&lab.target, "eth1").unwrap();
    lab.send_by(&lab.source, &lab.target, "eth1").unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients = connect(&lab, 3);
    ask(&mut clients);
    assert_eq!(target.wait_for_requests(6, PATIENCE), 6, "{}", mirror.tcpcopy().log());
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("replayed connections come by eth1")).unwrap();
    let outcome = mirror.stop().unwrap();
    assert_eq!(outcome.intercept.count("sessions", "sessions_learned"), 6, "{}", outcome.table);
    outcome.assert_no_leak();
}

/// Its own clients are answered, though they take the four-tuples of sessions, and come by another interface.
#[test]
fn own_clients_are_answered_by_whatever_interface_they_come() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    lab.add_link(&lab.target, "eth1").unwrap();
    lab.send_by(&lab.client, &lab.target, "eth1").unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut ports = Vec::new();
    for (round, family) in Family::BOTH.into_iter().enumerate() {
        let from = SocketAddr::new(lab.client.address(family), 1000);
        let open = |server| lab.client.run(|| Client::connect_from(from, server)).unwrap();
        let mut live = open(lab.source.socket(family, LIVE_PORT)).unwrap();
        live.ask().unwrap();
        let copies = 2 * round + 1;
        assert_eq!(target.wait_for_requests(copies, PATIENCE), copies, "{}", mirror.tcpcopy().log());
        let mut own = open(lab.target.socket(family, TARGET_PORT)).unwrap();
        own.ask().unwrap_or_else(|e| panic!("{family:?}: {e}\n{}", mirror.intercept().log()));
        ports.push(own.port());
    }
    mirror.stop().unwrap().assert_no_leak_but(&ports);
}

/// A packet that passes a port and its bridge is one packet: what the figures say is what was on the wire.
#[test]
fn a_segment_counts_once_though_it_passes_stacked_interfaces() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    lab.target.ip(&["link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0"]).unwrap();
    let addresses = Family::BOTH.map(|family| (lab.target.address(family), if family == Family::V4 { 24 } else { 64 }));
    let mac = lab.target.output("cat /sys/class/net/eth0/address").unwrap();
    let mut lines = vec![format!("link set br0 address {} up", mac.trim()), "link set eth0 master br0".into()];
    lines.extend(addresses.map(|(address, prefix)| format!("address add {address}/{prefix} dev br0 nodad")));
    lines.insert(0, "address flush dev eth0".into());
    let neighbours = [&lab.client, &lab.source].into_iter().flat_map(|host| {
        let mac = host.output("cat /sys/class/net/eth0/address").unwrap().trim().to_owned();
        Family::BOTH.map(|f| format!("neighbour replace {} dev br0 lladdr {mac} nud permanent", host.address(f)))
    });
    lines.extend(neighbours);
    lab.target.ip(&lines).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients = connect(&lab, 4);
    ask(&mut clients);
    assert_eq!(target.wait_for_requests(8, PATIENCE), 8, "{}", mirror.tcpcopy().log());
    let outcome = mirror.stop().unwrap();
    let [syns, payload] = ["syns", "payload_bytes"].map(|name| outcome.tcpcopy.count("seen_on_the_wire", name));
    // A SYN may be sent again on a busy machine, which is counted at the source.
    let sent = outcome.tcpcopy.count("syns", "sent");
    assert_eq!(syns, sent, "{}", outcome.table);
    assert!(payload > 0, "{}", outcome.table);
    assert!(!outcome.logs.contains("come by eth0"), "eth0 is what `-i` names\n{}", outcome.logs);
    outcome.assert_no_leak();
}

/// The interface of the test host is made anew, as by a driver that is loaded again: connections that are open go on,
/// and new ones are mirrored.
#[test]
fn an_interface_of_the_target_that_is_made_anew_is_hooked_again() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients = connect(&lab, 3);
    ask(&mut clients);
    assert_eq!(target.wait_for_requests(6, PATIENCE), 6, "{}", mirror.tcpcopy().log());
    lab.remake_link(&lab.target).unwrap();
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("on the new interface eth0")).unwrap();
    lab.bring_up(&lab.target).unwrap();
    ask(&mut clients);
    let mut more = connect(&lab, 3);
    ask(&mut more);
    let arrived = target.wait_for_requests(18, PATIENCE);
    assert_eq!(arrived, 18, "{}\n{}", mirror.intercept().log(), mirror.tcpcopy().log());
    mirror.stop().unwrap().assert_no_leak();
}

/// An interface is up, has addresses and is used before `intercept` has hooked it, which is stopped here so that this
/// lasts: what comes by it opens no connection, and what would leave by it stays.
#[test]
fn nothing_passes_an_interface_that_is_not_hooked_yet() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut open = connect(&lab, 2);
    ask(&mut open);
    assert_eq!(target.wait_for_requests(4, PATIENCE), 4, "{}", mirror.tcpcopy().log());
    mirror.intercept().signal(Signal::STOP).unwrap();
    lab.remake_link(&lab.target).unwrap();
    lab.bring_up(&lab.target).unwrap();
    let arriving = Sniffer::start(&lab.target, &lab.client, End::Source).unwrap();
    ask(&mut open);
    let mut more = connect(&lab, 2);
    ask(&mut more);
    // The service has answered connections that are open already.
    assert_eq!(target.wait_for_requests(8, PATIENCE), 8, "{}", mirror.tcpcopy().log());
    let mut syns = 0;
    let has_come = || {
        let packets = arriving.take();
        syns += packets.iter().filter(|p| p.destination_port == TARGET_PORT && p.flags & forge::SYN != 0).count();
        syns >= 2
    };
    assert!(eventually(PATIENCE, has_come), "{}", mirror.tcpcopy().log());
    mirror.intercept().signal(Signal::CONT).unwrap();
    mirror.intercept().wait_log(PATIENCE, |line| line.contains("on the new interface eth0")).unwrap();
    let outcome = mirror.stop().unwrap();
    outcome.assert_no_leak();
    assert!(outcome.intercept.count("refused_syns", "syn_not_hooked") >= 2, "{}", outcome.table);
    assert!(outcome.intercept.count("swallowed", "held_back") >= 4, "{}", outcome.table);
}

/// The same on the production host: what comes by the new interface is captured.
#[test]
fn an_interface_of_the_source_that_is_made_anew_is_captured_on_again() {
    let _guard = laboratory!();
    for hook in ["tc", "xdp-generic"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let options = MirrorOptions { hook: Some(hook), ..MirrorOptions::default() };
        let mirror = Mirror::start(&lab, options).unwrap();
        ask(&mut connect(&lab, 1));
        assert_eq!(target.wait_for_requests(2, PATIENCE), 2, "{}", mirror.tcpcopy().log());
        lab.remake_link(&lab.source).unwrap();
        mirror.tcpcopy().wait_log(PATIENCE, |line| line.contains("capturing on the new eth0")).unwrap();
        lab.bring_up(&lab.source).unwrap();
        let mut clients = connect(&lab, 3);
        ask(&mut clients);
        assert_eq!(target.wait_for_requests(8, PATIENCE), 8, "{hook}\n{}", mirror.tcpcopy().log());
        // Meanwhile the switch sends what is for the source to all: the control channel is no answer.
        mirror.stop().unwrap().assert_no_leak_but(&[]);
    }
}

/// What a route of the test host wraps up is not recognised when it leaves: there is no interception on such a host, and
/// it ends where such a route comes later.
#[test]
fn routes_that_wrap_answers_up_are_refused() {
    let _guard = laboratory!();
    for family in Family::BOTH {
        let lab = Lab::bridge().unwrap();
        let (client, prefix) = (lab.client.address(family), if family == Family::V4 { 32 } else { 128 });
        let segments = format!("encap seg6 mode encap segs {} dev eth0", lab.source.v6);
        let route = format!("route add {client}/{prefix} {segments}");
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
        let mut clients = connect(&lab, 1);
        ask(&mut clients);
        assert_eq!(target.wait_for_requests(2, PATIENCE), 2, "{}", mirror.tcpcopy().log());
        lab.target.ip(&[&route]).unwrap();
        let ended = mirror.intercept.take().unwrap().wait(PATIENCE).unwrap();
        let expected = format!("wrapped up (SRv6 to {client}/{prefix})");
        assert!(!ended.status.success() && ended.stderr.contains(&expected), "{}", ended.stderr);
        // And it does not start again.
        let refused = mirror.start_intercept().unwrap_err();
        assert!(format!("{refused:#}").contains(&expected), "{refused:#}");
        lab.target.ip(&[&route.replace("route add", "route delete")]).unwrap();
        mirror.start_intercept().unwrap();
        mirror.stop().unwrap().assert_no_leak();
    }
}
