//! The target's ingress: opens sessions for SYNs with a valid mark, and counts what replayed clients send.

use aya_ebpf::{helpers::bpf_ktime_get_ns, programs::TcContext};
use bytemuck::Zeroable as _;
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    mark::{Epoch, Judgement, MEETS, Mark, PROBES},
    response::{REFLECTION, ResponseHeader, Session, kind, state},
    tcp_flags::{ACK, FIN, SYN},
};

use tcpcopy_ebpf::{
    options::{Marking, Options},
    packet::Packet,
    parse::{self, Ip, Link, TcpHeader, protocol},
};

use crate::{
    counters::Count as _,
    log,
    maps::{self, NotInserted},
    reports, sockets,
};

/// What becomes of the packet.
pub enum Verdict {
    Pass,
    Drop,
}

/// Why a marked SYN opens no session.
enum Refusal {
    /// The reason, and the counter of it.
    Counted(TargetCounter),
    /// The same, and the instance that sent the SYN is told by an event of this kind.
    Reported(TargetCounter, u8),
}

/// Learns from a packet that comes in. Only a marked SYN can be dropped: whatever else comes is the target's own.
#[inline(always)]
pub fn learn(packet: &TcContext, link: Link) -> Verdict {
    let mut ip = Ip::zeroed();
    if !parse::link_into(packet, link, &mut ip) {
        return Verdict::Pass;
    }
    if ip.protocol != protocol::TCP || ip.fragment.offset != 0 {
        return Verdict::Pass;
    }
    let Ok(tcp) = packet.read::<TcpHeader>(ip.payload()) else { return Verdict::Pass };
    let Ok(addresses) = ip.addresses(packet) else { return Verdict::Pass };
    let flow = Flow::tcp((addresses.source, tcp.ports.source), (addresses.destination, tcp.ports.destination));
    if tcp.flags & (SYN | ACK) != SYN {
        if maps::reflects() && tcp.urgent == REFLECTION && tcp.flags == ACK {
            // The client has not sent it: neither a sign of life nor a segment of the source.
            TargetCounter::ReflectionSeen.count();
            return Verdict::Pass;
        }
        if let Some(session) = maps::session_seen(&flow) {
            count_segments(packet.segments(), session.instance, &ip, &tcp);
        }
        return Verdict::Pass;
    }
    match learn_syn(packet, &ip, &tcp, &flow) {
        Syn::Unmarked => Verdict::Pass,
        Syn::Opens => {
            log::learned(&flow);
            Verdict::Pass
        }
        Syn::Refused => {
            log::refused(&flow);
            Verdict::Drop
        }
    }
}

/// What a SYN is to us.
enum Syn {
    /// One of the target's own clients.
    Unmarked,
    /// It opens a session, perhaps not for the first time.
    Opens,
    /// It bears our mark, but it is not valid, or there is no room for the session.
    Refused,
}

/// Not inlined: see [`parse::link_into`].
#[inline(never)]
fn learn_syn(packet: &TcContext, ip: &Ip, tcp: &TcpHeader, flow: &Flow) -> Syn {
    let mut mark = Mark::zeroed();
    match find_mark(packet, ip, tcp, &mut mark) {
        UNMARKED => {
            reclaim(flow);
            return Syn::Unmarked;
        }
        MARKED => {}
        _ => {
            TargetCounter::Malformed.count();
            return Syn::Refused;
        }
    }
    let instance = u32::from_be_bytes(mark.instance);
    match open(packet, flow, &mark, instance, tcp.seq) {
        Ok(()) => {
            count_segments(packet.segments(), instance, ip, tcp);
            return Syn::Opens;
        }
        Err(Refusal::Counted(reason)) => reason.count(),
        Err(Refusal::Reported(reason, kind)) => {
            reason.count();
            report(flow, instance, kind, tcp.seq);
            if kind == kind::UNANSWERED {
                count_segments(packet.segments(), instance, ip, tcp);
                return Syn::Opens;
            }
        }
    }
    Syn::Refused
}

const UNMARKED: u32 = 0;
const MARKED: u32 = 1;
const MALFORMED: u32 = 2;

/// Copies the mark of a SYN, if it has one. Apart, so that the verifier follows what is done with a mark once,
/// wherever among the options it stands; see [`parse::link_into`] for why it returns a number.
#[inline(never)]
fn find_mark(packet: &TcContext, ip: &Ip, tcp: &TcpHeader, mark: &mut Mark) -> u32 {
    let mut options = Options::NONE;
    options.read(packet, ip.payload() + TcpHeader::LENGTH, tcp.length().saturating_sub(TcpHeader::LENGTH));
    match options.marking() {
        Marking::Unmarked => UNMARKED,
        Marking::Malformed => MALFORMED,
        Marking::Marked(found) => {
            *mark = found;
            MARKED
        }
    }
}

/// Opens the session that a marked SYN asks for, if the mark is valid.
#[inline(always)]
fn open(packet: &TcContext, flow: &Flow, mark: &Mark, instance: u32, isn: [u8; 4]) -> Result<(), Refusal> {
    let key = maps::instance_key(instance).ok_or(Refusal::Counted(TargetCounter::UnknownInstance))?;
    // SAFETY: the helper has no preconditions.
    let now = unsafe { bpf_ktime_get_ns() };
    match mark.judge(key, flow, isn, Epoch::at(now)) {
        Judgement::Valid => {}
        Judgement::Stale => return Err(Refusal::Counted(TargetCounter::Stale)),
        Judgement::Forged => return Err(Refusal::Counted(TargetCounter::BadTag)),
    }
    if mark.stamp & PROBES != 0 {
        return Err(Refusal::Reported(TargetCounter::Probed, kind::PROBED));
    }
    let state = if mark.stamp & MEETS == 0 { state::OPENING } else { state::MEETING };
    let prefix = maps::prefix(instance, flow);
    let mut session =
        Session { opened_ns: now, last_seen_ns: now, instance, isn, answered: 0, prefix, state, _reserved: [0; 7] };
    let full = Refusal::Reported(TargetCounter::MapFull, kind::MAP_FULL);
    let entered = match maps::session(flow) {
        // The target's own: an earlier session would be known, or is what the SYN says that it may meet.
        None if mark.stamp & MEETS == 0 && sockets::is_taken(packet, flow) != 0 => return Err(COLLISION),
        None => match maps::insert_session(flow, &session) {
            // Another CPU was quicker: with the same SYN again, or with another that is a collision.
            Err(NotInserted::Present) => return join(flow, &session),
            entered => entered,
        },
        Some(old) if old.instance == instance && old.isn != isn => {
            if is_repeated(&old, isn, now) {
                return Err(Refusal::Counted(TargetCounter::Stale));
            }
            // A socket that is still there is the old one's.
            session.state = state::OPEN;
            maps::replace_session(flow, &session)
        }
        Some(_) => return join(flow, &session),
    };
    match entered {
        Ok(()) => {
            TargetCounter::Learned.count();
            Ok(())
        }
        Err(_) => Err(full),
    }
}

/// Longer than a mark is good.
const RECENT_NS: u64 = 5_000_000_000;

/// Whether a SYN with a mark that is still good is of a session before the one that is there, and was recorded: the
/// numbers of the sessions on a four-tuple grow (RFC 6528).
#[inline(always)]
fn is_repeated(present: &Session, isn: [u8; 4], now: u64) -> bool {
    let ahead = u32::from_be_bytes(isn).wrapping_sub(u32::from_be_bytes(present.isn)) as i32;
    ahead < 0 && now.wrapping_sub(present.opened_ns) < RECENT_NS
}

/// The session is there already: fine if it is the same one. If nothing has answered its SYN, which has come again, the
/// owner should know.
#[inline(always)]
fn join(flow: &Flow, session: &Session) -> Result<(), Refusal> {
    match maps::session_seen(flow) {
        Some(old) if old.instance == session.instance && old.isn == session.isn => {
            if old.state != state::OPEN {
                return Err(Refusal::Reported(TargetCounter::SynRepeated, kind::UNANSWERED));
            }
            TargetCounter::SynRepeated.count();
            Ok(())
        }
        _ => Err(COLLISION),
    }
}

/// Somebody else has a connection on the four-tuple.
const COLLISION: Refusal = Refusal::Reported(TargetCounter::Collision, kind::COLLISION);

/// A client of the target's own opens a connection, or the target one to a client: whatever session was on its
/// four-tuple is over, and what the target sends is for that client.
#[inline(always)]
pub fn reclaim(flow: &Flow) {
    if let Some(session) = maps::session(flow) {
        maps::remove_session(flow);
        TargetCounter::Reclaimed.count();
        report(flow, session.instance, kind::RECLAIMED, [0; 4]);
    }
}

#[inline(always)]
fn count_segments(segments: u32, instance: u32, ip: &Ip, tcp: &TcpHeader) {
    let Some(stats) = maps::wire_stats(instance) else { return };
    // SAFETY: the entry belongs to this CPU, on which programs of this type do not interrupt each other.
    let stats = unsafe { &mut *stats };
    stats.segments += segments as u64;
    stats.payload_bytes += ip.payload_len.saturating_sub(tcp.length()) as u64;
    stats.syns += tcp.flags.contains(SYN) as u64;
    stats.fins += tcp.flags.contains(FIN) as u64;
}

/// Tells the owner of a session what has become of it.
#[inline(always)]
pub fn report(flow: &Flow, instance: u32, kind: u8, seq: [u8; 4]) {
    let _ = reports::report(
        instance,
        || ResponseHeader { flow: *flow, seq, kind, instance, ..ResponseHeader::zeroed() },
        |_| {},
    );
}
