//! The log: the programs in the kernel write into the same as those in user space, and nobody can flood it.

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Shape, eventually,
    forge::{Forger, SYN, Segment},
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use socket2::{Domain, Socket, Type};

#[test]
fn a_debug_line_of_each_program_is_seen() {
    let _guard = laboratory!();
    for (hook, attach) in [("tc", "tcx"), ("xdp", "clsact")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let intercept = ["--attach", attach].map(str::to_owned).to_vec();
        let options = MirrorOptions { hook: Some(hook), intercept, log: Some("debug"), ..MirrorOptions::default() };
        let mirror = Mirror::start(&lab, options).unwrap();
        let load = Load::per_request(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(5));
        load.run(&lab.client).unwrap();
        for (program, what) in [
            (mirror.tcpcopy(), "captured the SYN"),
            (mirror.intercept(), "learned the session"),
            (mirror.intercept(), "swallowed the SYN+ACK"),
        ] {
            let is_it = |line: &str| line.contains("DEBUG") && line.contains(what);
            program.wait_log(PATIENCE, is_it).unwrap();
        }
        mirror.stop().unwrap();
    }
}

/// Client addresses that are on the target's link, where nobody holds them.
const CLIENTS: u8 = 200;

fn address(family: Family, number: u8) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::new(10, 77, 0, 20 + number).into(),
        Family::V6 => Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 1, number.into()).into(),
    }
}

/// Adds the addresses to the client, and a way back to them to the source.
fn add_clients(lab: &Lab, family: Family) -> Vec<IpAddr> {
    let addresses: Vec<IpAddr> = (0..CLIENTS).map(|number| address(family, number)).collect();
    let (bits, nodad) = if family == Family::V4 { (32, "") } else { (128, " nodad") };
    let lines = addresses.iter().map(|address| format!("address add {address}/{bits} dev eth0{nodad}"));
    lab.client.ip(&lines.collect::<Vec<_>>()).unwrap();
    let lines = addresses.iter().map(|address| format!("route add {address}/{bits} dev eth1"));
    lab.source.ip(&lines.collect::<Vec<_>>()).unwrap();
    addresses
}

/// The entries of the target's neighbour table.
fn neighbours(lab: &Lab, family: Family, which: &str) -> String {
    let version = if family == Family::V4 { 4 } else { 6 };
    lab.target.output(&format!("ip -{version} neigh show {which}")).unwrap()
}

/// A connection from one of the client's addresses, with a request on it.
fn visit(from: &Host, client: IpAddr, server: SocketAddr) -> Socket {
    from.run(|| {
        let mut socket = Socket::new(Domain::for_address(server), Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::new(client, 0).into()).unwrap();
        socket.connect_timeout(&server.into(), PATIENCE).unwrap();
        socket.write_all(b"GET /?id=1 HTTP/1.1\r\nHost: lab\r\n\r\n").unwrap();
        socket
    })
    .unwrap()
}

/// The number before a text in a line, if the text is in it.
fn number_before(line: &str, text: &str) -> Option<u64> {
    let before = line.split(text).next().filter(|before| before.len() < line.len())?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[test]
fn clients_that_are_absent_at_the_target_leave_ten_lines_and_their_number() {
    // Both ends of a connection of each client.
    let _guard = laboratory!(2 * u64::from(CLIENTS) + 100);
    for family in Family::BOTH {
        let lab = Lab::shaped(Shape::AbsentClient).unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let options = MirrorOptions { interfaces: vec!["eth1"], ..MirrorOptions::default() };
        let mut mirror = Mirror::start(&lab, options).unwrap();
        let server = lab.source.socket(family, LIVE_PORT);
        let addresses = add_clients(&lab, family);
        let began = Instant::now();
        let visits: Vec<Socket> = addresses.iter().map(|&client| visit(&lab.client, client, server)).collect();
        let about = |line: &&str| line.contains("nobody answers for it");
        let lines = |log: &str| log.lines().filter(about).count();
        assert!(eventually(PATIENCE, || lines(&mirror.intercept().log()) >= 10), "{}", mirror.intercept().log());
        // All of them are known to be absent: the kernel has given up on each, and a round of the reaper has passed.
        let unresolved = || neighbours(&lab, family, "nud failed nud incomplete").lines().count();
        assert!(eventually(PATIENCE, || unresolved() >= addresses.len() / 2), "{}", unresolved());
        let told = |log: &str| {
            let counts =
                |text: &'static str| log.lines().filter_map(move |line| number_before(line, text)).sum::<u64>();
            counts(" such lines suppressed") + counts(" further lines about absent clients were suppressed")
        };
        drop(visits);
        mirror.tcpcopy.take().unwrap().stop().unwrap();
        let log = mirror.intercept.take().unwrap().stop().unwrap().stderr;
        let periods = 1 + began.elapsed().as_secs() as usize / 10;
        assert!(lines(&log) <= 10 * periods, "{} lines in {:?}\n{log}", lines(&log), began.elapsed());
        assert!(told(&log) > 0 && told(&log) + lines(&log) as u64 <= addresses.len() as u64, "{log}");
    }
}

#[test]
fn clients_who_are_only_spoofed_fill_neither_the_log_nor_the_neighbour_table_of_the_target() {
    let _guard = laboratory!();
    for family in Family::BOTH {
        let lab = Lab::bridge().unwrap();
        let source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
        let before = neighbours(&lab, family, "");
        let server = lab.source.socket(family, LIVE_PORT);
        let forger = Forger::new(&lab.client, &lab.source).unwrap();
        for i in 0..CLIENTS {
            let client = SocketAddr::new(address(family, i), 999);
            forger.send(&Segment::new(client, server, SYN, u32::from(i), 0)).unwrap();
        }
        // An honest client after them.
        let load = Load::keep_alive(server, 1, Limit::Requests(50));
        load.run(&lab.client).unwrap();
        assert_eq!(target.wait_for_requests(50, PATIENCE), 50);
        assert_eq!(source.count(), 50);
        let is_new = |line: &&str| !before.contains(line.split(' ').next().unwrap_or_default());
        let after = neighbours(&lab, family, "");
        let new: Vec<&str> = after
            .lines()
            .filter(is_new)
            // The client's own, which has asked, and those of links.
            .filter(|line| !line.starts_with(&format!("{} ", lab.client.address(family))) && !line.starts_with("fe80:"))
            .collect();
        assert_eq!(new, Vec::<&str>::new());
        let outcome = mirror.stop().unwrap();
        assert!(!outcome.logs.contains("nobody answers for it"), "{}", outcome.logs);
        outcome.assert_no_leak();
    }
}
