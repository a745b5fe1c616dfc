//! Reports with the first octets of their responses.

use std::net::SocketAddr;

use tcpcopy_common::{
    counters::TargetCounter::*,
    prefix::Prefix,
    response::{ResponseHeader, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN},
};

use super::{
    TC_ACT_REDIRECT, TC_ACT_STOLEN,
    learn::{Fixture, marked_syn, marked_syn_to},
    packets::{Packet, packet},
    privileged,
};
use crate::bpf::{InterceptSetup, TcAttach};

const CLIENT4: &str = "192.0.2.7:40000";
const CLIENT6: &str = "[2001:db8::7]:40000";
const SERVER4: &str = "10.0.0.3:80";
const SERVER6: &str = "[2001:db8::3]:80";
/// The octets of a report without payload in the ring, with what the kernel puts before each record.
const BARE: usize = 8 + 72;

fn server(client: &str) -> &'static str {
    if client.starts_with('[') { SERVER6 } else { SERVER4 }
}

fn prefix(octets: u16) -> Prefix {
    Prefix::new(octets).unwrap()
}

fn target(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// The programs with a session of instance 1 for an IPv4 and one for an IPv6 client, which are asked for a prefix.
fn fixture(octets: u16, ring_bytes: u32, attach: TcAttach, reflect: bool) -> Fixture {
    let setup = InterceptSetup { attach, max_sessions: 64, ring_bytes, reflect, debug: false };
    let mut fixture = Fixture::with_setup(&setup);
    open(&mut fixture, octets);
    fixture
}

/// Opens both sessions, or opens them again, with a prefix.
fn open(fixture: &mut Fixture, octets: u16) {
    let targets = [SERVER4, SERVER6].map(|server| (target(server), prefix(octets)));
    fixture.instances.set_prefixes(1, &targets).unwrap();
    for client in [CLIENT4, CLIENT6] {
        fixture.open("learn", &marked_syn(client, 1, octets.into()));
    }
}

/// A response whose payload tells the place of each of its octets.
fn response(client: &str, len: usize) -> Packet {
    let payload = (0..len).map(|at| (at * 31 + at / 256) as u8).collect();
    Packet { payload, ..packet(server(client), client) }
}

/// Swallows one response; its report, the octets of payload in it, and the octets of the ring that it takes.
fn swallowed(fixture: &mut Fixture, program: &'static str, packet: &Packet) -> (ResponseHeader, Vec<u8>, usize) {
    let verdict = fixture.run(program, packet);
    assert!(verdict == TC_ACT_REDIRECT || verdict == TC_ACT_STOLEN, "{verdict}");
    let used = fixture.used();
    let mut responses = fixture.responses();
    assert_eq!(responses.len(), 1);
    let (header, octets) = responses.remove(0);
    (header, octets, used)
}

#[test]
fn the_first_octets_of_a_response_are_reported_as_far_as_they_are_asked_for() {
    if !privileged() {
        return;
    }
    const LENGTHS: [usize; 19] =
        [0, 1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 1023, 1024, 1025, 1448, 2047, 2048, 2049, 3500];
    for (attach, programs) in [
        (TcAttach::Tcx, ["swallow_tcx", "swallow_tcx_l3"]),
        (TcAttach::Clsact, ["swallow_clsact", "swallow_clsact_l3"]),
    ] {
        let [mut without, mut with] = [0, 16].map(|octets| fixture(octets, 1 << 16, attach, false));
        // Sequence numbers grow with them, as those of a port do that is used again.
        for asked in [16, 32, 64, 128, 256, 512, 1024, 2048] {
            open(&mut with, asked);
            for (client, len) in [CLIENT4, CLIENT6].into_iter().flat_map(|client| LENGTHS.map(|len| (client, len))) {
                let plain = response(client, len);
                let stamped = Packet { options: vec![1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8], ..plain.clone() };
                let last = Packet { flags: FIN | PSH | ACK, ..plain.clone() };
                for packet in [plain, stamped, last] {
                    let what = format!("{asked} octets of {len} to {client}, {:?}", packet.flags);
                    let packet = Packet { ethernet: true, ..packet };
                    let (expected, none, bare) = swallowed(&mut without, programs[0], &packet);
                    assert_eq!((expected.prefix_len, none.len(), bare), (0, 0, BARE), "{what}");
                    let (header, octets, used) = swallowed(&mut with, programs[0], &packet);
                    let due = len.min(asked.into());
                    assert_eq!(octets, packet.payload[..due], "{what}");
                    assert_eq!(header, ResponseHeader { prefix_len: due as u16, ..expected }, "{what}");
                    let bucket = [0, 16, 64, 256, 1024, 2048].into_iter().find(|bucket| due <= *bucket).unwrap();
                    assert_eq!(used, BARE + bucket, "{what}");
                    let bare = Packet { ethernet: false, ..packet };
                    assert_eq!(swallowed(&mut with, programs[1], &bare), (header, octets, used), "{what}");
                }
            }
            assert_eq!((with.count(PrefixLost), with.count(ReportLost)), (0, 0));
        }
        assert_eq!((without.count(PrefixLost), without.count(ReportLost)), (0, 0));
    }
}

#[test]
fn the_first_octets_are_found_behind_any_headers_and_in_any_segment() {
    if !privileged() {
        return;
    }
    let with = |client, change: &dyn Fn(&mut Packet)| {
        let mut packet = response(client, 100);
        change(&mut packet);
        packet
    };
    let table = [
        ("on a VLAN", with(CLIENT4, &|p| p.vlan_ethertypes = vec![0x8100])),
        ("with IP options", with(CLIENT4, &|p| p.ip_options = vec![1; 8])),
        ("with an extension header", with(CLIENT6, &|p| p.extensions = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])])),
        ("with forty octets of options", with(CLIENT4, &|p| p.options = vec![1; 40])),
        ("with a RST", with(CLIENT4, &|p| p.flags = RST | ACK)),
        ("with a SYN", with(CLIENT4, &|p| p.flags = SYN | ACK)),
        ("padded", Packet { padding: 40, ..response(CLIENT4, 5) }),
    ];
    let mut fixture = fixture(64, 1 << 16, TcAttach::Tcx, false);
    for (what, packet) in &table {
        let (header, octets, _) = swallowed(&mut fixture, "swallow_tcx", packet);
        let due = packet.payload.len().min(64);
        assert_eq!((octets, usize::from(header.prefix_len)), (packet.payload[..due].to_vec(), due), "{what}");
    }
    // A data offset that reaches behind the end: no payload, and so nothing of it.
    let broken = Packet { data_offset: Some(15), ..response(CLIENT4, 10) };
    let (header, octets, _) = swallowed(&mut fixture, "swallow_tcx", &broken);
    assert_eq!((header.payload_len, octets), (0, vec![]));
    assert_eq!(fixture.count(PrefixLost), 0);
}

#[test]
fn a_payload_that_cannot_be_read_is_missing_in_its_report_and_counted() {
    if !privileged() {
        return;
    }
    for asked in [16, 2048] {
        let mut fixture = fixture(asked, 1 << 16, TcAttach::Tcx, false);
        // IP announces a payload of which five octets are there.
        let cut = Packet { cut: Some(14 + 20 + 20 + 5), ..response(CLIENT4, 1000) };
        let (header, octets, _) = swallowed(&mut fixture, "swallow_tcx", &cut);
        assert_eq!((header.payload_len, header.prefix_len, octets), (1000, 0, vec![]));
        assert_eq!((fixture.count(PrefixLost), fixture.count(ReportLost)), (1, 0));
        let (_, octets, _) = swallowed(&mut fixture, "swallow_tcx", &response(CLIENT4, 16));
        assert_eq!((octets.len(), fixture.count(PrefixLost)), (16, 1));
    }
}

#[test]
fn each_fragment_has_the_first_octets_of_its_own() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(16, 1 << 16, TcAttach::Tcx, false);
    let fragment = |flags_offset, len| Packet {
        fragment_flags_offset: flags_offset,
        fragment_id: 99,
        seq: 1000,
        ..response(CLIENT4, len)
    };
    for (flags_offset, len) in [(0x2000, 44), (0x2000 | 8, 44), (16, 10)] {
        let packet = fragment(flags_offset, len);
        let bytes = packet.bytes();
        // The builder writes a TCP header into each: of the later ones it is payload.
        let payload = if flags_offset == 0x2000 { &bytes[14 + 40..] } else { &bytes[14 + 20..] };
        let (header, octets, _) = swallowed(&mut fixture, "swallow_tcx", &packet);
        assert_eq!((header.payload_len as usize, octets), (payload.len(), payload[..payload.len().min(16)].to_vec()));
    }
    assert_eq!((fixture.count(SwallowedFragments), fixture.count(PrefixLost)), (2, 0));
    // Without a TCP header in the first of them it is not known where the payload of the others begins.
    let tiny = Packet { fragment_id: 98, cut: Some(14 + 20 + 12), ..fragment(0x2000, 0) };
    assert_eq!(fixture.run("swallow_tcx", &tiny), TC_ACT_REDIRECT);
    let (_, octets, _) = swallowed(&mut fixture, "swallow_tcx", &Packet { fragment_id: 98, ..fragment(2, 100) });
    assert!(octets.is_empty());
}

#[test]
fn a_session_keeps_the_prefix_of_its_target_at_its_syn() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(16, 1 << 16, TcAttach::Tcx, false);
    let opened = |fixture: &mut Fixture, client: &str, server: &str, instance| {
        fixture.open("learn", &marked_syn_to(client, server, instance, 7));
    };
    let octets = |fixture: &mut Fixture, client: &str, server: &str| {
        let packet = Packet { payload: vec![b'x'; 100], ..packet(server, client) };
        swallowed(fixture, "swallow_tcx", &packet).1.len()
    };
    // Other ports, addresses and instances are not asked for anything.
    for (client, server, instance) in
        [("192.0.2.7:1", "10.0.0.3:81", 1), ("192.0.2.7:2", "10.0.0.4:80", 1), ("192.0.2.7:3", SERVER4, 2)]
    {
        opened(&mut fixture, client, server, instance);
        assert_eq!(octets(&mut fixture, client, server), 0, "{server} of instance {instance}");
    }
    fixture.instances.set_prefixes(2, &[(target(SERVER4), prefix(32))]).unwrap();

    // What is wanted from now on changes nothing for sessions that are open, also when their SYN is sent again.
    fixture.instances.set_prefixes(1, &[(target(SERVER4), prefix(64)), (target("10.0.0.4:80"), prefix(32))]).unwrap();
    fixture.open("learn", &marked_syn(CLIENT4, 1, 16));
    assert_eq!((fixture.count(SynRepeated), octets(&mut fixture, CLIENT4, SERVER4)), (1, 16));
    assert_eq!(octets(&mut fixture, CLIENT6, SERVER6), 16);
    for (client, server, instance, expected) in [
        ("192.0.2.7:11", SERVER4, 1, 64),
        ("192.0.2.7:12", "10.0.0.4:80", 1, 32),
        ("[2001:db8::7]:13", SERVER6, 1, 0),
        ("192.0.2.7:14", SERVER4, 2, 32),
    ] {
        opened(&mut fixture, client, server, instance);
        assert_eq!(octets(&mut fixture, client, server), expected, "{server} of instance {instance}");
    }
    // The port is used again.
    fixture.open("learn", &marked_syn(CLIENT4, 1, 17));
    assert_eq!(octets(&mut fixture, CLIENT4, SERVER4), 64);

    // An instance that is gone wants nothing, also when its number is given out again.
    fixture.instances.remove(1).unwrap();
    fixture.instances.add(1, &super::learn::KEY).unwrap();
    opened(&mut fixture, "192.0.2.7:21", SERVER4, 1);
    assert_eq!(octets(&mut fixture, "192.0.2.7:21", SERVER4), 0);
    opened(&mut fixture, "192.0.2.7:24", SERVER4, 2);
    assert_eq!(octets(&mut fixture, "192.0.2.7:24", SERVER4), 32, "the other instance is still there");
}

#[test]
fn a_ring_without_room_for_the_octets_takes_the_headers_and_what_is_lost_adds_up() {
    if !privileged() {
        return;
    }
    for (asked, bucket) in [(16, 16), (512, 1024), (2048, 2048)] {
        let mut fixture = fixture(asked, 4096, TcAttach::Tcx, false);
        // The kernel leaves one octet free.
        let size = 4095;
        for _ in 0..100 {
            assert_eq!(fixture.run("swallow_tcx", &response(CLIENT4, 3000)), TC_ACT_REDIRECT);
        }
        let responses = fixture.responses();
        let (with, without): (Vec<_>, Vec<_>) = responses.iter().partition(|(header, _)| header.prefix_len > 0);
        // As many as fit with their octets, and in what is left as many as fit without.
        let whole = size / (BARE + bucket);
        assert_eq!((with.len(), without.len()), (whole, (size - whole * (BARE + bucket)) / BARE), "{asked}");
        let payload = response(CLIENT4, 3000).payload;
        assert!(with.iter().all(|(_, octets)| *octets == payload[..asked.into()]), "{asked}");
        assert!(responses.iter().all(|(header, _)| header.payload_len == 3000));
        assert_eq!(fixture.count(PrefixLost), without.len() as u64);
        let lost = 100 - responses.len() as u64;
        assert_eq!((fixture.count(ReportLost), fixture.count(Swallowed)), (lost, 100));
        assert_eq!(fixture.instances.wire_stats(1).unwrap().reports_lost, lost);
        // With room again everything is as before.
        let (_, octets, _) = swallowed(&mut fixture, "swallow_tcx", &response(CLIENT4, 3000));
        assert_eq!(octets.len(), usize::from(asked));
    }
}

#[test]
fn a_response_that_becomes_its_acknowledgement_is_reported_with_its_first_octets() {
    if !privileged() {
        return;
    }
    for asked in [16, 2048] {
        let mut fixture = fixture(asked, 1 << 16, TcAttach::Tcx, true);
        for client in [CLIENT4, CLIENT6] {
            let begin = Packet { flags: SYN | ACK, seq: 999, payload: vec![], ..response(client, 0) };
            swallowed(&mut fixture, "swallow_tcx", &begin);
            let piece = Packet { flags: ACK, seq: 1000, ..response(client, 1448) };
            let (header, octets, _) = swallowed(&mut fixture, "swallow_tcx", &piece);
            assert_eq!(header.options, option::REFLECTED | option::IN_ORDER);
            assert_eq!(octets, piece.payload[..usize::from(asked).min(1448)]);
            // The same once more is the source's to see to.
            let (header, again, _) = swallowed(&mut fixture, "swallow_tcx", &piece);
            assert_eq!((header.options, again), (option::IN_ORDER, octets));
        }
        assert_eq!((fixture.count(Reflected), fixture.count(PrefixLost)), (2, 0));
    }
}
