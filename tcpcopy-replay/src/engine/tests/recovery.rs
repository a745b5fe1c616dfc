//! What the target's acknowledgements say about losses, round trips and room.

use std::time::Duration;

use super::{
    harness::{Client, Lab, config},
    target::silent,
};
use crate::{config::Config, stats::Reason};

/// Payload of a full segment.
const SEGMENT: usize = 988;

/// A connection to a target that reads and sends nothing.
fn uploading() -> (Lab, Client) {
    uploading_with(Lab::new())
}

fn uploading_with(mut lab: Lab) -> (Lab, Client) {
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    (lab, client)
}

/// As many full segments, of which the first is lost.
fn send_and_lose_the_first(lab: &mut Lab, client: &mut Client, segments: usize) {
    for n in 0..segments {
        lab.weather.lose = if n == 0 { 1000 } else { 0 };
        client.send(lab, 0, &[1; SEGMENT]);
    }
}

/// Segments with payload that were sent so far.
fn sent(lab: &Lab) -> usize {
    lab.sent.iter().filter(|packet| !packet.payload.is_empty()).count()
}

#[test]
fn what_carries_payload_or_moves_the_window_is_no_duplicate_acknowledgement() {
    let (mut lab, mut client) = uploading();
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"one\n");
    let mut answer = lab.bare_ack();
    answer.payload_len = 100;
    for n in 0..5 {
        answer.seq = lab.bare_ack().seq;
        lab.report(&answer);
        lab.run_ms(1);
        let mut update = lab.bare_ack();
        update.window = (500 + n * 10u16).to_be_bytes();
        lab.report(&update);
    }
    assert_eq!((lab.engine.stats().response_bytes, lab.engine.stats().fast_retransmits), (500, 0));
    (0..3).for_each(|_| lab.report(&lab.bare_ack()));
    assert_eq!(lab.engine.stats().fast_retransmits, 1);
}

#[test]
fn in_recovery_each_segment_that_leaves_the_network_makes_room_for_one() {
    let (mut lab, mut client) = uploading();
    // The first congestion window, and more that waits.
    send_and_lose_the_first(&mut lab, &mut client, 14);
    assert_eq!(sent(&lab), 10);
    // Nine duplicates have come; half a window is under way, so the last four of them let something out.
    lab.run_until(lab.now.0 + 2 * lab.delay);
    assert_eq!((sent(&lab), lab.engine.stats().retransmitted_segments), (10 + 1 + 4, 1));
}

#[test]
fn recovery_ends_when_all_that_was_under_way_has_arrived() {
    let (mut lab, mut client) = uploading();
    send_and_lose_the_first(&mut lab, &mut client, 4);
    lab.run_until(lab.now.0 + 2 * lab.delay);
    assert_eq!(lab.engine.stats().fast_retransmits, 1);
    // Sent in recovery, and not lost.
    lab.run_until(lab.now.0 + 10_000);
    client.send(&mut lab, 0, &[2; SEGMENT]);
    lab.run_ms(100);
    assert_eq!((lab.only().received.len(), lab.engine.stats().retransmitted_segments), (5 * SEGMENT, 1));
}

#[test]
fn the_window_grows_by_what_each_acknowledgement_adds() {
    let (mut lab, mut client) = uploading();
    client.send(&mut lab, 0, &[1; 10 * SEGMENT]);
    lab.run_ms(5);
    // The first four came while at least half of the window was under way.
    client.send(&mut lab, 0, &[1; 40 * SEGMENT]);
    assert_eq!(sent(&lab), 10 + 14);
}

#[test]
fn round_trips_of_data_are_measured_again_and_again() {
    let (mut lab, mut client) = uploading();
    lab.delay = 75_000_000;
    for _ in 0..4 {
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(400);
    }
    // Longer than the time-out was after the handshake.
    lab.delay = 110_000_000;
    client.send(&mut lab, 0, b"two\n");
    lab.run_ms(400);
    assert_eq!((lab.engine.stats().timeouts, lab.engine.stats().retransmitted_segments), (0, 0));
}

#[test]
fn an_echo_comes_only_from_what_has_a_timestamp() {
    let (mut lab, mut client) = uploading();
    let mut without = lab.bare_ack();
    (without.options, without.tsval) = (0, 7u32.to_be_bytes());
    lab.report(&without);
    client.send(&mut lab, 0, b"one\n");
    assert_eq!(lab.sent.last().unwrap().options.timestamps.unwrap().1, 99);
}

/// The time-out has grown with the probes, which were not lost.
#[test]
fn what_is_lost_after_a_closed_window_has_opened_is_soon_sent_again() {
    let mut lab = Lab::new();
    (lab.target.window, lab.target.window_scale) = (Some(0), None);
    let (mut lab, mut client) = uploading_with(lab);
    client.send(&mut lab, 0, &[1; 500]);
    lab.run_ms(30_000);
    assert_eq!((sent(&lab), lab.only().received.len()), (0, 0));
    lab.target.window = Some(4000);
    lab.weather.lose = 1000;
    let mut update = lab.bare_ack();
    update.window = 4000u16.to_be_bytes();
    lab.report(&update);
    assert_eq!(sent(&lab), 1);
    lab.weather.lose = 0;
    lab.run_ms(300);
    assert_eq!(lab.only().received.len(), 500);
}

#[test]
fn a_target_that_answers_probes_is_not_silent_until_it_does_not() {
    let patient = Duration::from_secs(100_000);
    let mut lab = Lab::with(Config { session_timeout: patient, ..config() });
    (lab.target.window, lab.target.window_scale) = (Some(0), None);
    let (mut lab, mut client) = uploading_with(lab);
    client.send(&mut lab, 0, &[1; 500]);
    lab.run_ms(5_000_000);
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.active, 1);
    assert!((80..100).contains(&stats.window_probes), "a minute apart in the end: {}", stats.window_probes);
    lab.weather.lose = 1000;
    lab.run_ms(200_000);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::TargetSilent), 1);
}
