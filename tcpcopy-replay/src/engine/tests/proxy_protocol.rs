//! Target connections that begin with the header of the PROXY protocol.

use std::net::IpAddr;

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    tcp_flags::SYN,
};

use super::{
    harness::{Client, Lab, config},
    target::{Act, App, lines, lines_then_close, silent},
};
use crate::{
    causality::greeting::FirstSpeaker,
    config::Config,
    identity::{AddressPool, Identity, Ports},
    input::proxy_protocol::ProxyVersion,
    stats::Stats,
};

/// The header of version 1 of [`Client::new`].
fn header(port: u16) -> Vec<u8> {
    format!("PROXY TCP4 10.1.0.1 10.0.0.2 {port} 80\r\n").into_bytes()
}

fn lab(version: ProxyVersion) -> Lab {
    Lab::with(Config { proxy_protocol: Some(version), ..config() })
}

/// A service that says nothing before it has read this header, and then speaks as another does.
fn behind(header: Vec<u8>, mut app: App) -> App {
    Box::new(move |input| match input {
        None => app(None),
        Some((all, _)) if all.len() <= header.len() => Vec::new(),
        Some((all, seen)) => {
            assert!(all.starts_with(&header), "{}", all.escape_ascii());
            app(Some((&all[header.len()..], seen.saturating_sub(header.len()))))
        }
    })
}

/// Says something first, once it has read this header; answers each line after that.
fn greets_behind(header: Vec<u8>) -> App {
    let mut greeted = false;
    let mut answers = behind(header.clone(), lines(50));
    Box::new(move |input| {
        let whole = input.is_some_and(|(all, _)| all.len() >= header.len());
        let greeting = (whole && !std::mem::replace(&mut greeted, true)).then_some(Act::Write(0, 30));
        greeting.into_iter().chain(answers(input)).collect()
    })
}

/// Inserted; captured, sent, and accepted octets of the clients; retransmitted ones of both.
fn octets(stats: &Stats) -> [u64; 5] {
    let bytes = &stats.bytes;
    [stats.inserted_bytes, bytes.captured, bytes.sent, stats.accepted_bytes, stats.retransmitted_bytes]
}

#[test]
fn the_header_names_the_live_connection_whoever_the_target_sees() {
    let binary = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\x0a\x01\0\x01\x0a\0\0\x02\x9c\x40\0\x50";
    for (version, header) in [(ProxyVersion::V1, header(40_000)), (ProxyVersion::V2, binary.to_vec())] {
        let mut pool = AddressPool::default();
        pool.add("10.9.0.1".parse().unwrap(), 1);
        let identity = Identity { addresses: Some(pool), ports: Ports::Own };
        let mut lab = Lab::with(Config { proxy_protocol: Some(version), identity, ..config() });
        let seen = header.clone();
        lab.target.new_app = Box::new(move |_| behind(seen.clone(), lines(50)));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        lab.run_ms(5);
        assert_eq!(lab.only_open().received, header, "with the handshake, not with the first request");
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(5);
        client.send(&mut lab, 50, b"two\n");
        lab.run_ms(5);
        client.fin(&mut lab, 50);
        lab.run_ms(100);
        assert_eq!(lab.only().received, [&header[..], b"one\ntwo\n"].concat());
        assert_eq!(lab.sent[0].flow.client, IpAddress::from_v4([10, 9, 0, 1]));
        assert_eq!(octets(lab.engine.stats()), [header.len() as u64, 8, 8, 8, 0]);
        assert_eq!((lab.engine.stats().gate_expired, lab.engine.stats().sessions.finished), (0, 1));
        lab.assert_done();
        lab.assert_nothing_lost();
    }
}

#[test]
fn a_loopback_client_is_named_as_what_it_is() {
    let local = IpAddress::from_v4([127, 0, 0, 1]);
    let stand_in: IpAddr = "10.8.0.1".parse().unwrap();
    let mut lab =
        Lab::with(Config { proxy_protocol: Some(ProxyVersion::V1), loopback_client: Some(stand_in), ..config() });
    lab.target.new_app = Box::new(|_| silent());
    let client = Client::new(40_000);
    let mut client = Client { flow: Flow { client: local, server: local, ..client.flow }, ..client };
    client.syn(&mut lab);
    lab.run_ms(5);
    assert_eq!(lab.only_open().received, b"PROXY TCP4 127.0.0.1 127.0.0.1 40000 80\r\n");
    assert_eq!(lab.sent[0].flow.client, stand_in.into());
}

#[test]
fn a_header_that_is_lost_is_sent_again_before_all_that_follows() {
    for early in [false, true] {
        let mut lab = lab(ProxyVersion::V1);
        lab.target.new_app = Box::new(|_| behind(header(40_000), lines(50)));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        // The SYN-ACK has come; what goes after it is lost.
        lab.run_until(lab.now.0 + 60_000);
        lab.weather.lose = 1000;
        if early {
            client.send(&mut lab, 0, b"one\n");
        }
        lab.run_ms(1);
        lab.weather.lose = 0;
        if !early {
            client.send(&mut lab, 0, b"one\n");
        }
        lab.run_ms(2_000);
        assert_eq!(lab.only_open().received, [&header(40_000)[..], b"one\n"].concat(), "{early}");
        let [inserted, captured, sent, accepted, again] = octets(lab.engine.stats());
        assert_eq!((inserted, captured, sent, accepted), (header(40_000).len() as u64, 4, 4, 4));
        assert!(again >= header(40_000).len() as u64, "{again}");
        assert_eq!(lab.engine.stats().gate_expired, 0);
    }
}

#[test]
fn a_window_smaller_than_the_header_cuts_it_and_it_counts_once() {
    for seed in 0..50 {
        let mut lab = lab(ProxyVersion::V1);
        lab.target.new_app = Box::new(|_| behind(header(40_000), lines(50)));
        (lab.target.window, lab.target.window_scale) = (Some(1 + seed as u32 % 7), None);
        (lab.weather.lose, lab.weather.duplicate, lab.weather.delay) = (100, 50, 50);
        lab.seed(seed);
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        client.fin(&mut lab, 50);
        lab.run_ms(600_000);
        assert_eq!(lab.only().received, [&header(40_000)[..], b"one\n"].concat(), "seed {seed}");
        assert_eq!(octets(lab.engine.stats())[..4], [header(40_000).len() as u64, 4, 4, 4], "seed {seed}");
        lab.assert_done();
    }
}

#[test]
fn each_target_connection_of_a_client_begins_with_its_header() {
    let mut lab = lab(ProxyVersion::V1);
    lab.target.new_app = Box::new(|_| behind(header(40_000), lines_then_close(50, 2)));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for n in 0..6 {
        client.send(&mut lab, if n == 0 { 0 } else { 50 }, format!("{n}\n").as_bytes());
        lab.run_ms(5);
    }
    client.fin(&mut lab, 50);
    lab.run_ms(2_000);
    let mut received: Vec<_> = lab.target.past.iter().map(|(_, conn)| conn.received.clone()).collect();
    received.extend(lab.target.conns.values().map(|conn| conn.received.clone()));
    received.sort();
    let with_header = |octets: &[u8]| [&header(40_000)[..], octets].concat();
    assert_eq!(received, [with_header(b"0\n1\n"), with_header(b"2\n3\n"), with_header(b"4\n5\n")]);
    assert_eq!(lab.engine.stats().reconnects, 2);
    assert_eq!(octets(lab.engine.stats()), [3 * header(40_000).len() as u64, 12, 12, 12, 0]);
    lab.assert_nothing_lost();
}

#[test]
fn a_connection_that_is_joined_begins_with_its_header() {
    let mut lab = lab(ProxyVersion::V1);
    lab.target.new_app = Box::new(|_| behind(header(40_000), lines(50)));
    let mut client = Client::new(40_000);
    client.send(&mut lab, 50, b"GET /0 HTTP/1.1\n");
    client.send(&mut lab, 50, b"GET /1 HTTP/1.1\n");
    lab.run_ms(5);
    client.send(&mut lab, 50, b"GET /2 HTTP/1.1\n");
    lab.run_ms(5);
    let expected = [&header(40_000)[..], b"GET /1 HTTP/1.1\nGET /2 HTTP/1.1\n"].concat();
    assert_eq!(lab.only_open().received, expected);
    assert_eq!((lab.engine.stats().joined, octets(lab.engine.stats())[0]), (1, header(40_000).len() as u64));
}

/// The probe for a greeting takes 50 ms; a header that is lost comes 200 ms late.
#[test]
fn a_greeting_is_waited_for_from_when_the_header_has_arrived() {
    let mut lab = lab(ProxyVersion::V1);
    lab.set_first_speaker(FirstSpeaker::Unknown);
    lab.target.new_app = Box::new(|_| greets_behind(header(40_000)));
    let mut client = Client::new(40_000);
    // What the client had read before its first octets is not known.
    client.syn_alone(&mut lab);
    client.send(&mut lab, 30, b"helo\n");
    lab.run_until(lab.now.0 + 60_000);
    assert!(lab.sent.iter().any(|packet| packet.flags.contains(SYN)));
    lab.weather.lose = 1000;
    lab.run_ms(1);
    lab.weather.lose = 0;
    lab.run_ms(150);
    assert_eq!(lab.sent.iter().filter(|packet| packet.payload.ends_with(b"helo\n")).count(), 0, "it waits");
    lab.run_ms(2_000);
    assert_eq!(lab.only_open().received, [&header(40_000)[..], b"helo\n"].concat());
    assert_eq!(lab.engine.profiles[0].first_speaker, FirstSpeaker::Server);
    assert_eq!(lab.engine.stats().gate_expired, 0);
}

/// As when `telnet` is used to look whether a service is there.
#[test]
fn a_client_that_says_nothing_leaves_a_header_and_a_fin() {
    let mut lab = lab(ProxyVersion::V2);
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.fin(&mut lab, 0);
    lab.run_ms(5);
    assert_eq!((lab.only().received.len(), lab.only().fin_received), (28, true));
    assert_eq!(octets(lab.engine.stats()), [28, 0, 0, 0, 0]);
    lab.run_ms(10_000);
    lab.assert_done();
}
