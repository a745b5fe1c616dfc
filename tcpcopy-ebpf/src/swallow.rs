//! The target's egress: reports the responses to replayed sessions, and keeps them from the network.

use bytemuck::{AnyBitPattern, Zeroable as _};
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    response::{NO_WINDOW_SCALE, ResponseHeader, Session, kind},
    tcp_flags::{ACK, FIN, PSH, SYN},
};

use crate::{
    counters::Counter,
    fragment::FragmentKey,
    log, maps,
    options::Options,
    packet::Packet,
    parse::{self, Ip, Link, Ports, TcpHeader, protocol},
    ring,
};

/// What becomes of the packet.
pub enum Fate {
    Leave,
    Swallow,
}

/// Decides the fate of a packet that goes out.
#[inline(always)]
pub fn swallow(packet: &impl Packet, link: Link) -> Fate {
    let mut ip = Ip::zeroed();
    if !parse::link_into(packet, link, &mut ip) {
        return Fate::Leave;
    }
    let swallowed = match ip.protocol {
        _ if ip.fragment.offset != 0 => swallow_later_fragment(packet, &ip),
        protocol::TCP => swallow_segment(packet, &ip),
        protocol::ICMP if !ip.is_v6() => swallow_icmp(packet, &ip, &[3, 11, 12]),
        protocol::ICMPV6 if ip.is_v6() => swallow_icmp(packet, &ip, &[1, 2, 3, 4]),
        _ => None,
    };
    match swallowed {
        Some(()) => Fate::Swallow,
        None => Fate::Leave,
    }
}

/// Swallows a segment of a session. Once the session is found it is swallowed, even if the rest cannot be read.
///
/// Not inlined, as those for the rarer cases are not: see [`parse::link_into`].
#[inline(never)]
fn swallow_segment(packet: &impl Packet, ip: &Ip) -> Option<()> {
    let mut flow = Flow::zeroed();
    response_flow(packet, ip, &mut flow)?;
    let session = maps::session(&flow)?;
    let Ok(tcp) = packet.read::<TcpHeader>(ip.payload()) else {
        // A fragment too small for a TCP header (RFC 1858): its like follow.
        if ip.fragment.more != 0 {
            remember(&flow, &session, ip, &TcpHeader::zeroed());
        }
        count_response(&session, 0);
        ring::report_lost(session.instance);
        return Some(());
    };
    let header_len = tcp.length();
    let ip_payload_len = if ip.is_jumbo() { packet.len().saturating_sub(ip.payload()) } else { ip.payload_len };
    let payload_len = ip_payload_len.saturating_sub(header_len);
    count_response(&session, payload_len);
    if tcp.flags & (SYN | ACK) == SYN | ACK {
        log::syn_ack_swallowed(&flow);
    }
    if ip.fragment.more != 0 {
        remember(&flow, &session, ip, &tcp);
    }
    let mut options = Options::NONE;
    options.read(packet, ip.payload() + TcpHeader::LENGTH, header_len.saturating_sub(TcpHeader::LENGTH));
    ring::report(
        session.instance,
        || ResponseHeader {
            flags: tcp.flags & !withheld(ip),
            payload_len,
            seq: tcp.seq,
            ..segment(&flow, &session, &tcp)
        },
        |report| options.describe(report),
    );
    Some(())
}

/// The flow that a segment is a response of.
#[inline(never)]
fn response_flow(packet: &impl Packet, ip: &Ip, flow: &mut Flow) -> Option<()> {
    let ports: Ports = packet.read(ip.payload()).ok()?;
    let addresses = ip.addresses(packet).ok()?;
    *flow = Flow {
        client: addresses.destination,
        server: addresses.source,
        client_port: ports.destination,
        server_port: ports.source,
    };
    Some(())
}

/// The flags that do not belong to this fragment, but to the last one.
#[inline(always)]
fn withheld(ip: &Ip) -> u8 {
    if ip.fragment.more != 0 { PSH | FIN } else { 0 }
}

/// The report of a segment, without payload and options.
#[inline(always)]
fn segment(flow: &Flow, session: &Session, tcp: &TcpHeader) -> ResponseHeader {
    ResponseHeader {
        flow: *flow,
        ack: tcp.ack,
        window: tcp.window,
        flags: tcp.flags,
        window_scale: NO_WINDOW_SCALE,
        instance: session.instance,
        kind: kind::SEGMENT,
        ..ResponseHeader::zeroed()
    }
}

/// Remembers a response of which this is the first fragment, so that the others are known when they come.
#[inline(never)]
fn remember(flow: &Flow, session: &Session, ip: &Ip, tcp: &TcpHeader) -> bool {
    let start = u32::from_be_bytes(tcp.seq).wrapping_sub(tcp.length());
    let report = ResponseHeader { seq: start.to_be_bytes(), ..segment(flow, session, tcp) };
    let key = FragmentKey { source: flow.server, destination: flow.client, id: ip.fragment.id };
    maps::remember_fragmented(&key, &report)
}

/// Swallows a fragment if the first one of its datagram was.
#[inline(never)]
fn swallow_later_fragment(packet: &impl Packet, ip: &Ip) -> Option<()> {
    let addresses = ip.addresses(packet).ok()?;
    let key = FragmentKey { source: addresses.source, destination: addresses.destination, id: ip.fragment.id };
    let first = maps::fragmented(&key)?;
    TargetCounter::SwallowedFragments.count();
    TargetCounter::SwallowedBytes.add(ip.payload_len as u64);
    ring::report(
        first.instance,
        || ResponseHeader {
            seq: u32::from_be_bytes(first.seq).wrapping_add(ip.fragment.offset).to_be_bytes(),
            flags: first.flags & !withheld(ip),
            payload_len: ip.payload_len,
            ..*first
        },
        |_| {},
    );
    Some(())
}

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct IcmpHeader {
    kind: u8,
    _code: u8,
    _checksum: [u8; 2],
    _rest: [u8; 4],
}

/// Swallows an ICMP error of one of `kinds` (RFC 792, RFC 4443) that quotes a segment of a session: the client whose
/// address that bears has not sent it.
#[inline(never)]
fn swallow_icmp(packet: &impl Packet, ip: &Ip, kinds: &[u8]) -> Option<()> {
    let icmp: IcmpHeader = packet.read(ip.payload()).ok()?;
    if !kinds.contains(&icmp.kind) {
        return None;
    }
    let quoted = parse::ip(packet, ip.payload() + size_of::<IcmpHeader>() as u32).ok()?;
    if quoted.protocol != protocol::TCP || quoted.fragment.offset != 0 {
        return None;
    }
    let ports: Ports = packet.read(quoted.payload()).ok()?;
    let addresses = quoted.addresses(packet).ok()?;
    let flow = Flow {
        client: addresses.source,
        server: addresses.destination,
        client_port: ports.source,
        server_port: ports.destination,
    };
    let session = maps::session(&flow)?;
    TargetCounter::SwallowedIcmp.count();
    ring::report(
        session.instance,
        || ResponseHeader { flow, instance: session.instance, kind: kind::ICMP_ERROR, ..ResponseHeader::zeroed() },
        |_| {},
    );
    Some(())
}

#[inline(always)]
fn count_response(session: &Session, payload_len: u32) {
    TargetCounter::Swallowed.count();
    TargetCounter::SwallowedBytes.add(payload_len as u64);
    if let Some(stats) = maps::wire_stats(session.instance) {
        // SAFETY: the entry belongs to this CPU, on which programs of this type do not interrupt each other.
        let stats = unsafe { &mut *stats };
        stats.swallowed += 1;
        stats.swallowed_bytes += payload_len as u64;
    }
}
