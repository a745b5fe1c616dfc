//! The target ends first.

use tcpcopy_common::tcp_flags::SYN;

use super::{
    harness::{Client, Lab, MS, config},
    target::{Act, App, lines, lines_then_close, silent},
};
use crate::{config::Config, stats::Reason};

#[test]
fn a_target_with_a_keep_alive_limit_gets_every_request_once() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(50, 5));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let mut expected = Vec::new();
    for n in 0..23 {
        client.send(&mut lab, 10, format!("{n:02}\n").as_bytes());
        expected.push(format!("{n:02}\n"));
        lab.run_ms(if n % 2 == 0 { 0 } else { 3 });
    }
    client.fin(&mut lab, 10);
    lab.run_ms(2000);
    assert_eq!(lab.lines(), expected);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.seen, stats.reconnects, stats.bytes.sent), (1, 4, 69));
}

/// Answers so many lines, and closes this many nanoseconds after the last: long enough for the next line to be taken by
/// the target's kernel, which acknowledges it in the FIN.
fn close_late(most: usize, after: u64) -> App {
    let mut lines = 0;
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let mut acts = Vec::new();
        for _ in all[seen..].iter().filter(|&&b| b == b'\n') {
            lines += 1;
            if lines <= most {
                acts.push(Act::Write(0, 10));
            }
            if lines == most {
                acts.push(Act::Close(after));
            }
        }
        acts
    })
}

#[test]
fn a_request_that_crossed_the_target_s_fin_is_sent_again_elsewhere() {
    let mut lab = Lab::new();
    // Closes long enough after its second answer for the third request to be under way.
    lab.target.new_app = Box::new(|n| close_late(if n == 0 { 2 } else { 99 }, 630_000));
    let mut client = Client::new(40_000);
    client.syn_alone(&mut lab);
    for n in 0..4 {
        client.send(&mut lab, 10, format!("{n}\n").as_bytes());
    }
    client.fin(&mut lab, 10);
    lab.run_ms(2000);
    let mut lines = lab.lines();
    lines.dedup();
    assert_eq!(lines, ["0\n", "1\n", "2\n", "3\n"]);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.bytes.sent, stats.retransmitted_bytes), (1, 8, 2));
}

#[test]
fn a_request_that_the_target_acknowledged_and_closed_upon_is_sent_again_elsewhere() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| close_late(if n == 0 { 2 } else { 99 }, 700_000));
    let mut client = Client::new(40_000);
    client.syn_alone(&mut lab);
    for n in 0..4 {
        client.send(&mut lab, 10, format!("{n}\n").as_bytes());
    }
    client.fin(&mut lab, 10);
    lab.run_ms(2000);
    assert_eq!(lab.target.past[0].1.received, b"0\n1\n2\n", "the third request arrived before the target closed");
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"2\n3\n");
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.retransmitted_bytes, stats.requests_unanswered), (1, 2, 0));
}

/// The live client goes on in time, after a rest, or ends: it has read an answer that the target owes.
#[test]
fn the_last_request_before_a_close_is_sent_again_when_the_live_client_has_read_its_answer() {
    for (pause, ends) in [(0, true), (3, true), (3, false), (30_000, true), (30_000, false)] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(|n| close_late(if n == 0 { 1 } else { 99 }, 700_000));
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        client.send(&mut lab, 10, b"two\n");
        lab.run_ms(pause);
        if !ends {
            client.send(&mut lab, 10, b"three\n");
            lab.run_ms(10);
        }
        client.fin(&mut lab, 10);
        lab.run_ms(2000);
        assert_eq!(lab.target.past[0].1.received, b"one\ntwo\n");
        let after: &[u8] = if ends { b"two\n" } else { b"two\nthree\n" };
        assert_eq!(lab.target.conns.values().next().unwrap().received, after, "after {pause} ms");
        lab.assert_nothing_lost();
        let stats = lab.engine.stats();
        assert_eq!((stats.reconnects, stats.requests_unanswered), (1, 0));
    }
}

#[test]
fn a_request_that_is_answered_by_the_close_is_not_sent_again() {
    for pause in [0, 3, 30_000] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(|_| {
            Box::new(|input| match input {
                Some((b"quit\n", 0)) => vec![Act::Close(0)],
                _ => Vec::new(),
            })
        });
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"quit\n");
        lab.run_ms(pause);
        // It has read nothing but the live server's FIN.
        client.fin(&mut lab, 1);
        lab.run_ms(2500);
        assert_eq!(lab.lines(), ["quit\n"], "after {pause} ms");
        lab.assert_done();
        let stats = lab.engine.stats();
        assert_eq!((stats.reconnects, stats.requests_unanswered, stats.sessions.finished), (0, 0, 1));
    }
}

#[test]
fn an_unanswered_request_that_cannot_be_sent_again_is_counted() {
    let mut lab = Lab::new();
    // More than is kept of what the target has acknowledged.
    let long = [vec![b'x'; 300 << 10], b"\n".to_vec()].concat();
    let whole = long.len();
    lab.target.new_app = Box::new(move |n| match n {
        0 => Box::new(move |input| match input {
            Some((all, seen)) if all.len() == whole && seen < whole => vec![Act::Close(100_000)],
            _ => Vec::new(),
        }),
        _ => lines(10),
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &long);
    lab.run_ms(50);
    client.send(&mut lab, 10, b"next\n");
    lab.run_ms(5);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"next\n");
    lab.assert_nothing_lost();
    assert_eq!(lab.engine.stats().requests_unanswered, 1);
}

#[test]
fn an_idle_close_by_the_target_is_answered_before_the_target_forgets() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(10, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(30_000);
    assert!(lab.only().reset, "no half-open connection is left at the target");
    assert_eq!(lab.engine.stats().sessions.active, 1);
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(10);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
    lab.assert_nothing_lost();
}

#[test]
fn a_live_close_after_the_target_has_gone_ends_the_session() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(10, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(30_000);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.finished, stats.fins.discarded.get(Reason::TargetClosed)), (1, 1));
}

/// Resets when the n-th line has come, before answering it.
fn reset_at(n: usize) -> App {
    let mut lines = 0;
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let mut acts = Vec::new();
        for _ in all[seen..].iter().filter(|&&b| b == b'\n') {
            lines += 1;
            acts.push(if lines == n { Act::Reset(0) } else { Act::Write(0, 10) });
        }
        acts
    })
}

#[test]
fn a_reset_without_an_answer_repeats_the_request_on_another_connection() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| if n == 0 { reset_at(2) } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(5);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.target.past[0].1.received, b"one\ntwo\n");
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"two\n", "not what was answered before");
    lab.assert_nothing_lost();
}

#[test]
fn a_target_that_always_resets_is_not_tried_for_ever() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| reset_at(1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5000);
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.sessions.aborted.get(Reason::TargetReset)), (2, 1));
    assert_eq!(lab.sent.iter().filter(|p| p.flags.contains(SYN)).count(), 3);
}

#[test]
fn where_rejoining_is_forbidden_a_reset_ends_the_session() {
    let mut lab = Lab::with(Config { rejoin: false, ..config() });
    lab.target.new_app = Box::new(|_| reset_at(1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.send(&mut lab, 10, b"two\n");
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::TargetReset), 1);
    assert_eq!((stats.bytes.sent, stats.bytes.discarded.get(Reason::TargetReset)), (4, 4));
    assert_eq!(stats.fins.discarded.get(Reason::TargetReset), 1);
}

#[test]
fn a_refused_connection_is_aborted_and_tried_again_at_the_next_request() {
    let mut lab = Lab::new();
    lab.target.listening = false;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetRefused), 1);
    assert_eq!(lab.engine.stats().bytes.discarded.get(Reason::TargetRefused), 4);
    lab.target.listening = true;
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(5);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["two\n"]);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.seen, stats.sessions.finished, stats.joined), (2, 1, 1));
    lab.assert_done();
}

#[test]
fn a_request_that_was_joined_and_refused_is_not_sent_to_be_refused_for_ever() {
    let mut lab = Lab::new();
    lab.target.listening = false;
    let mut client = Client::new(40_000);
    for line in [b"one\n", b"two\n", b"six\n"] {
        client.send(&mut lab, 10, line);
        lab.run_ms(5);
    }
    let stats = lab.engine.stats();
    assert_eq!((stats.joined, stats.sessions.aborted.get(Reason::TargetRefused)), (2, 2));
    assert_eq!(stats.bytes.discarded.get(Reason::TargetRefused), 8);
    lab.target.listening = true;
    client.send(&mut lab, 10, b"ten\n");
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["ten\n"]);
    lab.assert_done();
}

#[test]
fn a_request_that_was_joined_and_never_answered_ends_with_its_session() {
    let mut lab = Lab::new();
    lab.weather.lose = 1000;
    let mut client = Client::new(40_000);
    client.send(&mut lab, 10, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    // Nor what waits behind it: each would be held for as long again.
    client.send(&mut lab, 10, b"six\n");
    client.fin(&mut lab, 10);
    lab.run_ms(600_000);
    lab.assert_done();
    assert_eq!((lab.engine.stats().joined, lab.engine.stats().bytes.discarded.total()), (1, 12));
}

#[test]
fn a_half_open_connection_at_the_target_is_reset_and_replaced() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"old\n");
    lab.run_ms(5);
    // Everything on our side is forgotten, and our RST is lost.
    lab.weather.lose = 1000;
    lab.engine.handle_shutdown(lab.now);
    lab.settle();
    lab.weather.lose = 0;
    lab.run_ms(2000);
    let mut client = Client::new(40_000);
    client.seq = 9_000_000;
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"new\n");
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["new\n", "old\n"]);
    assert!(lab.now.0 < 4000 * MS);
}

#[test]
fn a_live_reset_in_the_middle_of_a_request_resets_the_target_too() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"half a requ");
    client.rst(&mut lab, 0);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"half a requ");
    assert!(lab.only().reset);
    lab.assert_nothing_lost();
}

#[test]
fn a_reset_of_the_target_with_an_old_sequence_number_is_ignored() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    let last = lab.sent.last().unwrap().clone();
    let mut rst: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    rst.flow = last.flow;
    rst.flags = tcpcopy_common::tcp_flags::RST | tcpcopy_common::tcp_flags::ACK;
    rst.seq = last.ack.to_be_bytes();
    rst.ack = last.seq.wrapping_add(1).to_be_bytes();
    rst.instance = super::target::INSTANCE;
    lab.hand_over(&rst);
    lab.settle();
    assert_eq!((lab.engine.stats().stale_responses, lab.engine.stats().sessions.active), (1, 1));
}

#[test]
fn what_was_answered_in_part_is_not_sent_twice() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines_then_close(10, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    // Pipelined, and under way when the target closes: nobody knows where the second request begins.
    lab.run_until(lab.now.0 + 170_000);
    client.send(&mut lab, 0, b"two\n");
    lab.run_ms(5);
    client.send(&mut lab, 10, b"three\n");
    client.fin(&mut lab, 10);
    lab.run_ms(2500);
    assert_eq!(lab.lines().iter().filter(|l| *l == "one\n").count(), 1);
    assert_eq!(lab.lines().iter().filter(|l| *l == "three\n").count(), 1);
    lab.assert_done();
}

#[test]
fn the_rest_of_a_request_does_not_go_to_another_connection() {
    let mut lab = Lab::new();
    lab.target.window = Some(2 * 988);
    lab.target.window_scale = None;
    // Refuses a long request early, as a web server does with a body that is too large.
    lab.target.new_app = Box::new(|n| match n {
        0 => Box::new(|input| match input {
            Some((_, 0)) => vec![Act::Write(0, 10), Act::Reset(50_000)],
            _ => Vec::new(),
        }),
        _ => lines(10),
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for _ in 0..50 {
        // As long as a segment to the target, so that what is not sent begins with a captured segment.
        client.send(&mut lab, 0, &[b'x'; 988]);
    }
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetReset), 1);
    client.send(&mut lab, 10, b"next\n");
    lab.run_ms(5);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"next\n");
    lab.assert_done();
}

#[test]
fn a_late_syn_does_not_leave_a_connection_at_the_target() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| reset_at(2));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let syn = lab.sent[0].clone();
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    // The target resets on its own; nothing is owed, so the session rests.
    let flow = syn.flow;
    let work = super::target::Later::Do(flow, syn.seq, Act::Reset(0));
    for response in lab.target.later(lab.now, work).0 {
        lab.hand_over(&response);
    }
    let late = lab.target.handle(lab.now, syn).0;
    for response in late {
        lab.hand_over(&response);
    }
    lab.settle();
    lab.run_ms(5);
    assert!(lab.engine.stats().stale_responses > 0);
    assert!(lab.target.conns.is_empty());
    assert_eq!(lab.engine.stats().sessions.active, 1);
}

#[test]
fn late_reports_of_an_earlier_connection_cost_no_syn_retries() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    // Nothing reaches the target for a while, but what it said on the connection before goes on coming.
    lab.weather.lose = 1000;
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"new\n");
    let syn = lab.sent[0].clone();
    for n in 0..200u32 {
        let mut late: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
        late.flow = syn.flow;
        late.flags = tcpcopy_common::tcp_flags::ACK;
        late.ack = syn.seq.wrapping_sub(1000 - n).to_be_bytes();
        late.instance = super::target::INSTANCE;
        lab.hand_over(&late);
        lab.settle();
        if n == 9 {
            let syns = lab.sent.iter().filter(|packet| packet.flags.contains(SYN)).count();
            assert_eq!(syns, 4, "the first, and three at once");
        }
        lab.run_ms(10);
    }
    assert_eq!(lab.engine.stats().resets_sent, 200, "each is told that its connection is over");
    let syns = |lab: &Lab| lab.sent.iter().filter(|p| p.flags.contains(SYN)).count();
    assert!(syns(&lab) <= 12, "{} SYNs in two seconds", syns(&lab));
    let before = lab.engine.stats().timeouts;
    assert!(before <= 1, "they do not put the timer off, nor count as its expiry: {before}");
    // The target can be reached again before the last retry, half a minute later.
    lab.run_ms(20_000);
    lab.weather.lose = 0;
    lab.run_ms(20_000);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"new\n");
    lab.assert_nothing_lost();
}

#[test]
fn a_target_that_reads_to_the_end_and_closes_without_an_answer_is_not_asked_again() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    // It waits for an answer as long as it may; then the target takes it, and closes too.
    client.fin(&mut lab, 10);
    lab.run_ms(2100);
    assert!(lab.only().fin_received);
    let (flow, isn) = (lab.sent[0].flow, lab.sent[0].seq);
    let (responses, _) = lab.target.later(lab.now, super::target::Later::Do(flow, isn, Act::Close(0)));
    for response in responses {
        lab.hand_over(&response);
    }
    lab.settle();
    lab.run_ms(100);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.requests_unanswered, stats.gate_expired), (0, 1, 1));
}

#[test]
fn a_connection_that_the_target_resets_before_any_request_is_opened_again_for_the_first() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| match n {
        0 => Box::new(|input| if input.is_none() { vec![Act::Reset(1000)] } else { Vec::new() }),
        _ => lines(10),
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().sessions.active, 1);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["one\n"]);
    lab.assert_nothing_lost();
}

#[test]
fn a_request_that_crosses_the_target_s_fin_does_not_wait_for_the_live_client_to_go_on() {
    let mut lab = Lab::new();
    // Closes when the second request is under way: after the quiet behind the first answer, and before that has
    // arrived.
    lab.target.new_app = Box::new(|n| close_late(if n == 0 { 1 } else { 99 }, 560_000));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().reconnects, 1);
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"two\n");
}

#[test]
fn a_target_that_closes_before_it_has_read_the_fin_is_asked_again_for_the_answer_that_it_owes() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| if n == 0 { silent() } else { lines(10) });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.fin(&mut lab, 10);
    lab.run_ms(1990);
    // The FIN is sent after two seconds, and lost.
    lab.weather.lose = 1000;
    lab.run_ms(20);
    assert_eq!(lab.engine.stats().fins.sent, 1);
    lab.weather.lose = 0;
    lab.act(Act::Close(0));
    lab.run_ms(100);
    assert_eq!(lab.target.conns.values().next().unwrap().received, b"one\n");
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.requests_unanswered), (1, 0));
}

#[test]
fn a_target_that_resets_after_the_live_client_has_ended_ends_the_session() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.fin(&mut lab, 100);
    lab.act(Act::Reset(0));
    lab.assert_done();
    assert_eq!(lab.engine.stats().sessions.finished, 1);
}
