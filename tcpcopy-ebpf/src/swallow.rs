//! The target's egress: reports the responses to replayed sessions, and keeps them from the network.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_log_ebpf::debug;
use bytemuck::{AnyBitPattern, Zeroable};
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    response::{ResponseHeader, Session, kind, option},
    tcp_flags::{ACK, FIN, PSH, SYN},
};

use crate::{
    counters::Counter,
    fragment::FragmentKey,
    maps,
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
    let Ok(ip) = parse::link(packet, link) else { return Fate::Leave };
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
#[inline(always)]
fn swallow_segment(packet: &impl Packet, ip: &Ip) -> Option<()> {
    let ports: Ports = packet.read(ip.payload).ok()?;
    let addresses = ip.addresses(packet).ok()?;
    let flow = Flow {
        client: addresses.destination,
        server: addresses.source,
        client_port: ports.destination,
        server_port: ports.source,
    };
    let session = maps::session(&flow)?;
    let Ok(tcp) = packet.read::<TcpHeader>(ip.payload) else {
        count_response(&session, 0);
        TargetCounter::ReportLost.count();
        return Some(());
    };
    let header_len = tcp.length();
    let ip_payload_len = if ip.jumbo { packet.len().saturating_sub(ip.payload) } else { ip.payload_len };
    let payload_len = ip_payload_len.saturating_sub(header_len);
    count_response(&session, payload_len);
    if tcp.flags & (SYN | ACK) == SYN | ACK {
        debug!(packet, "swallowed the SYN+ACK to port {}", u16::from_be_bytes(flow.client_port));
    }

    let options_len = header_len.saturating_sub(TcpHeader::LENGTH);
    let options = Options::read(packet, ip.payload + TcpHeader::LENGTH, options_len).known();
    let mut report = ResponseHeader {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        flow,
        seq: tcp.seq,
        ack: tcp.ack,
        window: tcp.window,
        flags: tcp.flags,
        window_scale: options.window_scale,
        tsval: options.tsval,
        tsecr: options.tsecr,
        payload_len,
        instance: session.instance,
        mss: options.mss,
        kind: kind::SEGMENT,
        options: (options.timestamps * option::TIMESTAMPS) | (options.sack_permitted * option::SACK_PERMITTED),
        _reserved: [0; 4],
    };
    if ip.fragment.more != 0 {
        remember(&mut report, ip.fragment.id, header_len);
    }
    ring::report(&report);
    Some(())
}

/// Remembers a response of which this is the first fragment, so that the others are known when they come, and makes
/// `report` that of this one: PSH and FIN belong to the last.
// A function of its own, as the other rare cases are, because the stack has only 512 octets for all that is inlined.
#[inline(never)]
fn remember(report: &mut ResponseHeader, id: u32, header_len: u32) {
    let seq = report.seq;
    let flags = report.flags;
    report.seq = u32::from_be_bytes(seq).wrapping_sub(header_len).to_be_bytes();
    let key = FragmentKey { source: report.flow.server, destination: report.flow.client, id };
    maps::remember_fragmented(&key, report);
    report.seq = seq;
    report.flags = flags & !(PSH | FIN);
}

/// Swallows a fragment if the first one of its datagram was.
#[inline(never)]
fn swallow_later_fragment(packet: &impl Packet, ip: &Ip) -> Option<()> {
    let addresses = ip.addresses(packet).ok()?;
    let key = FragmentKey { source: addresses.source, destination: addresses.destination, id: ip.fragment.id };
    let first = maps::fragmented(&key)?;
    TargetCounter::SwallowedFragments.count();
    TargetCounter::SwallowedBytes.add(ip.payload_len as u64);
    let start = u32::from_be_bytes(first.seq);
    let withheld = if ip.fragment.more != 0 { PSH | FIN } else { 0 };
    ring::report(&ResponseHeader {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        seq: start.wrapping_add(ip.fragment.offset).to_be_bytes(),
        flags: first.flags & !withheld,
        payload_len: ip.payload_len,
        ..*first
    });
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
    let icmp: IcmpHeader = packet.read(ip.payload).ok()?;
    if !kinds.contains(&icmp.kind) {
        return None;
    }
    let quoted = parse::ip(packet, ip.payload + size_of::<IcmpHeader>() as u32).ok()?;
    if quoted.protocol != protocol::TCP || quoted.fragment.offset != 0 {
        return None;
    }
    let ports: Ports = packet.read(quoted.payload).ok()?;
    let addresses = quoted.addresses(packet).ok()?;
    let flow = Flow {
        client: addresses.source,
        server: addresses.destination,
        client_port: ports.source,
        server_port: ports.destination,
    };
    let session = maps::session(&flow)?;
    TargetCounter::SwallowedIcmp.count();
    ring::report(&ResponseHeader {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        flow,
        instance: session.instance,
        kind: kind::ICMP_ERROR,
        ..ResponseHeader::zeroed()
    });
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
