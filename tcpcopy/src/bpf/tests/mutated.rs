//! The programs on packets that no stack has sent: of the captured packets none is changed or stopped, and of the
//! target's only what belongs to a mark or a session.
//!
//! Ten million of them: `MUTATED_PACKETS=10000000 cargo test --release -p tcpcopy --lib mutated`.

use std::net::IpAddr;

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use tcpcopy_common::tcp_flags::{ACK, FIN, RST, SYN};

use super::{
    TCX_NEXT,
    capture::{self, CLIENT4, CLIENT6},
    learn::{self, marked_syn},
    packets::{Packet, packet},
    privileged,
};
use crate::bpf::{Hook, object::Object};

const XDP_PASS: u32 = 2;
/// Of no session.
const STRANGER4: &str = "192.0.2.8:40001";
const STRANGER6: &str = "[2001:db8::8]:40001";
/// The shortest packet that the kernel takes for a test: an Ethernet header.
const SHORTEST: usize = 14;
/// The kind and length of the mark's option: RFC 3692's first experimental kind.
const MARK: u8 = 253;

/// How many packets each program is given, and what chooses them: without `MUTATED_PACKETS` always the same.
fn number_and_dice() -> (u64, fastrand::Rng) {
    const PROGRAMS: u64 = 5;
    match std::env::var("MUTATED_PACKETS") {
        Ok(text) => (text.parse::<u64>().expect("MUTATED_PACKETS is a number") / PROGRAMS, fastrand::Rng::new()),
        Err(_) => (10_000, fastrand::Rng::with_seed(1)),
    }
}

/// Packets of every shape that the programs tell apart, from `source` to `destination`.
fn shapes(source: &str, destination: &str) -> Vec<Vec<u8>> {
    let plain = packet(source, destination);
    let mut shapes = vec![
        plain.clone(),
        Packet { flags: ACK, payload: Vec::new(), ..plain.clone() },
        Packet { flags: SYN, payload: Vec::new(), options: vec![2, 4, 5, 0xb4, 1, 3, 3, 7], ..plain.clone() },
        Packet { flags: SYN | ACK, payload: Vec::new(), options: vec![2, 4, 5, 0xb4], ..plain.clone() },
        Packet { flags: RST, payload: Vec::new(), ..plain.clone() },
        Packet { flags: FIN | ACK, ..plain.clone() },
        Packet { options: [&[1, 1, 8, 10][..], &[7; 8]].concat(), payload: vec![b'x'; 1_400], ..plain.clone() },
        Packet { vlan_ethertypes: vec![0x8100], ..plain.clone() },
        Packet { vlan_ethertypes: vec![0x88a8, 0x8100], ..plain.clone() },
        Packet { padding: 6, ..plain.clone() },
        Packet { fragment_flags_offset: 0x2000, fragment_id: 7, ..plain.clone() },
        Packet { fragment_flags_offset: 185, fragment_id: 7, ..plain.clone() },
    ];
    if plain.source.is_ipv4() {
        shapes.push(Packet { ip_options: vec![1; 12], ..plain });
    } else {
        shapes.push(Packet { extensions: vec![(0, vec![0; 8]), (60, vec![0; 16])], ..plain.clone() });
        shapes.push(Packet { extensions: vec![(44, vec![0, 0, 0, 1, 0, 0, 0, 9])], ..plain });
    }
    shapes.iter().map(Packet::bytes).collect()
}

/// Changes, inserts, removes or repeats some octets, most of them in the headers.
fn mutate(dice: &mut fastrand::Rng, packet: &mut Vec<u8>) {
    const INTERESTING: [u8; 12] = [0, 1, 2, 4, 6, 8, 20, 0x40, 0x45, 0x7f, 0x80, 0xff];
    for _ in 0..dice.u8(1..=4) {
        let end = packet.len().min(if dice.bool() { 80 } else { usize::MAX });
        let at = dice.usize(..end);
        match dice.u8(..8) {
            0 => packet[at] ^= 1 << dice.u8(..8),
            1 => packet[at] = dice.u8(..),
            2 | 3 => packet[at] = dice.choice(INTERESTING).unwrap_or_default(),
            4 => packet.truncate(at.max(SHORTEST)),
            5 => packet.insert(at, dice.u8(..)),
            6 if packet.len() > SHORTEST + 4 => drop(packet.drain(at.min(packet.len() - 4)..).take(4).count()),
            _ => {
                let piece = packet[at..(at + dice.usize(1..16)).min(packet.len())].to_vec();
                let to = dice.usize(..packet.len());
                packet.splice(to..to, piece);
            }
        }
        packet.resize(packet.len().max(SHORTEST), 0);
    }
}

/// Runs a program on packet after packet; `judge` is told each packet, the verdict, and what the packet has become.
fn run(object: &mut Object, program: &'static str, shapes: &[Vec<u8>], mut judge: impl FnMut(&[u8], u32, &[u8])) {
    let (number, mut dice) = number_and_dice();
    let mut after = vec![0; 1 << 16];
    for number in 0..number {
        let mut packet = dice.choice(shapes).expect("there are shapes").clone();
        // Some are as they were, so that sessions and fragments are there.
        if number % 8 != 0 {
            mutate(&mut dice, &mut packet);
        }
        let options = TestRunOptions { data_in: Some(&packet), data_out: Some(&mut after), ..TestRunOptions::new() };
        let result = match program {
            "capture_xdp" => object.program::<Xdp>(program).unwrap().test_run(options),
            _ => object.program::<SchedClassifier>(program).unwrap().test_run(options),
        };
        // The kernel refuses to make some of them a packet at all.
        let Ok(result) = result else { continue };
        let length = result.data_size_out as usize;
        judge(&packet, result.return_value, &after[..length.min(after.len())]);
    }
}

/// All shapes, from clients and strangers to servers, and back.
fn everything() -> Vec<Vec<u8>> {
    let ways = [
        (CLIENT4, "10.0.0.3:80"),
        (CLIENT6, "[2001:db8::3]:80"),
        (STRANGER4, "10.0.0.3:80"),
        (STRANGER6, "[2001:db8::3]:80"),
        (CLIENT4, "10.0.0.3:81"),
    ];
    ways.iter().flat_map(|(client, server)| [shapes(client, server), shapes(server, client)].concat()).collect()
}

#[test]
fn mutated_packets_pass_the_source_unchanged() {
    if !privileged() {
        return;
    }
    let shapes = everything();
    for (hook, program, pass) in
        [(Hook::Tc, "capture_tc", TCX_NEXT), (Hook::Xdp, "capture_xdp", XDP_PASS), (Hook::Tc, "answer_tc", TCX_NEXT)]
    {
        let mut fixture = capture::Fixture::on("lo", hook, 1, 1 << 20, (None, None), true);
        let readers = &mut fixture.readers;
        run(fixture.capture.object(), program, &shapes, |packet, verdict, after| {
            assert!(verdict == pass && after == packet, "{program}: {verdict} for {packet:02x?}, now {after:02x?}");
            readers[0].drain(usize::MAX, |_| {});
        });
    }
}

#[test]
fn of_mutated_packets_the_target_takes_only_marked_syns_and_what_belongs_to_sessions() {
    if !privileged() {
        return;
    }
    let mut shapes = everything();
    for (number, client) in [CLIENT4, CLIENT6, STRANGER4, STRANGER6].into_iter().enumerate() {
        shapes.push(marked_syn(client, 1 + number as u32 % 3, 7).bytes());
    }
    let open = |fixture: &mut learn::Fixture| {
        for client in [CLIENT4, CLIENT6] {
            fixture.open("learn", &marked_syn(client, 1, 7));
        }
    };
    let mut fixture = learn::Fixture::new(1 << 16, 1 << 20);
    open(&mut fixture);
    let mut taken = 0_u64;
    run(fixture.interceptor.object(), "learn", &shapes, |packet, verdict, after| {
        assert_eq!(after, packet, "learn changes a packet");
        if verdict != TCX_NEXT {
            taken += 1;
            assert!(packet.contains(&MARK), "learn: {verdict} for {packet:02x?}, which has no mark");
        }
    });
    assert!(taken > 0, "learn takes nothing");
    // A fresh one: what was learned from mutated SYNs must not be there.
    let mut fixture = learn::Fixture::new(1 << 16, 1 << 20);
    open(&mut fixture);
    taken = 0;
    run(fixture.interceptor.object(), "swallow_tcx", &shapes, |packet, verdict, after| {
        if verdict == TCX_NEXT {
            assert_eq!(after, packet, "swallow_tcx changes a packet");
        } else {
            taken += 1;
            assert!(names_a_session(packet), "swallow_tcx: {verdict} for {packet:02x?}, of no session");
        }
    });
    assert!(taken > 0, "swallow_tcx takes nothing");
}

/// Whether the addresses of a session's ends stand next to each other in a packet, the target's first, as in the header
/// of a response; or the other way round, as where an ICMP error quotes one. A second reading of the packet, by its
/// octets alone.
fn names_a_session(packet: &[u8]) -> bool {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    [("10.0.0.3", "192.0.2.7"), ("2001:db8::3", "2001:db8::7")].iter().any(|(server, client)| {
        let [server, client] = [server, client].map(|text| octets(text.parse().expect("an address")));
        let has = |pair: Vec<u8>| packet.windows(pair.len()).any(|window| window == pair);
        has([&server[..], &client].concat()) || has([&client[..], &server].concat())
    })
}
