//! Segmentation: the packets that carry one [`Transmit`], in order.

use tcpcopy_common::tcp_flags::{self, TcpFlags};
use tcpcopy_replay::Transmit;

use crate::{
    frame::{EthernetHeader, FRONT},
    headers::{Headers, TCP_CHECKSUM, length16},
};

/// The largest IP packet in octets, super-packets included: the most that the length field of IPv4 can hold.
const MAX_PACKET: usize = 65_535;

/// The form in which a socket takes packets.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// IP packets, complete.
    Packets,
    /// Frames with this link header, whose checksums the kernel completes.
    Frames(EthernetHeader),
    /// [`Frames`](Self::Frames) that may hold many segments each, which the kernel or the interface cuts up.
    SuperFrames(EthernetHeader),
}

/// The packets of one [`Transmit`], in order, in the form that the socket takes.
///
/// The payload is cut into segments of at most the transmission's segment size, or less where the MTU leaves no room
/// for that. Super-packets are cut by the kernel.
pub struct Packets<'a> {
    headers: Headers,
    form: Form,
    /// The largest payload of one segment, in octets.
    size: usize,
    /// The largest payload of one packet, in octets: a multiple of `size` for super-packets.
    most: usize,
    /// Sequence number of the next packet.
    seq: u32,
    /// Control bits of the next packet, if it is the last.
    flags: TcpFlags,
    rest: &'a [u8],
    done: bool,
}

/// What a written packet amounts to on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Written {
    /// IP packets: more than one for a super-packet.
    pub segments: u16,
    /// Their octets, from the IP headers on.
    pub octets: u32,
}

impl<'a> Packets<'a> {
    /// Prepares the packets that carry `transmit` over a path with this MTU (octets from the IP header on).
    #[must_use]
    pub fn new(transmit: &Transmit<'a>, mtu: u16, form: Form) -> Self {
        let headers = Headers::new(transmit);
        let room = usize::from(mtu).saturating_sub(headers.len).max(1);
        let size = usize::from(transmit.segment_size.max(1)).min(room);
        // A SYN is never part of a super-packet: kernels do not define how they cut one that carries several segments
        // of data.
        let several = matches!(form, Form::SuperFrames(_)) && !transmit.flags.contains(tcp_flags::SYN);
        let most = if several { ((MAX_PACKET - headers.len) / size).max(1) * size } else { size };
        Self {
            headers,
            form,
            size,
            most,
            seq: transmit.seq,
            flags: transmit.flags,
            rest: transmit.payload,
            done: false,
        }
    }

    /// Returns the payload of the next packet and the number of octets that precede it; `None` after the last packet.
    #[must_use]
    pub fn peek(&self) -> Option<(&'a [u8], usize)> {
        let front = if matches!(self.form, Form::Packets) { 0 } else { FRONT };
        (!self.done).then(|| (&self.rest[..self.payload()], front + self.headers.len))
    }

    /// Returns the number of segments that are still to be written.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        if self.done { 0 } else { segments(self.rest.len(), self.size) as u64 }
    }

    /// Appends the next packet to `buffer`. `id` is the identification of an IPv4 packet: reassembly of fragments needs
    /// it to differ between packets, though with DF set there should be none (RFC 6864, section 4.1).
    pub fn write(&mut self, id: u16, buffer: &mut Vec<u8>) -> Written {
        let payload = &self.rest[..self.payload()];
        match self.form {
            Form::Packets => {
                let start = buffer.len();
                let written = self.write_headers(id, buffer);
                buffer.extend_from_slice(payload);
                let tcp = &mut buffer[start + self.headers.ip..];
                let sum = self.headers.pseudo.with(&length16(tcp.len()).to_be_bytes()).with(tcp).finish();
                tcp[TCP_CHECKSUM..][..2].copy_from_slice(&sum);
                written
            }
            Form::Frames(_) | Form::SuperFrames(_) => {
                let written = self.write_front(id, buffer);
                buffer.extend_from_slice(payload);
                written
            }
        }
    }

    /// Appends what precedes the payload of the next packet to `buffer`, so that a large payload need not be copied.
    /// Only for frames: the checksum in the headers of other packets covers their payload.
    pub fn write_front(&mut self, id: u16, buffer: &mut Vec<u8>) -> Written {
        let payload = self.payload();
        if let Form::Frames(ethernet) | Form::SuperFrames(ethernet) = &self.form {
            let segment = (payload > self.size).then(|| length16(self.size));
            let Headers { ip, len, .. } = self.headers;
            buffer.extend_from_slice(&ethernet.front(self.headers.is_v6(), ip, len, segment));
        }
        let start = buffer.len();
        let written = self.write_headers(id, buffer);
        let tcp = &mut buffer[start + self.headers.ip..];
        let length = length16(tcp.len() + payload);
        let sum = self.headers.pseudo.with(&length.to_be_bytes()).partial();
        tcp[TCP_CHECKSUM..][..2].copy_from_slice(&sum);
        written
    }

    /// Returns the number of payload octets in the next packet.
    fn payload(&self) -> usize {
        self.most.min(self.rest.len())
    }

    /// Appends the headers of the next packet, complete but for the TCP checksum, and advances to the one after it.
    fn write_headers(&mut self, id: u16, buffer: &mut Vec<u8>) -> Written {
        let payload = self.payload();
        self.rest = &self.rest[payload..];
        self.done = self.rest.is_empty();
        // PSH, FIN and URG belong to the last octet, SYN before the first.
        let later = (tcp_flags::PSH | tcp_flags::FIN | tcp_flags::URG).when(!self.done);
        self.headers.write(self.seq, self.flags & !later, id, payload, buffer);
        let syn = self.flags.contains(tcp_flags::SYN);
        self.flags &= !tcp_flags::SYN;
        self.seq = self.seq.wrapping_add(length16(payload).into()).wrapping_add(u32::from(syn));
        let segments = segments(payload, self.size);
        let headers = u32::from(length16(segments)) * u32::from(length16(self.headers.len));
        Written { segments: length16(segments), octets: u32::from(length16(payload)) + headers }
    }
}

/// Returns the number of segments of at most `size` octets that carry a payload; an empty one still takes one.
fn segments(payload: usize, size: usize) -> usize {
    payload.div_ceil(size).max(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tcpcopy_common::{
        flow::{Flow, IpAddress},
        mark::{Mark, MarkKey, Stamp},
    };
    use tcpcopy_replay::{SynOptions, TransmitOptions};

    use super::*;
    use crate::{checksum::naive, headers::IPV4_HEADER};

    const ALL: u8 = tcp_flags::ACK.octet() | tcp_flags::PSH.octet() | tcp_flags::FIN.octet();

    fn flow(v6: bool) -> Flow {
        let address = |last: u8| {
            if v6 {
                IpAddress([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last])
            } else {
                IpAddress::from_v4([192, 0, 2, last])
            }
        };
        Flow::tcp((address(1), [0x80, 1]), (address(2), [0, 80]))
    }

    fn transmit(v6: bool, payload: &[u8]) -> Transmit<'_> {
        Transmit {
            flow: flow(v6),
            seq: 0xffff_fff0,
            ack: 0x0102_0304,
            window: 0x2000,
            flags: TcpFlags::from_octet(ALL),
            options: TransmitOptions::default(),
            segment_size: 1000,
            payload,
        }
    }

    #[test]
    fn the_urgent_pointer_is_behind_the_last_octet_of_the_last_packet() {
        for v6 in [false, true] {
            let urgent = Transmit { flags: tcp_flags::ACK | tcp_flags::URG, ..transmit(v6, &[7; 2001]) };
            let ip = if v6 { 40 } else { IPV4_HEADER };
            let fields: Vec<_> = build(&urgent, 1500).iter().map(|p| (p[ip + 13], p[ip + 18], p[ip + 19])).collect();
            assert_eq!(fields, [(0x10, 0, 0), (0x10, 0, 0), (0x30, 0, 1)]);
        }
    }

    fn build(transmit: &Transmit<'_>, mtu: u16) -> Vec<Vec<u8>> {
        let mut packets = Packets::new(transmit, mtu, Form::Packets);
        let mut built = Vec::new();
        let expected = packets.remaining();
        while let Some((payload, before)) = packets.peek() {
            let mut buffer = vec![];
            let written = packets.write(built.len() as u16, &mut buffer);
            assert_eq!(buffer.len(), before + payload.len());
            assert_eq!(written, Written { segments: 1, octets: buffer.len() as u32 });
            built.push(buffer);
            assert_eq!(packets.remaining() + built.len() as u64, expected);
        }
        built
    }

    /// Checks lengths and checksums as a receiver does, and returns the TCP part.
    fn receive(packet: &[u8]) -> &[u8] {
        let (pseudo, tcp) = if packet[0] == 0x45 {
            assert_eq!(naive(&packet[..20]), 0, "IPv4 header checksum");
            assert_eq!(usize::from(u16::from_be_bytes([packet[2], packet[3]])), packet.len());
            (packet[12..20].to_vec(), &packet[20..])
        } else {
            assert_eq!(packet[0], 0x60);
            assert_eq!(usize::from(u16::from_be_bytes([packet[4], packet[5]])), packet.len() - 40);
            (packet[8..40].to_vec(), &packet[40..])
        };
        let length = (tcp.len() as u32).to_be_bytes();
        assert_eq!(naive(&[&pseudo[..], &length, &[0, 0, 0, 6], tcp].concat()), 0, "TCP checksum");
        tcp
    }

    fn payload(tcp: &[u8]) -> &[u8] {
        &tcp[usize::from(tcp[12] >> 4) * 4..]
    }

    #[test]
    #[rustfmt::skip]
    fn an_ipv4_packet_octet_by_octet() {
        let mut transmit = transmit(false, b"GET /");
        transmit.options.timestamps = Some((0x0a0b_0c0d, 0x0102_0304));
        assert_eq!(build(&transmit, 1500), [[
            0x45, 0, 0, 57, 0, 0, 0x40, 0, 64, 6, 0xb6, 0xbb, 192, 0, 2, 1, 192, 0, 2, 2,
            0x80, 1, 0, 80, 0xff, 0xff, 0xff, 0xf0, 1, 2, 3, 4, 0x80, 0x19, 0x20, 0, 0x69, 0xdf, 0, 0,
            1, 1, 8, 10, 0x0a, 0x0b, 0x0c, 0x0d, 1, 2, 3, 4,
            b'G', b'E', b'T', b' ', b'/',
        ]]);
    }

    #[test]
    #[rustfmt::skip]
    fn an_ipv6_syn_octet_by_octet() {
        let key = MarkKey { k0: 1, k1: 2 };
        let mut transmit = transmit(true, b"");
        transmit.flags = tcp_flags::SYN;
        transmit.options = TransmitOptions {
            syn: Some(SynOptions {
                mss: 1440,
                window_scale: Some(7),
                mark: Mark::new(&key, 9, Stamp::default(), &flow(true), [0xff, 0xff, 0xff, 0xf0]),
            }),
            timestamps: Some((5, 0)),
        };
        let packets = build(&transmit, 1500);
        assert_eq!(packets.len(), 1);
        let tcp = receive(&packets[0]);
        assert_eq!(packets[0][..8], [0x60, 0, 0, 0, 0, 56, 6, 64]);
        assert_eq!(tcp[..16], [0x80, 1, 0, 80, 0xff, 0xff, 0xff, 0xf0, 0, 0, 0, 0, 0xe0, 0x02, 0x20, 0]);
        assert_eq!(tcp[20..32], [2, 4, 5, 0xa0, 1, 3, 3, 7, 253, 16, b't', b'c']);
        assert_eq!(tcp[32..36], [0, 0, 0, 9]);
        assert_eq!(tcp[44..], [1, 1, 8, 10, 0, 0, 0, 5, 0, 0, 0, 0]);
    }

    #[test]
    fn the_acknowledgement_number_is_sent_only_with_ack() {
        let mut transmit = transmit(false, b"");
        transmit.flags = tcp_flags::RST;
        assert_eq!(build(&transmit, 1500)[0][28..32], [0; 4]);
    }

    #[test]
    fn a_small_mtu_makes_smaller_segments() {
        let data = [7; 2020];
        let lengths: Vec<usize> = build(&transmit(true, &data), 560).iter().map(Vec::len).collect();
        assert_eq!(lengths, [560, 560, 560, 560, 80]);
    }

    #[test]
    fn the_largest_packet_fits_its_length_field() {
        let data = [7; 65_536];
        let mut transmit = transmit(false, &data);
        transmit.segment_size = u16::MAX;
        let packets = build(&transmit, u16::MAX);
        assert_eq!(packets.iter().map(Vec::len).collect::<Vec<_>>(), [65_535, 81]);
        packets.iter().for_each(|packet| assert!(!receive(packet).is_empty()));
    }

    #[test]
    fn a_syn_with_data_counts_in_the_sequence_numbers_that_follow() {
        let data = [7; 1500];
        let mut transmit = transmit(false, &data);
        transmit.flags = tcp_flags::SYN | tcp_flags::PSH;
        let seqs: Vec<_> = build(&transmit, 1500).iter().map(|p| (p[24..28].to_vec(), p[33])).collect();
        let second = 0xffff_fff0u32.wrapping_add(1001).to_be_bytes().to_vec();
        assert_eq!(seqs, [(vec![0xff, 0xff, 0xff, 0xf0], tcp_flags::SYN.octet()), (second, tcp_flags::PSH.octet())]);
    }

    #[test]
    fn super_packets_hold_whole_segments_and_count_as_them() {
        let data = [7; 65_536];
        for (v6, segment_size, sizes) in
            [(false, 1000, &[65_000, 536][..]), (true, 1428, &[64_260, 1276]), (false, 40_000, &[40_000, 25_536])]
        {
            let mut transmit = transmit(v6, &data);
            transmit.segment_size = segment_size;
            let mut packets = Packets::new(&transmit, u16::MAX, Form::SuperFrames(LINK));
            let headers = if v6 { 60 } else { 40 };
            let mut buffer = vec![];
            for (i, &size) in sizes.iter().enumerate() {
                assert_eq!(packets.peek().unwrap().0.len(), size);
                let segments = size.div_ceil(segment_size.into());
                buffer.clear();
                let written = packets.write(7, &mut buffer);
                let octets = (size + segments * headers) as u32;
                assert_eq!(written, Written { segments: segments as u16, octets });
                assert_eq!(buffer.len(), FRONT + headers + size);
                // Only what has several segments needs to be cut up.
                assert_eq!(buffer[1] != 0, segments > 1);
                let flags = buffer[FRONT + headers - 20 + 13];
                assert_eq!(flags, if i + 1 == sizes.len() { ALL } else { tcp_flags::ACK.octet() });
            }
            assert!(packets.peek().is_none());
        }
    }

    #[test]
    fn a_checksum_that_is_left_to_the_kernel_is_that_of_the_pseudo_header() {
        let transmit = transmit(false, b"GET /");
        let mut whole = Packets::new(&transmit, 1500, Form::Frames(LINK));
        let (mut frame, mut front) = (vec![], vec![]);
        whole.write(0, &mut frame);
        Packets::new(&transmit, 1500, Form::Frames(LINK)).write_front(0, &mut front);
        assert_eq!(frame, [&front[..], b"GET /"].concat());
        // What an interface does: the sum from the start of the TCP header on, in place of what is there.
        let mut packet = frame.split_off(FRONT);
        let sum = naive(&packet[IPV4_HEADER..]).to_be_bytes();
        packet[IPV4_HEADER + TCP_CHECKSUM..][..2].copy_from_slice(&sum);
        assert_eq!(packet, build(&transmit, 1500)[0]);
    }

    const LINK: EthernetHeader = EthernetHeader::new([1; 6], [2; 6], false);

    proptest! {
        #[test]
        fn the_pieces_are_the_payload_in_order(
            v6: bool,
            data in proptest::collection::vec(any::<u8>(), 0..9000),
            segment_size in 1u16..3000,
            mtu in 576u16..2000,
            timestamps: Option<(u32, u32)>,
        ) {
            let mut transmit = transmit(v6, &data);
            transmit.segment_size = segment_size;
            transmit.options.timestamps = timestamps;
            let packets = build(&transmit, mtu);
            let mut expected_seq = transmit.seq;
            let mut joined = Vec::new();
            for (i, packet) in packets.iter().enumerate() {
                prop_assert!(packet.len() <= mtu.into());
                let tcp = receive(packet);
                let piece = payload(tcp);
                prop_assert!(piece.len() <= segment_size.into());
                prop_assert_eq!(u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]), expected_seq);
                let last = i + 1 == packets.len();
                prop_assert_eq!(tcp[13], if last { ALL } else { tcp_flags::ACK.octet() });
                prop_assert!(last || piece.len() == payload(receive(&packets[0])).len());
                expected_seq = expected_seq.wrapping_add(piece.len() as u32);
                joined.extend_from_slice(piece);
            }
            prop_assert_eq!(joined, data);
        }
    }
}
