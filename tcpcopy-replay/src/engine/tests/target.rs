//! A model of the target's TCP: just enough to accept, acknowledge, answer, retransmit and close, and strict about what
//! it is sent. Written from RFC 9293 and not from the engine.

use std::collections::{BTreeMap, HashMap, HashSet};

use tcpcopy_common::{
    flow::{Flow, IpAddress},
    mark::{self, Epoch, Judgement, MarkKey},
    response::{NO_WINDOW_SCALE, ResponseHeader, kind, option},
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};

use crate::{segment::TransmitOptions, time::Nanos};

pub(crate) const KEY: MarkKey = MarkKey { k0: 1, k1: 2 };
pub(crate) const INSTANCE: u32 = 7;
pub(crate) const EPOCH: Epoch = Epoch(100);
const MS: u64 = 1_000_000;
const RTO: u64 = 200 * MS;

/// One segment on the way to the target.
#[derive(Clone, Debug)]
pub(crate) struct Packet {
    pub flow: Flow,
    pub seq: u32,
    pub ack: u32,
    pub flags: TcpFlags,
    pub options: TransmitOptions,
    pub payload: Vec<u8>,
}

/// What an application does.
#[derive(Clone, Debug)]
pub(crate) enum Act {
    /// Writes so many octets after so many nanoseconds.
    Write(u64, u32),
    /// Closes after so many nanoseconds.
    Close(u64),
    /// Resets after so many nanoseconds.
    Reset(u64),
}

/// Sees all octets received so far, and how many of them it had seen before; `None` on accept.
pub(crate) type App = Box<dyn FnMut(Option<(&[u8], usize)>) -> Vec<Act>>;

/// Something the target wants done later.
#[derive(Clone, Debug)]
pub(crate) enum Later {
    Do(Flow, u32, Act),
    Retransmit(Flow, u32),
}

pub(crate) struct Conn {
    pub received: Vec<u8>,
    pub isn: u32,
    pub fin_received: bool,
    pub reset: bool,
    pub established: bool,
    pub closed: bool,
    rcv_nxt: u32,
    early: BTreeMap<u32, (Vec<u8>, bool)>,
    iss: u32,
    snd_nxt: u32,
    snd_una: u32,
    /// Sent and not acknowledged: sequence number, length, flags.
    unacked: Vec<(u32, u32, TcpFlags)>,
    timer: Option<u64>,
    /// When the timer was started anew (RFC 6298, sections 5.1 and 5.3).
    restarted: u64,
    echo: u32,
    app: App,
    seen: usize,
}

/// What becomes of SYNs on the way to the service, and of its answers to them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// As it should be.
    Clear,
    /// They come to a host whose programs know nothing of us.
    Elsewhere,
    /// Only those from this address arrive.
    OnlyFrom(IpAddress),
    /// The programs let them in, and then they are dropped; what `intercept` finds out about it.
    Dropped(u8),
    /// The answers leave without the programs seeing them.
    Astray,
}

pub(crate) struct Target {
    pub way: Way,
    /// How many reports were lost.
    pub reports_lost: u32,
    pub conns: HashMap<Flow, Conn>,
    /// Connections replaced by a new SYN or reset, in that order.
    pub past: Vec<(Flow, Conn)>,
    pub new_app: Box<dyn FnMut(usize) -> App>,
    pub accepted: usize,
    pub mss: u16,
    /// Octets that a connection accepts beyond what it has; `None`: plenty.
    pub window: Option<u32>,
    /// Clients whose connections accept nothing.
    pub shut: HashSet<IpAddress>,
    pub window_scale: Option<u8>,
    pub listening: bool,
    pub timestamps: bool,
    /// How many SYNs to answer with this instead.
    pub refuse_syns: (u32, u8),
    pub largest_packet: usize,
    pub syns: Vec<(Flow, u32)>,
    /// Segments that belong to an earlier connection by their timestamp or, SYNs, their number.
    pub late: usize,
    /// Segments that did not fit the window, and were dropped.
    pub beyond_window: usize,
    /// The instance that the target's programs know.
    pub instance: u32,
    /// The time by which they judge marks.
    pub epoch: Epoch,
    /// Four-tuples whose responses the programs swallow.
    pub sessions: HashSet<Flow>,
    iss: u32,
}

impl Target {
    pub(super) fn new() -> Self {
        Self {
            way: Way::Clear,
            reports_lost: 0,
            conns: HashMap::new(),
            past: Vec::new(),
            new_app: Box::new(|_| lines(100)),
            accepted: 0,
            mss: 1000,
            window: None,
            shut: HashSet::new(),
            window_scale: Some(7),
            listening: true,
            timestamps: true,
            refuse_syns: (0, 0),
            largest_packet: 0,
            syns: Vec::new(),
            late: 0,
            beyond_window: 0,
            instance: INSTANCE,
            epoch: EPOCH,
            sessions: HashSet::new(),
            iss: u32::MAX - 50,
        }
    }

    fn header(&self, flow: Flow, conn: Option<&Conn>, seq: u32, len: u32, flags: TcpFlags) -> ResponseHeader {
        let scale = if flags.contains(SYN) { 0 } else { self.window_scale.unwrap_or(0) };
        let open = if self.shut.contains(&flow.client) { 0 } else { self.window.unwrap_or(60_000) };
        let window = (open >> scale).min(65_535) as u16;
        ResponseHeader {
            flow,
            seq: seq.to_be_bytes(),
            ack: conn.map_or(0, |c| c.rcv_nxt).to_be_bytes(),
            window: window.to_be_bytes(),
            flags,
            window_scale: self.window_scale.filter(|_| flags.contains(SYN)).unwrap_or(NO_WINDOW_SCALE),
            tsval: 99u32.to_be_bytes(),
            payload_len: len,
            instance: self.instance,
            mss: if flags.contains(SYN) { self.mss.to_be_bytes() } else { [0; 2] },
            kind: kind::SEGMENT,
            options: if self.timestamps { option::TIMESTAMPS } else { 0 },
            prefix_len: 0,
            _reserved: [0; 2],
        }
    }

    /// Takes a packet; responses and later work come back.
    pub(super) fn handle(&mut self, now: Nanos, p: Packet) -> (Vec<ResponseHeader>, Vec<(u64, Later)>) {
        let mut out = Vec::new();
        let mut later = Vec::new();
        self.largest_packet = self.largest_packet.max(p.payload.len());
        assert!(
            p.payload.len() <= usize::from(self.mss) - if self.timestamps { 12 } else { 0 },
            "segment above the MSS"
        );
        if p.flags.contains(SYN) {
            self.handle_syn(&p, &mut out);
            return (out, later);
        }
        let Some(mut conn) = self.conns.remove(&p.flow) else {
            if !p.flags.contains(RST) {
                out.push(self.header(p.flow, None, p.ack, 0, RST));
            }
            return (out, later);
        };
        if p.flags.contains(RST) {
            if p.seq == conn.rcv_nxt {
                conn.reset = true;
                self.past.push((p.flow, conn));
            } else {
                // RFC 5961: a challenge.
                out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, ACK));
                self.conns.insert(p.flow, conn);
            }
            return (out, later);
        }
        assert_eq!(self.timestamps, p.options.timestamps.is_some());
        if p.options.timestamps.is_some_and(|(tsval, _)| (tsval.wrapping_sub(conn.echo) as i32) < 0) {
            // PAWS (RFC 7323, section 5.3): a late segment of the connection before.
            self.late += 1;
            out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, ACK));
            self.conns.insert(p.flow, conn);
            return (out, later);
        }
        self.handle_ack(now, &p, &mut conn, &mut later);
        self.handle_data(now, p, conn, &mut out, &mut later);
        (out, later)
    }

    fn handle_syn(&mut self, p: &Packet, out: &mut Vec<ResponseHeader>) {
        let syn = p.options.syn.expect("a SYN has options");
        assert_eq!(syn.mark.instance, self.instance.to_be_bytes());
        let judgement = syn.mark.judge(&KEY, &p.flow, p.seq.to_be_bytes(), self.epoch);
        assert_eq!(judgement, Judgement::Valid, "the mark proves the owner");
        if matches!(self.way, Way::OnlyFrom(address) if address != p.flow.client) {
            return;
        }
        let is_known = self.sessions.contains(&p.flow);
        let probes = syn.mark.stamp & mark::PROBES != 0;
        let mut finding = self.header(p.flow, None, p.seq, 0, TcpFlags::NONE);
        (finding.kind, finding.options) = match self.way {
            _ if probes => (kind::PROBED, 0),
            Way::Astray => (kind::UNANSWERED, option::ANSWERED),
            Way::Dropped(options) => (kind::UNANSWERED, options),
            _ => (kind::UNANSWERED, 0),
        };
        if probes && self.way != Way::Elsewhere {
            finding.ack = self.reports_lost.to_be_bytes();
            out.push(finding);
            return;
        }
        if let Way::Dropped(_) | Way::Astray = self.way {
            self.sessions.insert(p.flow);
            self.syns.push((p.flow, p.seq));
            if is_known {
                out.push(finding);
            }
            return;
        }
        self.syns.push((p.flow, p.seq));
        // In TIME-WAIT there is nothing that a SYN could disturb.
        let open = |conn: &Conn| !(conn.closed && conn.fin_received);
        let is_taken = self.conns.get(&p.flow).is_some_and(open) && !self.sessions.contains(&p.flow);
        if is_taken && syn.mark.stamp & mark::MEETS == 0 {
            let mut collision = self.header(p.flow, None, p.seq, 0, TcpFlags::NONE);
            collision.kind = kind::COLLISION;
            out.push(collision);
            return;
        }
        if self.way != Way::Elsewhere {
            self.sessions.insert(p.flow);
        }
        if self.refuse_syns.0 > 0 {
            self.refuse_syns.0 -= 1;
            let mut refusal = self.header(p.flow, None, p.seq, 0, TcpFlags::NONE);
            refusal.kind = self.refuse_syns.1;
            out.push(refusal);
            return;
        }
        if !self.listening {
            let mut rst = self.header(p.flow, None, 0, 0, RST | ACK);
            rst.ack = p.seq.wrapping_add(1).to_be_bytes();
            out.push(rst);
            return;
        }
        if let Some(old) = self.conns.remove(&p.flow) {
            if old.isn == p.seq {
                out.push(self.header(p.flow, Some(&old), old.iss, 0, SYN | ACK));
                self.conns.insert(p.flow, old);
                return;
            }
            let time_wait = old.closed && old.fin_received;
            let newer = p.seq.wrapping_sub(old.rcv_nxt) as i32 > 0
                && p.options.timestamps.is_some_and(|(tsval, _)| tsval.wrapping_sub(old.echo) as i32 > 0);
            if !(time_wait && newer) {
                // Half-open (RFC 9293, section 3.5.1), or a SYN that is not above the connection in TIME-WAIT (RFC
                // 6191).
                self.late += usize::from(time_wait);
                out.push(self.header(p.flow, Some(&old), old.snd_nxt, 0, ACK));
                self.conns.insert(p.flow, old);
                return;
            }
            self.past.push((p.flow, old));
        }
        self.iss = self.iss.wrapping_add(1_000_003);
        let app = (self.new_app)(self.accepted);
        self.accepted += 1;
        let conn = Conn {
            received: Vec::new(),
            isn: p.seq,
            fin_received: false,
            reset: false,
            established: false,
            closed: false,
            rcv_nxt: p.seq.wrapping_add(1),
            early: BTreeMap::new(),
            iss: self.iss,
            snd_nxt: self.iss.wrapping_add(1),
            snd_una: self.iss.wrapping_add(1),
            unacked: Vec::new(),
            timer: None,
            restarted: 0,
            echo: p.options.timestamps.map_or(0, |t| t.0),
            app,
            seen: 0,
        };
        out.push(self.header(p.flow, Some(&conn), conn.iss, 0, SYN | ACK));
        self.conns.insert(p.flow, conn);
    }

    fn handle_ack(&mut self, now: Nanos, p: &Packet, conn: &mut Conn, later: &mut Vec<(u64, Later)>) {
        assert!(p.flags.contains(ACK));
        assert!(p.ack.wrapping_sub(conn.snd_nxt) as i32 <= 0, "acknowledges what was never sent");
        if !conn.established {
            conn.established = true;
            for act in (conn.app)(None) {
                later.push((now.0 + act.delay(), Later::Do(p.flow, conn.isn, act)));
            }
        }
        if p.ack.wrapping_sub(conn.snd_una) as i32 > 0 {
            conn.snd_una = p.ack;
            conn.restarted = now.0;
            let una = conn.snd_una;
            conn.unacked.retain(|&(seq, len, flags)| {
                let end = seq.wrapping_add(len).wrapping_add(u32::from(flags.contains(FIN)));
                end.wrapping_sub(una) as i32 > 0
            });
        }
        if let Some((tsval, _)) = p.options.timestamps {
            conn.echo = tsval;
        }
    }

    fn handle_data(
        &mut self,
        now: Nanos,
        p: Packet,
        mut conn: Conn,
        out: &mut Vec<ResponseHeader>,
        later: &mut Vec<(u64, Later)>,
    ) {
        let fin = p.flags.contains(FIN);
        let behind = p.seq.wrapping_sub(conn.rcv_nxt) as i32;
        let nothing = p.payload.is_empty() && !fin;
        if nothing {
            if behind < 0 {
                out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, ACK));
            }
        } else {
            if let Some(window) = self.window {
                let end = behind + p.payload.len() as i32;
                if end > window as i32 {
                    self.beyond_window += 1;
                    out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, ACK));
                    self.conns.insert(p.flow, conn);
                    return;
                }
            }
            let offset = p.seq;
            conn.early.insert(offset, (p.payload, fin));
            while let Some((&seq, _)) = conn.early.iter().find(|(s, (data, fin))| {
                let end = s.wrapping_add(data.len() as u32).wrapping_add(u32::from(*fin));
                s.wrapping_sub(conn.rcv_nxt) as i32 <= 0 && end.wrapping_sub(conn.rcv_nxt) as i32 > 0
            }) {
                let (data, fin) = conn.early.remove(&seq).unwrap();
                let skip = conn.rcv_nxt.wrapping_sub(seq) as usize;
                conn.received.extend_from_slice(&data[skip.min(data.len())..]);
                conn.rcv_nxt = seq.wrapping_add(data.len() as u32).wrapping_add(u32::from(fin));
                conn.fin_received |= fin;
            }
            let rcv_nxt = conn.rcv_nxt;
            conn.early.retain(|s, (data, _)| s.wrapping_add(data.len() as u32 + 1).wrapping_sub(rcv_nxt) as i32 > 0);
            if conn.closed && behind >= 0 && !conn.received.is_empty() && conn.received.len() > conn.seen && !fin {
                // Data for an application that has closed.
                out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, RST | ACK));
                conn.reset = true;
                self.past.push((p.flow, conn));
                return;
            }
            out.push(self.header(p.flow, Some(&conn), conn.snd_nxt, 0, ACK));
            if conn.received.len() > conn.seen || conn.fin_received {
                let acts = (conn.app)(Some((&conn.received, conn.seen)));
                conn.seen = conn.received.len();
                for act in acts {
                    later.push((now.0 + act.delay(), Later::Do(p.flow, conn.isn, act)));
                }
                if conn.fin_received && !conn.closed {
                    later.push((now.0 + 10 * MS, Later::Do(p.flow, conn.isn, Act::Close(0))));
                }
            }
        }
        self.conns.insert(p.flow, conn);
    }

    pub(super) fn later(&mut self, now: Nanos, work: Later) -> (Vec<ResponseHeader>, Vec<(u64, Later)>) {
        let (mut out, mut later) = (Vec::new(), Vec::new());
        let (flow, isn) = match &work {
            Later::Do(flow, isn, _) | Later::Retransmit(flow, isn) => (*flow, *isn),
        };
        if self.conns.get(&flow).is_none_or(|c| c.isn != isn) {
            return (out, later);
        }
        let Some(mut conn) = self.conns.remove(&flow) else { return (out, later) };
        if conn.unacked.is_empty() {
            conn.restarted = now.0;
        }
        match work {
            Later::Do(_, _, Act::Write(_, len)) if !conn.closed => {
                let (mut seq, end) = (conn.snd_nxt, conn.snd_nxt.wrapping_add(len));
                while seq != end {
                    let n = end.wrapping_sub(seq).min(3 * u32::from(self.mss));
                    let flags = if seq.wrapping_add(n) == end { ACK | PSH } else { ACK };
                    out.push(self.header(flow, Some(&conn), seq, n, flags));
                    conn.unacked.push((seq, n, flags));
                    seq = seq.wrapping_add(n);
                }
                conn.snd_nxt = end;
            }
            Later::Do(_, _, Act::Close(_)) if !conn.closed => {
                conn.closed = true;
                out.push(self.header(flow, Some(&conn), conn.snd_nxt, 0, ACK | FIN));
                conn.unacked.push((conn.snd_nxt, 0, ACK | FIN));
                conn.snd_nxt = conn.snd_nxt.wrapping_add(1);
            }
            Later::Do(_, _, Act::Reset(_)) => {
                out.push(self.header(flow, Some(&conn), conn.snd_nxt, 0, RST | ACK));
                conn.reset = true;
                self.past.push((flow, conn));
                return (out, later);
            }
            Later::Do(..) => {}
            Later::Retransmit(..) => {
                conn.timer = None;
                if conn.restarted + RTO <= now.0
                    && let Some(&(seq, len, flags)) = conn.unacked.first()
                {
                    conn.restarted = now.0;
                    out.push(self.header(flow, Some(&conn), seq, len, flags));
                }
            }
        }
        if !conn.unacked.is_empty() && conn.timer.is_none() {
            let at = conn.restarted + RTO;
            conn.timer = Some(at);
            later.push((at, Later::Retransmit(flow, isn)));
        }
        self.conns.insert(flow, conn);
        (out, later)
    }
}

impl Act {
    fn delay(&self) -> u64 {
        match self {
            Self::Write(after, _) | Self::Close(after) | Self::Reset(after) => *after,
        }
    }
}

/// Answers each line with so many octets.
pub(crate) fn lines(answer: u32) -> App {
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        all[seen..].iter().filter(|&&b| b == b'\n').map(|_| Act::Write(0, answer)).collect()
    })
}

/// Answers so many lines, then closes.
pub(crate) fn lines_then_close(answer: u32, most: usize) -> App {
    Box::new(move |input| {
        let Some((all, seen)) = input else { return Vec::new() };
        let mut acts = Vec::new();
        let mut n = all[..seen].iter().filter(|&&b| b == b'\n').count();
        for _ in all[seen..].iter().filter(|&&b| b == b'\n') {
            if n < most {
                acts.push(Act::Write(0, answer));
                n += 1;
                if n == most {
                    acts.push(Act::Close(1000));
                }
            }
        }
        acts
    })
}

/// Answers so many lines, then resets.
pub(crate) fn lines_then_reset(answer: u32, most: usize) -> App {
    let mut closing = lines_then_close(answer, most);
    Box::new(move |input| {
        let acts = closing(input).into_iter();
        acts.map(|act| if let Act::Close(after) = act { Act::Reset(after) } else { act }).collect()
    })
}

/// Reads, and sends nothing.
pub(crate) fn silent() -> App {
    Box::new(|_| Vec::new())
}
