//! The guard at the sockets of the test host, for interfaces that are not hooked yet.
//!
//! An interface appears before `intercept` hears of it. Until it is hooked, a marked SYN that comes by it opens no session,
//! and a response that leaves by it is not recognised. Here such a SYN goes no further, and such a response neither: the
//! target sends it again, and by then the interface is hooked. An interface that is hooked costs each packet one look
//! into a map.

use aya_ebpf::programs::SkBuffContext;
use bytemuck::Zeroable as _;
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    hooks::{LEARNS, SWALLOWS},
    tcp_flags::{ACK, SYN},
};
use tcpcopy_ebpf::{
    options::{Marking, Options},
    packet::Packet as _,
    parse::{self, Ip, Link, TcpHeader, protocol},
};

use crate::{counters::Count as _, maps, sockets, swallow::response_flow};

/// Whether a packet may come to its socket.
#[inline(always)]
pub fn may_come(packet: &SkBuffContext) -> bool {
    if maps::does(ifindex(packet), LEARNS) {
        return true;
    }
    let mut ip = Ip::zeroed();
    let Some(tcp) = segment(packet, &mut ip) else { return true };
    if tcp.flags & (SYN | ACK) != SYN || !is_marked(packet, &ip, &tcp) || sockets::is_here(packet) == 0 {
        return true;
    }
    TargetCounter::NotHooked.count();
    false
}

/// Whether a packet may leave its socket.
#[inline(always)]
pub fn may_leave(packet: &SkBuffContext) -> bool {
    if maps::does(ifindex(packet), SWALLOWS) {
        return true;
    }
    let mut ip = Ip::zeroed();
    let Some(tcp) = segment(packet, &mut ip) else { return true };
    let mut flow = Flow::zeroed();
    // A SYN of the target's own is no response.
    if tcp.flags & (SYN | ACK) == SYN || response_flow(packet, &ip, &mut flow).is_none() {
        return true;
    }
    if maps::session(&flow).is_none() || sockets::is_here(packet) == 0 {
        return true;
    }
    TargetCounter::HeldBack.count();
    false
}

/// Index of the interface that a packet has come by, or is about to leave by.
#[inline(always)]
fn ifindex(packet: &SkBuffContext) -> u32 {
    // SAFETY: the context is valid.
    unsafe { (*packet.skb.skb).ifindex }
}

/// Reads the headers of a TCP segment. Here it is whole: reassembled, or not cut up yet.
#[inline(always)]
fn segment(packet: &SkBuffContext, ip: &mut Ip) -> Option<TcpHeader> {
    if !parse::link_into(packet, Link::Bare, ip) || ip.protocol != protocol::TCP {
        return None;
    }
    packet.read(ip.payload()).ok()
}

/// Whether a SYN bears a mark of ours, be it valid or not.
#[inline(never)]
fn is_marked(packet: &SkBuffContext, ip: &Ip, tcp: &TcpHeader) -> bool {
    let mut options = Options::NONE;
    options.read(packet, ip.payload() + TcpHeader::LENGTH, tcp.length().saturating_sub(TcpHeader::LENGTH));
    !matches!(options.marking(), Marking::Unmarked)
}
