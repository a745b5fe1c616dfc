//! Link, IP and TCP headers: whatever etherparse takes for a TCP segment must be one for the programs too, with the
//! same fields.

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use tcpcopy_common::{
    capture::{CaptureHeader, MAX_PAYLOAD},
    flow::{Flow, IpAddress},
};
use tcpcopy_ebpf::{
    packet::Packet as _,
    parse::{self, Ip, Link, TcpHeader, protocol},
};
use tcpcopy_replay::{Checksums, LiveRecord};

use super::Octets;

/// Where the linear part ends, then the packet.
pub(super) fn check(data: &[u8], link: Link) {
    let Some((&linear, data)) = data.split_first() else { return };
    let whole = Octets::new(data, data.len());
    let parsed = parse::link(&whole, link).ok();
    // What lies where makes no difference, nor does who asks.
    let split = Octets::new(data, linear.into());
    assert_eq!(parsed.as_ref().map(shown), parse::link(&split, link).ok().as_ref().map(shown));
    let mut into: Ip = bytemuck::Zeroable::zeroed();
    assert_eq!(parse::link_into(&split, link, &mut into), parsed.is_some());
    assert_eq!(parsed.as_ref().map_or_else(|| shown(&bytemuck::Zeroable::zeroed()), shown), shown(&into));

    let segment = parsed.and_then(|ip| segment(&whole, &ip));
    if crate::tells() {
        eprintln!("{:?}\n{:?}", parsed.as_ref().map(shown), segment.as_ref().map(|s| (s.flow, s.payload)));
    }
    if let Some(theirs) = reference(data, link) {
        let ip = parsed.expect("a packet that is IP for etherparse is none for the programs");
        if ip.is_jumbo() {
            return;
        }
        let ours = segment.as_ref().expect("a packet that is TCP for etherparse is none for the programs");
        compare(data, &ip, ours, &theirs);
    }
    if let Some(segment) = segment {
        through_the_ring(data, &segment);
    }
}

fn shown(ip: &Ip) -> impl PartialEq + std::fmt::Debug + use<> {
    let fragment = (ip.fragment.offset, ip.fragment.id, ip.fragment.more);
    (ip.protocol, ip.is_v6(), ip.is_jumbo(), ip.payload(), ip.payload_len, fragment)
}

/// A segment as the capture program would take it.
struct Segment {
    flow: Flow,
    tcp: TcpHeader,
    /// Offset and length.
    options: (usize, usize),
    payload: (usize, usize),
}

fn segment(packet: &Octets, ip: &Ip) -> Option<Segment> {
    if ip.protocol != protocol::TCP || ip.fragment.offset != 0 || ip.fragment.more != 0 || ip.is_jumbo() {
        return None;
    }
    let tcp: TcpHeader = packet.read(ip.payload()).ok()?;
    let header = tcp.length();
    if header < TcpHeader::LENGTH || ip.payload_len < header || ip.payload() + ip.payload_len > packet.len() {
        return None;
    }
    let addresses = ip.addresses(packet).ok()?;
    let options = (ip.payload() + TcpHeader::LENGTH) as usize;
    Some(Segment {
        flow: Flow::tcp((addresses.source, tcp.ports.source), (addresses.destination, tcp.ports.destination)),
        options: (options, (header - TcpHeader::LENGTH) as usize),
        payload: ((ip.payload() + header) as usize, (ip.payload_len - header) as usize),
        tcp,
    })
}

/// What etherparse makes of a packet that is within our scope: not behind link headers that we do not follow.
fn reference(data: &[u8], link: Link) -> Option<Reference<'_>> {
    let sliced = match link {
        Link::Bare => SlicedPacket::from_ip(data),
        Link::Ethernet if plain_ethernet(data) => SlicedPacket::from_ethernet(data),
        Link::Ethernet => return None,
    };
    let sliced = sliced.ok()?;
    let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { return None };
    let (source, destination) = match sliced.net? {
        NetSlice::Ipv4(ip) => (IpAddress::from_v4(ip.header().source()), IpAddress::from_v4(ip.header().destination())),
        NetSlice::Ipv6(ip) => (IpAddress(ip.header().source()), IpAddress(ip.header().destination())),
        NetSlice::Arp(_) => return None,
    };
    Some(Reference { source, destination, tcp })
}

struct Reference<'a> {
    source: IpAddress,
    destination: IpAddress,
    tcp: TcpSlice<'a>,
}

/// Whether there is nothing but Ethernet and at most two VLAN tags before the IP header.
fn plain_ethernet(data: &[u8]) -> bool {
    let ethertype = |tags: usize| data.get(12 + 4 * tags..14 + 4 * tags);
    (0..=2).find_map(|tags| match ethertype(tags) {
        Some([0x81, 0x00] | [0x88, 0xa8]) => None,
        Some([0x08, 0x00] | [0x86, 0xdd]) => Some(true),
        _ => Some(false),
    }) == Some(true)
}

fn compare(data: &[u8], ip: &Ip, ours: &Segment, theirs: &Reference<'_>) {
    let Segment { flow, tcp, options, payload } = ours;
    assert_eq!((flow.client, flow.server), (theirs.source, theirs.destination));
    let theirs = &theirs.tcp;
    let offset = |part: &[u8]| part.as_ptr() as usize - data.as_ptr() as usize;
    assert_eq!(ip.payload() as usize, offset(theirs.slice()));
    assert_eq!(u16::from_be_bytes(flow.client_port), theirs.source_port());
    assert_eq!(u16::from_be_bytes(flow.server_port), theirs.destination_port());
    assert_eq!(u32::from_be_bytes(tcp.seq), theirs.sequence_number());
    assert_eq!(u32::from_be_bytes(tcp.ack), theirs.acknowledgment_number());
    assert_eq!(u16::from_be_bytes(tcp.window), theirs.window_size());
    let bits = [
        theirs.fin(),
        theirs.syn(),
        theirs.rst(),
        theirs.psh(),
        theirs.ack(),
        theirs.urg(),
        theirs.ece(),
        theirs.cwr(),
    ];
    assert_eq!(tcp.flags.octet(), bits.iter().rev().fold(0, |flags, &bit| flags << 1 | u8::from(bit)));
    assert_eq!(*options, (offset(theirs.options()), theirs.options().len()));
    assert_eq!(*payload, (offset(theirs.payload()), theirs.payload().len()));
}

/// What the capture program would put into a ring is what the worker takes out of it.
fn through_the_ring(data: &[u8], segment: &Segment) {
    let Segment { flow, tcp, options, payload } = segment;
    if payload.1 > MAX_PAYLOAD {
        return;
    }
    let header = CaptureHeader {
        time_ns: 5,
        flow: *flow,
        seq: tcp.seq,
        ack: tcp.ack,
        flags: tcp.flags,
        payload_len: payload.1 as u32,
        rule: 3,
        notes: 0,
    };
    let headers = &data[options.0 - size_of::<TcpHeader>()..options.0 + options.1];
    let payload = &data[payload.0..][..payload.1];
    let mut record = [bytemuck::bytes_of(&header), headers, payload].concat();
    let length = record.len();
    record.resize(length.next_power_of_two(), 0xaa);
    let Ok(LiveRecord::Segment(read)) = LiveRecord::parse(&record, Checksums::Complete) else {
        panic!("a record that the capture program would make is refused")
    };
    assert_eq!((read.flow, read.rule, read.time.0), (*flow, 3, 5));
    assert_eq!((read.seq.to_be_bytes(), read.ack.to_be_bytes()), (tcp.seq, tcp.ack));
    assert_eq!((read.flags, read.payload), (tcp.flags, payload));
    assert!(LiveRecord::parse(&record[..length - 1], Checksums::Complete).is_err(), "a record without its last octet");
}
