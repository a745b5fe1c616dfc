//! The target's egress: reports the responses to replayed sessions, and keeps them from the network.

use bytemuck::{AnyBitPattern, Zeroable as _};
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    mark::MEETS_WITHIN,
    response::{LEFT_TO_THE_SOURCE, NO_WINDOW_SCALE, ResponseHeader, Session, kind, option, state},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};

use tcpcopy_ebpf::{
    options::Options,
    packet::Packet,
    parse::{self, Ip, Link, Ports, TcpHeader, protocol},
};

use crate::{
    counters::Count as _,
    fragment::FragmentKey,
    learn, log, maps,
    reports::{self, Range},
};

/// What becomes of the packet.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Fate {
    Leave,
    Swallow,
    /// Swallow it, but first give the target the client's acknowledgement: see [`reflect`](crate::reflect).
    Reflect,
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
        protocol::TCP => return swallow_segment(packet, &ip, matches!(link, Link::Ethernet)),
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
fn swallow_segment(packet: &impl Packet, ip: &Ip, ethernet: bool) -> Fate {
    let mut flow = Flow::zeroed();
    if response_flow(packet, ip, &mut flow).is_none() {
        return Fate::Leave;
    }
    let Some(entry) = maps::session_entry(&flow) else { return Fate::Leave };
    let session = entry.session();
    let Ok(tcp) = packet.read::<TcpHeader>(ip.payload()) else {
        // A fragment too small for a TCP header (RFC 1858): its like follow.
        if ip.fragment.more != 0 {
            remember(&flow, &session, ip, &TcpHeader::zeroed(), 0);
        }
        count_response(&session, 0);
        reports::report_lost(session.instance);
        return Fate::Swallow;
    };
    if tcp.flags & (SYN | ACK) == SYN {
        // What it is a response of has been accepted, and does not begin like this: the target opens a connection
        // itself.
        learn::reclaim(&flow);
        return Fate::Leave;
    }
    if session.state != state::OPEN {
        if !answers(&session, &tcp) {
            return give_up(&flow, &session, &tcp, ip.payload_len);
        }
        // A refusal leaves things as they are: the next SYN may meet somebody else.
        if tcp.flags.contains(SYN) || session.state == state::MEETING {
            entry.set_open();
        }
    }
    let header_len = tcp.length();
    let ip_payload_len = if ip.is_jumbo() { packet.len().saturating_sub(ip.payload()) } else { ip.payload_len };
    let payload_len = ip_payload_len.saturating_sub(header_len);
    count_response(&session, payload_len);
    if tcp.flags & (SYN | ACK) == SYN | ACK {
        log::syn_ack_swallowed(&flow);
    }
    if ip.fragment.more != 0 {
        remember(&flow, &session, ip, &tcp, session.prefix as u16);
    }
    let mut options = Options::NONE;
    options.read(packet, ip.payload() + TcpHeader::LENGTH, header_len.saturating_sub(TcpHeader::LENGTH));
    let place = if maps::reflects() { place(&entry, &tcp, payload_len) } else { Place::Elsewhere };
    let suited = ethernet && (header_len == TcpHeader::LENGTH || options.are_timestamps()) && is_suited(ip);
    let reflect = matches!(place, Place::Next) && suited && target_may_wait(&tcp, payload_len);
    let make = || ResponseHeader {
        flags: tcp.flags & !withheld(ip),
        payload_len,
        seq: tcp.seq,
        options: match place {
            Place::Elsewhere => 0,
            Place::Next if reflect => option::IN_ORDER | option::REFLECTED,
            Place::Next | Place::Before => option::IN_ORDER,
        },
        ..segment(&flow, &session, &tcp)
    };
    if !maps::with_prefixes() || session.prefix == 0 || payload_len == 0 {
        return match reports::report(session.instance, make, |report| {
            if maps::with_prefixes() { options.describe_apart(report) } else { options.describe(report) }
        }) {
            true => acknowledge(&entry, &tcp, payload_len, place, reflect),
            false => Fate::Swallow,
        };
    }
    let prefix = Range { start: ip.payload() + header_len, len: at_most(payload_len, session.prefix) };
    match reports::report_with_prefix(packet, prefix, session.instance, make, |report| options.describe_apart(report)) {
        // Found out anew: else the verifier would follow the report once for each place.
        Some(reported) => {
            let place = if maps::reflects() { self::place(&entry, &tcp, payload_len) } else { Place::Elsewhere };
            acknowledge(&entry, &tcp, payload_len, place, reported & option::REFLECTED != 0)
        }
        None => Fate::Swallow,
    }
}

/// Notes that a segment was reported. What the source does not hear of is not acknowledged: the target sends it again.
#[inline(always)]
fn acknowledge(entry: &maps::Entry, tcp: &TcpHeader, payload_len: u32, place: Place, reflect: bool) -> Fate {
    if !matches!(place, Place::Next) {
        return Fate::Swallow;
    }
    entry.set_answered(u32::from_be_bytes(tcp.seq).wrapping_add(payload_len));
    if reflect { Fate::Reflect } else { Fate::Swallow }
}

/// Whether a segment answers the SYN of a session whose SYN was not answered yet, or is of a session before it.
#[inline(always)]
fn answers(session: &Session, tcp: &TcpHeader) -> bool {
    let below = u32::from_be_bytes(session.isn).wrapping_add(1).wrapping_sub(u32::from_be_bytes(tcp.ack));
    tcp.flags.contains(ACK)
        && match session.state {
            state::MEETING => below <= MEETS_WITHIN,
            _ => below == 0 && tcp.flags & (SYN | RST) != TcpFlags::NONE,
        }
}

/// Gives up a session whose SYN has met a connection of the target's own, in another network namespace: its owner is
/// told, as if the SYN had been refused. The segment belongs to that connection, but for an acknowledgement, by which
/// the socket challenges the SYN.
#[inline(never)]
fn give_up(flow: &Flow, session: &Session, tcp: &TcpHeader, ip_payload_len: u32) -> Fate {
    maps::remove_session(flow);
    TargetCounter::Reclaimed.count();
    learn::report(flow, session.instance, kind::COLLISION, session.isn);
    if tcp.flags == ACK && ip_payload_len == tcp.length() {
        count_response(session, 0);
        return Fate::Swallow;
    }
    Fate::Leave
}

/// Where a segment's payload lies in the target's stream.
#[derive(Clone, Copy)]
enum Place {
    /// It follows what was reported before, without a gap, and is not only that once more.
    Next,
    /// All of it was reported before. The source sees to it, as to everything that is not as it should be.
    Before,
    /// Behind a gap, or there is no payload.
    Elsewhere,
}

/// The SYN-ACK tells where the stream begins.
#[inline(always)]
fn place(entry: &maps::Entry, tcp: &TcpHeader, payload_len: u32) -> Place {
    let seq = u32::from_be_bytes(tcp.seq);
    if tcp.flags.contains(SYN) {
        entry.set_answered(seq.wrapping_add(1));
        return Place::Elsewhere;
    }
    let answered = entry.answered();
    if payload_len == 0 || tcp.flags.contains(RST) || seq.wrapping_sub(answered) as i32 > 0 {
        Place::Elsewhere
    } else if seq.wrapping_add(payload_len).wrapping_sub(answered) as i32 > 0 {
        Place::Next
    } else {
        Place::Before
    }
}

/// Whether the headers have one of the forms that [`reflect`](crate::reflect) knows.
#[inline(always)]
fn is_suited(ip: &Ip) -> bool {
    let plain = !ip.is_v6() || ip.payload() == ip.header() + parse::IPV6_HEADER;
    plain && !ip.is_jumbo() && ip.fragment.more == 0
}

/// Whether the target may not go on before this is acknowledged.
#[inline(always)]
fn target_may_wait(tcp: &TcpHeader, payload_len: u32) -> bool {
    !tcp.flags.contains(PSH) || payload_len > LEFT_TO_THE_SOURCE
}

/// The flow that a segment is a response of.
#[inline(never)]
pub fn response_flow(packet: &impl Packet, ip: &Ip, flow: &mut Flow) -> Option<()> {
    let ports: Ports = packet.read(ip.payload()).ok()?;
    let addresses = ip.addresses(packet).ok()?;
    *flow = Flow::tcp((addresses.destination, ports.destination), (addresses.source, ports.source));
    Some(())
}

/// The flags that do not belong to this fragment, but to the last one.
#[inline(always)]
fn withheld(ip: &Ip) -> TcpFlags {
    (PSH | FIN).when(ip.fragment.more != 0)
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

/// The smaller one.
#[inline(always)]
fn at_most(value: u32, most: u32) -> u32 {
    if value < most { value } else { most }
}

/// Remembers a response of which this is the first fragment, so that the others are known when they come; their reports
/// carry `prefix` octets.
#[inline(never)]
fn remember(flow: &Flow, session: &Session, ip: &Ip, tcp: &TcpHeader, prefix: u16) -> bool {
    let start = u32::from_be_bytes(tcp.seq).wrapping_sub(tcp.length());
    let report = ResponseHeader { seq: start.to_be_bytes(), prefix_len: prefix, ..segment(flow, session, tcp) };
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
    let make = || ResponseHeader {
        seq: u32::from_be_bytes(first.seq).wrapping_add(ip.fragment.offset).to_be_bytes(),
        flags: first.flags & !withheld(ip),
        payload_len: ip.payload_len,
        prefix_len: 0,
        ..*first
    };
    if !maps::with_prefixes() || first.prefix_len == 0 || ip.payload_len == 0 {
        reports::report(first.instance, make, |_| {});
    } else {
        let prefix = Range { start: ip.payload(), len: at_most(ip.payload_len, first.prefix_len as u32) };
        reports::report_with_prefix(packet, prefix, first.instance, make, |_| {});
    }
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
    let flow = Flow::tcp((addresses.source, ports.source), (addresses.destination, ports.destination));
    let session = maps::session(&flow)?;
    TargetCounter::SwallowedIcmp.count();
    reports::report(
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
