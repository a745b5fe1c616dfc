//! Many requests under way at once on a connection, as in HTTP/2 and gRPC.

use super::{
    harness::{Client, Lab},
    target::{Act, App},
};

const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 7, 0, 0, 1, 0];

/// Answers each line with so many octets, and the `n`th of those that come together `n` times so many ms later.
fn slowly(answer: u32, ms: u64) -> App {
    let mut n = 0;
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let lines = all[seen..].iter().filter(|&&b| b == b'\n');
        lines
            .map(|_| {
                n += 1;
                Act::Write(n * ms * 1_000_000, answer)
            })
            .collect()
    })
}

fn calls(lab: &mut Lab, client: &mut Client, calls: u32) {
    client.syn(lab);
    (0..calls).for_each(|_| client.send(lab, 0, b"call\n"));
}

/// A server gives up the calls of a client that has closed: of 200, 170 arrived.
#[test]
fn a_client_closes_when_all_that_it_has_called_is_answered() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(50, 7));
    let mut client = Client::new(40_000);
    calls(&mut lab, &mut client, 200);
    client.fin(&mut lab, 200 * 50);
    lab.run_ms(1_395);
    assert!(!lab.only().fin_received);
    lab.run_ms(30);
    assert!(lab.only().fin_received);
    lab.run_ms(100);
    lab.assert_nothing_lost();
    assert_eq!((lab.engine.stats().farewells_in_vain, lab.engine.stats().gate_expired), (0, 0));
}

/// They may all come in one segment.
#[test]
fn a_client_of_http2_has_several_requests_under_way_from_the_beginning() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(50, 7));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..], &b"call\n".repeat(20)].concat());
    // The preface has four lines.
    client.fin(&mut lab, 24 * 50);
    lab.run_ms(24 * 7 - 1);
    assert!(!lab.only().fin_received);
    lab.run_ms(30);
    assert!(lab.only().fin_received);
}

#[test]
fn a_client_that_resets_does_so_too() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(50, 7));
    let mut client = Client::new(40_000);
    calls(&mut lab, &mut client, 20);
    client.rst(&mut lab, 20 * 50);
    lab.run_ms(135);
    assert!(!lab.only().reset);
    lab.run_ms(30);
    assert!(lab.only().reset);
}

/// A PING of the target's, say, which the live server has not sent.
#[test]
fn what_the_target_says_beside_its_answers_counts_for_none_of_them() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        let mut answers = slowly(50, 5);
        Box::new(move |input| {
            let begins = matches!(input, Some((_, 0)));
            let noise = begins.then_some(Act::Write(0, 120));
            noise.into_iter().chain(answers(input)).collect()
        })
    });
    let mut client = Client::new(40_000);
    calls(&mut lab, &mut client, 10);
    client.fin(&mut lab, 10 * 50);
    lab.run_ms(48);
    assert!(!lab.only().fin_received);
    lab.run_ms(30);
    assert!(lab.only().fin_received);
}

/// What the client had not read it did not wait for.
#[test]
fn a_client_that_gives_up_its_calls_is_not_held() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(50, 100));
    let mut client = Client::new(40_000);
    calls(&mut lab, &mut client, 20);
    client.fin(&mut lab, 0);
    lab.run_ms(5);
    assert!(lab.only().fin_received);
}

#[test]
fn a_target_that_says_less_is_waited_for_until_it_is_quiet_and_seldom_more_than_three_times() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(30, 1));
    let mut held = 0;
    for n in 0..40 {
        let mut client = Client::new(40_000 + n);
        calls(&mut lab, &mut client, 10);
        client.fin(&mut lab, 10 * 50);
        lab.run_ms(1_900);
        held += lab.target.conns.values().filter(|conn| !conn.fin_received).count();
        lab.run_ms(2_500);
    }
    assert_eq!(held, 4, "three, and of the others one");
    assert_eq!(lab.engine.stats().farewells_in_vain, 4);
}

#[test]
fn one_request_at_a_time_is_answered_when_the_target_says_so_however_much_it_says() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(30, 1));
    let mut client = Client::new(40_000);
    calls(&mut lab, &mut client, 1);
    client.send(&mut lab, 50, b"call\n");
    client.fin(&mut lab, 50);
    lab.run_ms(50);
    assert!(lab.only().fin_received);
}

/// Each such call took two seconds, and after three of them causes and effects were in no order any more.
#[test]
fn frames_that_nobody_answers_hold_no_request() {
    for frame in [&SETTINGS_ACK[..], &WINDOW_UPDATE] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"call\n");
        for _ in 0..5 {
            lab.run_ms(5);
            client.send(&mut lab, 50, frame);
            lab.run_ms(5);
            // It has read something between the two: an acknowledgement of the server's, for instance.
            client.send(&mut lab, 9, b"call\n");
        }
        lab.run_ms(20);
        assert_eq!(lab.only().received.iter().filter(|&&b| b == b'\n').count(), 6);
        assert_eq!(lab.engine.stats().gate_expired, 0);
    }
}

#[test]
fn what_follows_frames_that_nobody_answers_waits_for_the_answer_before_them() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| slowly(50, 100));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"call\n");
    client.send(&mut lab, 50, &WINDOW_UPDATE);
    client.send(&mut lab, 0, b"next\n");
    lab.run_ms(90);
    assert!(lab.only().received.ends_with(&WINDOW_UPDATE), "{}", lab.only().received.escape_ascii());
    lab.run_ms(20);
    assert!(lab.only().received.ends_with(b"next\n"));
}
