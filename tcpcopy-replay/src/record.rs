//! Records of the capture rings: what the programs in the kernel have copied of a packet.

use std::mem::offset_of;

use bytemuck::try_pod_read_unaligned;
use tcpcopy_common::{
    capture::{CaptureHeader, MAX_PAYLOAD, note},
    checksum::Checksum,
    flow::{Flow, protocol},
    tcp_flags::{TcpFlags, URG},
};

use crate::{
    multipath::{self, Multipath},
    segment::{LiveAnswer, LiveOptions, LiveSegment},
    time::Nanos,
};

/// Octets of a TCP header without options (RFC 9293, section 3.1), and where fields of it are.
const TCP_HEADER: usize = 20;
const DATA_OFFSET: usize = 12;
const CHECKSUM: usize = 16;
const URGENT: usize = 18;

/// IANA option kinds.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// A captured packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveRecord<'a> {
    /// The live client has sent it.
    Segment(LiveSegment<'a>),
    /// The live server has sent it.
    Answer(LiveAnswer),
}

/// Whether interfaces hand over packets whose checksum is still to be completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// All are complete: what a network card receives.
    Complete,
    /// Some are only the sum of the pseudo-header: packets that were sent on this host, or come from a virtual
    /// machine's host.
    Partial,
}

/// The error of a ring record that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("capture record of {len} octets does not hold the segment that it announces")]
pub struct BadRecord {
    len: usize,
}

impl<'a> LiveRecord<'a> {
    /// Returns the four-tuple of a ring record, if it has one.
    #[must_use]
    pub fn flow_of(record: &[u8]) -> Option<Flow> {
        let flow = record.get(offset_of!(CaptureHeader, flow)..)?;
        try_pod_read_unaligned(flow.get(..size_of::<Flow>())?).ok()
    }

    /// Reads a ring record: a [`CaptureHeader`], the TCP header, the payload.
    ///
    /// # Errors
    /// [`BadRecord`] when the record is too short for the lengths in its headers.
    pub fn parse(record: &'a [u8], checksums: Checksums) -> Result<Self, BadRecord> {
        let bad = BadRecord { len: record.len() };
        let (header, rest) = record.split_at_checked(size_of::<CaptureHeader>()).ok_or(bad)?;
        let header: CaptureHeader = try_pod_read_unaligned(header).map_err(|_| bad)?;
        let payload_len = header.payload_len as usize;
        if payload_len > MAX_PAYLOAD {
            return Err(bad);
        }
        let header_len = usize::from(rest.get(DATA_OFFSET).ok_or(bad)? >> 4) * 4;
        let packet = rest.get(..header_len + payload_len).ok_or(bad)?;
        let (tcp, payload) = packet.split_at_checked(header_len).ok_or(bad)?;
        let (options, multipath) = read_options(tcp.get(TCP_HEADER..).ok_or(bad)?);
        let CaptureHeader { time_ns, flow, rule, flags, notes, .. } = header;
        let (time, seq, ack) = (Nanos(time_ns), u32::from_be_bytes(header.seq), u32::from_be_bytes(header.ack));
        if notes & note::ANSWER != 0 {
            return Ok(Self::Answer(LiveAnswer { time, flow, rule, seq, ack, options, multipath }));
        }
        let intact = notes & note::VERIFIED != 0 || is_intact(&flow, tcp, packet, checksums);
        let urgent = urgent_octet(flags, tcp, payload.len());
        let segment = LiveSegment { time, flow, rule, seq, ack, flags, options, multipath, urgent, intact, payload };
        Ok(Self::Segment(segment))
    }
}

/// Returns which octet of the payload is the urgent one: that before the one that the pointer names, as all stacks have
/// it (RFC 6093, section 2.1). A pointer of zero names the first (Linux, `tcp_check_urg`).
fn urgent_octet(flags: TcpFlags, tcp: &[u8], payload: usize) -> Option<u16> {
    if !flags.contains(URG) {
        return None;
    }
    let &pointer = tcp.get(URGENT..)?.first_chunk()?;
    let octet = u16::from_be_bytes(pointer).saturating_sub(1);
    (usize::from(octet) < payload).then_some(octet)
}

/// Whether a checksum is right (RFC 9293, section 3.1). `packet` is `tcp` and the payload.
fn is_intact(flow: &Flow, tcp: &[u8], packet: &[u8], checksums: Checksums) -> bool {
    let pseudo = pseudo_header(flow, packet.len());
    let field = tcp.get(CHECKSUM..CHECKSUM + 2);
    // First what needs not all octets to be read.
    if checksums == Checksums::Partial && field == Some(&pseudo.partial()) {
        return true;
    }
    // With its own checksum the sum of all is the ones' complement of zero.
    pseudo.with(packet).finish() == [0; 2]
}

/// The sum of the pseudo-header (RFC 9293, section 3.1; RFC 8200, section 8.1) of so many octets.
fn pseudo_header(flow: &Flow, len: usize) -> Checksum {
    let [client, server] = [&flow.client, &flow.server].map(|address| &address.0);
    // In the mapped form, as much as the last four octets.
    let sum = if flow.client.is_v4() {
        Checksum::default().with(&client[12..]).with(&server[12..])
    } else {
        Checksum::default().with(client).with(server)
    };
    let length = u32::try_from(len).unwrap_or(u32::MAX);
    sum.with(&length.to_be_bytes()).with(&[0, protocol::TCP])
}

/// Reads the options field of a TCP header, up to an option that is malformed.
fn read_options(field: &[u8]) -> (LiveOptions, Multipath) {
    let (mut options, mut multipath) = (LiveOptions::default(), Multipath::default());
    // What nearly all segments have (RFC 7323, appendix A).
    if let [kind::NO_OPERATION, kind::NO_OPERATION, kind::TIMESTAMPS, 10, rest @ ..] = field
        && let Some((values, [])) = rest.split_first_chunk()
    {
        return (LiveOptions { timestamps: Some(timestamps(values)), ..options }, multipath);
    }
    let mut rest = field;
    loop {
        match *rest {
            [kind::NO_OPERATION, ref after @ ..] => rest = after,
            [] | [kind::END, ..] | [_] => return (options, multipath),
            [kind, length, ..] => {
                let Some((option, after)) = rest.split_at_checked(length.max(2).into()) else {
                    return (options, multipath);
                };
                if length < 2 {
                    return (options, multipath);
                }
                match (kind, option) {
                    (kind::WINDOW_SCALE, &[_, _, shift]) => options.window_scale = Some(shift),
                    (kind::TIMESTAMPS, &[_, _, ref values @ ..]) => {
                        if let Ok(values) = values.try_into() {
                            options.timestamps = Some(timestamps(values));
                        }
                    }
                    // There may be others (of an address, of a priority).
                    (multipath::KIND, option) if multipath == Multipath::Nothing => {
                        multipath = Multipath::read(option);
                    }
                    _ => {}
                }
                rest = after;
            }
        }
    }
}

/// TSval and TSecr.
fn timestamps(&[a, b, c, d, e, f, g, h]: &[u8; 8]) -> (u32, u32) {
    (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]))
}

#[cfg(test)]
mod tests {
    use tcpcopy_common::{
        flow::IpAddress,
        tcp_flags::{ACK, PSH, SYN},
    };

    use super::*;

    fn flow(v6: bool) -> Flow {
        let address = |last: u8| {
            if v6 {
                IpAddress([0xfd, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, last])
            } else {
                IpAddress::from_v4([10, 1, 2, last])
            }
        };
        Flow::tcp((address(1), [1, 2]), (address(2), [0, 80]))
    }

    /// A record of `payload`, with a right checksum.
    fn record(v6: bool, options: &[u8], payload: &[u8]) -> Vec<u8> {
        let mut header: CaptureHeader = bytemuck::Zeroable::zeroed();
        header.flow = flow(v6);
        header.seq = 7u32.to_be_bytes();
        header.flags = ACK | PSH;
        header.payload_len = payload.len() as u32;
        let mut tcp = vec![0; TCP_HEADER];
        tcp[DATA_OFFSET] = ((TCP_HEADER + options.len()) as u8 / 4) << 4;
        tcp.extend_from_slice(options);
        tcp.extend_from_slice(payload);
        let sum = pseudo_header(&header.flow, tcp.len()).with(&tcp).finish();
        tcp[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum);
        [bytemuck::bytes_of(&header), tcp.as_slice()].concat()
    }

    fn segment(record: &[u8], checksums: Checksums) -> LiveSegment<'_> {
        match LiveRecord::parse(record, checksums) {
            Ok(LiveRecord::Segment(segment)) => segment,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_record_yields_its_payload_without_the_bucket_s_rest() {
        let mut record = record(false, &[], &[1; 20]);
        record.extend_from_slice(&[9; 64]);
        let segment = segment(&record, Checksums::Complete);
        assert_eq!((segment.seq, segment.payload, segment.intact), (7, &[1; 20][..], true));
    }

    #[test]
    fn a_record_shorter_than_it_says_is_refused() {
        let whole = record(false, &[1; 4], &[1; 64]);
        for len in 0..whole.len() {
            assert!(LiveRecord::parse(&whole[..len], Checksums::Complete).is_err(), "{len}");
        }
        let mut longer = whole.clone();
        longer[offset_of!(CaptureHeader, payload_len)..][..4].copy_from_slice(&u32::MAX.to_ne_bytes());
        assert!(LiveRecord::parse(&longer, Checksums::Complete).is_err());
        let mut headless = whole;
        headless[size_of::<CaptureHeader>() + DATA_OFFSET] = 4 << 4;
        assert!(LiveRecord::parse(&headless, Checksums::Complete).is_err());
    }

    #[test]
    fn any_octet_that_differs_is_noticed_unless_the_kernel_has_looked() {
        for v6 in [false, true] {
            for len in [0, 1, 2, 999] {
                let good = record(v6, &[], &vec![3; len]);
                assert!(segment(&good, Checksums::Complete).intact, "{len}");
                for at in [size_of::<CaptureHeader>(), good.len() - 1] {
                    let mut bad = good.clone();
                    bad[at] ^= 0x40;
                    assert!(!segment(&bad, Checksums::Complete).intact && !segment(&bad, Checksums::Partial).intact);
                    bad[offset_of!(CaptureHeader, notes)] = note::VERIFIED;
                    assert!(segment(&bad, Checksums::Complete).intact);
                }
            }
        }
    }

    #[test]
    fn the_sum_of_the_pseudo_header_is_right_only_where_it_may_be_partial() {
        let mut record = record(true, &[], b"payload");
        let pseudo = pseudo_header(&flow(true), TCP_HEADER + 7).partial();
        record[size_of::<CaptureHeader>() + CHECKSUM..][..2].copy_from_slice(&pseudo);
        assert!(segment(&record, Checksums::Partial).intact && !segment(&record, Checksums::Complete).intact);
    }

    #[test]
    fn options_are_found_wherever_they_are() {
        let timestamps = [8, 10, 0, 0, 1, 0, 0, 0, 2, 0];
        let usual = [&[1, 1][..], &timestamps].concat();
        let odd = [&timestamps[..], &[1, 0]].concat();
        let syn = [&[2, 4, 5, 180, 4, 2], &timestamps[..], &[1, 3, 3, 7]].concat();
        let late = [&[253, 4, 9, 9][..], &timestamps, &[0, 0]].concat();
        for (field, scale) in [(usual, None), (odd, None), (syn, Some(7)), (late, None)] {
            let options = segment(&record(false, &field, &[]), Checksums::Complete).options;
            assert_eq!(options, LiveOptions { window_scale: scale, timestamps: Some((256, 512)) }, "{field:?}");
        }
        for field in [[8, 11, 0, 0, 0, 0, 0, 0], [3, 0, 3, 3, 7, 0, 0, 0], [8, 3, 0, 1, 1, 1, 1, 3]] {
            let options = segment(&record(false, &field, &[]), Checksums::Complete).options;
            assert_eq!(options, LiveOptions::default(), "{field:?}");
        }
    }

    #[test]
    fn what_a_segment_says_of_other_subflows_is_found_beside_timestamps() {
        let mapping = [30, 14, 0x20, 4, 0, 0, 0, 9, 0, 0, 0, 7, 0, 100];
        let field = [&[1, 1, 8, 10, 0, 0, 1, 0, 0, 0, 2, 0][..], &mapping, &[30, 4, 0x50, 1, 1, 1]].concat();
        let record = record(false, &field, b"x");
        let segment = segment(&record, Checksums::Complete);
        assert_eq!(segment.multipath, Multipath::Mapping { data: 9, subflow: 7 });
        assert_eq!(segment.options.timestamps, Some((256, 512)));
    }

    #[test]
    fn the_urgent_octet_lies_before_where_the_pointer_points() {
        let urgent = |flags: TcpFlags, pointer: u8, payload: &[u8]| {
            let mut record = record(false, &[], payload);
            record[offset_of!(CaptureHeader, flags)] = flags.octet();
            record[size_of::<CaptureHeader>() + URGENT + 1] = pointer;
            segment(&record, Checksums::Complete).urgent
        };
        for (pointer, octet) in [(0, Some(0)), (1, Some(0)), (4, Some(3)), (5, None)] {
            assert_eq!(urgent(ACK | URG, pointer, b"abc!"), octet, "{pointer}");
        }
        assert_eq!((urgent(ACK, 4, b"abc!"), urgent(ACK | URG, 1, b"")), (None, None));
    }

    #[test]
    fn a_server_s_answer_is_told_from_a_client_s_segment() {
        let mut record = record(false, &[3, 3, 9, 0], &[]);
        record[offset_of!(CaptureHeader, notes)] = note::ANSWER;
        record[offset_of!(CaptureHeader, flags)] = bytemuck::cast(SYN | ACK);
        let Ok(LiveRecord::Answer(answer)) = LiveRecord::parse(&record, Checksums::Complete) else { panic!() };
        assert_eq!((answer.flow, answer.seq, answer.options.window_scale), (flow(false), 7, Some(9)));
    }
}
