//! Responses that become their own acknowledgement.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use tcpcopy_common::{
    counters::TargetCounter::*,
    response::option,
    tcp_flags::{ACK, FIN, PSH, RST, SYN},
};

use super::{
    TC_ACT_REDIRECT, TC_ACT_STOLEN, TCX_NEXT,
    learn::{Fixture, marked_syn},
    packets::{Packet, packet},
    privileged,
};
use crate::bpf::{InterceptSetup, TcAttach};

const CLIENT4: &str = "192.0.2.7:40000";
const CLIENT6: &str = "[2001:db8::7]:40000";
const ISS: u32 = u32::MAX - 1000;
const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];

fn server(client: &str) -> &'static str {
    if client.starts_with('[') { "[2001:db8::3]:80" } else { "10.0.0.3:80" }
}

/// A piece of an answer, without PSH.
fn piece(client: &str, offset: u32, len: usize) -> Packet {
    let payload = vec![0x55; len];
    Packet { seq: ISS.wrapping_add(1 + offset), flags: ACK, payload, ..packet(server(client), client) }
}

/// The programs with a session of each family, which has seen its SYN-ACK.
fn fixture(attach: TcAttach, program: &'static str) -> Fixture {
    let setup = InterceptSetup { attach, max_sessions: 16, ring_bytes: 1 << 16, reflect: true, debug: false };
    let mut fixture = Fixture::with_setup(&setup);
    for client in [CLIENT4, CLIENT6] {
        fixture.open("learn", &marked_syn(client, 1, 7));
        let syn_ack = Packet { seq: ISS, flags: SYN | ACK, payload: vec![], ..packet(server(client), client) };
        let (verdict, after) = run(&mut fixture, program, &syn_ack.bytes());
        assert_ne!(verdict, TCX_NEXT);
        assert_eq!(after, syn_ack.bytes());
    }
    fixture.reports();
    fixture
}

fn run(fixture: &mut Fixture, program: &'static str, packet: &[u8]) -> (u32, Vec<u8>) {
    let mut out = vec![0; packet.len() + 256];
    let program: &mut SchedClassifier = fixture.interceptor.object().program(program).unwrap();
    let options = TestRunOptions { data_in: Some(packet), data_out: Some(&mut out), ..TestRunOptions::new() };
    let result = program.test_run(options).unwrap();
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

fn sum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let sum: u32 = words.sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum + (sum >> 16)) as u16
}

/// The pseudo-header of RFC 9293, section 3.1, and RFC 8200, section 8.1.
fn pseudo(ip: &[u8], length: usize) -> Vec<u8> {
    let addresses = if ip[0] >> 4 == 4 { &ip[12..20] } else { &ip[8..40] };
    [addresses, &(length as u32).to_be_bytes(), &[0, 0, 0, 6]].concat()
}

/// With the checksums that a stack computes: of the IP header, and of TCP whole or of the pseudo-header only.
fn with_checksums(packet: &Packet, partial: bool) -> Vec<u8> {
    let mut bytes = packet.bytes();
    let ip = &mut bytes[14..];
    let header = if ip[0] >> 4 == 4 { 20 } else { 40 };
    if header == 20 {
        let checksum = !sum(&ip[..20]);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    }
    let pseudo = pseudo(ip, ip.len() - header);
    let checksum = if partial { sum(&pseudo) } else { !sum(&[&pseudo, &ip[header..]].concat()) };
    ip[header + 16..header + 18].copy_from_slice(&checksum.to_be_bytes());
    bytes
}

#[test]
fn a_piece_of_an_answer_comes_back_as_its_acknowledgement() {
    if !privileged() {
        return;
    }
    for (attach, program) in [(TcAttach::Tcx, "swallow_tcx"), (TcAttach::Clsact, "swallow_clsact")] {
        let mut fixture = fixture(attach, program);
        let mut sent = [0, 0];
        for (client, options, partial) in [
            (CLIENT4, &[][..], false),
            (CLIENT4, &TIMESTAMPS, true),
            (CLIENT4, &TIMESTAMPS, false),
            (CLIENT6, &[], true),
            (CLIENT6, &TIMESTAMPS, false),
        ] {
            let sent = &mut sent[usize::from(client == CLIENT6)];
            let piece = Packet { options: options.to_vec(), ..piece(client, *sent, 1001) };
            *sent += 1001;
            let (verdict, out) = run(&mut fixture, program, &with_checksums(&piece, partial));
            assert_eq!(verdict, TC_ACT_REDIRECT);
            let [report] = fixture.reports()[..] else { panic!("no report") };
            assert_eq!(report.options & !option::TIMESTAMPS, option::REFLECTED | option::IN_ORDER);
            assert_eq!(report.payload_len, 1001);

            let swapped: Vec<u8> = if options.is_empty() {
                vec![]
            } else {
                [&TIMESTAMPS[..4], &TIMESTAMPS[8..], &TIMESTAMPS[4..8]].concat()
            };
            let expected = Packet {
                seq: piece.ack,
                ack: ISS.wrapping_add(1 + *sent),
                window: 0xffff,
                options: swapped,
                payload: vec![],
                ..Packet { source: piece.destination, destination: piece.source, ..piece.clone() }
            };
            let mut expected = with_checksums(&expected, partial);
            // The builder makes both MACs always the same way round.
            let (first, second) = expected[..12].split_at_mut(6);
            first.swap_with_slice(second);
            let tcp = expected.len() - 20 - options.len();
            expected[tcp + 18..tcp + 20].copy_from_slice(b"tc");
            if !partial {
                let add = |sum: u16| !self::sum(&[(!sum).to_be_bytes(), *b"tc"].concat());
                let checksum = u16::from_be_bytes([expected[tcp + 16], expected[tcp + 17]]);
                expected[tcp + 16..tcp + 18].copy_from_slice(&add(checksum).to_be_bytes());
            }
            assert_eq!(out, expected, "{client} {options:?} {partial}");
        }
        assert_eq!((fixture.count(Reflected), fixture.count(ReflectFailed), fixture.count(Swallowed)), (5, 0, 7));
    }
}

#[test]
fn what_the_source_can_acknowledge_as_well_or_must_is_left_to_it() {
    if !privileged() {
        return;
    }
    let swallowed = |verdict| verdict == TC_ACT_REDIRECT || verdict == TC_ACT_STOLEN;
    for (attach, program) in [(TcAttach::Tcx, "swallow_tcx"), (TcAttach::Clsact, "swallow_clsact")] {
        let mut fixture = fixture(attach, program);
        let small = Packet { flags: ACK | PSH, ..piece(CLIENT4, 0, 500) };
        let table = [
            ("a small answer", small.clone(), option::IN_ORDER),
            ("the same again", small, option::IN_ORDER),
            ("a pure ACK", piece(CLIENT4, 500, 0), 0),
            ("behind a gap", piece(CLIENT4, 600, 500), 0),
            ("other options", Packet { options: vec![1; 4], ..piece(CLIENT4, 500, 500) }, option::IN_ORDER),
            ("FIN alone", Packet { flags: FIN | ACK, ..piece(CLIENT4, 1000, 0) }, 0),
            ("RST", Packet { flags: RST, ..piece(CLIENT4, 1000, 10) }, 0),
        ];
        for (what, packet, options) in table {
            let before = packet.bytes();
            let (verdict, after) = run(&mut fixture, program, &before);
            assert!(swallowed(verdict) && after == before, "{what}");
            let [report] = fixture.reports()[..] else { panic!("{what}") };
            assert_eq!(report.options, options, "{what}");
        }
        assert_eq!(fixture.count(Reflected), 0);
        // The payload before a FIN is acknowledged, the FIN is not.
        let long = Packet { flags: FIN | ACK, ..piece(CLIENT4, 1000, 900) };
        let (_, out) = run(&mut fixture, program, &long.bytes());
        let number = ISS.wrapping_add(1 + 1000 + 900).to_be_bytes();
        assert_eq!(
            (out.len(), &out[14 + 20 + 8..14 + 20 + 14]),
            (14 + 20 + 20, &[&number[..], &[0x50, ACK.octet()]].concat()[..])
        );
    }
}

#[test]
fn what_could_not_be_reported_is_not_acknowledged() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(TcAttach::Tcx, "swallow_tcx");
    let mut offset = 0;
    while fixture.count(ReportLost) == 0 {
        run(&mut fixture, "swallow_tcx", &piece(CLIENT4, offset, 10).bytes());
        offset += 10;
    }
    let reports = fixture.reports().len() as u64;
    assert_eq!((fixture.count(Reflected), u64::from(offset) / 10), (reports, reports + 1));
    // What follows lies behind a gap, until the target sends the lost one again.
    run(&mut fixture, "swallow_tcx", &piece(CLIENT4, offset, 10).bytes());
    assert_eq!(fixture.count(Reflected), reports);
    run(&mut fixture, "swallow_tcx", &piece(CLIENT4, offset - 10, 20).bytes());
    assert_eq!(fixture.count(Reflected), reports + 1);
}

#[test]
fn a_reflected_acknowledgement_is_no_sign_of_life_and_no_segment_of_the_source() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(TcAttach::Tcx, "swallow_tcx");
    let (_, reflected) = run(&mut fixture, "swallow_tcx", &piece(CLIENT4, 0, 100).bytes());
    let flow = packet(CLIENT4, server(CLIENT4)).flow();
    let before = (fixture.instances.wire_stats(1).unwrap(), fixture.sessions.get(&flow).unwrap().unwrap());
    let (verdict, after) = run(&mut fixture, "learn", &reflected);
    assert_eq!((verdict, after), (TCX_NEXT, reflected));
    assert_eq!(fixture.count(ReflectionSeen), 1);
    let now = (fixture.instances.wire_stats(1).unwrap(), fixture.sessions.get(&flow).unwrap().unwrap());
    assert_eq!((before.0.segments, before.1), (now.0.segments, now.1));
}
