//! FINs of either side that are early, late or lost.

use super::{
    harness::{Client, Lab, config},
    target::{Act, lines, lines_then_close, silent},
};
use crate::{causality::greeting::FirstSpeaker, config::Config, stats::Reason};

/// A client whose first line was answered; then the target has closed.
fn closed_by_the_target(mut lab: Lab) -> (Lab, Client) {
    lab.target.new_app = Box::new(|n| if n == 0 { lines_then_close(10, 1) } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    (lab, client)
}

#[test]
fn a_fin_that_was_lost_is_sent_again_whatever_the_target_says_meanwhile() {
    let (mut lab, mut client) = closed_by_the_target(Lab::new());
    lab.weather.lose = 1000;
    client.fin(&mut lab, 10);
    lab.weather.lose = 0;
    let mut all_but_the_fin = lab.bare_ack();
    all_but_the_fin.ack = lab.sent[0].seq.wrapping_add(1 + 4).to_be_bytes();
    lab.report(&all_but_the_fin);
    lab.run_ms(500);
    assert!(lab.only().fin_received);
    lab.assert_nothing_lost();
}

#[test]
fn a_fin_that_does_not_arrive_before_the_target_forgets_ends_the_session() {
    let (mut lab, mut client) = closed_by_the_target(Lab::new());
    lab.weather.lose = 1000;
    client.fin(&mut lab, 10);
    lab.run_ms(21_000);
    lab.assert_done();
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetClosed), 1);
}

#[test]
fn where_rejoining_is_forbidden_an_idle_close_by_the_target_ends_the_session() {
    let (mut lab, _client) = closed_by_the_target(Lab::with(Config { rejoin: false, ..config() }));
    lab.run_ms(21_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetClosed), 1);
}

#[test]
fn a_request_that_is_lost_and_crosses_the_target_s_fin_is_sent_elsewhere_at_once() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines(10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 10, b"two\n");
    lab.act(Act::Close(0));
    assert_eq!(lab.engine.stats().reconnects, 1);
}

#[test]
fn a_pipelined_request_that_crossed_the_target_s_fin_is_counted_when_the_client_goes_on() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| if n == 0 { lines_then_close(10, 1) } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    client.send(&mut lab, 0, b"one\n");
    lab.run_until(lab.now.0 + 40_000);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"two\n");
    lab.weather.lose = 0;
    lab.run_ms(5);
    client.send(&mut lab, 20, b"three\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n", "three\n"]);
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.requests_unanswered, stats.requests_unclear), (1, 1, 0));
}

#[test]
fn a_greeting_that_is_all_the_server_has_to_say_owes_nothing() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            None => vec![Act::Write(0, 30), Act::Close(0)],
            Some(_) => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    // The end of the live handshake, and then that of the connection.
    client.send(&mut lab, 0, b"");
    lab.run_ms(5);
    client.fin(&mut lab, 31);
    lab.run_ms(500);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.requests_unanswered, stats.requests_unclear), (0, 0, 0));
}

#[test]
fn a_target_that_resets_instead_of_greeting_is_not_tried_for_ever() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            None => vec![Act::Reset(0)],
            Some(_) => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"one\n");
    lab.run_ms(5000);
    assert_eq!((lab.target.accepted, lab.engine.stats().sessions.aborted.get(Reason::TargetReset)), (3, 1));
}

/// The first request has gone with the session; the second had not been sent.
#[test]
fn a_request_that_waited_when_the_target_fell_silent_is_sent_by_another_session() {
    let mut lab = Lab::with(Config { gate_limit: std::time::Duration::from_secs(1000), ..config() });
    lab.target.new_app = Box::new(|n| if n == 0 { silent() } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    while lab.engine.stats().sessions.aborted.total() == 0 {
        lab.run_ms(100);
    }
    lab.weather.lose = 0;
    lab.run_ms(5_000);
    assert_eq!(lab.lines(), ["two\n"]);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.aborted.get(Reason::TargetSilent), stats.bytes.discarded.total()), (1, 0));
}
