//! Sessions whose live clients are silent for long.

use super::{
    harness::{self, Client, Lab},
    target::{Act, silent},
};
use crate::{config::Config, input::offset::LiveOffset, stats::Reason};

const HOUR: u64 = 3_600_000;

fn config() -> Config {
    Config { keepalive_timeout: Config::default().keepalive_timeout, ..harness::config() }
}

/// A session that is joined after a long silence would lack what was said before: a login.
#[test]
fn a_silent_client_keeps_the_session_that_it_has_logged_in_on() {
    let mut lab = Lab::with(config());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"login\n");
    lab.run_ms(24 * HOUR);
    client.send(&mut lab, 50, b"query\n");
    lab.run_ms(24 * HOUR);
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"login\nquery\n");
    lab.assert_nothing_lost();
    assert_eq!(lab.engine.stats().joined, 0);
}

/// As in a pool that opens its connections before it needs them.
#[test]
fn so_does_one_that_has_not_said_anything_yet() {
    let mut lab = Lab::with(config());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(HOUR);
    client.send(&mut lab, 0, b"login\n");
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"login\n");
    lab.assert_nothing_lost();
}

#[test]
fn an_idle_session_with_a_limit_is_reset() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(239_000);
    assert!(!lab.only().reset);
    lab.run_ms(2_000);
    assert!(lab.only().reset);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
}

/// `intercept` forgets a session after 130 s without a segment of it if it cannot see the socket.
#[test]
fn an_idle_target_is_asked_every_minute_whether_it_is_still_there() {
    let mut lab = Lab::with(config());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(1_000);
    let before = lab.sent.len();
    lab.run_ms(10 * 60_000);
    let probes = &lab.sent[before..];
    assert!(probes.iter().all(|probe| probe.payload.is_empty()));
    assert_eq!((probes.len() as u64, lab.engine.stats().keepalive_probes), (10, 10));
    assert_eq!(lab.engine.stats().window_probes, 0);
}

#[test]
fn an_idle_session_whose_target_is_gone_ends() {
    let mut lab = Lab::with(config());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(1_000);
    lab.weather.lose = 1000;
    lab.run_ms(300_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetSilent), 1);
}

/// A million of them may hold nothing but themselves.
#[test]
fn an_idle_session_whose_target_never_answered_holds_no_octets() {
    let mut lab = Lab::with(config());
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[b'x'; 50_000]);
    let id = lab.engine.id_of_live(&client.flow).unwrap();
    let held = |lab: &Lab| lab.engine.connections.get(id).unwrap().stream.held_from(LiveOffset::START);
    lab.run_ms(119_000);
    assert_eq!(held(&lab), 50_000, "it might close, and be asked again");
    lab.run_ms(2_000);
    assert_eq!(held(&lab), 0);
    client.send(&mut lab, 0, b"more\n");
    lab.act(Act::Write(0, 10));
    lab.run_ms(5);
    assert_eq!(lab.only().received.len(), 50_005);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    lab.assert_nothing_lost();
}

#[test]
fn what_is_kept_no_longer_is_kept_again_of_the_next_request() {
    let mut lab = Lab::with(config());
    // The first connection answers nothing and closes on the second request; the second connection answers.
    lab.target.new_app = Box::new(|n| match n {
        0 => Box::new(|input| match input {
            Some((octets, _)) if octets.ends_with(b"two\n") => vec![Act::Close(0)],
            Some(_) => vec![Act::Write(200_000_000_000, 10)],
            None => Vec::new(),
        }),
        _ => super::target::lines(100),
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(210_000);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(50);
    client.send(&mut lab, 50, b"three\n");
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["one\n", "three\n", "two\n", "two\n"]);
    lab.assert_nothing_lost();
}

#[test]
fn at_the_limit_the_session_that_was_idle_for_longest_makes_room() {
    let mut lab = Lab::with(Config { max_sessions: 3, ..config() });
    let mut clients = [40_000, 40_001, 40_002].map(Client::new);
    for client in &mut clients {
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(60_000);
    }
    clients[0].send(&mut lab, 50, b"two\n");
    lab.run_ms(5_000);
    // The second is idle for longest now, then the third.
    for (n, gone) in [(1_u16, 1_usize), (2, 2)] {
        let mut new = Client::new(41_000 + n);
        new.syn(&mut lab);
        new.send(&mut lab, 0, b"new\n");
        lab.run_ms(5);
        let reset: Vec<_> = lab.target.past.iter().map(|(flow, _)| flow.client_port).collect();
        assert_eq!(reset.last(), Some(&clients[gone].flow.client_port));
        assert_eq!(reset.len(), usize::from(n));
    }
    // The others were used lately.
    let mut refused = Client::new(41_003);
    refused.syn(&mut lab);
    lab.run_ms(1_500);
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::SessionLimit), 2);
    assert_eq!(stats.syns.discarded.get(Reason::SessionLimit), 1);
    lab.run_ms(20_000);
    Client::new(41_004).syn(&mut lab);
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::SessionLimit), 3);
}

/// Such a connection proves nothing about itself.
#[test]
fn what_has_no_session_makes_room_first_and_what_joins_ends_nobody() {
    let mut lab = Lab::with(Config { max_sessions: 2, ..config() });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(60_000);
    let mut forged = Client::new(40_001);
    forged.send(&mut lab, 0, b"forged\n");
    lab.run_ms(20_000);
    Client::new(40_002).send(&mut lab, 0, b"joins\n");
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::SessionLimit), 6);
    Client::new(40_003).syn(&mut lab);
    lab.run_ms(5);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.aborted.total(), stats.sessions.active), (0, 2));
}

#[test]
fn a_session_with_something_to_send_makes_no_room() {
    let mut lab = Lab::with(Config { max_sessions: 1, ..config() });
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(60_000);
    Client::new(40_001).syn(&mut lab);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.aborted.total(), stats.syns.discarded.get(Reason::SessionLimit)), (0, 1));
}
