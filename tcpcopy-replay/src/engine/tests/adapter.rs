//! The seam between what live clients send and what is sent in its place, with an adapter that is not the identity:
//! each target connection begins with a header that no client has sent, and a range of the client's octets is left out.

use std::ops::Range;

use tcpcopy_common::tcp_flags::SYN;

use super::{
    harness::{Client, Lab, MS, Weather, config},
    target::{Act, App, lines_then_close, silent},
};
use crate::{causality::greeting::FirstSpeaker, config::Config, input::adapter::script::Script, stats::Reason};

const HEADER: &[u8] = b"PROXY ";

fn lab(dropped: Range<u64>) -> Lab {
    Lab::with(Config { script: Some(Script { header: HEADER.to_vec(), dropped }), ..config() })
}

fn with_header(octets: &[u8]) -> Vec<u8> {
    [HEADER, octets].concat()
}

/// Captured, sent, left out, acknowledged, still held.
fn ledger(lab: &Lab) -> [u64; 5] {
    let stats = lab.engine.stats();
    let bytes = &stats.bytes;
    [bytes.captured, bytes.sent, bytes.discarded.get(Reason::Filtered), stats.accepted_bytes, bytes.pending]
}

#[test]
fn each_octet_is_sent_in_its_place_or_left_out_and_accounted_for() {
    let mut lab = lab(4..8);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    assert_eq!(ledger(&lab), [4, 4, 0, 4, 0]);
    client.send(&mut lab, 100, b"two\n");
    lab.run_ms(5);
    assert_eq!(ledger(&lab), [8, 4, 0, 4, 4], "nothing to send; what is left out goes with what follows");
    client.send(&mut lab, 100, b"three\n");
    lab.run_ms(5);
    assert_eq!(ledger(&lab), [14, 10, 4, 10, 0]);
    assert_eq!(lab.only_open().received, with_header(b"one\nthree\n"));
    // Each segment lies where the one before it ended.
    let isn = lab.sent[0].seq;
    let packets = lab.sent.iter().filter(|packet| !packet.payload.is_empty());
    let places: Vec<_> = packets.map(|packet| (packet.seq.wrapping_sub(isn), packet.payload.len())).collect();
    assert_eq!(places, [(1, 6), (7, 4), (11, 6)]);
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.finished, stats.fins.sent, stats.retransmitted_segments), (1, 1, 0));
}

#[test]
fn what_is_left_out_at_the_end_goes_with_the_fin() {
    let mut lab = lab(4..100);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 0, b"two\n");
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    assert_eq!((ledger(&lab), &lab.only().received), ([8, 4, 4, 4, 0], &with_header(b"one\n")));
    assert!(lab.only().fin_received);
    lab.assert_done();
    assert_eq!(lab.engine.stats().sessions.finished, 1);
}

#[test]
fn losses_are_made_good_whatever_was_lost() {
    let mut lost = 0;
    for seed in 0..200 {
        let dropped = 100 * seed..100 * seed + 700;
        let mut lab = lab(dropped.clone());
        lab.target.new_app = Box::new(|_| silent());
        // Octets, and from some seeds on so few that the header itself is cut.
        (lab.target.window, lab.target.window_scale) = (Some(if seed % 3 == 0 { 4 } else { 5_000 }), None);
        lab.weather = Weather { lose: 100, duplicate: 50, delay: 50 };
        lab.seed(seed);
        let octets: Vec<u8> = (0..if seed % 3 == 0 { 60 } else { 9_000 }).map(|n| (n % 251) as u8).collect();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        for piece in octets.chunks(1 + seed as usize * 7) {
            client.send(&mut lab, 0, piece);
        }
        client.fin(&mut lab, 0);
        lab.run_ms(600_000);
        let out = |n: &usize| dropped.contains(&(*n as u64));
        let kept: Vec<u8> = (0..octets.len()).filter(|n| !out(n)).map(|n| octets[n]).collect();
        let [captured, sent, left_out, accepted, pending] = ledger(&lab);
        assert_eq!((captured, sent, accepted), (octets.len() as u64, kept.len() as u64, sent), "seed {seed}");
        assert_eq!((left_out, pending), ((octets.len() - kept.len()) as u64, 0), "seed {seed}");
        lost += lab.lost;
        assert_eq!(lab.only().received, with_header(&kept), "seed {seed}");
        lab.assert_done();
    }
    // The seeds are fixed, and so is what they lose.
    assert!(lost > 200, "{lost} packets lost");
}

#[test]
fn each_target_connection_has_a_header_and_each_request_goes_to_one() {
    let mut lab = lab(0..0);
    lab.target.new_app = Box::new(|_| lines_then_close(50, 2));
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
    assert_eq!(received, [with_header(b"0\n1\n"), with_header(b"2\n3\n"), with_header(b"4\n5\n")]);
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.bytes.sent, stats.retransmitted_bytes), (2, 12, 0));
    lab.assert_nothing_lost();
}

/// Answers the first line, but none of those after it: closes instead.
fn one_answer(first: bool) -> App {
    let mut answered = false;
    Box::new(move |input| match input {
        Some((all, seen)) if all[seen..].contains(&b'\n') => {
            if first && std::mem::replace(&mut answered, true) {
                vec![Act::Close(0)]
            } else {
                vec![Act::Write(0, 50)]
            }
        }
        _ => Vec::new(),
    })
}

#[test]
fn a_request_that_is_sent_again_elsewhere_begins_at_its_own_first_octet() {
    let mut lab = lab(0..2);
    lab.target.new_app = Box::new(|n| one_answer(n == 0));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"__one\n");
    lab.run_ms(5);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    // The live server has answered, the target has closed.
    client.send(&mut lab, 50, b"three\n");
    lab.run_ms(1_000);
    assert_eq!(lab.target.past.last().unwrap().1.received, with_header(b"one\ntwo\n"));
    assert_eq!(lab.only_open().received, with_header(b"two\nthree\n"));
    let stats = lab.engine.stats();
    // The header is sent on each connection for the first time.
    assert_eq!((stats.reconnects, stats.retransmitted_bytes), (1, 4));
    assert_eq!(stats.inserted_bytes, 2 * HEADER.len() as u64);
    assert_eq!(ledger(&lab), [16, 14, 2, 14, 0]);
}

/// Greets once it has seen the header; answers each line after that, or closes.
fn greeting_after_header(answers: bool) -> App {
    let mut greeted = false;
    Box::new(move |input| match input {
        Some((all, _)) if all.starts_with(HEADER) && !std::mem::replace(&mut greeted, true) => {
            vec![Act::Write(10 * MS, 30)]
        }
        Some((all, seen)) if all[seen..].ends_with(b"\n") => {
            vec![if answers { Act::Write(0, 50) } else { Act::Close(0) }]
        }
        _ => Vec::new(),
    })
}

#[test]
fn a_header_does_not_wait_for_a_greeting_that_waits_for_it() {
    for early in [false, true] {
        let mut lab = lab(0..0);
        lab.set_first_speaker(FirstSpeaker::Server);
        lab.target.new_app = Box::new(|_| greeting_after_header(true));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        if early {
            client.send(&mut lab, 30, b"helo\n");
        }
        lab.run_ms(5);
        assert_eq!(lab.only().received, HEADER, "at once");
        if !early {
            client.send(&mut lab, 30, b"helo\n");
        }
        lab.run_ms(5);
        assert_eq!(lab.only().received, HEADER, "what the client sends waits for the greeting");
        lab.run_ms(10);
        assert_eq!(lab.only().received, with_header(b"helo\n"));
        assert_eq!(lab.engine.profiles[0].first_speaker, FirstSpeaker::Server);
        assert_eq!(lab.engine.stats().gate_expired, 0);
    }
}

#[test]
fn a_greeting_after_the_header_answers_no_request() {
    let mut lab = lab(0..0);
    lab.set_first_speaker(FirstSpeaker::Server);
    lab.target.new_app = Box::new(|n| greeting_after_header(n > 0));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"one\n");
    lab.run_ms(30);
    // The target has closed without an answer; the live server has given one.
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(100);
    assert_eq!(lab.target.past.last().unwrap().1.received, with_header(b"one\n"));
    assert_eq!(lab.only_open().received, with_header(b"one\ntwo\n"));
    assert_eq!((lab.engine.stats().reconnects, lab.engine.stats().gate_expired), (1, 0));
}

#[test]
fn a_header_alone_is_retransmitted_as_such_and_no_octet_of_the_client_counts() {
    let mut lab = lab(0..0);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_until(lab.now.0 + 60_000);
    lab.weather.lose = 1000;
    lab.run_ms(1);
    lab.weather.lose = 0;
    lab.run_ms(2_000);
    assert_eq!(lab.only().received, HEADER);
    let stats = lab.engine.stats();
    assert_eq!((stats.sent_segments, stats.timeouts), (1, 1));
    assert_eq!((stats.retransmitted_segments, stats.retransmitted_bytes), (1, HEADER.len() as u64));
    assert_eq!(ledger(&lab), [0; 5]);
    assert_eq!(lab.sent.iter().filter(|packet| packet.flags.contains(SYN)).count(), 1);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    assert_eq!(ledger(&lab), [4, 4, 0, 4, 0]);
    assert_eq!(lab.only().received, with_header(b"one\n"));
}
