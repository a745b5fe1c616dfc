//! The target's programs with `--ack reflect`: which responses they acknowledge themselves, and what they report of
//! that.

use std::collections::HashMap;

use tcpcopy_common::{
    flow::Flow,
    response::{LEFT_TO_THE_SOURCE, ResponseHeader, option},
    tcp_flags::{ACK, PSH, RST, SYN},
};
use tcpcopy_replay::{Transmit, TransmitOptions};

use crate::wire;

/// By session: the target's sequence number after the last octet that was reported without a gap before it.
#[derive(Default)]
pub struct Reflector(HashMap<Flow, u32>);

impl Reflector {
    /// Marks the report of a response as the programs do, unless it does not get into their ring. The acknowledgement
    /// that the target is given, if any.
    pub fn reflect(
        &mut self,
        report: &mut ResponseHeader,
        timestamps: Option<(u32, u32)>,
        reported: bool,
    ) -> Option<Vec<u8>> {
        let seq = u32::from_be_bytes(report.seq);
        if report.flags.contains(SYN) {
            self.0.insert(report.flow, seq.wrapping_add(1));
            return None;
        }
        let answered = self.0.get_mut(&report.flow)?;
        let end = seq.wrapping_add(report.payload_len);
        let after = |a: u32, b: u32| a.wrapping_sub(b) as i32 > 0;
        if report.payload_len == 0 || report.flags.contains(RST) || after(seq, *answered) {
            return None;
        }
        report.options |= option::IN_ORDER;
        if !after(end, *answered) || !reported {
            return None;
        }
        *answered = end;
        if report.flags.contains(PSH) && report.payload_len <= LEFT_TO_THE_SOURCE {
            return None;
        }
        report.options |= option::REFLECTED;
        let number = u32::from_be_bytes;
        let timestamps = timestamps.map(|(tsval, tsecr)| (tsecr, tsval));
        let acknowledgement = Transmit {
            flow: report.flow,
            seq: number(report.ack),
            ack: end,
            window: u16::MAX,
            flags: ACK,
            options: TransmitOptions { syn: None, timestamps },
            segment_size: 1,
            payload: &[],
        };
        wire::packets(&acknowledgement).pop()
    }
}
