//! Segments that nobody sent who has a connection: what the live server refuses is not replayed, and not counted as
//! lost.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags};

use super::harness::{Client, Lab, config};
use crate::{
    config::Config,
    segment::{LiveOptions, LiveSegment},
    stats::{Reason, Refused},
};

const NONE: Refused = Refused {
    bad_checksum: 0,
    out_of_window: 0,
    bad_acknowledgement: 0,
    bad_reset: 0,
    bad_syn: 0,
    stale_timestamp: 0,
    bad_fin: 0,
    unproven_handshake: 0,
    unfinished_handshake: 0,
    refused_bytes: 0,
};

/// A connection with one request done.
fn open(lab: &mut Lab, port: u16) -> Client {
    let mut client = Client::new(port);
    client.syn(lab);
    client.send(lab, 0, b"one\n");
    lab.run_ms(5);
    client
}

/// It goes on and ends as if nothing had been, and everything is accounted for.
fn goes_on(mut lab: Lab, mut client: Client) {
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    client.fin(&mut lab, 50);
    lab.run_ms(100_000);
    assert_eq!(lab.only().received, b"one\ntwo\n");
    lab.assert_nothing_lost();
    assert_eq!(lab.engine.stats().duplicate_bytes, 0);
}

#[test]
fn a_forged_syn_and_forged_data_execute_nothing() {
    let mut lab = Lab::new();
    open(&mut lab, 40_000);
    let mut forger = Client::new(41_000);
    forger.knock(&mut lab);
    forger.ack = forger.ack.wrapping_add(12_345);
    forger.send(&mut lab, 0, b"forged\n");
    forger.acknowledge(&mut lab);
    forger.fin(&mut lab, 0);
    lab.run_ms(100_000);
    assert_eq!(lab.lines(), ["one\n"]);
    assert_eq!(lab.engine.stats().sessions.seen, 1);
    let expected = Refused { unproven_handshake: 3, unfinished_handshake: 1, refused_bytes: 7, ..NONE };
    assert_eq!(lab.engine.stats().refused, expected);
    assert_eq!(lab.engine.stats().bytes.discarded.total(), 0);
}

/// Both are captured before the live server has answered anything, so that it is not known yet whether it is seen to.
#[test]
fn a_forger_who_does_not_wait_for_the_first_syn_ack_gains_nothing() {
    let mut lab = Lab::new();
    let mut forger = Client::new(41_000);
    let syn = forger.segment(&lab, SYN, &[]);
    lab.live(&syn);
    forger.seq = forger.seq.wrapping_add(1);
    let wild = Client { ack: 99, ..forger };
    wild.send_as_is(&mut lab, b"forged\n");
    assert_eq!(lab.engine.stats().half_open_bytes, 7);
    let answer = forger.answer(&lab);
    lab.answer(&answer);
    lab.run_ms(1_000);
    assert_eq!((lab.target.accepted, lab.engine.stats().refused.unproven_handshake), (0, 1));
    assert_eq!(lab.engine.poll_unseen_rule(), None);
    // The client whose address was used may still be a client.
    forger.acknowledge(&mut lab);
    forger.send(&mut lab, 0, b"one\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n"]);
}

/// It ends a handshake under way, and what it carries is accounted for.
#[test]
fn a_reset_may_explain_itself_before_there_is_a_connection() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    let reset = client.segment(&lab, RST | ACK, b"gone away");
    lab.live(&reset);
    lab.run_ms(1_000);
    let stats = lab.engine.stats();
    assert_eq!((stats.half_open, stats.bytes.discarded.get(Reason::Nonsense), lab.target.accepted), (0, 9, 0));
}

#[test]
fn a_flood_of_syns_opens_nothing_and_crowds_out_nobody() {
    let mut lab = Lab::with(Config { max_memory: 1 << 20, ..config() });
    lab.audits = false;
    let mut honest = Client::new(39_999);
    honest.knock(&mut lab);
    let most = lab.engine.half_open.budget() / 400;
    for port in 0..most as u16 {
        Client::new(port).knock(&mut lab);
    }
    honest.acknowledge(&mut lab);
    honest.send(&mut lab, 0, b"one\n");
    for port in 1_000..21_000 {
        Client::new(port).knock(&mut lab);
    }
    lab.audit();
    assert!(lab.engine.stats().half_open < 3_000);
    lab.run_ms(1_000);
    assert_eq!((lab.lines(), lab.target.accepted), (vec!["one\n".to_owned()], 1));
    lab.run_ms(70_000);
    let stats = lab.engine.stats();
    assert_eq!((stats.half_open, stats.refused.unfinished_handshake), (0, (most + 20_000) as u64));
    assert_eq!((stats.syns.captured, stats.sessions.seen, lab.engine.poll_timeout().is_some()), (1, 1, true));
}

#[test]
fn wild_numbers_do_nothing_to_an_open_connection() {
    let forge = |flags: TcpFlags, seq: u32, ack: u32, payload: &'static [u8], count: fn(&Refused) -> u64| {
        let mut lab = Lab::new();
        let client = open(&mut lab, 40_000);
        let forger = Client { seq: client.seq.wrapping_add(seq), ack: client.ack.wrapping_add(ack), ..client };
        let segment = forger.segment(&lab, flags, payload);
        lab.live(&segment);
        lab.run_ms(5);
        let refused = lab.engine.stats().refused;
        assert_eq!(count(&refused), 1, "{flags:?} {seq} {ack}: {refused:?}");
        goes_on(lab, client);
    };
    for seq in [1, u32::MAX, 5_000, 1 << 30, 1 << 31, (1 << 31) + 1] {
        forge(RST, seq, 0, b"", |refused| refused.bad_reset + refused.out_of_window);
        forge(RST | ACK, seq, 0, b"", |refused| refused.bad_reset + refused.out_of_window);
    }
    for seq in [1 << 30, 1 << 31, 3 << 30, u32::MAX - 100] {
        forge(ACK | FIN, seq, 0, b"", |refused| refused.out_of_window);
        forge(ACK | PSH, seq, 0, b"forged\n", |refused| refused.out_of_window);
    }
    // Behind what was captured, in the window or not: neither the FIN nor what it carries is the client's.
    forge(ACK | FIN, u32::MAX - 1, 0, b"", |refused| refused.bad_fin);
    for ack in [u32::MAX, 1 << 31, 3 << 30] {
        forge(ACK | PSH, 0, ack, b"forged\n", |refused| refused.bad_acknowledgement);
    }
    forge(PSH, 0, 0, b"forged\n", |refused| refused.bad_acknowledgement);
    forge(SYN | ACK, 0, 0, b"", |refused| refused.bad_syn);
    forge(SYN | RST, 0, 0, b"", |refused| refused.bad_syn);
}

#[test]
fn a_syn_within_a_connection_is_none_before_the_live_server_answers_it() {
    let mut lab = Lab::new();
    let mut client = open(&mut lab, 40_000);
    let blind = Client { seq: 77, ..client };
    let syn = blind.segment(&lab, SYN, b"");
    lab.live(&syn);
    client.send(&mut lab, 50, b"two\n");
    lab.run_ms(5);
    assert_eq!((lab.only_open().received.as_slice(), lab.engine.stats().port_reuses), (&b"one\ntwo\n"[..], 0));
    // Here the port is really used again: the client has lost its memory, and the server takes the next SYN.
    let mut next = Client { seq: 1 << 29, ack: 1 << 28, ..client };
    next.syn(&mut lab);
    next.send(&mut lab, 0, b"three\n");
    lab.run_ms(100);
    assert_eq!(lab.engine.stats().port_reuses, 1);
    assert_eq!(lab.lines(), ["one\n", "three\n", "two\n"]);
    lab.run_ms(70_000);
    assert_eq!(lab.engine.stats().refused.unfinished_handshake, 1);
}

#[test]
fn a_wrong_checksum_does_not_come_before_the_right_one() {
    let mut lab = Lab::new();
    let client = open(&mut lab, 40_000);
    let bad = LiveSegment { intact: false, ..client.segment(&lab, ACK | PSH, b"bad\n") };
    lab.live(&bad);
    let read = Client { ack: client.ack.wrapping_add(50), ..client };
    let reset = LiveSegment { intact: false, ..read.segment(&lab, RST, b"") };
    lab.live(&reset);
    assert_eq!(lab.engine.stats().refused, Refused { bad_checksum: 2, refused_bytes: 4, ..NONE });
    goes_on(lab, client);
}

#[test]
fn a_stale_timestamp_does_not_come_before_the_right_one() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    let stamped = |value: u32| LiveOptions { timestamps: Some((value, 0)), ..LiveOptions::default() };
    let syn = LiveSegment { options: stamped(5_000), ..client.segment(&lab, SYN, b"") };
    lab.live(&syn);
    client.seq = client.seq.wrapping_add(1);
    let answer = crate::segment::LiveAnswer { options: stamped(9), ..client.answer(&lab) };
    lab.answer(&answer);
    client.acknowledge(&mut lab);
    let one = LiveSegment { options: stamped(5_010), ..client.segment(&lab, ACK | PSH, b"one\n") };
    lab.live(&one);
    client.seq = client.seq.wrapping_add(4);
    for value in [5_009, 0, 5_011u32.wrapping_sub(1 << 31)] {
        let stale = LiveSegment { options: stamped(value), ..client.segment(&lab, ACK | PSH, b"bad\n") };
        lab.live(&stale);
    }
    assert_eq!(lab.engine.stats().refused, Refused { stale_timestamp: 3, refused_bytes: 12, ..NONE });
    goes_on(lab, client);
}

/// A FIN that was forged ahead of what has come cuts nothing off.
#[test]
fn octets_overrule_a_fin_ahead_of_them() {
    let mut lab = Lab::new();
    let client = open(&mut lab, 40_000);
    let ahead = Client { seq: client.seq.wrapping_add(2), ..client };
    let fin = ahead.segment(&lab, ACK | FIN, b"");
    lab.live(&fin);
    assert_eq!(lab.engine.stats().fins.captured, 1);
    goes_on(lab, client);
}

#[test]
fn where_no_syn_ack_is_seen_the_first_segment_stands_in_and_it_is_said() {
    for pure in [true, false] {
        let mut lab = Lab::new();
        let mut clients = [40_000, 40_001].map(Client::new);
        for client in &mut clients {
            let syn = client.segment(&lab, SYN, b"");
            lab.live(&syn);
            client.seq = client.seq.wrapping_add(1);
            if pure {
                client.acknowledge(&mut lab);
            }
            client.send(&mut lab, 0, b"one\n");
            client.send(&mut lab, 0, b"two\n");
        }
        assert_eq!(lab.target.accepted, 0, "a SYN-ACK may still be seen");
        lab.run_ms(25);
        assert_eq!(lab.lines(), ["one\n", "one\n", "two\n", "two\n"]);
        assert!(lab.engine.poll_unseen_rule().is_some() && lab.engine.poll_unseen_rule().is_none(), "told once");
        // From then on nobody waits; a number that no SYN has announced is refused as ever.
        let mut late = Client::new(40_002);
        let syn = late.segment(&lab, SYN, b"");
        lab.live(&syn);
        late.seq = late.seq.wrapping_add(1);
        Client { seq: late.seq.wrapping_add(9_999), ..late }.send_as_is(&mut lab, b"forged\n");
        late.send(&mut lab, 0, b"three\n");
        lab.run_ms(2);
        assert_eq!(lab.lines().len(), 5);
        // What is seen once counts.
        Client::new(40_003).knock(&mut lab);
        let mut blind = Client::new(40_004);
        let syn = blind.segment(&lab, SYN, b"");
        lab.live(&syn);
        blind.seq = blind.seq.wrapping_add(1);
        blind.send(&mut lab, 0, b"forged\n");
        lab.run_ms(50);
        assert_eq!(lab.lines().len(), 5);
        assert_eq!(lab.engine.stats().refused.unproven_handshake, 2);
    }
}

/// The acknowledgement that ends a handshake is not always captured. Where the server speaks first, the first octets
/// then acknowledge more; their timestamp proves that the SYN-ACK was read.
#[test]
fn a_client_that_was_greeted_first_is_proven_by_its_timestamp() {
    for (echo, proven) in [(Some(700), true), (Some(900), true), (Some(699), false), (None, false)] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        let syn = client.segment(&lab, SYN, b"");
        lab.live(&syn);
        client.seq = client.seq.wrapping_add(1);
        let options = LiveOptions { timestamps: Some((700, 1)), ..LiveOptions::default() };
        let answer = crate::segment::LiveAnswer { options, ..client.answer(&lab) };
        lab.answer(&answer);
        client.ack = client.ack.wrapping_add(30);
        let options = LiveOptions { timestamps: echo.map(|echo| (2, echo)), ..LiveOptions::default() };
        let first = LiveSegment { options, ..client.segment(&lab, ACK | PSH, b"one\n") };
        lab.live(&first);
        lab.run_ms(60);
        assert_eq!(lab.target.accepted, usize::from(proven), "{echo:?}");
    }
}

#[test]
fn a_client_that_resets_its_handshake_leaves_nothing_behind() {
    let mut lab = Lab::new();
    open(&mut lab, 39_000);
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    let wild = Client { seq: client.seq.wrapping_add(5), ..client }.segment(&lab, RST, b"");
    lab.live(&wild);
    assert_eq!(lab.engine.stats().half_open, 1);
    client.rst(&mut lab, 0);
    assert_eq!(lab.engine.stats().half_open, 0);
    assert_eq!(lab.engine.stats().refused, Refused { bad_reset: 1, unfinished_handshake: 1, ..NONE });
    client.send(&mut lab, 0, b"late\n");
    lab.run_ms(5);
    assert_eq!(lab.lines(), ["one\n"]);
}

#[test]
fn what_a_syn_carries_counts_only_if_the_live_server_has_taken_it() {
    for taken in [true, false] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        let syn = client.segment(&lab, SYN, b"one\n");
        lab.live(&syn);
        client.seq = client.seq.wrapping_add(if taken { 5 } else { 1 });
        let answer = client.answer(&lab);
        lab.answer(&answer);
        client.acknowledge(&mut lab);
        if !taken {
            client.send(&mut lab, 0, b"one\n");
        }
        lab.run_ms(5);
        assert_eq!(lab.lines(), ["one\n"]);
        client.fin(&mut lab, 50);
        lab.run_ms(100);
        lab.assert_nothing_lost();
        assert_eq!(lab.engine.stats().refused.refused_bytes, if taken { 0 } else { 4 });
    }
}
