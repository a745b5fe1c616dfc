//! Live segments that are not as usual.

use tcpcopy_common::tcp_flags::{ACK, FIN, RST, SYN};

use super::{
    harness::{Client, Lab, config},
    target::{lines_then_close, silent},
};
use crate::{
    config::Config,
    identity::{AddressPool, Identity, Ports, Slot},
    stats::Reason,
};

#[test]
fn a_syn_may_carry_octets_and_come_twice() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    for _ in 0..2 {
        let syn = client.segment(&lab, SYN, b"one\n");
        lab.live(&syn);
    }
    client.seq = client.seq.wrapping_add(5);
    client.send(&mut lab, 50, b"two\n");
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.live_segments, stats.duplicate_bytes, stats.bytes.captured), (4, 4, 8));
}

#[test]
fn a_syn_with_other_flags_changes_nothing_on_a_known_connection() {
    for flags in [SYN | ACK, SYN | FIN] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(5);
        let odd = client.segment(&lab, flags, b"odd\n");
        lab.live(&odd);
        lab.run_ms(5);
        assert_eq!(lab.only().received, b"one\n", "flags {flags:?}");
        assert_eq!(lab.engine.stats().refused.refused_bytes, 4);
    }
}

#[test]
fn the_end_of_an_unknown_connection_is_counted_and_not_kept() {
    let mut lab = Lab::new();
    Client::new(40_000).fin(&mut lab, 0);
    Client::new(40_001).rst(&mut lab, 0);
    assert_eq!(lab.engine.connections.len(), 0);
    assert_eq!(lab.engine.stats().fins.discarded.get(Reason::BeforeJoin), 1);
}

#[test]
fn a_fin_for_which_there_is_no_room_is_counted() {
    for (flags, fins) in [(ACK | FIN, 1), (ACK, 0)] {
        let mut lab = Lab::with(Config { max_session_memory: 10_000, ..config() });
        lab.target.window = Some(0);
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        lab.run_ms(5);
        let segment = client.segment(&lab, flags, &[1; 20_000]);
        lab.live(&segment);
        let stats = lab.engine.stats();
        assert_eq!(stats.fins.discarded.get(Reason::SessionMemory), fins);
        assert_eq!(stats.bytes.discarded.get(Reason::SessionMemory), 20_000);
    }
}

#[test]
fn what_the_reset_of_an_unknown_connection_carries_is_counted() {
    let mut lab = Lab::new();
    let client = Client::new(40_000);
    let segment = client.segment(&lab, ACK | RST, b"why");
    lab.live(&segment);
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::BeforeJoin), 3);
}

#[test]
fn a_request_that_could_join_but_finds_no_port_is_skipped_whole() {
    let mut pool = AddressPool::default();
    pool.add([10, 9, 0, 1].into(), 1);
    let ports = Ports::Dealt { slot: Slot::new(0, 4096).unwrap(), region: None };
    let mut lab = Lab::with(Config { identity: Identity { addresses: Some(pool), ports }, ..config() });
    lab.target.new_app = Box::new(|_| silent());
    for port in 0..20 {
        Client::new(40_000 + port).syn(&mut lab);
        lab.run_ms(1);
    }
    let refused = lab.engine.stats().syns.discarded.get(Reason::Collision);
    assert!((4..=5).contains(&refused), "15 or 16 ports, {refused} refused");
    let mut late = Client::new(41_000);
    late.send(&mut lab, 50, b"before\n");
    late.send(&mut lab, 50, b"one\n");
    late.send(&mut lab, 50, b"two two\n");
    let discarded = &lab.engine.stats().bytes.discarded;
    assert_eq!((discarded.get(Reason::BeforeJoin), discarded.get(Reason::Collision)), (7, 12));
    // The end of the last one was overtaken by the next, which begins behind what is then there.
    let overtaken = late;
    late.seq = late.seq.wrapping_add(3);
    late.send(&mut lab, 50, b"four\n");
    overtaken.send_as_is(&mut lab, b"wo\n");
    let discarded = &lab.engine.stats().bytes.discarded;
    assert_eq!((discarded.get(Reason::BeforeJoin), discarded.get(Reason::Collision)), (10, 17));
}

#[test]
fn after_a_reset_there_is_no_next_request_to_wait_for() {
    let seconds = std::time::Duration::from_secs;
    let mut lab = Lab::with(Config { session_timeout: seconds(10), keepalive_timeout: Some(seconds(50)), ..config() });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"one\n");
    client.rst(&mut lab, 0);
    lab.run_ms(11_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 1);
}

#[test]
fn what_the_target_says_keeps_a_session_alive() {
    let seconds = std::time::Duration::from_secs;
    let mut lab = Lab::with(Config { session_timeout: seconds(10), keepalive_timeout: Some(seconds(10)), ..config() });
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            Some(_) => vec![super::target::Act::Write(8_000_000_000, 10)],
            None => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(17_000);
    assert_eq!(lab.engine.stats().sessions.active, 1);
    lab.run_ms(2_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 1);
}

#[test]
fn octets_after_a_close_by_the_target_that_begin_no_request_end_the_session() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(10, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(30_000);
    // It has read nothing since: the rest of what it was sending.
    client.send(&mut lab, 0, b"rest\n");
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::TargetClosed), 1);
    assert_eq!(stats.bytes.discarded.get(Reason::TargetClosed), 5);
}
