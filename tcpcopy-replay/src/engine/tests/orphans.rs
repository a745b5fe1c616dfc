//! What a killed `intercept` has left at the target, and how its successor's instance gets rid of it.

use tcpcopy_common::{
    mark::Epoch,
    response::kind,
    tcp_flags::{RST, SYN, TcpFlags},
};

use super::{
    harness::{Client, Lab, TARGET},
    target::{lines_then_close, silent},
};
use crate::stats::Reason;

/// A client with a connection on which a request was answered.
fn idle(lab: &mut Lab, port: u16) -> Client {
    let mut client = Client::new(port);
    client.syn(lab);
    client.send(lab, 0, b"one\n");
    lab.run_ms(5);
    client
}

/// All old connections were reset, every orphan is accounted for, nothing reached a live client.
fn assert_clean(lab: &Lab, orphans: u64) {
    assert!(lab.leaked.is_empty(), "{:?}", lab.leaked);
    assert!(lab.target.conns.is_empty(), "{} connections are left", lab.target.conns.len());
    assert!(lab.target.past.iter().all(|(_, conn)| conn.reset));
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_settled, stats.orphans_given_up), (orphans, orphans, 0));
}

#[test]
fn an_idle_connection_is_asked_for_and_reset() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    let sent = lab.sent.len();
    lab.restart_intercept(500);
    lab.run_ms(5);
    let flags: Vec<TcpFlags> = lab.sent[sent..].iter().map(|packet| packet.flags).collect();
    assert_eq!(flags, [SYN, RST]);
    assert_clean(&lab, 1);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.aborted.get(Reason::ChannelLost), stats.stale_responses), (1, 0));
}

#[test]
fn the_reset_is_exact_even_if_what_was_sent_last_got_lost() {
    let mut lab = Lab::new();
    let mut client = idle(&mut lab, 40_000);
    lab.weather.lose = 1000;
    client.send(&mut lab, 100, b"two\n");
    lab.run_ms(1);
    lab.weather.lose = 0;
    let sent = lab.sent.len();
    lab.restart_intercept(500);
    lab.run_ms(5);
    assert_eq!(lab.sent.len(), sent + 2);
    assert_clean(&lab, 1);
}

#[test]
fn a_connection_that_the_target_has_forgotten_is_not_opened_again() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    lab.target.conns.clear();
    lab.restart_intercept(500);
    lab.run_ms(5);
    assert_eq!(lab.target.accepted, 2);
    assert!(!lab.only().established);
    assert_clean(&lab, 1);
}

#[test]
fn a_connection_that_the_target_has_half_closed_is_reset() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(100, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(20);
    assert!(lab.only().closed);
    lab.restart_intercept(0);
    lab.run_ms(5);
    assert_clean(&lab, 1);
}

#[test]
fn a_client_that_goes_on_at_once_has_another_port_beside_what_is_left() {
    let mut lab = Lab::new();
    let mut client = idle(&mut lab, 40_000);
    lab.engine.handle_channel_down(lab.now, super::harness::TARGET);
    client.send(&mut lab, 100, b"two\n");
    lab.restart_intercept(500);
    lab.run_ms(2500);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
    assert!(lab.leaked.is_empty());
    let (first, _) = lab.target.syns[0];
    assert!(lab.target.conns.len() == 1 && !lab.target.conns.contains_key(&first));
    assert!(lab.target.past.iter().any(|(flow, conn)| *flow == first && conn.reset));
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_settled, stats.sessions.active, stats.collisions), (1, 1, 1, 0));
}

#[test]
fn a_client_that_goes_on_while_it_is_asked_about_gets_its_four_tuple_back() {
    let mut lab = Lab::new();
    let mut client = idle(&mut lab, 40_000);
    lab.restart_intercept(500);
    // The SYN is on its way.
    client.send(&mut lab, 100, b"two\n");
    lab.run_ms(2500);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
    assert!(lab.leaked.is_empty());
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_settled, stats.sessions.active), (1, 1, 1));
}

#[test]
fn many_are_removed_over_a_lossy_path_and_never_in_a_flood() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    for port in 0..500 {
        Client::new(30_000 + port).syn(&mut lab);
    }
    lab.run_ms(5);
    lab.weather.lose = 100;
    let sent = lab.sent.len();
    lab.restart_intercept(50);
    assert!(lab.sent.len() - sent <= 128, "{} at once", lab.sent.len() - sent);
    lab.run_ms(20_000);
    lab.weather.lose = 0;
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_settled + stats.orphans_given_up), (500, 500));
    assert!(stats.orphans_given_up <= 2, "{}", stats.orphans_given_up);
    // Where a RST was lost, the target's goodbye is swallowed, and answered by another.
    assert!(lab.leaked.is_empty());
}

#[test]
fn a_successor_that_is_killed_as_well_changes_nothing() {
    let mut lab = Lab::new();
    for port in 0..3 {
        idle(&mut lab, 40_000 + port);
    }
    lab.weather.lose = 1000;
    lab.restart_intercept(50);
    lab.run_ms(1500);
    lab.weather.lose = 0;
    lab.restart_intercept(30_000);
    lab.run_ms(5);
    assert_clean(&lab, 3);
}

#[test]
fn a_silent_target_is_not_asked_for_ever() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    lab.weather.lose = 1000;
    let sent = lab.sent.len();
    lab.restart_intercept(50);
    lab.run_ms(60_000);
    assert_eq!(lab.sent.len(), sent + 5);
    let stats = lab.engine.stats();
    assert_eq!((stats.orphans, stats.orphans_given_up), (1, 1));
}

#[test]
fn a_four_tuple_of_another_source_is_left_to_that() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    lab.target.refuse_syns = (1, kind::COLLISION);
    let sent = lab.sent.len();
    lab.restart_intercept(50);
    lab.run_ms(5000);
    assert_eq!(lab.sent.len(), sent + 1);
    assert_eq!(lab.engine.stats().orphans_settled, 1);
}

#[test]
fn a_full_session_map_is_tried_again() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    lab.target.refuse_syns = (1, kind::MAP_FULL);
    lab.restart_intercept(50);
    lab.run_ms(1500);
    assert_clean(&lab, 1);
}

#[test]
fn a_reset_that_could_not_be_sent_is_made_up_for() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    // Idle for too long, while nobody is there.
    lab.restart_intercept(250_000);
    lab.run_ms(5);
    assert_clean(&lab, 1);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 1);
}

/// A mark is good for a few seconds only.
#[test]
fn a_syn_shows_the_newest_epoch_also_when_it_is_sent_again() {
    let mut lab = Lab::new();
    idle(&mut lab, 40_000);
    lab.weather.lose = 1000;
    Client::new(40_001).syn(&mut lab);
    lab.restart_intercept(0);
    lab.run_ms(1);
    lab.weather.lose = 0;
    let epoch = Epoch(lab.target.epoch.0 + 7);
    lab.target.epoch = epoch;
    lab.engine.handle_epoch(TARGET, epoch);
    // The target judges the mark of each SYN: of the session, and of the one that looks for an orphan.
    let before = lab.target.syns.len();
    lab.run_ms(3000);
    assert_eq!(lab.target.syns.len(), before + 2);
}
