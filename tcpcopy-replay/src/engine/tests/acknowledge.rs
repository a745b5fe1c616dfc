//! What acknowledgements cost: a segment of their own only when nothing comes to ride on.

use std::time::Duration;

use tcpcopy_common::{
    response::option,
    tcp_flags::{ACK, FIN, SYN, TcpFlags},
};

use super::{
    harness::{Client, Lab, MS, config},
    target::Act,
};
use crate::{config::Config, tcp::distance::RoundTrip};

/// Answers of a service that is known not to wait for acknowledgements.
fn acquainted() -> Lab {
    let mut lab = Lab::new();
    let mut client = Client::new(39_000);
    client.syn(&mut lab);
    for n in 0..20 {
        client.send(&mut lab, if n == 0 { 0 } else { 100 }, b"hello\n");
        lab.run_ms(5);
    }
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    lab
}

#[test]
fn requests_that_follow_each_other_carry_the_acknowledgements() {
    let mut lab = acquainted();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(20);
    let before = lab.engine.stats().pure_acks;
    for _ in 0..100 {
        client.send(&mut lab, 100, b"x\n");
        lab.run_ms(20);
    }
    let alone = lab.engine.stats().pure_acks - before;
    assert!(alone <= 100 / 16, "{alone}");
    assert_eq!(lab.target.conns.values().map(|c| c.received.len()).sum::<usize>(), 20 * 6 + 101 * 2);
}

#[test]
fn an_answer_that_nothing_follows_is_acknowledged_before_the_target_repeats_it() {
    let mut lab = acquainted();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(5);
    let (alone, heard) = (lab.engine.stats().pure_acks, lab.engine.stats().response_segments);
    lab.run_ms(30);
    assert_eq!(lab.engine.stats().pure_acks, alone);
    lab.run_ms(10);
    assert_eq!(lab.engine.stats().pure_acks, alone + 1);
    lab.run_ms(1_000);
    assert_eq!((lab.engine.stats().pure_acks, lab.engine.stats().response_segments), (alone + 1, heard));
}

#[test]
fn the_end_of_the_handshake_rides_on_the_first_request_and_the_fin_s_acknowledgement_on_ours() {
    let mut lab = acquainted();
    lab.target.new_app = Box::new(|_| super::target::lines_then_close(100, 1));
    let before = (lab.engine.stats().pure_acks, lab.sent.len());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(2);
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    lab.assert_nothing_lost();
    assert_eq!(lab.engine.stats().pure_acks, before.0);
    let flags: Vec<TcpFlags> = lab.sent[before.1..].iter().map(|packet| packet.flags & (SYN | FIN | ACK)).collect();
    assert_eq!(flags, [SYN, ACK, FIN | ACK]);
}

#[test]
fn a_syn_ack_that_comes_again_is_acknowledged_again() {
    let mut lab = acquainted();
    let mut client = Client::new(40_000);
    let before = lab.sent.len();
    client.syn(&mut lab);
    lab.run_ms(5);
    let alone = lab.engine.stats().pure_acks;
    let mut again = lab.bare_ack();
    again.flow = lab.sent[before].flow;
    again.ack = lab.sent[before].seq.wrapping_add(1).to_be_bytes();
    again.seq = lab.sent.last().unwrap().ack.wrapping_sub(1).to_be_bytes();
    again.flags = SYN | ACK;
    lab.report(&again);
    assert_eq!(lab.engine.stats().pure_acks, alone + 1);
}

/// What a rule's servers are known to do with acknowledgements, after a segment without payload.
#[test]
fn only_payload_tells_whether_a_server_waits_for_acknowledgements() {
    for flags in [ACK, ACK | FIN] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"x\n");
        lab.run_ms(5);
        // The answer was acknowledged at once, to see whether more comes.
        assert_eq!(lab.engine.stats().pure_acks, 1);
        let known = lab.engine.profiles[0].nagle;
        let mut bare = lab.bare_ack();
        bare.ack = lab.sent[0].seq.wrapping_add(1 + 2).to_be_bytes();
        bare.flags = flags;
        lab.report(&bare);
        assert_eq!(lab.engine.profiles[0].nagle, known);
    }
}

/// How many segments did nothing but acknowledge, up to each answer of a server that has written all of it, or waits
/// for its beginning to be acknowledged.
fn alone(answers: usize, waits: fn(usize) -> bool) -> Vec<u64> {
    let mut lab = Lab::new();
    let mut lines = 0;
    lab.target.new_app = Box::new(move |_| {
        Box::new(move |input| {
            let Some(_) = input else { return Vec::new() };
            lines += 1;
            let rest = waits(lines).then_some(Act::Write(2 * MS, 50));
            [Act::Write(0, 50)].into_iter().chain(rest).collect()
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let count = |n| {
        client.send(&mut lab, if n == 0 { 0 } else { 50 }, b"x\n");
        lab.run_ms(10);
        lab.engine.stats().pure_acks
    };
    (0..answers).map(count).collect()
}

#[test]
fn two_answers_of_sixteen_that_go_on_are_chance() {
    let alone = alone(40, |n| [3, 7].contains(&n));
    // Of the first answers, all are tried; then one of 32.
    assert_eq!((alone[13], alone[14], alone[39]), (16, 16, 17), "{alone:?}");
}

#[test]
fn a_server_that_no_longer_waits_for_acknowledgements_is_believed_after_a_while() {
    let alone = alone(700, |n| n <= 260);
    assert!(alone[259] >= 260, "{alone:?}");
    assert!(alone[699] - alone[650] <= 2, "{:?}", &alone[600..]);
}

/// A client that acknowledges everything 30 ms after it has come.
fn distant() -> Lab {
    Lab::with(Config { round_trip: RoundTrip::Same(Duration::from_millis(30)), ..config() })
}

#[test]
fn a_distant_client_does_not_acknowledge_acknowledgements() {
    let mut lab = distant();
    lab.target.new_app = Box::new(|_| super::target::silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(100);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(100);
    assert_eq!(lab.engine.stats().pure_acks, 1, "the end of the handshake");
}

#[test]
fn a_distant_client_acknowledges_the_target_s_fin_however_it_ends() {
    for target_first in [false, true] {
        let mut lab = distant();
        lab.target.new_app = Box::new(move |_| super::target::lines_then_close(100, if target_first { 1 } else { 9 }));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"x\n");
        lab.run_ms(200);
        client.fin(&mut lab, 100);
        lab.run_ms(200);
        lab.assert_nothing_lost();
        let fin = lab.sent.iter().position(|packet| packet.flags.contains(FIN)).unwrap();
        let after: Vec<(TcpFlags, u32)> =
            lab.sent[fin + 1..].iter().map(|p| (p.flags, p.ack.wrapping_sub(lab.sent[fin].ack))).collect();
        assert_eq!(after, if target_first { vec![] } else { vec![(ACK, 1)] });
    }
}

#[test]
fn what_the_target_s_intercept_has_acknowledged_is_counted_and_costs_nothing() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    let alone = lab.engine.stats().pure_acks;
    let first = u32::from_be_bytes(lab.bare_ack().seq);
    for n in 0..3 {
        let mut answer = lab.bare_ack();
        answer.seq = first.wrapping_add(5000 * n).to_be_bytes();
        answer.payload_len = 5000;
        answer.options |= option::REFLECTED;
        lab.report(&answer);
    }
    lab.run_ms(100);
    let stats = lab.engine.stats();
    assert_eq!((stats.reflected_segments, stats.response_bytes, stats.pure_acks), (3, 15_000, alone));
}
