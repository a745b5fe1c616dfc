//! Causality: what waits for what.

use std::time::Duration;

use tcpcopy_common::tcp_flags::{ACK, PSH};

use super::{
    harness::{Client, Lab, MS, config},
    target::{Act, App, lines, silent},
};
use crate::{causality::greeting::FirstSpeaker, config::Config};

/// Answers each line after a while.
fn slow(ms: u64, answer: u32) -> App {
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        all[seen..].iter().filter(|&&b| b == b'\n').map(|_| Act::Write(ms * MS, answer)).collect()
    })
}

#[test]
fn a_request_waits_until_the_target_has_answered_the_one_before() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slow(40, 10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(1);
    client.send(&mut lab, 20, b"two\n");
    lab.run_ms(30);
    assert_eq!(lab.only().received, b"one\n");
    lab.run_ms(20);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    let stats = lab.engine.stats();
    assert_eq!((stats.gate_wait.count(), stats.gate_late, stats.gate_expired), (1, 1, 0));
    assert!(stats.gate_wait.max() > Duration::from_millis(38), "{:?}", stats.gate_wait.max());
    assert!(stats.gate_wait.max() < Duration::from_millis(42), "{:?}", stats.gate_wait.max());
}

#[test]
fn an_answer_in_pieces_is_waited_for() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            Some((all, 0)) if !all.is_empty() => (0..10).map(|i| Act::Write(i * 400_000, 10)).collect(),
            _ => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(1);
    client.send(&mut lab, 20, b"two\n");
    lab.run_ms(3);
    assert_eq!(lab.only().received, b"one\n", "the pieces come 400 us apart, each with PSH");
    lab.run_ms(2);
    assert_eq!(lab.only().received, b"one\ntwo\n");
}

#[test]
fn a_late_replay_does_not_cut_into_answers_in_pieces_again_and_again() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| {
            let Some((all, seen)) = input else { return Vec::new() };
            let lines = all[seen..].iter().filter(|&&b| b == b'\n');
            lines.flat_map(|_| (0..3).map(|i| Act::Write(i * 100_000, 10))).collect()
        })
    });
    let mut client = Client::new(40_000);
    client.syn_alone(&mut lab);
    for _ in 0..30 {
        client.send(&mut lab, 30, b"next\n");
    }
    lab.run_ms(15);
    // 100 us for the way, 200 us for the pieces, 500 us of quiet: in a hurry it would be 162 us.
    assert!(lab.only().received.len() <= 20 * 5, "{} requests", lab.only().received.len() / 5);
    lab.run_ms(15);
    assert_eq!(lab.only().received.len(), 30 * 5);
}

#[test]
fn pipelined_requests_are_not_held() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slow(40, 10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for _ in 0..5 {
        client.send(&mut lab, 0, b"next\n");
    }
    lab.run_ms(2);
    assert_eq!(lab.only().received.len(), 25);
    assert_eq!(lab.engine.stats().gate_wait.count(), 0);
}

#[test]
fn switched_off_it_holds_nothing() {
    let mut lab = Lab::with(Config { gate: false, ..config() });
    lab.target.new_app = Box::new(|_| slow(40, 10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for _ in 0..5 {
        client.send(&mut lab, 10, b"next\n");
    }
    lab.run_ms(2);
    assert_eq!(lab.only().received.len(), 25);
}

#[test]
fn an_answer_that_never_comes_is_waited_for_three_times() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn_alone(&mut lab);
    for _ in 0..6 {
        client.send(&mut lab, 10, b"next\n");
    }
    let mut received = Vec::new();
    for _ in 0..4 {
        lab.run_ms(1990);
        received.push(lab.only().received.len() / 5);
        lab.run_ms(15);
    }
    assert_eq!(received, [1, 2, 3, 6]);
    let stats = lab.engine.stats();
    assert_eq!((stats.gate_expired, stats.sessions_ungated), (3, 1));
}

#[test]
fn a_fin_waits_for_the_answer_that_the_live_client_had_read() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slow(40, 10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.fin(&mut lab, 20);
    lab.run_ms(30);
    assert!(!lab.only().fin_received);
    lab.run_ms(40);
    assert!(lab.only().fin_received);
    lab.run_ms(100);
    lab.assert_nothing_lost();
}

#[test]
fn a_live_reset_waits_likewise() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slow(40, 10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.rst(&mut lab, 20);
    lab.run_ms(30);
    assert!(!lab.only().reset);
    lab.run_ms(40);
    assert!(lab.only().reset);
    lab.assert_nothing_lost();
}

fn greeting() -> App {
    Box::new(|input| match input {
        None => vec![Act::Write(10 * MS, 30)],
        Some((all, seen)) => all[seen..].iter().filter(|&&b| b == b'\n').map(|_| Act::Write(0, 10)).collect(),
    })
}

#[test]
fn where_the_server_speaks_first_the_client_waits_for_its_greeting() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    lab.target.new_app = Box::new(|_| greeting());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"helo\n");
    lab.run_ms(10);
    assert_eq!(lab.only().received, b"");
    lab.run_ms(5);
    assert_eq!(lab.only().received, b"helo\n");
    assert_eq!(lab.engine.profiles[0].first_speaker, FirstSpeaker::Server);
}

#[test]
fn a_greeting_seen_before_the_client_spoke_is_learned_for_the_next_connection() {
    let mut lab = Lab::new();
    assert_eq!(lab.engine.profiles[0].first_speaker, FirstSpeaker::Client);
    lab.target.new_app = Box::new(|_| greeting());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(15);
    client.send(&mut lab, 30, b"helo\n");
    lab.run_ms(5);
    let mut client = Client::new(40_001);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"helo\n");
    for (ms, spoken) in [(5, 1), (10, 2)] {
        lab.run_ms(ms);
        assert_eq!(lab.target.conns.values().filter(|c| c.received == b"helo\n").count(), spoken);
    }
}

#[test]
fn a_rule_without_greetings_is_not_held_up_for_ever() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    for (port, ms) in [(40_000, 2010), (40_001, 2)] {
        let mut client = Client::new(port);
        client.syn_alone(&mut lab);
        client.send(&mut lab, 30, b"get\n");
        lab.run_ms(ms);
        assert!(lab.target.conns.values().all(|c| c.received == b"get\n"));
    }
}

#[test]
fn where_the_client_speaks_first_only_the_first_connection_waits() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    for (port, ms) in [(40_000, 55), (40_001, 2)] {
        let mut client = Client::new(port);
        client.syn_alone(&mut lab);
        client.send(&mut lab, 30, b"get\n");
        lab.run_ms(ms);
        assert!(lab.target.conns.values().all(|c| c.received == b"get\n"));
    }
    let stats = lab.engine.stats();
    assert_eq!((stats.gate_expired, stats.sessions_ungated), (0, 0));
}

#[test]
fn the_wait_for_a_greeting_that_does_not_come_is_no_lag_for_any_of_those_who_wait() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    for port in 40_000..40_004 {
        let mut client = Client::new(port);
        client.syn_alone(&mut lab);
        client.send(&mut lab, 30, b"get\n");
        // The last ones are let through because the first has shown that there is no greeting.
        lab.run_ms(5);
    }
    lab.run_ms(60);
    assert!(lab.target.conns.values().all(|c| c.received == b"get\n"));
    let stats = lab.engine.stats();
    assert_eq!((stats.lag.count(), stats.gate_wait.count()), (4, 4));
    assert!(stats.lag.max() < Duration::from_millis(2), "{:?}", stats.lag.max());
    assert!(stats.gate_wait.max() >= Duration::from_millis(49), "{:?}", stats.gate_wait.max());
}

#[test]
fn a_captured_handshake_ack_tells_who_speaks_first() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"");
    client.send(&mut lab, 0, b"get\n");
    lab.run_ms(2);
    assert_eq!(lab.only().received, b"get\n");
}

#[test]
fn a_closed_loop_faster_than_the_target_is_not_lost_only_late() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines(10));
    let mut client = Client::new(40_000);
    client.syn_alone(&mut lab);
    for _ in 0..1000 {
        client.send(&mut lab, 10, b"next\n");
        lab.run_until(lab.now.0 + 100_000);
    }
    client.fin(&mut lab, 10);
    lab.run_ms(2000);
    assert_eq!(lab.only().received.len(), 5000);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert!(stats.gate_wait.max() < Duration::from_millis(500), "{:?}", stats.gate_wait.max());
    assert!(stats.gate_late > 900, "{} were late", stats.gate_late);
    assert!(
        stats.lag.max() < Duration::from_millis(1),
        "the loop of this laboratory is never late: {:?}",
        stats.lag.max()
    );
}

#[test]
fn an_answer_is_not_over_before_a_segment_that_is_pushed() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.send(&mut lab, 20, b"two\n");
    let last = lab.sent.iter().rfind(|packet| !packet.payload.is_empty()).unwrap().clone();
    let mut answer: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    answer.flow = last.flow;
    answer.instance = super::target::INSTANCE;
    answer.ack = last.seq.wrapping_add(4).to_be_bytes();
    answer.window = u16::MAX.to_be_bytes();
    answer.payload_len = 10;
    let sent = |lab: &Lab| lab.sent.iter().map(|packet| packet.payload.len()).sum::<usize>();
    // The target has said nothing of that itself, and would complain.
    lab.weather.lose = 1000;
    for (flags, offset, octets) in [(ACK, 0, 4), (ACK | PSH, 10, 8)] {
        answer.flags = flags;
        answer.seq = last.ack.wrapping_add(offset).to_be_bytes();
        lab.hand_over(&answer);
        lab.settle();
        lab.run_ms(10);
        assert_eq!(sent(&lab), octets);
    }
}

#[test]
fn an_answer_that_comes_before_the_request_was_sent_whole_lets_the_next_go() {
    let mut lab = Lab::new();
    (lab.target.window, lab.target.window_scale) = (Some(1000), None);
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            Some((_, 0)) => vec![Act::Write(0, 10)],
            _ => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 3000]);
    client.send(&mut lab, 10, b"next\n");
    lab.run_ms(100);
    assert_eq!(lab.only().received.len(), 3005);
    assert_eq!(lab.engine.stats().gate_expired, 0);
}

#[test]
fn requests_let_through_without_an_answer_are_repeated_together() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| if n == 0 { silent() } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(2500);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    let (flow, isn) = (lab.sent[0].flow, lab.sent[0].seq);
    let work = super::target::Later::Do(flow, isn, Act::Reset(0));
    for response in lab.target.later(lab.now, work).0 {
        lab.hand_over(&response);
    }
    lab.settle();
    lab.run_ms(50);
    assert_eq!(lab.only_open().received, b"one\ntwo\n");
}

#[test]
fn a_greeting_that_is_known_to_come_is_waited_for_like_any_answer() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    lab.target.new_app =
        Box::new(|_| Box::new(|input| if input.is_none() { vec![Act::Write(200 * MS, 30)] } else { Vec::new() }));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"helo\n");
    lab.run_ms(190);
    assert_eq!(lab.only().received, b"");
    lab.run_ms(15);
    assert_eq!(lab.only().received, b"helo\n");
}

#[test]
fn what_comes_after_a_second_is_no_greeting() {
    for (early, word) in [(1, FirstSpeaker::Server), (0, FirstSpeaker::Unknown)] {
        let mut lab = Lab::new();
        lab.set_first_speaker(FirstSpeaker::Unknown);
        lab.target.new_app = Box::new(|_| super::target::silent());
        Client::new(40_000).syn(&mut lab);
        let open = lab.now.0 + 2 * lab.delay;
        lab.run_until(open + 1000 * MS - early);
        let mut complaint = lab.bare_ack();
        complaint.payload_len = 30;
        lab.report(&complaint);
        assert_eq!(lab.engine.profiles[0].first_speaker, word);
    }
}

#[test]
fn a_request_counts_as_late_when_its_answer_was_for_more_than_five_milliseconds() {
    /// A request so long before the quiet behind the answer to the one before is over, which is short because it is
    /// late.
    fn late(ahead: u64, answer_ms: u64) -> u64 {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(move |_| slow(answer_ms, 10));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        lab.run_ms(5);
        client.send(&mut lab, 0, b"one\n");
        // There, then the answer, and back.
        let answered = lab.now.0 + 2 * lab.delay + answer_ms * MS;
        lab.run_until(answered + 500_000 / 8 - ahead);
        client.send(&mut lab, 10, b"two\n");
        lab.run_until(answered);
        assert_eq!(lab.engine.stats().response_bytes, 10);
        lab.run_ms(10);
        assert_eq!(lab.only().received, b"one\ntwo\n");
        lab.engine.stats().gate_late
    }
    assert_eq!((late(5 * MS, 20), late(5 * MS + 1, 20)), (0, 1));
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| super::target::silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(2_100);
    let stats = lab.engine.stats();
    assert_eq!((stats.gate_late, stats.gate_expired), (0, 1), "what nothing was an answer to is not late");
}

#[test]
fn what_the_servers_of_one_rule_are_like_says_nothing_of_another_s() {
    let rules = [config().rules, config().rules].concat();
    let mut lab = Lab::with(Config { rules, ..config() });
    lab.set_first_speaker(FirstSpeaker::Unknown);
    lab.target.new_app = Box::new(|n| if n == 0 { greeting() } else { super::target::silent() });
    for (port, rule) in [(40_000, 1), (40_001, 0), (40_002, 1)] {
        let mut client = Client::new(port);
        client.rule = rule;
        client.syn(&mut lab);
        lab.run_ms(20);
    }
    let words: Vec<_> = lab.engine.profiles.iter().map(|profile| profile.first_speaker).collect();
    assert_eq!(words, [FirstSpeaker::Unknown, FirstSpeaker::Server]);
}
