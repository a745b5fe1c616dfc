//! Ring records: what is read lies within the record, and is what its headers say.

use tcpcopy_common::capture::{CaptureHeader, note};
use tcpcopy_replay::{Checksums, LiveRecord};

/// A record, which the kernel would never make like this.
pub(super) fn check(data: &[u8]) {
    const HEADER: usize = size_of::<CaptureHeader>();
    let record: Box<[u8]> = data.into();
    let announced = record.get(..HEADER).map(|header| {
        let header: CaptureHeader = bytemuck::pod_read_unaligned(header);
        let tcp = record.get(HEADER + 12).map(|octet| usize::from(octet >> 4) * 4);
        (header, tcp.filter(|&tcp| tcp >= 20), header.payload_len as usize)
    });
    let parsed = LiveRecord::parse(&record, Checksums::Complete);
    let Ok(parsed) = parsed else {
        // Only the lengths can be wrong.
        if let Some((_, Some(tcp), payload)) = announced {
            assert!(record.len() - HEADER < tcp + payload || payload > 65_536, "a good record is refused");
        }
        return;
    };
    let (header, Some(tcp), _) = announced.expect("it was read") else { panic!("a header too short is read") };
    match parsed {
        LiveRecord::Segment(segment) => {
            let again = CaptureHeader {
                time_ns: segment.time.0,
                flow: segment.flow,
                seq: segment.seq.to_be_bytes(),
                ack: segment.ack.to_be_bytes(),
                flags: segment.flags,
                payload_len: segment.payload.len() as u32,
                rule: segment.rule,
                notes: header.notes,
            };
            assert_eq!(again, header, "a record is read as something else");
            assert!(record[HEADER + tcp..].starts_with(segment.payload), "its payload is elsewhere");
        }
        LiveRecord::Answer(answer) => {
            assert!(header.notes & note::ANSWER != 0);
            assert_eq!((answer.flow, answer.rule), (header.flow, header.rule));
        }
    }
}
