//! Reports of a target that mean something else than they seem to, or nothing.

use tcpcopy_common::{
    response::{ResponseHeader, kind},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};

use super::harness::{CREDENTIALS, Client, Lab, TARGET};
use crate::{
    config::TargetId,
    report::Report,
    tcp::{seq::ReplaySeq, session::FinalSegment},
};

/// A report about the connection whose SYN was sent first.
fn report(lab: &Lab, kind: u8) -> ResponseHeader {
    let mut report: ResponseHeader = bytemuck::Zeroable::zeroed();
    report.flow = lab.sent[0].flow;
    report.instance = CREDENTIALS.instance;
    report.kind = kind;
    report
}

#[test]
fn a_report_of_another_target_with_the_same_four_tuple_is_stale() {
    let mut lab = Lab::new();
    lab.engine.handle_channel_up(lab.now, TargetId(1), CREDENTIALS);
    Client::new(40_000).syn(&mut lab);
    lab.run_ms(5);
    let reclaimed = report(&lab, kind::RECLAIMED);
    lab.engine.handle_report(lab.now, TargetId(1), &Report::parse(&reclaimed.into()).unwrap());
    assert_eq!((lab.engine.stats().stale_responses, lab.engine.stats().sessions.active), (1, 1));
}

#[test]
fn a_refusal_of_an_earlier_syn_is_stale() {
    for (kind, what) in [(kind::COLLISION, "collision"), (kind::MAP_FULL, "full map")] {
        let mut lab = Lab::new();
        lab.weather.lose = 1000;
        Client::new(40_000).syn(&mut lab);
        let mut refusal = report(&lab, kind);
        refusal.seq = lab.sent[0].seq.wrapping_sub(1).to_be_bytes();
        lab.hand_over(&refusal);
        lab.settle();
        let stats = lab.engine.stats();
        assert_eq!((stats.stale_responses, stats.collisions, stats.session_map_full), (1, 0, 0), "{what}");
        assert_eq!(lab.sent.len(), 1, "{what}");
    }
}

#[test]
fn a_collision_reported_after_the_target_has_answered_is_stale() {
    let mut lab = Lab::new();
    Client::new(40_000).syn(&mut lab);
    lab.run_ms(5);
    let mut refusal = report(&lab, kind::COLLISION);
    refusal.seq = lab.sent[0].seq.to_be_bytes();
    lab.hand_over(&refusal);
    assert_eq!((lab.engine.stats().stale_responses, lab.engine.stats().collisions), (1, 0));
}

#[test]
fn a_stray_segment_that_acknowledges_nothing_is_reset_with_the_number_after_it() {
    // (flags, payload, what the RST acknowledges beyond the stray's number)
    for (flags, payload_len, beyond) in
        [(TcpFlags::NONE, 0, 0), (SYN, 0, 1), (FIN, 0, 1), (PSH | FIN, 10, 11), (SYN | FIN, 5, 7)]
    {
        let mut lab = Lab::new();
        let mut stray: ResponseHeader = bytemuck::Zeroable::zeroed();
        stray.flow = Client::new(1).flow;
        stray.instance = CREDENTIALS.instance;
        (stray.flags, stray.payload_len) = (flags, payload_len);
        stray.seq = (u32::MAX - 3).to_be_bytes();
        lab.hand_over(&stray);
        let reset = lab.engine.poll_transmit(lab.now).unwrap();
        let expected = (RST | ACK, 0, (u32::MAX - 3).wrapping_add(beyond), 0);
        assert_eq!((reset.flags, reset.seq, reset.ack, reset.window), expected, "flags {flags:?}");
    }
}

#[test]
fn a_channel_that_breaks_keeps_the_resets_for_other_targets() {
    let mut lab = Lab::new();
    lab.engine.handle_channel_up(lab.now, TargetId(1), CREDENTIALS);
    let mut stray: ResponseHeader = bytemuck::Zeroable::zeroed();
    stray.flow = Client::new(1).flow;
    stray.instance = CREDENTIALS.instance;
    stray.flags = ACK;
    lab.hand_over(&stray);
    lab.engine.handle_channel_down(lab.now, TargetId(1));
    assert_eq!(lab.engine.poll_transmit(lab.now).map(|reset| reset.flags), Some(RST));
    lab.hand_over(&stray);
    lab.engine.handle_channel_down(lab.now, TARGET);
    assert_eq!(lab.engine.poll_transmit(lab.now), None);
    assert_eq!(lab.engine.stats().orphans, 1);
}

#[test]
fn a_session_whose_syn_was_never_sent_is_not_reset() {
    let mut lab = Lab::new();
    let mut client = Client::new(40_000);
    client.knock(&mut lab);
    let end = client.segment(&lab, ACK, &[]);
    lab.hand(&end);
    lab.engine.handle_shutdown(lab.now);
    assert_eq!(lab.engine.poll_transmit(lab.now), None);
    assert_eq!(lab.engine.stats().syns.discarded.total(), 1);
}

#[test]
fn the_last_acknowledgement_keeps_the_window_open() {
    let reset = FinalSegment::reset(TARGET, Client::new(1).flow, ReplaySeq::new(1));
    assert_eq!((reset.transmit().window, FinalSegment { flags: ACK, ..reset }.transmit().window), (0, u16::MAX));
}

#[test]
fn what_was_asked_for_before_the_channel_broke_is_asked_for_again_at_once() {
    let mut lab = Lab::new();
    Client::new(40_000).syn(&mut lab);
    lab.run_ms(5);
    lab.engine.handle_channel_down(lab.now, TARGET);
    lab.engine.handle_shutdown(lab.now);
    assert_eq!(lab.engine.poll_transmit(lab.now), None);
    for _ in 0..3 {
        lab.engine.handle_channel_up(lab.now, TARGET, CREDENTIALS);
        assert_eq!(lab.engine.poll_transmit(lab.now).map(|syn| syn.flags), Some(SYN));
        assert_eq!(lab.engine.poll_transmit(lab.now), None);
        lab.engine.handle_channel_down(lab.now, TARGET);
    }
    assert_eq!(lab.engine.stats().orphans, 1);
}

#[test]
fn what_a_connection_that_is_being_opened_cannot_use_is_stale() {
    // (flags, what it acknowledges beyond our SYN's number)
    let reports = [(RST | ACK, 0), (RST | ACK, 2), (RST, 1), (SYN, 1), (PSH, 1), (ACK, 1)];
    for (flags, beyond) in reports {
        let mut lab = Lab::new();
        lab.weather.lose = 1000;
        Client::new(40_000).syn(&mut lab);
        let mut stale = report(&lab, kind::SEGMENT);
        stale.flags = flags;
        stale.ack = lab.sent[0].seq.wrapping_add(beyond).to_be_bytes();
        lab.hand_over(&stale);
        lab.settle();
        let stats = lab.engine.stats();
        let what = (stats.stale_responses, stats.sessions.active, stats.connected, lab.sent.len());
        assert_eq!(what, (1, 1, 0, 1), "flags {flags:?}, number {beyond}");
    }
}

/// Resets without an acknowledgement are judged by their own number, everything else by what it acknowledges too.
#[test]
fn an_open_connection_is_ended_by_a_bare_reset_with_a_number_of_its_own() {
    // (flags, number beyond the next that is expected, whether the session goes on without a connection)
    for (flags, beyond, ends) in [(RST, 0, true), (RST, 1, false), (RST | ACK, 0, false), (PSH, 0, false)] {
        let mut lab = Lab::new();
        let mut client = Client::new(40_000);
        client.syn(&mut lab);
        client.send(&mut lab, 0, b"one\n");
        lab.run_ms(200);
        let last = lab.sent.last().unwrap().clone();
        let mut segment = report(&lab, kind::SEGMENT);
        segment.flags = flags;
        segment.seq = last.ack.wrapping_add(beyond).to_be_bytes();
        // Of nothing that was sent; but for what has no ACK flag, where the number would be right.
        segment.ack = if flags.contains(ACK) { last.seq.wrapping_add(999) } else { last.seq }.to_be_bytes();
        segment.payload_len = u32::from(flags.contains(PSH));
        let before = lab.engine.stats().stale_responses;
        lab.hand_over(&segment);
        let stale = lab.engine.stats().stale_responses - before;
        assert_eq!(stale == 0, ends, "flags {flags:?}, number {beyond}");
        client.send(&mut lab, 100, b"two\n");
        lab.run_ms(200);
        assert_eq!(lab.engine.stats().reconnects, u64::from(ends), "flags {flags:?}, number {beyond}");
    }
}
