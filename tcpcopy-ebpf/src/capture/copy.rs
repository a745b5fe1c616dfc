//! Copies the segments of matching live clients to the workers.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tcpcopy_common::{
    capture::{CaptureHeader, MAX_PAYLOAD, Rule, RuleKey, criterion, note},
    counters::CaptureCounter,
    flow::Flow,
    tcp_flags::{FIN, RST, SYN, TcpFlags},
};

use tcpcopy_ebpf::{
    packet::{Packet, Unreadable},
    parse::{self, Link, NotIp, Ports, TcpHeader, protocol},
};

use crate::{counters::Count as _, log, maps, records};

/// Why a packet was not copied.
pub(super) enum NotCopied {
    /// No rule names its flow, or it is not TCP.
    Unmatched,
    /// The reason, and the counter of it.
    Discarded(CaptureCounter),
    /// It should have been copied, but could not be: the reason, and what is lost with it.
    Lost { reason: CaptureCounter, payload_len: u32, flags: TcpFlags },
}

impl From<NotIp> for NotCopied {
    fn from(_: NotIp) -> Self {
        Self::Unmatched
    }
}

/// Only before it is known whether a packet matches.
impl From<Unreadable> for NotCopied {
    fn from(_: Unreadable) -> Self {
        Self::Unmatched
    }
}

/// Copies the packet to its worker if it is of a flow that a rule names, and counts what became of it.
#[inline(always)]
pub fn capture(packet: &impl Packet, link: Link) {
    match copy(packet, link) {
        Ok(payload_len) => {
            CaptureCounter::Captured.count();
            CaptureCounter::CapturedBytes.add(payload_len as u64);
        }
        Err(NotCopied::Unmatched) => {}
        Err(NotCopied::Discarded(reason)) => reason.count(),
        Err(NotCopied::Lost { reason, payload_len, flags }) => {
            reason.count();
            let control = flags.contains(SYN) as u64 + flags.contains(FIN) as u64;
            let (octets_of, control_of) = match reason {
                CaptureCounter::RingFull => (CaptureCounter::RingFullBytes, CaptureCounter::RingFullControl),
                _ => (CaptureCounter::OtherBytes, CaptureCounter::OtherControl),
            };
            octets_of.add(payload_len as u64);
            control_of.add(control);
        }
    }
}

/// Returns the octets of payload that were copied.
#[inline(always)]
fn copy(packet: &impl Packet, link: Link) -> Result<u32, NotCopied> {
    let ip = parse::link(packet, link)?;
    if ip.fragment.offset != 0 && may_be_tcp(&ip) {
        // Without the ports it cannot be excluded that a rule names the flow.
        return Err(NotCopied::Discarded(CaptureCounter::Fragment));
    }
    if ip.protocol != protocol::TCP {
        return Err(NotCopied::Unmatched);
    }
    let ports: Ports = packet.read(ip.payload())?;
    let rule = port_rule(ports.destination)?;
    let addresses = ip.addresses(packet)?;
    let flow = Flow::tcp((addresses.source, ports.source), (addresses.destination, ports.destination));
    let rule = matching(rule, &flow)?;
    copy_matched(packet, &ip, flow, rule)
}

/// Returns the rule of a service's port.
#[inline(always)]
pub(super) fn port_rule(port: [u8; 2]) -> Result<Rule, NotCopied> {
    let rule = *maps::port_rule(u16::from_be_bytes(port)).ok_or(NotCopied::Unmatched)?;
    if rule.action == Rule::IGNORE { Err(NotCopied::Unmatched) } else { Ok(rule) }
}

/// Returns the id of the rule by which a flow is copied, when `rule` is that of the service's port.
#[inline(always)]
pub(super) fn matching(rule: Rule, flow: &Flow) -> Result<u16, NotCopied> {
    let rule = refine(rule, flow);
    if rule.action & Rule::CAPTURE == 0 {
        return Err(NotCopied::Unmatched);
    }
    select(flow)?;
    Ok(rule.id)
}

/// Chooses among the connections that the rules match: each whole, or not at all.
#[inline(always)]
fn select(flow: &Flow) -> Result<(), NotCopied> {
    if maps::criteria() & criterion::CLIENT != 0 && !maps::client_wanted(&flow.client) {
        return Err(NotCopied::Discarded(CaptureCounter::Filtered));
    }
    if maps::criteria() & criterion::SAMPLE != 0 && !maps::sampled(flow) {
        return Err(NotCopied::Discarded(CaptureCounter::NotSampled));
    }
    Ok(())
}

/// A fragment that is not the first tells the protocol in IPv4, but in IPv6 perhaps only the next extension header.
#[inline(always)]
fn may_be_tcp(ip: &parse::Ip) -> bool {
    ip.protocol == protocol::TCP || ip.is_v6() && ip.protocol == protocol::DESTINATION_OPTIONS
}

/// The rule that decides when `rule` is that of the destination port.
#[inline(always)]
fn refine(rule: Rule, flow: &Flow) -> Rule {
    if rule.action & Rule::BY_ADDRESS == 0 {
        return rule;
    }
    let service = RuleKey { address: flow.server, port: flow.server_port, _reserved: [0; 2] };
    maps::service_rule(&service).unwrap_or(rule)
}

#[inline(always)]
fn copy_matched(packet: &impl Packet, ip: &parse::Ip, flow: Flow, rule: u16) -> Result<u32, NotCopied> {
    let discard = |reason| Err(NotCopied::Discarded(reason));
    if ip.fragment.more != 0 {
        return discard(CaptureCounter::Fragment);
    }
    let Ok(tcp) = packet.read::<TcpHeader>(ip.payload()) else { return discard(CaptureCounter::Malformed) };
    let header_len = tcp.length();
    let lose = |reason, payload_len| Err(NotCopied::Lost { reason, payload_len, flags: tcp.flags });
    if ip.is_jumbo() {
        // Its length is in an extension header; there is no padding behind so much.
        return lose(CaptureCounter::TooLarge, packet.len().saturating_sub(ip.payload() + header_len));
    }
    // The end is where IP says: an Ethernet frame may be padded behind it, but not cut off before it.
    let contradiction =
        header_len < TcpHeader::LENGTH || ip.payload_len < header_len || ip.payload() + ip.payload_len > packet.len();
    if contradiction {
        return discard(CaptureCounter::Malformed);
    }
    if packet.is_for_others() && !maps::promiscuous() {
        // The stack drops it; what an interface in promiscuous mode overhears is not the service's.
        return discard(CaptureCounter::OtherHost);
    }
    let payload_len = ip.payload_len - header_len;
    if payload_len == 0 && !tcp.flags.intersects(SYN | FIN | RST) && !ends_handshake(&flow, &tcp) {
        return discard(CaptureCounter::PureAck);
    }
    if payload_len > MAX_PAYLOAD as u32 {
        return lose(CaptureCounter::TooLarge, payload_len);
    }
    if tcp.flags.contains(SYN) {
        log::syn_captured(&flow);
    }
    let header = CaptureHeader {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        flow,
        seq: tcp.seq,
        ack: tcp.ack,
        payload_len,
        rule,
        flags: tcp.flags,
        notes: if packet.is_verified() { note::VERIFIED } else { 0 },
    };
    let worker = flow.worker(maps::workers());
    if let Err(reason) = records::put(packet, worker, &header, ip.payload(), ip.payload_len) {
        return lose(reason, payload_len);
    }
    if maps::handshakes_wanted() && tcp.flags.contains(SYN) {
        maps::expect_ack(&flow, u32::from_be_bytes(tcp.seq).wrapping_add(1).wrapping_add(payload_len));
    }
    Ok(payload_len)
}

/// Whether a segment without payload is the first to acknowledge the server's SYN: when it comes tells how far away the
/// client is.
#[inline(always)]
fn ends_handshake(flow: &Flow, tcp: &TcpHeader) -> bool {
    maps::handshakes_wanted() && maps::take_ack(flow, u32::from_be_bytes(tcp.seq))
}
