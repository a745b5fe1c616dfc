//! IP and TCP headers (RFC 791, RFC 8200, RFC 9293), written once per transmission and completed per packet.

use tcpcopy_common::{
    mark,
    tcp_flags::{self, TcpFlags},
};
use tcpcopy_replay::{Transmit, TransmitOptions};

use crate::checksum::Checksum;

/// Octets of an IPv4 header without options (RFC 791, section 3.1).
pub(crate) const IPV4_HEADER: usize = 20;
/// Octets of the IPv6 header (RFC 8200, section 3).
const IPV6_HEADER: usize = 40;
/// Octets of a TCP header without options (RFC 9293, section 3.1).
const TCP_HEADER: usize = 20;
/// Offset of the checksum in a TCP header (RFC 9293, section 3.1).
pub(crate) const TCP_CHECKSUM: usize = 16;
/// The most octets of options that are written: MSS 4, window scale 4, mark 16, timestamps 12, padding to whole words
/// included. The field has room for 40.
const MAX_OPTIONS: usize = 4 + 4 + mark::LENGTH + 12;
const MAX_HEADERS: usize = IPV6_HEADER + TCP_HEADER + MAX_OPTIONS;
const _: () = assert!(MAX_OPTIONS <= 40);

/// TTL or hop limit: Linux's default (RFC 1700 recommended 64).
const TTL: u8 = 64;
/// The protocol number of TCP (IANA, RFC 9293, section 3.1).
const IPPROTO_TCP: u8 = 6;
/// The don't-fragment bit, in octet 6 of the IPv4 header: a lost fragment would lose the whole packet.
const DONT_FRAGMENT: u8 = 0x40;

/// TCP option kinds (RFC 9293, section 3.1; RFC 7323).
mod option {
    pub(super) const NOP: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// Returns a length within a packet as headers have it. All of them fit: a packet and a super-packet have at most
/// 65,535 octets, because the MTU is a `u16`. One that did not fit would be the largest, never a small one.
pub(crate) fn length16(octets: usize) -> u16 {
    u16::try_from(octets).unwrap_or(u16::MAX)
}

/// The headers that the packets of one [`Transmit`] share; the fields in which they differ are zero.
pub(crate) struct Headers {
    bytes: [u8; MAX_HEADERS],
    /// Octets of the IP header.
    pub(crate) ip: usize,
    /// Octets of all headers.
    pub(crate) len: usize,
    /// Sum of the addresses and the protocol of the pseudo-header (RFC 9293, section 3.1), which every packet's
    /// checksum includes.
    pub(crate) pseudo: Checksum,
}

impl Headers {
    /// Writes what all packets of `transmit` have in common.
    pub(crate) fn new(transmit: &Transmit<'_>) -> Self {
        let flow = &transmit.flow;
        let mut bytes = [0; MAX_HEADERS];
        let ip = if flow.server.is_v4() {
            bytes[0] = 0x45; // version 4, five words
            bytes[6] = DONT_FRAGMENT;
            bytes[8] = TTL;
            bytes[9] = IPPROTO_TCP;
            bytes[12..16].copy_from_slice(&flow.client.v4_octets());
            bytes[16..20].copy_from_slice(&flow.server.v4_octets());
            IPV4_HEADER
        } else {
            bytes[0] = 0x60; // version 6, no traffic class, no flow label
            bytes[6] = IPPROTO_TCP;
            bytes[7] = TTL;
            bytes[8..24].copy_from_slice(&flow.client.0);
            bytes[24..40].copy_from_slice(&flow.server.0);
            IPV6_HEADER
        };
        let addresses = if ip == IPV4_HEADER { 12..20 } else { 8..40 };
        let pseudo = Checksum::default().with(&bytes[addresses]).with(&[0, IPPROTO_TCP]);

        let tcp = &mut bytes[ip..];
        let options = write_options(&transmit.options, &mut tcp[TCP_HEADER..]);
        tcp[0..2].copy_from_slice(&flow.client_port);
        tcp[2..4].copy_from_slice(&flow.server_port);
        if transmit.flags.contains(tcp_flags::ACK) {
            tcp[8..12].copy_from_slice(&transmit.ack.to_be_bytes());
        }
        // The data offset is the upper half of the octet: at most 15 words.
        tcp[12] = length16((TCP_HEADER + options) / 4 * 16).to_be_bytes()[1];
        tcp[14..16].copy_from_slice(&transmit.window.to_be_bytes());
        Self { bytes, ip, len: ip + TCP_HEADER + options, pseudo }
    }

    /// Reports whether the IP header is that of IPv6.
    pub(crate) const fn is_v6(&self) -> bool {
        self.ip != IPV4_HEADER
    }

    /// Appends the headers of a packet with `payload` octets of payload, complete but for the TCP checksum. `id` is the
    /// identification of an IPv4 packet.
    pub(crate) fn write(&self, seq: u32, flags: TcpFlags, id: u16, payload: usize, buffer: &mut Vec<u8>) {
        let start = buffer.len();
        buffer.extend_from_slice(&self.bytes[..self.len]);
        let (ip, tcp) = buffer[start..].split_at_mut(self.ip);
        // At most 65,535, because the MTU is a u16, and so is the limit of super-packets.
        let tcp_length = tcp.len() + payload;
        let length = length16(ip.len() + tcp_length);
        tcp[4..8].copy_from_slice(&seq.to_be_bytes());
        tcp[13] = flags.octet();
        if flags.contains(tcp_flags::URG) {
            // Behind the last octet, as all stacks have it (RFC 6093, section 2.1).
            tcp[18..20].copy_from_slice(&length16(payload).to_be_bytes());
        }
        if self.is_v6() {
            ip[4..6].copy_from_slice(&length16(tcp_length).to_be_bytes());
        } else {
            ip[2..4].copy_from_slice(&length.to_be_bytes());
            ip[4..6].copy_from_slice(&id.to_be_bytes());
            let sum = Checksum::default().with(ip).finish();
            ip[10..12].copy_from_slice(&sum);
        }
    }
}

/// Writes the options into `to` and returns how many octets they take, a multiple of four.
fn write_options(options: &TransmitOptions, to: &mut [u8]) -> usize {
    let mut len = 0;
    let mut put = |bytes: &[u8]| {
        to[len..len + bytes.len()].copy_from_slice(bytes);
        len += bytes.len();
    };
    if let Some(syn) = &options.syn {
        put(&[option::MSS, 4]);
        put(&syn.mss.to_be_bytes());
        if let Some(shift) = syn.window_scale {
            put(&[option::NOP, option::WINDOW_SCALE, 3, shift]);
        }
        put(bytemuck::bytes_of(&syn.mark));
    }
    if let Some((tsval, tsecr)) = options.timestamps {
        // Aligned as RFC 7323, appendix A, recommends: receivers have a fast path for it.
        put(&[option::NOP, option::NOP, option::TIMESTAMPS, 10]);
        put(&tsval.to_be_bytes());
        put(&tsecr.to_be_bytes());
    }
    len
}
