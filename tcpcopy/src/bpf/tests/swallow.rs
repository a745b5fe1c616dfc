use tcpcopy_common::{
    counters::TargetCounter::*,
    mark::Stamp,
    response::{NO_WINDOW_SCALE, ResponseHeader, WireStats, kind, option, state},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};

use super::{
    TC_ACT_REDIRECT, TC_ACT_STOLEN, TCX_NEXT,
    learn::{Fixture, fresh, marked_syn, stamped_syn},
    packets::{Packet, packet},
    privileged, run_tc,
};
use crate::bpf::TcAttach;

const CLIENT4: &str = "192.0.2.7:40000";
const CLIENT6: &str = "[2001:db8::7]:40000";

/// The programs with a session of instance 1 for an IPv4 and one for an IPv6 client.
fn fixture(ring_bytes: u32, attach: TcAttach) -> Fixture {
    let mut fixture = Fixture::with_attach(16, ring_bytes, attach);
    for client in [CLIENT4, CLIENT6] {
        fixture.open("learn", &marked_syn(client, 1, 7));
    }
    fixture
}

/// A segment from the target to the client.
fn response(client: &str) -> Packet {
    let server = if client.starts_with('[') { "[2001:db8::3]:80" } else { "10.0.0.3:80" };
    packet(server, client)
}

#[test]
fn responses_to_sessions_are_reported_and_swallowed() {
    if !privileged() {
        return;
    }
    let timestamps = [1, 1, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8];
    let syn_ack = [2, 4, 0x05, 0xb4, 4, 2, 8, 10, 9, 9, 9, 9, 8, 8, 8, 8, 1, 3, 3, 7];
    let with = |client, change: &dyn Fn(&mut Packet)| {
        let mut packet = response(client);
        change(&mut packet);
        packet
    };
    let table = [
        ("data", response(CLIENT4)),
        ("IPv6 data", response(CLIENT6)),
        ("timestamps", with(CLIENT4, &|p| p.options = timestamps.to_vec())),
        ("SYN+ACK", with(CLIENT4, &|p| (p.flags, p.options, p.payload) = (SYN | ACK, syn_ack.to_vec(), vec![]))),
        ("pure ACK", with(CLIENT4, &|p| p.payload = vec![])),
        ("RST", with(CLIENT4, &|p| (p.flags, p.payload) = (RST, vec![]))),
        ("FIN", with(CLIENT6, &|p| (p.flags, p.payload) = (FIN | ACK, vec![]))),
        ("on a VLAN", with(CLIENT4, &|p| p.vlan_ethertypes = vec![0x8100])),
        ("with extension header", with(CLIENT6, &|p| p.extensions = vec![(0, vec![0, 0, 1, 4, 0, 0, 0, 0])])),
        ("broken options", with(CLIENT4, &|p| p.options = vec![8, 60, 1, 1])),
        ("broken data offset", with(CLIENT4, &|p| p.data_offset = Some(15))),
        ("cut in the TCP header", with(CLIENT4, &|p| p.cut = Some(14 + 20 + 12))),
    ];
    for (attach, program, verdict) in
        [(TcAttach::Tcx, "swallow_tcx", TC_ACT_REDIRECT), (TcAttach::Clsact, "swallow_clsact", TC_ACT_STOLEN)]
    {
        let mut fixture = fixture(1 << 16, attach);
        let mut swallowed = 0;
        let mut swallowed_bytes = 0;
        for (what, packet) in &table {
            assert_eq!(fixture.run(program, packet), verdict, "{what}");
            let reports = fixture.reports();
            if packet.cut.is_some() {
                assert_eq!(reports, []);
                assert_eq!(fixture.count(ReportLost), 1);
                swallowed += 1;
                continue;
            }
            let [report] = reports[..] else { panic!("{what}: {} reports", reports.len()) };
            let payload_len = if packet.data_offset.is_some() { 0 } else { packet.payload.len() as u32 };
            let expected = ResponseHeader {
                flow: Packet { source: packet.destination, destination: packet.source, ..packet.clone() }.flow(),
                seq: packet.seq.to_be_bytes(),
                ack: packet.ack.to_be_bytes(),
                window: packet.window.to_be_bytes(),
                flags: packet.flags,
                window_scale: if *what == "SYN+ACK" { 7 } else { NO_WINDOW_SCALE },
                tsval: match *what {
                    "SYN+ACK" => [9; 4],
                    "timestamps" => [1, 2, 3, 4],
                    _ => [0; 4],
                },
                payload_len,
                instance: 1,
                mss: if *what == "SYN+ACK" { [5, 0xb4] } else { [0; 2] },
                kind: kind::SEGMENT,
                options: if matches!(*what, "SYN+ACK" | "timestamps") { option::TIMESTAMPS } else { 0 },
                prefix_len: 0,
                _reserved: [0; 2],
            };
            assert_eq!(report, expected, "{what}");
            swallowed += 1;
            swallowed_bytes += u64::from(payload_len);
        }
        assert_eq!((fixture.count(Swallowed), fixture.count(SwallowedBytes)), (swallowed, swallowed_bytes));
        let stats = fixture.instances.wire_stats(1).unwrap();
        assert_eq!(
            stats,
            WireStats { segments: 2, syns: 2, swallowed, swallowed_bytes, reports_lost: 1, ..WireStats::default() }
        );
    }
}

#[test]
fn the_target_s_own_responses_leave() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(1 << 16, TcAttach::Auto);
    let table = [
        ("another port", packet("10.0.0.3:80", "192.0.2.7:40001")),
        ("another client", packet("10.0.0.3:80", "192.0.2.8:40000")),
        ("another service", packet("10.0.0.3:81", CLIENT4)),
        ("the other direction", packet(CLIENT4, "10.0.0.3:80")),
        ("a later fragment of its own", Packet { fragment_flags_offset: 3, ..response(CLIENT4) }),
    ];
    for (what, packet) in &table {
        assert_eq!(fixture.run("swallow_tcx", packet), TCX_NEXT, "{what}");
    }
    assert_eq!(fixture.run("swallow_tcx", &response(CLIENT4)), TC_ACT_REDIRECT);
    fixture.sessions.remove(&packet(CLIENT4, "10.0.0.3:80").flow()).unwrap();
    assert_eq!(fixture.run("swallow_tcx", &response(CLIENT4)), TCX_NEXT, "a session that is over");
    assert_eq!(fixture.reports().len(), 1);
}

#[test]
fn responses_are_swallowed_when_the_ring_is_full() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(4096, TcAttach::Auto);
    for _ in 0..100 {
        assert_eq!(fixture.run("swallow_tcx", &response(CLIENT4)), TC_ACT_REDIRECT);
    }
    let reports = fixture.reports().len() as u64;
    assert!(reports > 30);
    assert_eq!(fixture.count(Swallowed), 100);
    assert_eq!(fixture.count(ReportLost), 100 - reports);
}

#[test]
fn all_fragments_of_a_response_are_swallowed_and_reported_as_segments() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(1 << 16, TcAttach::Auto);
    let fragment = |flags_offset, len| Packet {
        fragment_flags_offset: flags_offset,
        fragment_id: 99,
        flags: ACK | PSH | FIN,
        seq: 1000,
        payload: vec![0; len],
        ..response(CLIENT4)
    };
    // The builder writes a TCP header into each: of the later ones it is 20 octets of payload.
    for packet in [fragment(0x2000, 44), fragment(0x2000 | 8, 44), fragment(16, 10)] {
        assert_eq!(fixture.run("swallow_tcx", &packet), TC_ACT_REDIRECT);
    }
    let reports: Vec<_> = fixture
        .reports()
        .iter()
        .map(|r| (u32::from_be_bytes(r.seq), r.payload_len, r.flags, r.instance, r.kind))
        .collect();
    assert_eq!(
        reports,
        [
            (1000, 44, ACK, 1, kind::SEGMENT),
            (1044, 64, ACK, 1, kind::SEGMENT),
            (1108, 30, ACK | PSH | FIN, 1, kind::SEGMENT)
        ]
    );
    assert_eq!((fixture.count(Swallowed), fixture.count(SwallowedFragments)), (1, 2));
    let other = Packet { fragment_id: 98, ..fragment(16, 10) };
    assert_eq!(fixture.run("swallow_tcx", &other), TCX_NEXT);
}

#[test]
fn icmp_errors_that_quote_a_session_are_swallowed() {
    if !privileged() {
        return;
    }
    let mut fixture = fixture(1 << 16, TcAttach::Auto);
    // An ICMP packet is built from a TCP one: its IP header, with another protocol, then the ICMP header and the quote.
    let icmp = |client: &str, kind: u8, quoted: &Packet| {
        let v6 = client.starts_with('[');
        let headers = if v6 { 14 + 40 } else { 14 + 20 };
        let mut bytes = Packet { cut: Some(headers), ..response(client) }.bytes();
        bytes[if v6 { 14 + 6 } else { 14 + 9 }] = if v6 { 58 } else { 1 };
        bytes.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        bytes.extend(&quoted.bytes()[14..headers + 8]);
        bytes
    };
    let (quoted4, quoted6) = (packet(CLIENT4, "10.0.0.3:80"), packet(CLIENT6, "[2001:db8::3]:80"));
    let other = packet("192.0.2.7:40001", "10.0.0.3:80");
    let table = [
        ("port unreachable", CLIENT4, 3, &quoted4, TC_ACT_REDIRECT),
        ("time exceeded", CLIENT4, 11, &quoted4, TC_ACT_REDIRECT),
        ("parameter problem", CLIENT4, 12, &quoted4, TC_ACT_REDIRECT),
        ("IPv6 unreachable", CLIENT6, 1, &quoted6, TC_ACT_REDIRECT),
        ("IPv6 packet too big", CLIENT6, 2, &quoted6, TC_ACT_REDIRECT),
        ("echo reply", CLIENT4, 0, &quoted4, TCX_NEXT),
        ("of another flow", CLIENT4, 3, &other, TCX_NEXT),
        ("neighbour solicitation", CLIENT6, 135, &quoted6, TCX_NEXT),
    ];
    for (what, client, icmp_type, quoted, verdict) in table {
        let bytes = icmp(client, icmp_type, quoted);
        assert_eq!(run_tc(fixture.interceptor.object(), "swallow_tcx", &bytes), verdict, "{what}");
        let reports = fixture.reports();
        if verdict == TCX_NEXT {
            assert_eq!(reports, [], "{what}");
        } else {
            let [report] = reports[..] else { panic!("{what}: {} reports", reports.len()) };
            assert_eq!((report.kind, report.instance, report.flow), (kind::ICMP_ERROR, 1, quoted.flow()), "{what}");
        }
    }
    assert_eq!((fixture.count(SwallowedIcmp), fixture.count(Swallowed)), (5, 0));
}

#[test]
fn devices_without_a_link_header_are_understood() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    for client in [CLIENT4, CLIENT6] {
        let syn = Packet { ethernet: false, ..marked_syn(client, 1, 7) };
        fixture.open("learn_l3", &syn);
        let answer = Packet { ethernet: false, ..response(client) };
        assert_eq!(fixture.run("swallow_tcx_l3", &answer), TC_ACT_REDIRECT);
    }
    assert_eq!((fixture.count(Learned), fixture.count(Swallowed), fixture.reports().len()), (2, 2, 2));
}

/// The numbers of the sessions below.
const ISN: u32 = 5;

/// An answer of the target, by the control bits and the acknowledgement number.
fn answer(client: &str, flags: TcpFlags, ack: u32, payload: &[u8]) -> Packet {
    Packet { flags, ack, payload: payload.to_vec(), ..response(client) }
}

/// A socket in another network namespace cannot be looked up. It answers the SYN as none does that has accepted it.
#[test]
fn a_connection_that_could_not_be_seen_is_let_go_of() {
    if !privileged() {
        return;
    }
    let below = |n: u32| ISN.wrapping_add(1).wrapping_sub(n);
    let ours = [
        ("SYN+ACK", SYN | ACK, below(0), false),
        ("refusal", RST | ACK, below(0), false),
        ("challenge of an orphan", ACK, below(1 << 24), true),
        ("FIN of an orphan", FIN | ACK, below(1), true),
        ("SYN+ACK to the SYN that looks for an orphan", SYN | ACK, below(0), true),
    ];
    let foreign = [
        ("acknowledgement", ACK, below(0), false),
        ("challenge", ACK, below(1), false),
        ("SYN+ACK to another", SYN | ACK, below(1), false),
        ("reset by its server", RST, below(0), false),
        ("FIN", FIN | ACK, below(0), false),
        ("challenge of no orphan", ACK, below((1 << 24) + 1), true),
        ("numbers above", ACK, ISN + 2, true),
    ];
    for client in [CLIENT4, CLIENT6] {
        let mut fixture = Fixture::new(16, 1 << 16);
        let syn = |meets| stamped_syn(marked_syn(client, 1, ISN), 1, Stamp { meets, ..fresh() }, ISN);
        for (what, flags, ack, meets) in ours {
            assert_eq!(fixture.run("learn", &syn(meets)), TCX_NEXT);
            assert_eq!(fixture.run("swallow_tcx", &answer(client, flags, ack, &[])), TC_ACT_REDIRECT, "{what}");
            let [report] = fixture.reports()[..] else { panic!("{what}: one report") };
            assert_eq!((report.kind, report.flags), (kind::SEGMENT, flags), "{what}");
            let answered = flags.contains(SYN) || meets;
            let state = fixture.sessions.get(&syn(meets).flow()).unwrap().map(|session| session.state);
            assert_eq!(state == Some(state::OPEN), answered, "{what}: {state:?}");
            if answered {
                let data = answer(client, ACK | PSH, ISN + 100, b"answer");
                assert_eq!(fixture.run("swallow_tcx", &data), TC_ACT_REDIRECT, "{what}");
                fixture.reports();
            }
            fixture.sessions.remove(&syn(meets).flow()).unwrap();
        }
        for (what, flags, ack, meets) in foreign {
            for payload in [&[][..], b"data"] {
                assert_eq!(fixture.run("learn", &syn(meets)), TCX_NEXT);
                // An acknowledgement may be what our SYN has provoked; nobody misses it.
                let challenge = flags == ACK && payload.is_empty();
                let verdict = if challenge { TC_ACT_REDIRECT } else { TCX_NEXT };
                let segment = answer(client, flags, ack, payload);
                assert_eq!(fixture.run("swallow_tcx", &segment), verdict, "{what}");
                assert_eq!(fixture.sessions.get(&syn(meets).flow()).unwrap(), None, "{what}");
                let [report] = fixture.reports()[..] else { panic!("{what}: one report") };
                assert_eq!((report.kind, report.seq), (kind::COLLISION, ISN.to_be_bytes()), "{what}");
                assert_eq!(fixture.run("swallow_tcx", &answer(client, ACK, ack, b"more")), TCX_NEXT, "{what}");
            }
        }
    }
}

/// The target has a connection of its own to a client on the four-tuple of a session that is over.
#[test]
fn a_connection_that_the_target_opens_ends_the_session() {
    if !privileged() {
        return;
    }
    for client in [CLIENT4, CLIENT6] {
        let mut fixture = fixture(1 << 16, TcAttach::Auto);
        let syn = Packet { options: vec![2, 4, 5, 0xb4], ..answer(client, SYN, 0, &[]) };
        assert_eq!(fixture.run("swallow_tcx", &syn), TCX_NEXT);
        let [report] = fixture.reports()[..] else { panic!("one report") };
        assert_eq!((report.kind, report.instance), (kind::RECLAIMED, 1));
        assert_eq!(fixture.run("swallow_tcx", &answer(client, ACK, 1, b"request")), TCX_NEXT);
        assert_eq!((fixture.count(Reclaimed), fixture.count(Swallowed)), (1, 0));
    }
}
