//! How what is sent is cut, flagged and counted.

use tcpcopy_common::tcp_flags::{FIN, PSH};

use super::{
    harness::{Client, Lab},
    target::{lines, silent},
};

/// Lengths of the segments with payload.
fn lengths(lab: &Lab) -> Vec<usize> {
    lab.sent.iter().map(|packet| packet.payload.len()).filter(|&len| len > 0).collect()
}

#[test]
fn only_the_last_segment_of_what_is_there_is_pushed() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    // More than the first congestion window.
    client.send(&mut lab, 0, &[1; 30_000]);
    lab.run_ms(100);
    let pushed: Vec<_> =
        lab.sent.iter().filter(|packet| !packet.payload.is_empty()).map(|p| p.flags.contains(PSH)).collect();
    assert_eq!((pushed.len(), pushed.iter().position(|&push| push)), (31, Some(30)));
}

#[test]
fn a_window_of_some_segments_is_not_filled_with_scraps() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    (lab.target.window, lab.target.window_scale) = (Some(2470), None);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 10 * 988 + 100]);
    lab.run_ms(1000);
    let lengths = lengths(&lab);
    assert_eq!((lengths.len(), lengths[..10].iter().all(|&len| len == 988), lengths[10]), (11, true, 100));
    assert_eq!(lab.target.beyond_window, 0);
}

#[test]
fn a_window_smaller_than_a_segment_is_used_all_the_same() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    (lab.target.window, lab.target.window_scale) = (Some(500), None);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, &[1; 1700]);
    lab.run_ms(10_000);
    assert_eq!((lengths(&lab), lab.engine.stats().window_probes), (vec![500, 500, 500, 200], 0));
}

#[test]
fn each_segment_either_way_is_counted_once() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines(10));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    let stats = lab.engine.stats();
    assert_eq!((stats.connected, stats.sent_segments, stats.retransmitted_segments), (1, 1, 0));
    // The SYN-ACK, and the answer or its acknowledgement and the answer.
    let responses = stats.response_segments;
    assert!((2..=3).contains(&responses), "{responses}");
    client.send(&mut lab, 10, b"two\n");
    lab.run_ms(5);
    assert_eq!(lab.engine.stats().response_segments, 2 * responses - 1);
    // The FIN is lost once.
    lab.weather.lose = 1000;
    client.fin(&mut lab, 10);
    lab.weather.lose = 0;
    lab.run_ms(1000);
    let stats = lab.engine.stats();
    assert_eq!((stats.fins.sent, stats.retransmitted_segments, stats.timeouts), (1, 1, 1));
    assert_eq!(lab.sent.iter().filter(|packet| packet.flags.contains(FIN)).count(), 2);
    lab.assert_nothing_lost();
}

#[test]
fn what_fits_the_rest_of_the_window_goes_at_once() {
    for (window, writes, segments) in [(1000, [600, 400], vec![600, 400]), (1976, [988, 1976], vec![988, 988])] {
        let mut lab = Lab::new();
        lab.target.new_app = Box::new(|_| silent());
        (lab.target.window, lab.target.window_scale) = (Some(window), None);
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        lab.run_ms(5);
        writes.iter().for_each(|&len| client.send(&mut lab, 0, &vec![1; len]));
        assert_eq!(lengths(&lab), segments);
    }
}

#[test]
fn a_segment_that_the_window_holds_back_has_no_lag_before_it_is_sent() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    (lab.target.window, lab.target.window_scale) = (Some(988), None);
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    (0..2).for_each(|_| client.send(&mut lab, 0, &[1; 988]));
    lab.run_until(lab.now.0 + 2 * lab.delay);
    assert_eq!((lengths(&lab).len(), lab.engine.stats().lag.count()), (1, 1));
    lab.run_ms(5);
    assert_eq!((lengths(&lab).len(), lab.engine.stats().lag.count()), (2, 2));
}

/// The lab checks the length of everything that is handed over.
#[test]
fn no_more_is_sent_at_a_time_than_a_packet_holds() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    (lab.target.window, lab.target.window_scale) = (Some(1 << 20), Some(9));
    // Small segments fill a packet nearly to its end.
    lab.target.mss = 536;
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for _ in 0..8 {
        client.send(&mut lab, 0, &vec![1; 300_000]);
        lab.run_ms(5);
    }
    assert_eq!(lab.only().received.len(), 8 * 300_000);
}
