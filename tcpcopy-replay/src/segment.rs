//! Segments at the engine's boundary: captured from a live client, and to be sent to a target.

use std::mem::offset_of;

use bytemuck::try_pod_read_unaligned;
use tcpcopy_common::{
    capture::{CaptureHeader, MAX_PAYLOAD},
    flow::Flow,
    mark::Mark,
    tcp_flags::TcpFlags,
};

use crate::time::Nanos;

/// A segment that a live client sent to the live server, as captured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveSegment<'a> {
    /// When the kernel saw it.
    pub time: Nanos,
    /// Live client and live server.
    pub flow: Flow,
    /// Which `-x` entry matched.
    pub rule: u16,
    /// Sequence number, in the live client's space.
    pub seq: u32,
    /// Acknowledgement number, in the live server's space; meaningful with ACK.
    pub ack: u32,
    /// Control bits.
    pub flags: TcpFlags,
    /// Payload: up to 64 KiB where the NIC or the stack coalesced segments.
    pub payload: &'a [u8],
}

/// The error of a ring record that contradicts itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("capture record of {len} octets does not hold the segment that it announces")]
pub struct BadRecord {
    len: usize,
}

impl<'a> LiveSegment<'a> {
    /// Returns the four-tuple of a ring record, if it has one.
    #[must_use]
    pub fn flow_of(record: &[u8]) -> Option<Flow> {
        let flow = record.get(offset_of!(CaptureHeader, flow)..)?;
        try_pod_read_unaligned(flow.get(..size_of::<Flow>())?).ok()
    }

    /// Reads a ring record: a [`CaptureHeader`], then the payload.
    ///
    /// # Errors
    /// [`BadRecord`] when the record is too short for the length in its header.
    pub fn parse(record: &'a [u8]) -> Result<Self, BadRecord> {
        let bad = BadRecord { len: record.len() };
        let (header, rest) = record.split_at_checked(size_of::<CaptureHeader>()).ok_or(bad)?;
        let header: CaptureHeader = try_pod_read_unaligned(header).map_err(|_| bad)?;
        let payload_len = header.payload_len as usize;
        if payload_len > MAX_PAYLOAD {
            return Err(bad);
        }
        Ok(Self {
            time: Nanos(header.time_ns),
            flow: header.flow,
            rule: header.rule,
            seq: u32::from_be_bytes(header.seq),
            ack: u32::from_be_bytes(header.ack),
            flags: header.flags,
            payload: rest.get(..payload_len).ok_or(bad)?,
        })
    }
}

/// A segment for the target, complete but for headers below TCP, checksums and re-segmentation.
///
/// The injector cuts [`payload`](Self::payload) into segments of at most [`segment_size`](Self::segment_size) octets
/// (or hands the whole to the kernel as one GSO packet); PSH and FIN belong to the last of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transmit<'a> {
    /// Replayed client and target.
    pub flow: Flow,
    /// Sequence number of the first octet, in the replayed client's space.
    pub seq: u32,
    /// Acknowledgement number, in the target's space; sent only with ACK.
    pub ack: u32,
    /// Window field as it goes on the wire.
    pub window: u16,
    /// Control bits.
    pub flags: TcpFlags,
    /// TCP options.
    pub options: TransmitOptions,
    /// The largest payload of one segment on the path to the target, in octets; at least 1.
    pub segment_size: u16,
    /// Payload.
    pub payload: &'a [u8],
}

/// The TCP options of a [`Transmit`]. They always fit the 40 octets of the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransmitOptions {
    /// Only in a SYN.
    pub syn: Option<SynOptions>,
    /// TSval and TSecr (RFC 7323, section 3).
    pub timestamps: Option<(u32, u32)>,
}

/// The options of a replayed SYN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SynOptions {
    /// Maximum segment size that we announce (RFC 9293, section 3.7.1).
    pub mss: u16,
    /// Window scale shift count, 0 to 14 (RFC 7323, section 2).
    pub window_scale: Option<u8>,
    /// Proof of ownership for the target.
    pub mark: Mark,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload_len: u32) -> Vec<u8> {
        let mut header: CaptureHeader = bytemuck::Zeroable::zeroed();
        header.seq = 7u32.to_be_bytes();
        header.payload_len = payload_len;
        let mut record = bytemuck::bytes_of(&header).to_vec();
        record.extend_from_slice(&[1; 64]);
        record
    }

    #[test]
    fn a_record_yields_its_payload_without_the_bucket_s_rest() {
        let record = record(20);
        let segment = LiveSegment::parse(&record).unwrap();
        assert_eq!((segment.seq, segment.payload.len()), (7, 20));
    }

    #[test]
    fn a_record_shorter_than_it_says_is_refused() {
        assert!(LiveSegment::parse(&record(64)).is_ok());
        for payload in [65, u32::MAX] {
            assert!(LiveSegment::parse(&record(payload)).is_err());
        }
        assert!(LiveSegment::parse(&[0; 63]).is_err());
    }
}
