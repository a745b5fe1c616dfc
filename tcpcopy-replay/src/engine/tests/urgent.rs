//! Urgent octets: the target's TCP is told which they are.

use tcpcopy_common::tcp_flags::{ACK, PSH, URG};

use super::harness::{Client, Lab};
use crate::segment::LiveSegment;

/// Sends octets of which one, counted from the first, is urgent; `offset` is where they are, from the next one on.
fn send_urgent(lab: &mut Lab, client: &Client, offset: u32, payload: &[u8], urgent: u16) {
    let segment = client.segment(lab, ACK | PSH | URG, payload);
    lab.live(&LiveSegment { seq: segment.seq.wrapping_add(offset), urgent: Some(urgent), ..segment });
}

/// What was sent with URG, and what the target has received.
fn urgent(lab: &Lab) -> (Vec<String>, String) {
    let urgent = lab.sent.iter().filter(|packet| packet.flags.contains(URG));
    let text = |octets: &[u8]| String::from_utf8_lossy(octets).into_owned();
    (urgent.map(|packet| text(&packet.payload)).collect(), text(&lab.only().received))
}

/// The report: `abc`, then `!` urgent, then `def` came out as `abc!def` where the live server read `abcdef`.
#[test]
fn an_urgent_octet_is_sent_as_one() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"abc");
    send_urgent(&mut lab, &client, 0, b"!", 0);
    client.seq = client.seq.wrapping_add(1);
    client.send(&mut lab, 0, b"def\n");
    lab.run_ms(50);
    assert_eq!(urgent(&lab), (vec!["!".to_owned()], "abc!def\n".to_owned()));
    client.fin(&mut lab, 50);
    lab.run_ms(100);
    lab.assert_nothing_lost();
}

#[test]
fn one_in_the_midst_of_a_segment_is_found_whatever_came_first() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    // Behind a gap, in pieces, of which the first copy counts.
    let plain = client.segment(&lab, ACK | PSH, b"34");
    lab.live(&LiveSegment { seq: plain.seq.wrapping_add(3), ..plain });
    send_urgent(&mut lab, &client, 1, b"12345!7", 5);
    send_urgent(&mut lab, &client, 8, b"89?", 2);
    client.send(&mut lab, 0, b"0");
    lab.run_ms(50);
    assert_eq!(urgent(&lab), (vec!["!".to_owned(), "?".to_owned()], "012345!789?".to_owned()));
}

#[test]
fn one_that_is_lost_on_the_way_is_sent_again_as_one() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"a\n");
    lab.run_ms(50);
    lab.weather.lose = 1000;
    client.ack = client.ack.wrapping_add(50);
    send_urgent(&mut lab, &client, 0, b"bc!de\n", 2);
    lab.run_ms(10);
    assert_eq!(urgent(&lab).0, ["!"]);
    lab.weather.lose = 0;
    lab.run_ms(2_000);
    let (sent, received) = urgent(&lab);
    assert!(sent.len() >= 2 && sent.iter().all(|octet| octet == "!"), "{sent:?}");
    assert_eq!(received, "a\nbc!de\n");
}
