//! Multipath TCP: a connection is replayed as long as its first subflow has all of it.

use tcpcopy_common::tcp_flags::{ACK, PSH, SYN};

use super::harness::{Client, Lab};
use crate::{
    multipath::Multipath,
    segment::{LiveAnswer, LiveSegment},
    stats::Reason,
};

const INITIAL: u32 = u32::MAX - 3;

/// Sends the octets that are at `at` of the subflow, from 1, and `ahead` octets later in the connection.
fn send_mapped(lab: &mut Lab, client: &mut Client, at: u32, ahead: u32, payload: &[u8]) {
    let multipath = Multipath::Mapping { data: INITIAL.wrapping_add(at + ahead), subflow: at };
    let segment = LiveSegment { multipath, ..client.segment(lab, ACK | PSH, payload) };
    lab.live(&segment);
    client.seq = client.seq.wrapping_add(payload.len() as u32);
    client.ack = client.ack.wrapping_add(50);
}

/// A subflow that the client adds to a connection, with its handshake.
fn join(lab: &mut Lab, port: u16) -> Client {
    let mut client = Client::new(port);
    let syn = LiveSegment { multipath: Multipath::Join, ..client.segment(lab, SYN, &[]) };
    lab.live(&syn);
    client.seq = client.seq.wrapping_add(1);
    let answer = LiveAnswer { multipath: Multipath::Join, ..client.answer(lab) };
    lab.answer(&answer);
    let end = LiveSegment { multipath: Multipath::Join, ..client.segment(lab, ACK, &[]) };
    lab.live(&end);
    client
}

#[test]
fn a_multipath_connection_with_one_subflow_is_replayed() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    for at in [1, 5, 9] {
        send_mapped(&mut lab, &mut client, at, 0, b"one\n");
        lab.run_ms(2);
    }
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    assert_eq!(lab.lines(), ["one\n"; 3]);
    lab.assert_nothing_lost();
}

/// The report: the target read two connections, the second from the middle of a line.
#[test]
fn a_subflow_that_joins_is_left_out_and_what_it_takes_from_ends_the_connection() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.syn(&mut lab);
    send_mapped(&mut lab, &mut client, 1, 0, b"one\n");
    lab.run_ms(5);
    let mut second = join(&mut lab, 40_001);
    assert_eq!(lab.engine.stats().syns.discarded.get(Reason::Multipath), 1);
    assert_eq!(lab.engine.stats().half_open, 0);
    // Octets 5 to 8 go by the second, those after them by the first.
    send_mapped(&mut lab, &mut second, 1, 4, b"two\n");
    send_mapped(&mut lab, &mut second, 5, 8, b"four");
    send_mapped(&mut lab, &mut client, 5, 4, b"hree");
    lab.run_ms(5);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.seen, stats.sessions.aborted.get(Reason::Multipath)), (1, 1));
    assert!(lab.only().reset);
    // Nothing of either is joined again, whatever looks like a request.
    for n in 0..4 {
        send_mapped(&mut lab, &mut client, 9 + 5 * n, 4, b"more\n");
        client.send(&mut lab, 50, b"plain\n");
        send_mapped(&mut lab, &mut second, 9 + 5 * n, 8, b"more\n");
        lab.run_ms(5);
    }
    assert_eq!((lab.engine.stats().sessions.seen, lab.lines()), (1, vec!["one\n".to_owned()]));
    let discarded = lab.engine.stats().bytes.discarded.get(Reason::Multipath);
    assert_eq!(discarded, 4 + 4 + 4 + 4 * (5 + 6 + 5));
    client.fin(&mut lab, 0);
    lab.run_ms(100);
    lab.assert_done();
}

#[test]
fn a_subflow_that_was_open_before_the_start_is_not_joined() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    for at in [101, 106, 111] {
        send_mapped(&mut lab, &mut client, at, 77, b"late\n");
    }
    lab.run_ms(5);
    let stats = lab.engine.stats();
    assert_eq!((stats.sessions.seen, stats.bytes.discarded.get(Reason::Multipath)), (0, 15));
    // One that was taken for plain TCP, until a mapping says otherwise.
    let mut client = Client::new(40_001);
    for _ in 0..3 {
        client.send(&mut lab, 50, b"late\n");
        lab.run_ms(5);
    }
    assert_eq!(lab.engine.stats().sessions.seen, 1);
    send_mapped(&mut lab, &mut client, 101, 77, b"late\n");
    lab.run_ms(5);
    assert!(lab.only().reset);
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::Multipath), 1);
}
