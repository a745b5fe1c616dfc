//! A path that loses, repeats and delays; a target with little room.

use proptest::prelude::*;
use tcpcopy_common::tcp_flags::SYN;

use super::{
    harness::{Client, Lab, Weather},
    target::silent,
};
use crate::stats::Reason;

#[test]
fn a_lost_syn_is_sent_again_after_a_second() {
    let mut lab = Lab::new();
    lab.weather.lose = 1000;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(900);
    lab.weather.lose = 0;
    assert_eq!(lab.sent.len(), 1);
    lab.run_ms(200);
    assert_eq!(lab.only().received, b"x\n");
    let stats = lab.engine.stats();
    assert_eq!((stats.syns.sent, stats.retransmitted_segments, stats.timeouts), (1, 1, 1));
    assert_eq!(lab.sent[0].seq, lab.sent[1].seq, "the same ISN");
}

#[test]
fn a_target_that_never_answers_is_given_up() {
    let mut lab = Lab::new();
    lab.weather.lose = 1000;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(200_000);
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.aborted.get(Reason::TargetSilent), 1);
    assert_eq!(stats.bytes.discarded.get(Reason::TargetSilent), 2);
    assert_eq!(lab.sent.iter().filter(|p| p.flags.contains(SYN)).count(), 6);
}

#[test]
fn lost_data_is_sent_again_with_back_off() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"x\n");
    let before = lab.sent.len();
    lab.run_ms(1300);
    // At 200 ms (the smallest), 600 and, lost no more, 1400 ms.
    assert_eq!(lab.sent.len() - before, 2);
    lab.weather.lose = 0;
    lab.run_ms(200);
    assert_eq!(lab.only().received, b"x\n");
    let stats = lab.engine.stats();
    assert_eq!((stats.bytes.sent, stats.retransmitted_bytes), (2, 6));
}

#[test]
fn three_duplicate_acknowledgements_repair_without_the_timer() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, &[1; 988]);
    lab.weather.lose = 0;
    for i in 2..7 {
        client.send(&mut lab, 0, &[i; 988]);
    }
    lab.run_ms(20);
    assert_eq!(lab.only().received.len(), 6 * 988);
    let stats = lab.engine.stats();
    assert_eq!((stats.fast_retransmits, stats.timeouts, stats.retransmitted_bytes), (1, 0, 988));
    assert_eq!((stats.sent_segments, stats.retransmitted_segments), (6, 1));
}

#[test]
fn several_losses_in_one_window_are_repaired_one_per_round_trip() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    for i in 0..9u8 {
        lab.weather.lose = if i % 4 == 0 && i < 8 { 1000 } else { 0 };
        client.send(&mut lab, 0, &[i; 988]);
    }
    lab.run_ms(20);
    assert_eq!(lab.only().received.len(), 9 * 988);
    let stats = lab.engine.stats();
    assert_eq!((stats.fast_retransmits, stats.timeouts, stats.retransmitted_bytes), (1, 0, 2 * 988));
}

#[test]
fn a_closed_window_is_probed_and_respected() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    lab.target.window_scale = None;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 5000]);
    lab.run_ms(30_000);
    assert!(lab.sent.iter().all(|p| p.payload.is_empty()));
    let probes = lab.engine.stats().window_probes;
    assert!((4..20).contains(&probes), "{probes}");
    lab.target.window = Some(4000);
    lab.run_ms(60_000);
    assert_eq!((lab.only().received.len(), lab.target.beyond_window), (5000, 0));
}

#[test]
fn a_window_that_stays_closed_ends_with_the_session_timeout() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(0);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 5000]);
    lab.run_ms(300_000);
    lab.assert_done();
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::IdleTimeout), 1);
    assert!(lab.only().reset);
}

#[test]
fn the_window_of_the_target_is_scaled_except_in_the_syn() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    lab.target.window = Some(1 << 20);
    lab.target.window_scale = Some(9);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    // Unscaled, the window would be 2 KB, and each would take a round trip of 40 ms.
    lab.delay = 20_000_000;
    for _ in 0..100 {
        client.send(&mut lab, 0, &[1; 30_000]);
    }
    client.fin(&mut lab, 0);
    lab.run_ms(3000);
    assert_eq!(lab.only().received.len(), 3_000_000);
    lab.assert_nothing_lost();
    // All was there from the beginning, so hardly any segment is shorter than it may be.
    let segments = lab.sent.iter().filter(|packet| !packet.payload.is_empty()).count();
    assert!((3037..3080).contains(&segments), "{segments}");
}

#[test]
fn a_target_without_timestamps_and_scaling_is_served() {
    let mut lab = Lab::new();
    lab.target.timestamps = false;
    lab.target.window_scale = None;
    lab.target.mss = 536;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[b'\n'; 20_000]);
    client.fin(&mut lab, 0);
    lab.run_ms(1000);
    assert_eq!((lab.only().received.len(), lab.target.largest_packet), (20_000, 536));
    lab.assert_nothing_lost();
}

#[test]
fn a_lost_final_ack_does_not_leave_the_target_in_last_ack() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(5);
    client.fin(&mut lab, 100);
    while !lab.target.conns.values().all(|c| c.closed) {
        lab.run_until(lab.now.0 + 10_000);
    }
    // The target's FIN arrives; what answers it, and ends the session, does not.
    while lab.engine.stats().sessions.finished == 0 {
        lab.weather.lose = 1000;
        lab.run_until(lab.now.0 + 10_000);
    }
    lab.weather.lose = 0;
    assert!(!lab.only().reset);
    lab.run_ms(300);
    assert!(lab.only().reset, "its retransmission is answered although the session is gone");
    lab.assert_nothing_lost();
}

/// Requests of mixed sizes over several connections, with and without keep-alive, in bad weather; and what should
/// arrive.
fn storm(seed: u64, weather: Weather) -> (Lab, Vec<String>) {
    let mut lab = Lab::new();
    lab.seed(seed);
    lab.weather = weather;
    let mut expected = Vec::new();
    for n in 0..4u16 {
        let mut client = Client::new(40_000 + n);
        client.syn(&mut lab);
        for request in 0..=n {
            let mut line = format!("{n}/{request} ").into_bytes();
            line.resize(line.len() + usize::from(n) * 1700, b'x');
            line.push(b'\n');
            for piece in line.chunks(1400) {
                client.send(&mut lab, 0, piece);
            }
            client.ack = client.ack.wrapping_add(100);
            expected.push(String::from_utf8(line).unwrap());
            lab.run_ms(u64::from(n));
        }
        client.fin(&mut lab, 0);
    }
    lab.run_ms(100_000);
    expected.sort();
    (lab, expected)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn everything_arrives_byte_exact_through_bad_weather(
        seed: u64, lose in 0u32..80, duplicate in 0u32..80, delay in 0u32..150,
    ) {
        let (lab, expected) = storm(seed, Weather { lose, duplicate, delay });
        lab.assert_done();
        prop_assert_eq!(lab.target.late, 0);
        let arrived = lab.lines();
        if lab.engine.stats().sessions.aborted.get(Reason::TargetSilent) > 0 {
            // One in a million: six SYNs in a row were lost. What did arrive is right all the same.
            prop_assert!(arrived.iter().all(|line| expected.contains(line)), "seed {seed}");
        } else {
            lab.assert_nothing_lost();
            prop_assert!(arrived == expected, "seed {seed}: {} of {} lines", arrived.len(), expected.len());
        }
    }
}

#[test]
fn bad_weather_is_bad() {
    let (lab, _) = storm(1, Weather { lose: 80, duplicate: 50, delay: 100 });
    let stats = lab.engine.stats();
    assert!(lab.lost > 5 && stats.retransmitted_segments > 3, "{} {stats:?}", lab.lost);
}

#[test]
fn a_path_that_became_slower_than_the_time_out_is_learned() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.delay = 150_000_000;
    for _ in 0..20 {
        client.send(&mut lab, 0, b"x\n");
        lab.run_ms(2000);
    }
    assert_eq!(lab.only().received.len(), 40);
    let timeouts = lab.engine.stats().timeouts;
    assert!((1..=3).contains(&timeouts), "{timeouts}");
}

#[test]
fn a_retried_syn_yields_no_round_trip() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    lab.weather.lose = 1000;
    client.syn(&mut lab);
    lab.weather.lose = 0;
    lab.run_ms(1100);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"x\n");
    lab.weather.lose = 0;
    lab.run_ms(990);
    assert_eq!(lab.only().received, b"");
    lab.run_ms(20);
    assert_eq!(lab.only().received, b"x\n", "after the initial second, not after three of the SYN's");
}

#[test]
fn a_live_reset_follows_what_was_lost_before_it() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"x\n");
    client.rst(&mut lab, 0);
    lab.weather.lose = 0;
    lab.run_ms(1000);
    assert_eq!((&lab.only().received[..], lab.only().reset), (&b"x\n"[..], true));
}

#[test]
fn the_timestamp_echo_does_not_run_ahead_of_the_acknowledgement() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(5);
    let last = lab.sent.last().unwrap().clone();
    let mut response: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    response.flow = last.flow;
    response.instance = super::target::INSTANCE;
    response.flags = tcpcopy_common::tcp_flags::ACK;
    response.options = tcpcopy_common::response::option::TIMESTAMPS;
    response.ack = last.seq.to_be_bytes();
    response.payload_len = 10;
    for (ahead, tsval, echo) in [(10, 200u32, 99), (0, 199, 199)] {
        response.seq = last.ack.wrapping_add(ahead).to_be_bytes();
        response.tsval = tsval.to_be_bytes();
        lab.hand_over(&response);
        let ack = lab.engine.poll_transmit(lab.now).unwrap();
        assert_eq!(ack.options.timestamps.unwrap().1, echo);
        assert_eq!(ack.ack, last.ack.wrapping_add(if ahead == 0 { 20 } else { 0 }));
    }
}

#[test]
fn two_ends_that_both_miss_something_do_not_answer_each_other_for_ever() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    let before = lab.sent.len();
    // The report of an answer was lost, and so was what we sent last.
    let last = lab.sent.last().unwrap().clone();
    lab.weather.lose = 1000;
    client.send(&mut lab, 0, b"x\n");
    let mut response: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    response.flow = last.flow;
    response.instance = super::target::INSTANCE;
    response.flags = tcpcopy_common::tcp_flags::ACK;
    response.ack = last.seq.to_be_bytes();
    response.seq = last.ack.wrapping_add(100).to_be_bytes();
    lab.hand_over(&response);
    lab.settle();
    assert_eq!(lab.sent.len(), before + 1, "the data, and no ACK");
}

#[test]
fn a_path_whose_mtu_shrinks_in_the_middle_of_an_upload_gets_smaller_packets() {
    for lose in [0, 50] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(|_| silent());
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        let octets: Vec<u8> = (0..200_000u32).map(|n| (n % 251) as u8).collect();
        let (first, rest) = octets.split_at(100_000);
        client.send(&mut lab, 0, first);
        lab.run_until(lab.now.0 + 250_000);
        // What is under way is too large, and lost; from now on the injector cuts smaller pieces.
        lab.weather.lose = 1000;
        lab.run_until(lab.now.0 + 200_000);
        lab.weather.lose = lose;
        lab.path = 400;
        let before = lab.sent.len();
        client.send(&mut lab, 0, rest);
        client.fin(&mut lab, 0);
        lab.run_ms(120_000);
        assert_eq!(lab.only().received, octets);
        let after = &lab.sent[before..];
        assert_eq!(after.iter().map(|packet| packet.payload.len()).max(), Some(400));
        let stats = lab.engine.stats();
        assert!(lab.lost > 0 && stats.retransmitted_bytes > 0 && stats.bytes.sent == 200_000);
    }
}

#[test]
fn each_of_two_losses_far_apart_is_repaired_without_the_timer() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    for round in 1..=2 {
        lab.weather.lose = 1000;
        client.send(&mut lab, 0, &[1; 988]);
        lab.weather.lose = 0;
        for i in 2..7 {
            client.send(&mut lab, 0, &[i; 988]);
        }
        lab.run_ms(20);
        let stats = lab.engine.stats();
        assert_eq!((stats.fast_retransmits, stats.timeouts), (round, 0));
        // The congestion window grows again.
        for _ in 0..20 {
            client.send(&mut lab, 0, &[1; 4 * 988]);
            lab.run_ms(5);
        }
        assert_eq!(lab.only().received.len(), round as usize * (6 + 20 * 4) * 988);
    }
}

#[test]
fn a_live_reset_after_a_fin_follows_the_fin() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(5);
    lab.weather.lose = 1000;
    client.fin(&mut lab, 100);
    client.rst(&mut lab, 0);
    lab.weather.lose = 0;
    lab.run_ms(1000);
    assert!(lab.only().fin_received, "the lost FIN is repeated before the RST ends everything");
}
