//! Answers that the target owes when it closes: told from what it has sent, or counted as unclear.

use super::{
    harness::{Client, Lab, MS},
    target::{Act, App, lines},
};
use crate::causality::greeting::FirstSpeaker;

/// Answers line by line as told: acts for each, and none to the lines after.
fn script(mut answers: Vec<Vec<Act>>) -> App {
    answers.reverse();
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let lines = all[seen..].iter().filter(|&&b| b == b'\n').count();
        (0..lines).flat_map(|_| answers.pop().unwrap_or_default()).collect()
    })
}

/// Greets with 30 octets, answers each line with 10, and closes after so many lines.
fn greet_then_close(most: usize) -> App {
    let mut lines = 0;
    Box::new(move |input| {
        let Some((all, seen)) = input else { return vec![Act::Write(2 * MS, 30)] };
        let mut acts = Vec::new();
        for _ in all[seen..].iter().filter(|&&b| b == b'\n') {
            lines += 1;
            acts.extend((lines <= most).then_some(Act::Write(0, 10)));
            acts.extend((lines == most).then_some(Act::Close(1000)));
        }
        acts
    })
}

#[test]
fn the_greeting_after_a_reconnection_is_not_an_answer() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    lab.target.new_app = Box::new(|_| greet_then_close(2));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let mut expected = Vec::new();
    for n in 0..9 {
        client.send(&mut lab, if n == 0 { 30 } else { 10 }, format!("{n}\n").as_bytes());
        expected.push(format!("{n}\n"));
    }
    client.fin(&mut lab, 10);
    lab.run_ms(3000);
    let mut lines = lab.lines();
    lines.dedup();
    assert_eq!(lines, expected);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.reconnects, stats.requests_unanswered, stats.requests_unclear, stats.gate_expired), (4, 0, 0, 0));
    // A request goes when the greeting is over: each connection takes all that its server answers, and no more.
    for (n, (_, conn)) in lab.target.past.iter().enumerate() {
        assert_eq!(conn.received.len(), 4, "connection {n}");
    }
}

#[test]
fn a_request_sent_again_waits_for_the_greeting_too() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    // The first connection is reset over its second line.
    lab.target.new_app = Box::new(|n| {
        if n > 0 {
            return greet_then_close(99);
        }
        let mut lines = 0;
        Box::new(move |input| match input {
            None => vec![Act::Write(0, 30)],
            Some((all, seen)) if all.len() > seen => {
                lines += 1;
                vec![if lines == 2 { Act::Reset(0) } else { Act::Write(0, 10) }]
            }
            Some(_) => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 30, b"one\n");
    lab.run_ms(5);
    client.send(&mut lab, 10, b"two\n");
    // The second connection is greeted after 2 ms.
    lab.run_ms(2);
    assert_eq!(lab.only_open().received, b"");
    lab.run_ms(2);
    assert_eq!(lab.only_open().received, b"two\n");
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    lab.assert_nothing_lost();
}

#[test]
fn a_session_that_joins_in_the_middle_waits_for_the_greeting() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    lab.target.new_app = Box::new(|_| greet_then_close(99));
    let mut client = Client::new(40_000);
    client.send(&mut lab, 0, b"before\n");
    client.send(&mut lab, 10, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(2);
    assert_eq!(lab.only().received, b"");
    lab.run_ms(3);
    assert_eq!(lab.only().received, b"one\ntwo\n");
}

/// The live client sends lines, each after an answer of ten octets to the one before, and closes after the last.
fn live_lines(lab: &mut Lab, pauses_ms: &[u64]) {
    let mut client = Client::new(40_000);
    client.syn(lab);
    for (n, pause) in pauses_ms.iter().enumerate() {
        client.send(lab, if n == 0 { 0 } else { 10 }, format!("{n}\n").as_bytes());
        lab.run_ms(*pause);
    }
    client.fin(lab, 10);
    lab.run_ms(60_000);
    lab.assert_done();
}

/// Requests unanswered, and unclear.
fn owed(lab: &Lab) -> (u64, u64) {
    let stats = lab.engine.stats();
    (stats.requests_unanswered, stats.requests_unclear)
}

#[test]
fn a_request_let_through_before_a_slow_answer_and_a_close_is_counted() {
    for (slow, unclear) in [(2500, 1), (1000, 0)] {
        let mut lab = Lab::new();
        // The answer to the first line is late, the second has none.
        lab.target.new_app = Box::new(move |n| match n {
            0 => script(vec![vec![Act::Write(slow * MS, 10), Act::Close(slow * MS)]]),
            _ => lines(10),
        });
        live_lines(&mut lab, &[0, 0, 5000]);
        assert_eq!(owed(&lab), (0, unclear), "an answer after {slow} ms");
        assert_eq!(lab.engine.stats().gate_expired, unclear);
    }
}

#[test]
fn a_late_answer_that_lets_a_third_request_through_leaves_the_second_unclear() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| match n {
        0 => script(vec![vec![Act::Write(2500 * MS, 10)], vec![], vec![Act::Reset(0)]]),
        _ => lines(10),
    });
    live_lines(&mut lab, &[0, 0, 5000]);
    assert_eq!(lab.target.past[0].1.received, b"0\n1\n2\n");
    assert_eq!(owed(&lab), (0, 1));
}

#[test]
fn a_request_taken_for_answered_by_the_rest_of_an_answer_is_counted() {
    let mut lab = Lab::new();
    // The rest of the first answer comes when the second line is there, which is then closed upon.
    lab.target.new_app = Box::new(|n| match n {
        0 => script(vec![vec![Act::Write(0, 5), Act::Write(MS, 5), Act::Close(MS)]]),
        _ => lines(10),
    });
    live_lines(&mut lab, &[0, 5, 5]);
    assert_eq!(owed(&lab), (0, 1));
}

#[test]
fn an_answer_of_another_length_before_a_close_is_not_unclear() {
    for size in [6, 9, 11, 500] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(move |_| super::target::lines_then_close(size, 5));
        live_lines(&mut lab, &[0; 23]);
        assert_eq!((lab.engine.stats().reconnects, owed(&lab)), (4, (0, 0)), "answers of {size} octets");
    }
}

#[test]
fn a_pipeline_that_the_target_answers_in_part_and_closes_upon_is_counted() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|n| match n {
        0 => script(vec![vec![Act::Write(MS, 10), Act::Close(MS)]]),
        _ => lines(10),
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 0, b"two\n");
    lab.run_ms(50);
    client.send(&mut lab, 20, b"three\n");
    client.fin(&mut lab, 10);
    lab.run_ms(100);
    assert_eq!((lab.engine.stats().reconnects, owed(&lab)), (1, (0, 1)));
}

#[test]
fn an_answer_that_the_replayed_fin_cuts_off_is_counted() {
    let mut lab = Lab::new();
    // The late answer to the first line passes for the second's, so the FIN follows; the target closes before the
    // second.
    lab.target.new_app = Box::new(|_| script(vec![vec![Act::Write(2500 * MS, 10)], vec![Act::Write(2600 * MS, 10)]]));
    live_lines(&mut lab, &[0, 0]);
    assert_eq!((lab.engine.stats().gate_expired, owed(&lab)), (1, (0, 1)));
    lab.assert_nothing_lost();

    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines(10));
    live_lines(&mut lab, &[0, 5000, 0]);
    assert_eq!(owed(&lab), (0, 0));
}

/// The greeting is no answer, and lets none be doubted.
#[test]
fn slightly_shorter_answers_after_a_greeting_do_not_add_up() {
    let mut lab = Lab::new();
    lab.set_first_speaker(FirstSpeaker::Server);
    lab.target.new_app = Box::new(|_| {
        let mut lines = super::target::lines_then_close(9, 15);
        Box::new(move |input| if input.is_none() { vec![Act::Write(0, 30)] } else { lines(input) })
    });
    live_lines(&mut lab, &[0; 23]);
    assert_eq!((lab.engine.stats().reconnects, owed(&lab)), (1, (0, 0)));
}

/// Three answers never come, so the two servers do not speak in step: what the target leaves unsaid when the client
/// ends tells nothing, but what is missing when it closes itself does.
#[test]
fn a_session_that_is_no_longer_gated_owes_something_only_where_the_target_ends_first() {
    for closes in [false, true] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(move |n| {
            let mut last = vec![Act::Write(0, 10)];
            last.extend(closes.then_some(Act::Close(MS)));
            if n == 0 { script(vec![vec![], vec![], vec![], last]) } else { lines(10) }
        });
        live_lines(&mut lab, if closes { &[0, 2100, 2100, 2100, 100] } else { &[0, 2100, 2100, 2100] });
        let stats = lab.engine.stats();
        assert_eq!((stats.sessions_ungated, stats.reconnects), (1, u64::from(closes)));
        assert_eq!(owed(&lab), (0, if closes { 3 } else { 0 }));
    }
}

#[test]
fn what_the_live_client_s_reset_cuts_off_is_not_owed() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| script(vec![vec![], vec![Act::Write(0, 10)]]));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(2500);
    client.rst(&mut lab, 10);
    lab.run_ms(100);
    lab.assert_done();
    assert_eq!((lab.engine.stats().gate_expired, owed(&lab)), (1, (0, 0)));
}
