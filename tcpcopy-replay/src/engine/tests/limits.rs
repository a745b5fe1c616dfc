//! Limits, channels, refusals by the target's programs, shutdown.

use std::time::Duration;

use tcpcopy_common::{
    response::kind,
    tcp_flags::{ACK, RST, SYN},
};

use super::{
    harness::{CREDENTIALS, Client, Lab, TARGET, config},
    target::silent,
};
use crate::{
    config::Config,
    identity::{Identity, Ports, Slot},
    stats::Reason,
};

#[test]
fn nothing_is_sent_while_the_channel_is_down() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    lab.engine.handle_channel_down(lab.now, TARGET);
    let sent = lab.sent.len();
    client.send(&mut lab, 50, b"two\n");
    let mut other = Client::new(40_001);
    other.syn(&mut lab);
    other.send(&mut lab, 0, b"other\n");
    lab.run_ms(3000);
    assert_eq!(lab.sent.len(), sent);
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    lab.settle();
    lab.run_ms(5000);
    assert_eq!(lab.lines(), ["one\n", "other\n", "two\n"]);
}

#[test]
fn a_session_waits_only_so_long_for_its_channel() {
    let mut lab = Lab::new();
    lab.engine.handle_channel_down(lab.now, TARGET);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(6000);
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::NoChannel), 1);
    assert_eq!((stats.syns.discarded.total(), stats.bytes.discarded.get(Reason::NoChannel)), (1, 4));
    assert!(lab.sent.is_empty());
}

#[test]
fn a_session_that_waits_for_its_turn_does_not_wait_for_a_channel() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    let end = client.segment(&lab, ACK, &[]);
    lab.hand(&end);
    lab.now = lab.now.after(Duration::from_secs(10));
    lab.engine.handle_timeout(lab.now);
    lab.settle();
    assert_eq!((lab.sent.len(), lab.engine.stats().sessions.active), (1, 1));
}

#[test]
fn a_session_between_two_requests_may_be_idle_for_longer() {
    let seconds = std::time::Duration::from_secs;
    let timeouts = Config { session_timeout: seconds(10), keepalive_timeout: Some(seconds(50)), ..config() };
    let timed_out = |lab: &Lab| lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout);
    let mut lab = Lab::with(timeouts.clone());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(49_000);
    assert_eq!(timed_out(&lab), 0);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(49_000);
    assert_eq!((timed_out(&lab), lab.only().received.as_slice()), (0, &b"one\ntwo\n"[..]));
    lab.run_ms(2_000);
    assert_eq!(timed_out(&lab), 1);

    // No request yet.
    let mut lab = Lab::with(timeouts.clone());
    Client::new(40_001).syn(&mut lab);
    lab.run_ms(9_000);
    assert_eq!(timed_out(&lab), 0);
    lab.run_ms(2_000);
    assert_eq!(timed_out(&lab), 1);

    // Something is still to be sent.
    let mut lab = Lab::with(timeouts);
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    let mut client = Client::new(40_002);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 5000]);
    lab.run_ms(15_000);
    assert_eq!(timed_out(&lab), 1);
}

#[test]
fn a_collision_is_retried_on_another_port() {
    let mut lab = Lab::new();
    lab.target.refuse_syns = (3, kind::COLLISION);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"one\n");
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.collisions, stats.syns.sent), (3, 1));
    let mut ports: Vec<_> = lab.target.syns.iter().map(|(flow, _)| flow.client_port).collect();
    ports.dedup();
    assert_eq!(ports.len(), 4);
}

#[test]
fn collisions_without_end_abort() {
    let mut lab = Lab::new();
    lab.target.refuse_syns = (1000, kind::COLLISION);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(1000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::Collision), 1);
    assert!(lab.target.syns.len() <= 32);
}

#[test]
fn octets_in_a_syn_that_finds_no_free_port_are_counted() {
    // A dozen ports for each client address.
    let ports = Ports::Dealt { slot: Slot::new(0, 4096).unwrap(), region: None };
    let mut lab = Lab::with(Config { identity: Identity { ports, ..Identity::default() }, ..config() });
    for port in 40_000..40_100 {
        let mut client = Client::new(port);
        let segment = client.segment(&lab, SYN, b"early\n");
        lab.live(&segment);
        client.seq = client.seq.wrapping_add(7);
        let answer = client.answer(&lab);
        lab.answer(&answer);
        client.acknowledge(&mut lab);
    }
    let stats = lab.engine.stats();
    assert!(stats.bytes.discarded.get(Reason::Collision) > 0);
    assert_eq!(stats.bytes.captured, 600);
}

#[test]
fn a_full_session_map_is_retried_by_the_timer() {
    let mut lab = Lab::new();
    lab.target.refuse_syns = (1, kind::MAP_FULL);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(500);
    assert_eq!((lab.target.syns.len(), lab.engine.stats().session_map_full), (1, 1));
    lab.run_ms(1000);
    assert_eq!(lab.only().received, b"one\n");
}

#[test]
fn a_reclaimed_four_tuple_is_left_alone() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    let sent = lab.sent.len();
    let mut report: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    report.flow = lab.target.syns[0].0;
    report.instance = CREDENTIALS.instance;
    report.kind = kind::RECLAIMED;
    lab.hand_over(&report);
    lab.settle();
    assert_eq!(lab.sent.len(), sent);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    let ports: Vec<_> = lab.target.syns.iter().map(|(flow, _)| flow.client_port).collect();
    assert!(ports.len() == 2 && ports[0] != ports[1], "the next session takes another port");
}

#[test]
fn icmp_errors_are_counted_and_change_nothing() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    let mut report: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    report.flow = lab.target.syns[0].0;
    report.instance = CREDENTIALS.instance;
    report.kind = kind::ICMP_ERROR;
    lab.hand_over(&report);
    lab.settle();
    assert_eq!((lab.engine.stats().icmp_errors, lab.engine.stats().sessions.active), (1, 1));
}

#[test]
fn a_response_of_no_session_is_reset_and_a_reset_is_not() {
    let mut lab = Lab::new();
    let mut stray: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    stray.flow = Client::new(1).flow;
    stray.instance = CREDENTIALS.instance;
    stray.ack = 77u32.to_be_bytes();
    stray.flags = tcpcopy_common::tcp_flags::ACK;
    lab.hand_over(&stray);
    let reset = lab.engine.poll_transmit(lab.now).unwrap();
    assert_eq!((reset.flags, reset.seq), (RST, 77));
    stray.flags = RST;
    lab.hand_over(&stray);
    assert_eq!(lab.engine.poll_transmit(lab.now), None);
    // Another instance's business.
    stray.flags = tcpcopy_common::tcp_flags::ACK;
    stray.instance = 99;
    lab.hand_over(&stray);
    assert_eq!(lab.engine.poll_transmit(lab.now), None);
    assert_eq!(lab.engine.stats().stale_responses, 3);
}

#[test]
fn one_connection_cannot_hold_more_than_its_share() {
    let mut lab = Lab::with(Config { max_session_memory: 100_000, ..config() });
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    for _ in 0..10 {
        client.send(&mut lab, 0, &[1; 30_000]);
    }
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::SessionMemory), 1);
    assert_eq!(stats.bytes.discarded.get(Reason::SessionMemory), 300_000);
    lab.run_ms(10);
    assert!(lab.only().reset);
}

#[test]
fn all_connections_together_stay_below_the_limit() {
    let mut lab = Lab::with(Config { max_memory: 200_000, ..config() });
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    for port in 0..20 {
        let mut client = Client::new(40_000 + port);
        client.syn(&mut lab);
        lab.run_ms(1);
        client.send(&mut lab, 0, &[1; 30_000]);
    }
    let stats = lab.engine.stats();
    assert!(stats.sessions.aborted.get(Reason::TotalMemory) > 10);
    assert!(stats.bytes.pending > 100_000, "{}", stats.bytes.pending);
}

#[test]
fn more_connections_than_allowed_are_refused() {
    let mut lab = Lab::with(Config { max_sessions: 3, ..config() });
    for port in 0..5 {
        Client::new(40_000 + port).syn(&mut lab);
    }
    let mut old = Client::new(41_000);
    old.send(&mut lab, 0, b"data\n");
    let stats = lab.engine.stats();
    assert_eq!((stats.syns.discarded.get(Reason::SessionLimit), stats.sessions.seen), (2, 3));
    assert_eq!(stats.bytes.discarded.get(Reason::SessionLimit), 5);
}

#[test]
fn a_segment_of_no_rule_or_of_the_other_family_is_refused() {
    let mut lab = Lab::new();
    let client = Client::new(40_000);
    let mut segment = client.segment(&lab, SYN, &[]);
    segment.rule = 9;
    lab.live(&segment);
    let mut client = Client::new(40_000);
    client.flow.client = std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]).into();
    client.syn(&mut lab);
    let discarded = &lab.engine.stats().syns.discarded;
    assert_eq!((discarded.get(Reason::UnknownRule), discarded.get(Reason::AddressFamily)), (1, 1));
    lab.assert_done();
}

#[test]
fn shutdown_resets_every_open_session() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    for port in 0..5 {
        let mut client = Client::new(40_000 + port);
        client.syn(&mut lab);
        lab.run_ms(1);
        client.send(&mut lab, 0, b"one\n");
        client.send(&mut lab, 50, b"gated\n");
    }
    lab.run_ms(5);
    lab.engine.handle_shutdown(lab.now);
    lab.settle();
    lab.run_ms(5);
    lab.assert_done();
    assert!(lab.target.conns.is_empty() && lab.target.past.iter().all(|(_, c)| c.reset));
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::Shutdown), 5);
    assert_eq!((stats.bytes.discarded.get(Reason::Shutdown), stats.resets_sent), (30, 5));
}

/// Nothing may be sent, so there is nothing to look after every round-trip time; afterwards what is unacknowledged is
/// sent again.
#[test]
fn retransmission_rests_while_the_channel_is_down() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(60);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"one\n");
    lab.engine.handle_channel_down(lab.now, TARGET);
    lab.settle();
    let sent = lab.sent.len();
    let mut timers = 0;
    let until = lab.now.after(Duration::from_secs(60));
    while let Some(next) = lab.engine.poll_timeout().filter(|next| *next < until) {
        lab.now = next;
        lab.engine.handle_timeout(next);
        lab.settle();
        timers += 1;
    }
    assert!(timers < 40, "{timers} timers");
    assert_eq!(lab.sent.len(), sent);
    lab.weather.lose = 0;
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    lab.settle();
    lab.run_ms(150);
    assert_eq!(lab.sent.len(), sent, "the report may be under way");
    client.fin(&mut lab, 0);
    lab.run_ms(5_000);
    assert_eq!(lab.lines(), ["one\n"]);
    lab.assert_nothing_lost();
}

#[test]
fn a_session_that_ends_while_the_channel_is_down_says_so_when_it_is_up_again() {
    let mut lab = Lab::new();
    Client::new(40_000).syn(&mut lab);
    lab.run_ms(5);
    lab.engine.handle_channel_down(lab.now, TARGET);
    let sent = lab.sent.len();
    lab.run_ms(130_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 1);
    assert_eq!(lab.sent.len(), sent);
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    lab.settle();
    lab.run_ms(5);
    assert!(lab.only().reset);
    assert_eq!(lab.engine.stats().orphans_settled, 1);
}

#[test]
fn a_reused_port_without_room_for_the_new_connection_does_not_feed_the_old_one() {
    let mut lab = Lab::with(Config { max_sessions: 1, ..config() });
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    let mut again = Client::new(40_000);
    again.seq = client.seq.wrapping_sub(1);
    again.syn(&mut lab);
    again.send(&mut lab, 0, b"two\n");
    lab.run_ms(10);
    assert_eq!(lab.lines(), ["one\n"]);
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::SessionLimit), 4);
}
