//! Whole sessions on a path that loses nothing.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, SYN};

use super::{
    harness::{CREDENTIALS, Client, Lab, MS, TARGET, config},
    target::{lines, silent},
};
use crate::{config::Config, tcp::distance::RoundTrip};

#[test]
fn a_connection_is_replayed_from_syn_to_fin() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    client.fin(&mut lab, 50);
    lab.run_ms(50);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    assert!(lab.only().fin_received);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.syns.sent, stats.fins.sent, stats.bytes.sent), (1, 1, 8));
    assert_eq!((stats.accepted_bytes, stats.response_bytes, stats.retransmitted_segments), (8, 200, 0));
    assert_eq!((stats.stale_responses, stats.resets_sent, stats.lag.count()), (0, 0, 2));
    assert!(lab.target.conns.values().all(|c| c.closed));
}

#[test]
fn the_same_inputs_give_the_same_packets() {
    let run = || {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(50);
        lab.sent.iter().map(|p| (p.seq, p.ack, p.flags, p.options)).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn the_target_sees_the_live_client_s_address_and_port() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    let flow = lab.target.syns[0].0;
    assert_eq!((flow.client, flow.client_port), (client.flow.client, client.flow.client_port));
    assert_eq!((flow.server.v4_octets(), flow.server_port), ([10, 0, 0, 3], 8080u16.to_be_bytes()));
}

#[test]
fn a_loopback_client_gets_another_address() {
    let mut lab = Lab::with(Config { loopback_client: Some([10, 9, 0, 9].into()), ..config() });
    for (client_address, port) in [([127, 0, 0, 1], 40_000), ([127, 0, 0, 2], 40_000)] {
        let mut client = Client::new(port);
        client.flow.client = tcpcopy_common::flow::IpAddress::from_v4(client_address);
        client.syn(&mut lab);
    }
    lab.run_ms(5);
    assert!(lab.target.syns.iter().all(|(flow, _)| flow.client.v4_octets() == [10, 9, 0, 9]));
    assert_eq!(lab.target.conns.len(), 2, "two clients that become one address get different ports");
}

#[test]
fn acknowledgements_of_a_batch_become_one() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| lines(30_000));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"big\n");
    lab.run_ms(5);
    // Ten segments of response, which arrive together.
    assert_eq!(lab.engine.stats().response_bytes, 30_000);
    let acks = lab.engine.stats().pure_acks;
    assert!(acks <= 12, "{acks}");
    lab.run_ms(1000);
    assert_eq!(lab.engine.stats().pure_acks, acks, "no ACK of an ACK");
}

#[test]
fn live_retransmission_duplication_and_reordering_change_nothing() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let start = client;
    let octets = b"GET / HTTP/1.1\r\nHost: xy\r\n\r\n";
    let piece = |client: &Client, lab: &Lab, from: usize, to: usize| {
        let mut at = *client;
        at.seq = at.seq.wrapping_add(from as u32);
        let segment = at.segment(lab, ACK | PSH, &octets[from..to]);
        (segment.seq, segment.payload.to_vec())
    };
    for (from, to) in [(10, 20), (0, 12), (10, 20), (25, 28), (18, 26), (0, 28)] {
        let (seq, payload) = piece(&start, &lab, from, to);
        let mut at = start;
        at.seq = seq;
        let segment = at.segment(&lab, ACK | PSH, &payload);
        lab.live(&segment);
        lab.run_ms(2);
    }
    // The live client's SYN once more, too.
    let mut again = Client::new(40_000);
    again.syn(&mut lab);
    client.seq = client.seq.wrapping_add(octets.len() as u32);
    client.fin(&mut lab, 0);
    client.seq = client.seq.wrapping_sub(1);
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    assert_eq!(lab.only().received, octets);
    lab.assert_nothing_lost();
    let stats = lab.engine.stats();
    assert_eq!((stats.bytes.captured, stats.syns.captured, stats.fins.captured), (28, 1, 1));
    assert_eq!(stats.duplicate_bytes, (10 + 12 + 10 + 3 + 8 + 28) - 28);
}

#[test]
fn a_super_packet_is_cut_and_its_push_and_fin_come_last() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    lab.run_ms(5);
    let payload = vec![7; 60_000];
    let segment = client.segment(&lab, ACK | PSH | FIN, &payload);
    lab.live(&segment);
    lab.run_ms(50);
    assert_eq!(lab.only().received, payload);
    assert!(lab.only().fin_received && lab.target.largest_packet == 988);
    lab.assert_nothing_lost();
}

#[test]
fn ten_megabytes_arrive_in_order() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| silent());
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    let payload: Vec<u8> = (0..10_000_000u32).map(|i| (i % 253) as u8).collect();
    for chunk in payload.chunks(60_000) {
        client.send(&mut lab, 0, chunk);
    }
    client.fin(&mut lab, 0);
    lab.run_ms(20_000);
    assert!(lab.only().received == payload);
    lab.assert_nothing_lost();
}

#[test]
fn half_close_by_the_live_client_lets_the_target_finish_its_answer() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            Some((all, seen)) if all.len() > seen => {
                vec![super::target::Act::Write(3 * MS, 5000), super::target::Act::Write(6 * MS, 5000)]
            }
            _ => Vec::new(),
        })
    });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"all\n");
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    assert_eq!(lab.engine.stats().response_bytes, 10_000);
    lab.assert_nothing_lost();
}

#[test]
fn simultaneous_close_ends_well() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| super::target::lines_then_close(10, 1));
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    assert!(lab.only().fin_received && lab.only().closed);
    lab.assert_nothing_lost();
}

#[test]
fn a_keep_alive_probe_of_the_target_is_answered() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"x\n");
    lab.run_ms(5);
    let before = lab.engine.stats().pure_acks;
    let last = lab.sent.last().unwrap().clone();
    let mut probe: tcpcopy_common::response::ResponseHeader = bytemuck::Zeroable::zeroed();
    probe.flow = last.flow;
    probe.seq = last.ack.wrapping_sub(1).to_be_bytes();
    probe.ack = last.seq.to_be_bytes();
    probe.flags = ACK;
    probe.instance = CREDENTIALS.instance;
    lab.hand_over(&probe);
    lab.settle();
    assert_eq!(lab.engine.stats().pure_acks, before + 1);
}

#[test]
fn port_reuse_before_the_old_session_has_ended_loses_neither() {
    let mut lab = Lab::new();
    let mut first = Client::new(40_000);
    first.syn(&mut lab);
    first.send(&mut lab, 0, b"first\n");
    first.fin(&mut lab, 50);
    // Within the same millisecond.
    let mut second = Client::new(40_000);
    second.seq = 5_000_000;
    second.syn(&mut lab);
    second.send(&mut lab, 0, b"second\n");
    second.fin(&mut lab, 50);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["first\n", "second\n"]);
    lab.assert_nothing_lost();
    assert_eq!(lab.engine.stats().port_reuses, 1);
}

#[test]
fn port_reuse_while_the_target_is_in_time_wait_keeps_the_port() {
    let mut lab = Lab::new();
    lab.target.new_app = Box::new(|_| super::target::lines_then_close(10, 1));
    for n in 0..5u32 {
        let mut client = Client::new(40_000);
        client.seq = n * 7_000_000;
        client.syn(&mut lab);
        client.send(&mut lab, 0, format!("{n}\n").as_bytes());
        lab.run_ms(3);
        client.fin(&mut lab, 10);
        lab.run_ms(3);
    }
    assert_eq!((lab.target.syns.len(), lab.target.late), (5, 0));
    assert!(lab.target.syns.iter().all(|(flow, _)| flow.client_port == 40_000u16.to_be_bytes()));
    assert_eq!(lab.lines(), ["0\n", "1\n", "2\n", "3\n", "4\n"]);
    lab.assert_nothing_lost();
}

#[test]
fn a_syn_that_is_no_syn_is_refused() {
    let mut lab = Lab::new();
    let client = Client::new(40_000);
    let segment = client.segment(&lab, SYN | FIN, b"x");
    lab.live(&segment);
    lab.assert_done();
    assert_eq!(lab.engine.stats().refused.bad_syn, 1);
}

#[test]
fn ipv6_is_replayed_like_ipv4() {
    let mut config = config();
    config.rules[0].address = "[2001:db8::3]:8080".parse().unwrap();
    let mut lab = Lab::with(config);
    let mut client = Client::new(40_000);
    client.flow.client = std::net::IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, 9]).into();
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"six\n");
    client.fin(&mut lab, 100);
    lab.run_ms(100);
    assert_eq!(lab.only().received, b"six\n");
    lab.assert_nothing_lost();
    let syn = lab.sent[0].options.syn.unwrap();
    assert_eq!((syn.mss, lab.target.syns[0].0.client), (1440, client.flow.client));
}

#[test]
fn an_idle_connection_holds_no_buffer() {
    let mut lab = Lab::new();
    for port in 0..50 {
        let mut client = Client::new(40_000 + port);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(5);
    }
    // All fifty, one after the other, used the same store.
    assert!(lab.engine.pool.allocated() < 4096, "{}", lab.engine.pool.allocated());
}

/// With `-R`: neither the end of the handshake nor the first octets come before a round-trip time has passed, and no
/// response is acknowledged earlier.
#[test]
fn a_distant_client_acknowledges_late() {
    const ROUND_TRIP: u64 = 30;
    let mut lab =
        Lab::with(Config { round_trip: RoundTrip::Same(std::time::Duration::from_millis(ROUND_TRIP)), ..config() });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(ROUND_TRIP - 1);
    assert!(lab.sent.iter().all(|packet| packet.flags.contains(SYN)), "the handshake ended early");
    lab.run_ms(10);
    assert_eq!(lab.only().received, b"one\n");
    let acknowledged = |lab: &Lab| {
        let last = lab.sent.last().unwrap();
        last.ack.wrapping_sub(lab.sent[1].ack)
    };
    assert_eq!(acknowledged(&lab), 0, "the answer was acknowledged early");
    lab.run_ms(ROUND_TRIP);
    assert_eq!(acknowledged(&lab), 100);
    client.fin(&mut lab, 100);
    lab.run_ms(5 * ROUND_TRIP);
    assert!(lab.only().fin_received);
    lab.assert_nothing_lost();
}

/// With `-R`, and responses that are to be acknowledged just while the channel is down: nothing is sent, the engine
/// does not spin, and the session goes on afterwards.
#[test]
fn late_acknowledgements_wait_for_the_channel() {
    let mut lab = Lab::with(Config { round_trip: RoundTrip::Same(std::time::Duration::from_millis(30)), ..config() });
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(35);
    lab.engine.handle_channel_down(lab.now, TARGET);
    let sent = lab.sent.len();
    lab.run_ms(1_000);
    assert_eq!(lab.sent.len(), sent);
    lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
    lab.settle();
    client.send(&mut lab, 100, b"two\n");
    client.fin(&mut lab, 100);
    lab.run_ms(5_000);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    lab.assert_nothing_lost();
}
