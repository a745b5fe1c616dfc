//! Ring records: what is read lies within the record, and is what its header says.

use tcpcopy_common::capture::CaptureHeader;
use tcpcopy_replay::LiveSegment;

/// A record, which the kernel would never make like this.
pub(super) fn check(data: &[u8]) {
    let record: Box<[u8]> = data.into();
    let Ok(segment) = LiveSegment::parse(&record) else {
        // Only the length can be wrong.
        if let Some(header) = record.get(..size_of::<CaptureHeader>()) {
            let header: CaptureHeader = bytemuck::pod_read_unaligned(header);
            let wanted = header.payload_len as usize;
            let fits = record.len() - size_of::<CaptureHeader>() >= wanted;
            assert!(!fits || header.payload_len > 65_536, "a good record is refused");
        }
        return;
    };
    let header = CaptureHeader {
        time_ns: segment.time.0,
        flow: segment.flow,
        seq: segment.seq.to_be_bytes(),
        ack: segment.ack.to_be_bytes(),
        flags: segment.flags,
        payload_len: segment.payload.len() as u32,
        rule: segment.rule,
        _reserved: record[63],
    };
    let again = [bytemuck::bytes_of(&header), segment.payload].concat();
    assert!(record.starts_with(&again), "a record is read as something else");
    assert!(again.len() == record.len() || LiveSegment::parse(&record[..again.len()]) == Ok(segment));
}
