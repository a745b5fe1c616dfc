//! Tells the workers of the live servers' SYN-ACKs, which prove the handshakes of live clients.
//!
//! It sees whatever leaves by the interfaces that are captured on, so everything but a SYN-ACK must cost next to
//! nothing.

use aya_ebpf::helpers::bpf_ktime_get_ns;
use tcpcopy_common::{
    capture::{CaptureHeader, note},
    counters::CaptureCounter,
    flow::Flow,
    tcp_flags::{ACK, FIN, RST, SYN},
};

use tcpcopy_ebpf::{
    packet::Packet,
    parse::{self, Link, TcpHeader, protocol},
};

use crate::{
    copy::{NotCopied, matching, port_rule},
    counters::Count as _,
    maps, records,
};

/// Octets of the longest SYN-ACK: Ethernet with two VLAN tags, IPv6 with some extension headers, TCP with all options.
const LONGEST: u32 = 256;

/// Puts the headers of a packet into the ring of its worker if it is a SYN-ACK of a service that a rule names.
#[inline(always)]
pub fn tell(packet: &impl Packet, link: Link) {
    match told(packet, link) {
        Ok(()) => CaptureCounter::Answers.count(),
        Err(NotCopied::Discarded(_) | NotCopied::Unmatched) => {}
        Err(NotCopied::Lost { reason, .. }) => reason.count(),
    }
}

#[inline(always)]
fn told(packet: &impl Packet, link: Link) -> Result<(), NotCopied> {
    if packet.len() > LONGEST {
        return Err(NotCopied::Unmatched);
    }
    let ip = parse::link(packet, link)?;
    if ip.protocol != protocol::TCP || ip.fragment.offset != 0 || ip.fragment.more != 0 {
        return Err(NotCopied::Unmatched);
    }
    let tcp: TcpHeader = packet.read(ip.payload())?;
    if tcp.flags & (SYN | ACK | FIN | RST) != SYN | ACK || tcp.length() < TcpHeader::LENGTH {
        return Err(NotCopied::Unmatched);
    }
    let rule = port_rule(tcp.ports.source)?;
    let addresses = ip.addresses(packet)?;
    let flow = Flow::tcp((addresses.destination, tcp.ports.destination), (addresses.source, tcp.ports.source));
    let rule = matching(rule, &flow)?;
    let header = CaptureHeader {
        // SAFETY: the helper has no preconditions.
        time_ns: unsafe { bpf_ktime_get_ns() },
        flow,
        seq: tcp.seq,
        ack: tcp.ack,
        payload_len: 0,
        rule,
        flags: tcp.flags,
        notes: note::ANSWER,
    };
    let worker = flow.worker(maps::workers());
    records::put_header(packet, worker, &header, ip.payload(), tcp.length()).map_err(|reason| NotCopied::Lost {
        reason,
        payload_len: 0,
        flags: tcp.flags,
    })
}
