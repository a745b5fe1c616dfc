//! What acknowledgements cost: a segment of their own only when nothing comes to ride on.

use tcpcopy_common::tcp_flags::{ACK, FIN, SYN};

use super::harness::{Client, Lab};

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
    let flags: Vec<u8> = lab.sent[before.1..].iter().map(|packet| packet.flags & (SYN | FIN | ACK)).collect();
    assert_eq!(flags, [SYN, ACK, FIN | ACK]);
}
