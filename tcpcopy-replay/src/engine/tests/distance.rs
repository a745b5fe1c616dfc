//! Replayed clients that seem as far away as their live ones (`-R live`), and what that does to a target.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, SYN, TcpFlags};

use super::{
    harness::{Client, Lab, MS, config},
    target::{Act, App, lines_then_reset},
};
use crate::{causality::greeting::FirstSpeaker, config::Config, tcp::distance::RoundTrip, time::Nanos};

/// The way to the target and back, and a little more.
const SOON: u64 = 1;

fn live() -> Lab {
    Lab::with(Config { round_trip: RoundTrip::Live, ..config() })
}

/// SYN, and after `round_trip` ms the acknowledgement of the live server's.
fn open(lab: &mut Lab, port: u16, round_trip: u64) -> Client {
    let mut client = Client::new(port);
    client.knock(lab);
    lab.run_ms(round_trip);
    client.acknowledge(lab);
    client
}

/// What the engine has sent from this port after the handshake: when it arrived is for the caller to know.
fn sent(lab: &Lab, client: &Client) -> Vec<(TcpFlags, u32, usize)> {
    let ours = lab.sent.iter().filter(|packet| packet.flow.client_port == client.flow.client_port);
    ours.map(|packet| (packet.flags & (SYN | ACK | FIN | PSH), packet.ack, packet.payload.len())).collect()
}

/// Octets of the target that its client has acknowledged so far.
fn acknowledged(lab: &Lab, client: &Client) -> u32 {
    let acks: Vec<u32> = sent(lab, client).iter().skip(1).map(|&(_, ack, _)| ack).collect();
    acks.first().map_or(0, |first| acks.last().map_or(0, |last| last.wrapping_sub(*first)))
}

/// Answers each line with `pieces` of so many octets, a millisecond apart.
fn in_pieces(pieces: u64, octets: u32) -> App {
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let lines = all[seen..].iter().filter(|&&b| b == b'\n');
        lines.flat_map(|_| (0..pieces).map(|n| Act::Write(n * MS, octets))).collect()
    })
}

#[test]
fn the_replayed_handshake_begins_when_the_live_one_has_ended_and_takes_as_long() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(30);
    assert_eq!(sent(&lab, &client).len(), 0, "the client has proven nothing yet");
    client.acknowledge(&mut lab);
    assert_eq!(sent(&lab, &client).len(), 1, "only the SYN");
    lab.run_ms(30);
    assert_eq!(sent(&lab, &client).len(), 1);
    lab.run_ms(1);
    assert_eq!(sent(&lab, &client).len(), 2);
    assert_eq!(lab.engine.stats().distant_clients, 1);
    // A later one changes nothing.
    lab.run_ms(500);
    client.acknowledge(&mut lab);
    lab.run_ms(SOON);
    assert_eq!(sent(&lab, &client).len(), 2);
}

#[test]
fn each_client_s_acknowledgements_come_a_round_trip_of_its_own_after_the_answer() {
    let mut lab = live();
    lab.target.new_app = Box::new(|_| in_pieces(100, 1_000));
    let mut clients = [(40_001, 5), (40_002, 30), (40_003, 150)].map(|(port, round_trip)| {
        let client = open(&mut lab, port, round_trip);
        (client, round_trip)
    });
    lab.run_ms(200);
    let asked = lab.now.0;
    for (client, _) in &mut clients {
        client.send(&mut lab, 0, b"all of it\n");
    }
    let mut largest = 0;
    for ms in 0..300 {
        // Half a millisecond after each piece has come.
        lab.run_until(asked + ms * MS + MS / 2);
        for (client, round_trip) in &clients {
            let come = (ms + 1).min(100) as u32;
            let told = acknowledged(&lab, client) / 1_000;
            let due = |late: u64| (ms + 1).saturating_sub(*round_trip + late).min(100) as u32;
            // What comes within a 64th of the round trip is acknowledged together.
            let as_due = due(1 + round_trip / 64)..=due(0);
            assert!(as_due.contains(&told), "{told} of {as_due:?} pieces after {ms} ms, {round_trip} ms away");
            largest = largest.max(come - told);
        }
    }
    assert_eq!(largest, 100, "as much as fits a round trip is under way");
    assert_eq!(lab.engine.stats().distant_clients, 3);
}

#[test]
fn a_client_nearby_is_replayed_as_without_the_option() {
    let run = |round_trip| {
        let mut lab = Lab::with(Config { round_trip, ..config() });
        let mut client = Client::new(40_000);
        client.knock(&mut lab);
        lab.run_until(lab.now.0 + 999_000);
        client.acknowledge(&mut lab);
        for read in [0, 100, 100, 100] {
            client.send(&mut lab, read, b"line\n");
            lab.run_ms(60);
        }
        client.fin(&mut lab, 100);
        lab.run_ms(100);
        lab.assert_nothing_lost();
        assert_eq!(lab.engine.stats().distant_clients, 0);
        sent(&lab, &client)
    };
    assert_eq!(run(RoundTrip::Live), run(RoundTrip::Near));
}

#[test]
fn of_a_lost_acknowledgement_the_first_octets_take_the_place() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(30);
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(32);
    assert_eq!((lab.only().received.as_slice(), acknowledged(&lab, &client)), (&b"line\n"[..], 0));
    lab.run_ms(27);
    assert_eq!(acknowledged(&lab, &client), 0);
    lab.run_ms(2);
    assert_eq!(acknowledged(&lab, &client), 100);
    assert_eq!((lab.engine.stats().distant_clients, lab.engine.stats().handshakes_unseen), (1, 0));
}

#[test]
fn a_handshake_that_was_tried_twice_is_measured_from_the_last_syn() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(1_000);
    let again = client.segment(&lab, SYN, &[]);
    lab.live(&crate::segment::LiveSegment { seq: client.seq.wrapping_sub(1), ..again });
    lab.run_ms(30);
    client.acknowledge(&mut lab);
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(59);
    assert_eq!(acknowledged(&lab, &client), 0);
    lab.run_ms(2);
    assert_eq!(acknowledged(&lab, &client), 100);
}

#[test]
fn what_takes_a_second_may_be_a_repetition_and_makes_nobody_far() {
    let mut lab = live();
    // Here it was the live server that repeated its SYN.
    let mut client = open(&mut lab, 40_000, 1_030);
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(SOON);
    client.send(&mut lab, 100, b"line\n");
    lab.run_ms(SOON);
    assert!(acknowledged(&lab, &client) >= 100);
    assert_eq!(lab.engine.stats().distant_clients, 0);
}

#[test]
fn the_capture_s_time_counts_and_not_when_it_was_read() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    let began = lab.now;
    // Both lay in the ring for a while, the SYN for longer.
    lab.run_ms(9);
    let syn = crate::segment::LiveSegment { time: began, ..client.segment(&lab, SYN, &[]) };
    lab.live(&syn);
    client.seq = client.seq.wrapping_add(1);
    let answer = client.answer(&lab);
    lab.answer(&answer);
    lab.run_ms(2);
    let end = crate::segment::LiveSegment { time: Nanos(began.0 + 10 * MS), ..client.segment(&lab, ACK, &[]) };
    lab.live(&end);
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(19);
    assert_eq!(acknowledged(&lab, &client), 0);
    lab.run_ms(2);
    assert_eq!(acknowledged(&lab, &client), 100);
}

#[test]
fn another_connection_of_the_same_client_is_as_far() {
    let mut lab = live();
    lab.target.new_app = Box::new(|_| lines_then_reset(100, 1));
    let mut client = open(&mut lab, 40_000, 30);
    client.send(&mut lab, 0, b"one\n");
    lab.run_ms(100);
    client.send(&mut lab, 100, b"two\n");
    lab.run_ms(29);
    assert_eq!(lab.target.accepted, 2);
    assert_eq!(lab.lines(), ["one\n"], "the handshake takes as long as the live one did");
    lab.run_ms(2);
    assert_eq!(lab.lines(), ["one\n", "two\n"]);
}

#[test]
fn a_handshake_that_a_reset_ends_leaves_nothing_behind() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(30);
    client.rst(&mut lab, 0);
    lab.run_ms(100);
    assert!(lab.target.conns.is_empty());
    lab.assert_nothing_lost();
}

#[test]
fn a_greeting_is_acknowledged_late_and_waited_for() {
    let mut lab = live();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    lab.target.new_app = Box::new(|_| {
        Box::new(|input| match input {
            None => vec![Act::Write(20 * MS, 50)],
            Some((all, seen)) => all[seen..].iter().filter(|&&b| b == b'\n').map(|_| Act::Write(5 * MS, 100)).collect(),
        })
    });
    let mut client = open(&mut lab, 40_000, 30);
    lab.run_ms(5);
    // The live server has greeted sooner.
    client.send(&mut lab, 50, b"line\n");
    // The target accepts it 30 ms after its SYN, and greets after another 20.
    lab.run_ms(44);
    assert_eq!(lab.only().received, b"");
    lab.run_ms(2);
    assert_eq!((lab.only().received.as_slice(), acknowledged(&lab, &client)), (&b"line\n"[..], 0));
    lab.run_ms(30);
    assert_eq!(acknowledged(&lab, &client), 50);
}

/// The first connections after the start wait up to 50 ms to find out who speaks first. That this client has read
/// nothing yet is known from its handshake.
#[test]
fn a_client_that_has_read_nothing_is_not_suspected_of_having_been_greeted() {
    let mut lab = live();
    lab.set_first_speaker(FirstSpeaker::Unknown);
    let mut client = open(&mut lab, 40_000, 30);
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(30 + SOON);
    assert_eq!(lab.only().received, b"line\n");
}

#[test]
fn the_end_of_a_handshake_may_find_the_channel_down() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(10);
    lab.engine.handle_channel_down(lab.now, super::harness::TARGET);
    lab.run_ms(20);
    client.acknowledge(&mut lab);
    lab.run_ms(20);
    assert_eq!(sent(&lab, &client).len(), 0);
    lab.engine.handle_channel_up(lab.now, super::harness::TARGET, super::harness::CREDENTIALS);
    lab.settle();
    client.send(&mut lab, 0, b"line\n");
    lab.run_ms(100);
    client.fin(&mut lab, 100);
    lab.run_ms(300);
    lab.assert_nothing_lost();
}

/// Its session is given up, but not its connection; what it says much later tells nothing of its distance.
#[test]
fn a_handshake_that_outlives_its_session_measures_nothing() {
    let mut lab = live();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    lab.run_ms(120_500);
    assert_eq!(lab.engine.stats().sessions.active, 0);
    client.send(&mut lab, 0, b"line\n");
    assert_eq!(lab.engine.stats().distant_clients, 0);
}
