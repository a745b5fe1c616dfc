//! Connections at the targets, as far as they are needed to say something that makes sense, and what was sent on each.

use tcpcopy_common::{
    flow::Flow,
    response::{NO_WINDOW_SCALE, ResponseHeader, kind, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};
use tcpcopy_replay::{Nanos, Transmit};

use super::{
    input::Reflex,
    live::{self, Captured},
};

/// A connection that the engine has opened.
pub(super) struct Conn {
    pub copy: usize,
    pub target: u16,
    pub instance: u32,
    pub flow: Flow,
    pub isn: u32,
    /// Whether the target has opened.
    open: bool,
    /// What the target acknowledges, and the end of what was sent to it.
    acked: u32,
    end: u32,
    /// The target's next sequence number.
    seq: u32,
    /// TSval of the last segment.
    tsval: Option<u32>,
    /// Whether something came with PSH that was not answered.
    asked: bool,
    /// Whether the target, by reflex, is about to end it.
    closing: bool,
    /// What was sent: first all of it, later only how much and whence.
    sent: Sent,
}

enum Sent {
    Few(Vec<u8>),
    Recognised { id: u8, first: u32, length: u32 },
}

impl Conn {
    pub fn new(copy: usize, target: u16, instance: u32, transmit: &Transmit<'_>) -> Self {
        let Transmit { flow, seq: isn, .. } = *transmit;
        let seq = isn.rotate_left(9) ^ 0x5555;
        Self {
            copy,
            target,
            instance,
            flow,
            isn,
            open: false,
            acked: isn,
            end: isn.wrapping_add(1),
            seq,
            tsval: transmit.options.timestamps.map(|(value, _)| value),
            asked: false,
            closing: false,
            sent: Sent::Few(Vec::new()),
        }
    }

    /// The engine sends something that is no SYN: may it?
    pub fn sends(&mut self, transmit: &Transmit<'_>, captured: &Captured) {
        self.tsval = transmit.options.timestamps.map(|(value, _)| value).or(self.tsval);
        self.asked |= transmit.flags.contains(PSH);
        let has_fin = transmit.flags.contains(FIN);
        if transmit.flags.contains(RST) {
            return;
        }
        let offset = transmit.seq.wrapping_sub(self.isn).wrapping_sub(1);
        let payload = transmit.payload;
        if !payload.is_empty() {
            self.judge(offset, payload, captured);
        }
        let end = offset.wrapping_add(payload.len() as u32);
        if has_fin {
            self.judge_fin(end, captured);
        }
        let end = transmit.seq.wrapping_add(payload.len() as u32).wrapping_add(has_fin.into());
        if end.wrapping_sub(self.end) as i32 > 0 {
            self.end = end;
        }
    }

    fn judge(&mut self, offset: u32, payload: &[u8], captured: &Captured) {
        match &mut self.sent {
            Sent::Few(sent) => {
                let offset = offset as usize;
                assert!(offset <= sent.len(), "octets at {offset}, but only {} before them", sent.len());
                let old = (sent.len() - offset).min(payload.len());
                assert_eq!(sent[offset..offset + old], payload[..old], "sent again, but different");
                sent.extend_from_slice(&payload[old..]);
                if sent.len() >= live::ENOUGH {
                    let sent = std::mem::take(sent);
                    let (id, first) = live::origin(&sent).expect("octets that no live client sent");
                    self.sent = Sent::Recognised { id, first, length: 0 };
                    self.judge(0, &sent, captured);
                }
            }
            Sent::Recognised { id, first, length } => {
                assert!(offset <= *length, "octets at {offset}, but only {length} before them");
                let begin = first.wrapping_add(offset);
                for (n, &octet) in payload.iter().enumerate() {
                    let seq = begin.wrapping_add(n as u32);
                    assert_eq!(octet, live::octet(*id, seq), "octet {seq} of connection {id} is another");
                }
                let n = payload.len() as u32;
                assert!(captured.covers(*id, begin, n), "{n} octets from {begin} of connection {id}: not captured");
                *length = (*length).max(offset + n);
            }
        }
    }

    fn judge_fin(&self, offset: u32, captured: &Captured) {
        match &self.sent {
            Sent::Few(sent) => assert!(offset as usize <= sent.len(), "a FIN beyond what was sent"),
            Sent::Recognised { id, first, length } => {
                assert_eq!(offset, *length, "a FIN in the middle");
                assert!(captured.ends(*id, first.wrapping_add(offset)), "a FIN that connection {id} did not send");
            }
        }
    }

    /// A report with these control bits; what is acknowledged if ACK is among them.
    fn report(&self, now: Nanos, flags: TcpFlags, window: u16, timestamps: bool) -> ResponseHeader {
        let mut report: ResponseHeader = bytemuck::Zeroable::zeroed();
        report.flow = self.flow;
        report.seq = self.seq.to_be_bytes();
        report.ack = if flags.contains(ACK) { self.acked.to_be_bytes() } else { [0; 4] };
        report.window = window.to_be_bytes();
        report.flags = flags;
        report.window_scale = NO_WINDOW_SCALE;
        report.instance = self.instance;
        report.kind = kind::SEGMENT;
        if timestamps && self.tsval.is_some() {
            report.options |= option::TIMESTAMPS;
            report.tsval = ((now.0 / 1_000_000) as u32).to_be_bytes();
        }
        report
    }

    pub fn syn_ack(&mut self, now: Nanos, window: u16, scale: u8, mss: u8, timestamps: bool) -> ResponseHeader {
        self.acked = self.isn.wrapping_add(1);
        let mut report = self.report(now, SYN | ACK, window, timestamps);
        if scale & 1 == 0 {
            report.window_scale = scale >> 1;
        }
        report.mss = match mss % 4 {
            0 => [0, 0],
            1 => [0, mss],
            _ => 1460u16.to_be_bytes(),
        };
        if !self.open {
            self.open = true;
            self.seq = self.seq.wrapping_add(1);
        }
        report
    }

    /// Acknowledges `part`, of 65535, of what is outstanding.
    pub fn accept(&mut self, now: Nanos, part: u16, window: u16, timestamps: bool) -> ResponseHeader {
        let outstanding = self.end.wrapping_sub(self.acked);
        if (outstanding as i32) > 0 {
            let part = u64::from(outstanding) * u64::from(part) / u64::from(u16::MAX);
            self.acked = self.acked.wrapping_add(part as u32);
        }
        self.report(now, ACK, window, timestamps)
    }

    /// `reflected`: and takes it for acknowledged.
    pub fn answer(
        &mut self,
        now: Nanos,
        (length, push, fin): (u16, bool, bool),
        reflected: bool,
        timestamps: bool,
    ) -> ResponseHeader {
        self.acked = self.end;
        self.asked = false;
        let flags = ACK | PSH.when(push) | FIN.when(fin);
        let mut report = self.report(now, flags, 60_000, timestamps);
        report.payload_len = length.into();
        if reflected {
            report.options |= option::IN_ORDER | option::REFLECTED;
        }
        self.seq = self.seq.wrapping_add(u32::from(length)).wrapping_add(fin.into());
        report
    }

    pub fn rst(&self, now: Nanos, ack_only: bool) -> ResponseHeader {
        let mut report = self.report(now, RST | ACK, 0, false);
        if ack_only {
            report.seq = [0; 4];
        }
        report
    }

    pub fn raw(&self, now: Nanos, kind: u8, flags: TcpFlags, (seq, ack): (i8, i8), length: u8) -> ResponseHeader {
        let mut report = self.report(now, flags, u16::from(length) << 4, false);
        report.kind = kind % 7;
        let seq = match report.kind {
            // They name the SYN.
            kind::COLLISION | kind::MAP_FULL => self.isn.wrapping_add_signed(i32::from(seq) / 64),
            _ => self.seq.wrapping_add_signed(far(seq)),
        };
        report.seq = seq.to_be_bytes();
        report.ack = self.acked.wrapping_add_signed(far(ack)).to_be_bytes();
        report.payload_len = if length & 3 == 3 { u32::from(length) << 24 } else { length.into() };
        report.window_scale = length;
        report
    }

    /// What the target says by reflex, if anything.
    pub fn react(&mut self, now: Nanos, reflex: Reflex, timestamps: bool) -> Option<ResponseHeader> {
        let is_new = !std::mem::replace(&mut self.open, true);
        // Says something about the SYN, not about a connection.
        let of_syn = |report, kind, seq: [u8; 4]| ResponseHeader { kind, seq, ..report };
        match reflex {
            Reflex::Serve => {
                self.open = !is_new;
                self.honest(now, 200, timestamps)
            }
            Reflex::Refuse if is_new => {
                self.acked = self.isn.wrapping_add(1);
                Some(of_syn(self.rst(now, true), kind::SEGMENT, [0; 4]))
            }
            Reflex::Collide if is_new => {
                Some(of_syn(self.report(now, TcpFlags::NONE, 0, false), kind::COLLISION, self.isn.to_be_bytes()))
            }
            Reflex::Close | Reflex::Reset if is_new => {
                self.open = false;
                self.closing = true;
                Some(self.syn_ack(now, 60_000, 14, 2, timestamps))
            }
            Reflex::Close if std::mem::take(&mut self.closing) => {
                Some(self.answer(now, (0, false, true), false, timestamps))
            }
            Reflex::Reset if std::mem::take(&mut self.closing) => Some(self.rst(now, false)),
            _ => None,
        }
    }

    /// What a target would say now, if anything.
    pub fn honest(&mut self, now: Nanos, answer: u16, timestamps: bool) -> Option<ResponseHeader> {
        if !self.open {
            Some(self.syn_ack(now, 60_000, 14, 2, timestamps))
        } else if self.asked && answer > 0 {
            Some(self.answer(now, (answer, true, false), false, timestamps))
        } else {
            (self.acked != self.end).then(|| self.accept(now, u16::MAX, 60_000, timestamps))
        }
    }
}

/// A little way, or half around the circle.
fn far(distance: i8) -> i32 {
    match distance {
        -100..=100 => distance.into(),
        _ => i32::from(distance) << 24,
    }
}
