//! Packets: what the injector would send, and what the programs at the target would report.

use std::net::IpAddr;

use smoltcp::{
    phy::ChecksumCapabilities,
    wire::{
        IpProtocol, IpRepr, IpVersion, Ipv4Packet, Ipv6Packet, TcpControl, TcpOption, TcpPacket, TcpRepr, TcpSeqNumber,
        TcpTimestampRepr,
    },
};
use tcpcopy_common::{
    flow::Flow,
    mark::{Judgement, Mark},
    response::{NO_WINDOW_SCALE, ResponseHeader, kind, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};
use tcpcopy_replay::Transmit;

use crate::world::{EPOCH, KEY};

/// Whether the programs at the target accept the mark of a SYN as one of `instance`.
pub fn is_valid(mark: &Mark, instance: u32, syn: &Transmit<'_>) -> bool {
    let judgement = mark.judge(&KEY, &syn.flow, syn.seq.to_be_bytes(), EPOCH);
    mark.instance == instance.to_be_bytes() && judgement == Judgement::Valid
}

/// The packets of a transmission, cut to its segment size; PSH and FIN on the last only.
pub fn packets(transmit: &Transmit<'_>) -> Vec<Vec<u8>> {
    let size = usize::from(transmit.segment_size);
    let mut packets = Vec::new();
    let mut offset = 0;
    loop {
        let end = transmit.payload.len().min(offset + size);
        let flags = if end == transmit.payload.len() { transmit.flags } else { transmit.flags & !(PSH | FIN) };
        packets.push(packet(transmit, offset, &transmit.payload[offset..end], flags));
        offset = end;
        if offset == transmit.payload.len() {
            return packets;
        }
    }
}

fn packet(transmit: &Transmit<'_>, offset: usize, payload: &[u8], flags: TcpFlags) -> Vec<u8> {
    let control = match flags & (SYN | FIN | RST | PSH) {
        f if f.contains(RST) => TcpControl::Rst,
        f if f.contains(SYN) => TcpControl::Syn,
        f if f.contains(FIN) => TcpControl::Fin,
        f if f.contains(PSH) => TcpControl::Psh,
        _ => TcpControl::None,
    };
    let syn = transmit.options.syn;
    let tcp = TcpRepr {
        src_port: u16::from_be_bytes(transmit.flow.client_port),
        dst_port: u16::from_be_bytes(transmit.flow.server_port),
        control,
        seq_number: TcpSeqNumber(transmit.seq.wrapping_add(offset as u32) as i32),
        ack_number: flags.contains(ACK).then_some(TcpSeqNumber(transmit.ack as i32)),
        window_len: transmit.window,
        window_scale: syn.and_then(|s| s.window_scale),
        max_seg_size: syn.map(|s| s.mss),
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: transmit.options.timestamps.map(|(value, echo)| TcpTimestampRepr::new(value, echo)),
        payload,
    };
    let (source, destination) = (IpAddr::from(transmit.flow.client).into(), IpAddr::from(transmit.flow.server).into());
    let ip = IpRepr::new(source, destination, IpProtocol::Tcp, tcp.buffer_len(), 64);
    let mut bytes = vec![0; ip.header_len() + tcp.buffer_len()];
    let checksums = ChecksumCapabilities::ignored();
    ip.emit(&mut bytes[..], &checksums);
    tcp.emit(&mut TcpPacket::new_unchecked(&mut bytes[ip.header_len()..]), &source, &destination, &checksums);
    bytes
}

/// The report of a segment that the target sends, whose flow is the one of the replayed client; and its TSval and
/// TSecr.
pub fn report(packet: &[u8], instance: u32) -> (ResponseHeader, Option<(u32, u32)>) {
    let (source, destination, tcp) = match IpVersion::of_packet(packet).expect("the target sends IP") {
        IpVersion::Ipv4 => {
            let ip = Ipv4Packet::new_checked(packet).expect("the target sends whole packets");
            (IpAddr::from(ip.src_addr()), IpAddr::from(ip.dst_addr()), &packet[usize::from(ip.header_len())..])
        }
        IpVersion::Ipv6 => {
            let ip = Ipv6Packet::new_checked(packet).expect("the target sends whole packets");
            (IpAddr::from(ip.src_addr()), IpAddr::from(ip.dst_addr()), &packet[ip.header_len()..])
        }
    };
    let tcp = TcpPacket::new_checked(tcp).expect("the target sends whole segments");
    let mut report: ResponseHeader = bytemuck::Zeroable::zeroed();
    let client = (destination.into(), tcp.dst_port().to_be_bytes());
    report.flow = Flow::tcp(client, (source.into(), tcp.src_port().to_be_bytes()));
    report.seq = (tcp.seq_number().0 as u32).to_be_bytes();
    report.ack = if tcp.ack() { (tcp.ack_number().0 as u32).to_be_bytes() } else { [0; 4] };
    report.window = tcp.window_len().to_be_bytes();
    let flags = [(tcp.fin(), FIN), (tcp.syn(), SYN), (tcp.rst(), RST), (tcp.psh(), PSH), (tcp.ack(), ACK)];
    report.flags = flags.into_iter().fold(TcpFlags::NONE, |all, (set, flag)| all | flag.when(set));
    report.window_scale = NO_WINDOW_SCALE;
    report.payload_len = tcp.payload().len() as u32;
    report.instance = instance;
    report.kind = kind::SEGMENT;
    let mut timestamps = None;
    let mut options = tcp.options();
    while let Ok((rest, one)) = TcpOption::parse(options) {
        match one {
            TcpOption::MaxSegmentSize(mss) => report.mss = mss.to_be_bytes(),
            TcpOption::WindowScale(shift) => report.window_scale = shift,
            TcpOption::TimeStamp { tsval, tsecr } => {
                timestamps = Some((tsval, tsecr));
                report.options |= option::TIMESTAMPS;
                report.tsval = tsval.to_be_bytes();
            }
            TcpOption::EndOfList => break,
            _ => {}
        }
        if rest.is_empty() {
            break;
        }
        options = rest;
    }
    (report, timestamps)
}

/// Four-tuple and sequence number of a client's SYN.
pub fn syn(packet: &[u8]) -> Option<(Flow, u32)> {
    let (seen, _) = report(packet, 0);
    let Flow { client, server, client_port, server_port, .. } = seen.flow;
    // The packet goes the other way.
    let flow = Flow::tcp((server, server_port), (client, client_port));
    (seen.flags & (SYN | ACK) == SYN).then_some((flow, u32::from_be_bytes(seen.seq)))
}

/// A transmission in a line.
pub fn shown(transmit: &Transmit<'_>) -> String {
    let Transmit { flow, seq, ack, flags, payload, .. } = transmit;
    let port = u16::from_be_bytes(flow.client_port);
    format!("port {port} {} seq {seq} ack {ack} length {}", letters(*flags), payload.len())
}

/// A report in a line, with the requests that the segment answers.
pub fn described(report: &ResponseHeader, answers: &[(u8, u8)]) -> String {
    let port = u16::from_be_bytes(report.flow.client_port);
    let (seq, ack) = (u32::from_be_bytes(report.seq), u32::from_be_bytes(report.ack));
    let (flags, window) = (letters(report.flags), u16::from_be_bytes(report.window));
    let answers: String = answers.iter().map(|(c, n)| format!(" answers c{c} request {n}")).collect();
    format!("port {port} {flags} seq {seq} ack {ack} length {} window {window}{answers}", report.payload_len)
}

/// Control bits, as tcpdump shows them.
pub fn letters(flags: TcpFlags) -> String {
    let all = [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (ACK, '.')];
    all.iter().filter(|&&(flag, _)| flags.contains(flag)).map(|&(_, letter)| letter).collect()
}
