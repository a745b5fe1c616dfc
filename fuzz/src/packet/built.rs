//! Packets that we build: etherparse finds them well-formed, with right checksums, and the programs at the target read
//! in them what was to be sent.

use arbitrary::{Arbitrary, Unstructured};
use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::{Epoch, Judgement, Mark, MarkKey, Stamp},
    response::{NO_WINDOW_SCALE, option},
    tcp_flags::{ACK, FIN, PSH, SYN, TcpFlags},
};
use tcpcopy_ebpf::{
    options::Marking,
    packet::Packet as _,
    parse::{self, Link, TcpHeader, protocol},
};
use tcpcopy_replay::{SynOptions, Transmit, TransmitOptions};
use tcpcopy_wire::{Form, Packets};

use super::{Octets, options::said_in};

/// More packets than that show nothing new.
const MOST_PACKETS: usize = 64;
/// The payload of a transmission is at most what an IP packet can hold with the longest headers.
const MOST_PAYLOAD: usize = 65_535 - 120;

#[derive(Arbitrary, Debug)]
struct Input {
    v6: bool,
    addresses: [[u8; 16]; 2],
    ports: [[u8; 2]; 2],
    seq: u32,
    ack: u32,
    window: u16,
    flags: u8,
    syn: Option<(u16, Option<u8>, u32)>,
    key: (u64, u64),
    timestamps: Option<(u32, u32)>,
    segment_size: u16,
    mtu: u16,
    length: u16,
    first: u8,
}

pub(super) fn check(data: &[u8]) {
    let Ok(input) = Input::arbitrary_take_rest(Unstructured::new(data)) else { return };
    if crate::tells() {
        eprintln!("{input:#?}");
    }
    let address = |octets: [u8; 16]| {
        let address = IpAddress(octets);
        match input.v6 {
            false => IpAddress::from_v4(address.v4_octets()),
            // The mapped form is never on the wire.
            true if address.is_v4() => IpAddress([0xfd; 16]),
            true => address,
        }
    };
    let [client, server] = [0, 1].map(|end| (address(input.addresses[end]), input.ports[end]));
    let flow = Flow::tcp(client, server);
    let mtu = input.mtu.max(if input.v6 { 1280 } else { 576 });
    let segment_size = input.segment_size.max(1);
    let piece = usize::from(segment_size.min(mtu - 120));
    let length = usize::from(input.length).min(MOST_PAYLOAD).min(piece * MOST_PACKETS);
    let payload: Vec<u8> = (0..length).map(|n| input.first.wrapping_add((n % 251) as u8)).collect();
    let key = MarkKey { k0: input.key.0, k1: input.key.1 };
    let flags = TcpFlags::from_octet(input.flags) & !SYN | SYN.when(input.syn.is_some());
    let syn = input.syn.map(|(mss, window_scale, instance)| SynOptions {
        mss,
        window_scale,
        mark: Mark::new(&key, instance, Stamp::default(), &flow, input.seq.to_be_bytes()),
    });
    let transmit = Transmit {
        flow,
        seq: input.seq,
        ack: input.ack,
        window: input.window,
        flags,
        options: TransmitOptions { syn, timestamps: input.timestamps },
        segment_size,
        payload: &payload,
    };
    let mut sent = Vec::new();
    let packets = packets(&transmit, mtu);
    for (nth, packet) in packets.iter().enumerate() {
        assert!(packet.len() <= mtu.into(), "{} octets on a path of {mtu}", packet.len());
        let is_last = nth + 1 == packets.len();
        let piece = check_packet(packet, &transmit, &key, sent.len(), is_last);
        assert!(piece.len() <= segment_size.into());
        assert!(!piece.is_empty() || payload.is_empty());
        sent.extend_from_slice(piece);
    }
    assert_eq!(sent, payload);
}

/// Builds the packets that carry `transmit` over a path with this MTU, from the IP header on.
fn packets(transmit: &Transmit<'_>, mtu: u16) -> Vec<Vec<u8>> {
    let mut packets = Packets::new(transmit, mtu, Form::Packets);
    let mut built = Vec::new();
    while packets.peek().is_some() {
        let mut packet = Vec::new();
        packets.write(built.len() as u16, &mut packet);
        built.push(packet);
    }
    built
}

/// Checks one packet and returns its payload.
fn check_packet<'a>(
    packet: &'a [u8],
    transmit: &Transmit<'_>,
    key: &MarkKey,
    before: usize,
    is_last: bool,
) -> &'a [u8] {
    let sliced = SlicedPacket::from_ip(packet).expect("a packet that etherparse accepts");
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
    match sliced.net.expect("an IP header") {
        NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            assert_eq!(tcp.calc_checksum_ipv4(header.source, header.destination), Ok(tcp.checksum()));
        }
        NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            assert_eq!(tcp.calc_checksum_ipv6(header.source, header.destination), Ok(tcp.checksum()));
        }
        NetSlice::Arp(_) => panic!("no IP"),
    }
    let syn_before = u32::from(before > 0 && transmit.flags.contains(SYN));
    assert_eq!(tcp.sequence_number(), transmit.seq.wrapping_add(before as u32).wrapping_add(syn_before));
    assert_eq!(tcp.acknowledgment_number(), if transmit.flags.contains(ACK) { transmit.ack } else { 0 });
    assert_eq!(tcp.window_size(), transmit.window);
    assert_eq!(tcp.syn(), transmit.flags.contains(SYN) && before == 0);
    assert_eq!(
        (tcp.psh(), tcp.fin()),
        (is_last && transmit.flags.contains(PSH), is_last && transmit.flags.contains(FIN))
    );
    as_at_the_target(packet, &tcp, transmit, key);
    tcp_payload(packet, &tcp)
}

/// The programs at the target see the same segment, and recognise its mark.
fn as_at_the_target(packet: &[u8], tcp: &TcpSlice<'_>, transmit: &Transmit<'_>, key: &MarkKey) {
    let seen = Octets::new(packet, packet.len());
    let Ok(ip) = parse::link(&seen, Link::Bare) else { panic!("not IP for the programs") };
    let Ok(addresses) = ip.addresses(&seen) else { panic!("no addresses for the programs") };
    let Ok(header) = seen.read::<TcpHeader>(ip.payload()) else { panic!("no TCP header for the programs") };
    let Flow { client, server, client_port, server_port, .. } = transmit.flow;
    assert_eq!((ip.protocol, ip.fragment.offset, ip.fragment.more), (protocol::TCP, 0, 0));
    assert_eq!((addresses.source, addresses.destination), (client, server));
    assert_eq!((header.ports.source, header.ports.destination), (client_port, server_port));
    assert_eq!((ip.payload_len - header.length()) as usize, tcp.payload().len());
    let (report, marking) = said_in(tcp.options());
    let tsval = (report.options & option::TIMESTAMPS != 0).then_some(u32::from_be_bytes(report.tsval));
    assert_eq!(tsval, transmit.options.timestamps.map(|(tsval, _)| tsval));
    // The programs have no use for TSecr; the option is the last.
    let octets = transmit.options.timestamps.map(|(tsval, tsecr)| [tsval.to_be_bytes(), tsecr.to_be_bytes()].concat());
    assert!(octets.is_none_or(|octets| tcp.options().ends_with(&octets)));
    match (transmit.options.syn, marking) {
        (None, Marking::Unmarked) => {}
        (Some(syn), Marking::Marked(mark)) => {
            assert_eq!(report.mss, syn.mss.to_be_bytes());
            assert_eq!(report.window_scale, syn.window_scale.unwrap_or(NO_WINDOW_SCALE));
            // Of the first packet only: the numbers of those behind it are others.
            let valid = mark.judge(key, &transmit.flow, header.seq, Epoch(0)) == Judgement::Valid;
            assert!(valid || !tcp.syn(), "the target refuses the mark");
        }
        (Some(_), _) => panic!("the mark is not found"),
        (None, _) => panic!("a mark that nobody made"),
    }
}

fn tcp_payload<'a>(packet: &'a [u8], tcp: &TcpSlice<'_>) -> &'a [u8] {
    &packet[packet.len() - tcp.payload().len()..]
}
