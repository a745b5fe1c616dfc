//! Connections that are joined in the middle, and captures with gaps.

use tcpcopy_common::tcp_flags::ACK;

use super::harness::{Client, Lab, config};
use crate::{config::Config, stats::Reason};

#[test]
fn a_connection_open_before_start_up_joins_where_a_request_begins() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    // The middle of a request, its end (with PSH), and then two whole ones.
    let segment = client.segment(&lab, ACK, b"middle of ");
    lab.live(&segment);
    client.seq = client.seq.wrapping_add(10);
    client.send(&mut lab, 0, b"a request\n");
    lab.run_ms(5);
    assert_eq!((lab.engine.stats().sessions.seen, lab.engine.connections.len()), (0, 1));
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    client.send(&mut lab, 50, b"three\n");
    lab.run_ms(5);
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"two\nthree\n");
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!((stats.joined, stats.sessions.finished, stats.syns.captured), (1, 1, 0));
    assert_eq!((stats.bytes.sent, stats.bytes.discarded.get(Reason::BeforeJoin)), (10, 20));
}

#[test]
fn an_acknowledgement_in_the_middle_of_a_request_is_no_boundary() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.send(&mut lab, 0, b"one\n");
    // The rest of a long answer is acknowledged while the next request is cut in two, without PSH between.
    let segment = client.segment(&lab, ACK, b"tw");
    lab.live(&segment);
    client.seq = client.seq.wrapping_add(2);
    client.send(&mut lab, 50, b"o\n");
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().sessions.seen, 0);
}

#[test]
fn a_connection_not_admitted_at_its_syn_stays_out_and_one_that_was_may_join_again() {
    let mut lab = Lab::with(Config { join_open: false, ..config() });
    let mut late = Client::new(40_000);
    for _ in 0..3 {
        late.send(&mut lab, 50, b"late\n");
    }
    late.fin(&mut lab, 50);
    let stats = lab.engine.stats();
    assert_eq!(
        (stats.bytes.discarded.get(Reason::NotAdmitted), stats.fins.discarded.get(Reason::NotAdmitted)),
        (15, 1)
    );
    lab.assert_done();
    let mut client = Client::new(40_001);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(250_000);
    assert!(lab.only().reset, "idle");
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
}

#[test]
fn complete_only_refuses_what_began_before() {
    let mut lab = Lab::with(Config { complete_only: true, ..config() });
    let mut client = Client::new(40_000);
    for _ in 0..3 {
        client.send(&mut lab, 10, b"one\n");
    }
    client.fin(&mut lab, 10);
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::Incomplete), 12);
    lab.assert_done();
    let mut client = Client::new(40_001);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    assert_eq!(lab.only().received, b"one\n");
}

#[test]
fn a_gap_in_the_capture_resets_the_session_and_joins_again_later() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    // This one is never captured.
    client.seq = client.seq.wrapping_add(100);
    client.send(&mut lab, 50, b"the rest\n");
    lab.run_ms(2900);
    assert!(!lab.only().reset, "a retransmission might still come");
    lab.run_ms(200);
    assert!(lab.only().reset);
    client.send(&mut lab, 50, b"next\n");
    lab.run_ms(5);
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["next\n", "one\n"]);
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::CaptureGap), 1);
    assert_eq!((stats.bytes.discarded.get(Reason::CaptureGap), stats.missing_bytes), (9, 100));
    assert_eq!((stats.sessions.seen, stats.sessions.finished), (2, 1));
}

/// The live server has received what did not fit into our ring: it is not retransmitted.
#[test]
fn a_gap_that_a_full_ring_has_left_is_given_up_at_once() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(1000);
    lab.engine.handle_ring_full(lab.now);
    lab.run_ms(500);
    // More than is ever kept behind a gap.
    client.seq = client.seq.wrapping_add(40 << 20);
    client.send(&mut lab, 50, b"the rest\n");
    lab.run_ms(15);
    assert!(!lab.only().reset, "it may have been overtaken");
    lab.run_ms(10);
    assert!(lab.only().reset);
    client.send(&mut lab, 50, b"is lost\n");
    client.send(&mut lab, 100, b"next\n");
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["next\n", "one\n"]);
    lab.assert_done();
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::CaptureGap), 17);
}

#[test]
fn a_gap_of_another_time_than_the_full_ring_may_still_be_filled() {
    // When the ring was full, before or after the gap, in ms.
    for (full, patient) in [(-1001_i64, true), (-1000, false), (1000, false), (1001, true)] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(2000);
        if full < 0 {
            lab.engine.handle_ring_full(lab.now);
            lab.run_ms(full.unsigned_abs());
        }
        client.seq = client.seq.wrapping_add(10);
        client.send(&mut lab, 50, b"the rest\n");
        if full > 0 {
            lab.run_ms(full.unsigned_abs());
            lab.engine.handle_ring_full(lab.now);
            client.send(&mut lab, 0, b"more\n");
        }
        lab.run_ms(100);
        assert_eq!(!lab.only().reset, patient, "full {full} ms after it");
    }
}

#[test]
fn a_gap_that_a_live_retransmission_fills_costs_nothing() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let mut lost = client;
    client.seq = client.seq.wrapping_add(4);
    client.send(&mut lab, 0, b"two\n");
    lab.run_ms(1000);
    lost.send(&mut lab, 0, b"one\n");
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    lab.assert_nothing_lost();
}

#[test]
fn a_lost_end_of_the_stream_is_a_gap_too() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.seq = client.seq.wrapping_add(100);
    client.fin(&mut lab, 0);
    lab.run_ms(5000);
    lab.assert_done();
    assert!(lab.only().reset && !lab.only().fin_received);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.aborted.get(Reason::CaptureGap), stats.fins.discarded.total()), (1, 1));
}

#[test]
fn a_gap_larger_than_can_be_kept_is_noticed() {
    let mut lab = Lab::with(Config { max_session_memory: 100_000, ..config() });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.seq = client.seq.wrapping_add(1_000_000);
    client.send(&mut lab, 50, b"far\n");
    lab.run_ms(4000);
    assert!(lab.only().reset);
    for line in [b"aaa\n", b"bbb\n"] {
        client.send(&mut lab, 50, line);
        lab.run_ms(5);
    }
    assert_eq!(lab.lines(), ["bbb\n", "one\n"]);
}

#[test]
fn a_session_reset_for_idleness_joins_at_the_next_request() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(250_000);
    assert!(lab.only().reset);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
    lab.run_ms(400_000);
    lab.assert_done();
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 2);
}
