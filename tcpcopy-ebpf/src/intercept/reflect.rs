//! The target's egress with `--ack reflect`: a response becomes the acknowledgement that its client would send, in
//! place.
//!
//! Addresses and ports change places, the numbers follow from the segment's own, and what the source sends later cannot
//! contradict it: the window is as large as the source's, and a connection's TSval is constant.

use aya_ebpf::{
    helpers::generated::{bpf_skb_change_tail, bpf_skb_store_bytes},
    programs::TcContext,
};
use bytemuck::{AnyBitPattern, NoUninit, Zeroable as _};
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    response::REFLECTION,
    tcp_flags::{ACK, TcpFlags},
};

use tcpcopy_ebpf::{
    packet::Packet,
    parse::{self, Ip, Link, TcpHeader, protocol},
};

use crate::{counters::Count as _, maps, swallow::response_flow};

/// The window field that the source announces too. Without window scaling it is the largest there is.
const WINDOW: u16 = u16::MAX;
/// Octets of the timestamps option, with its padding.
const TIMESTAMPS: u32 = 12;

/// Destination and source of an Ethernet header.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
struct Macs([[u8; 6]; 2]);

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
struct Ipv4Addresses([[u8; 4]; 2]);

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
struct Ipv6Addresses([[u8; 16]; 2]);

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
struct Word([u8; 2]);

/// Two no-operations and the timestamps option (RFC 7323, appendix A).
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
struct Timestamps {
    head: [u8; 4],
    value: [u8; 4],
    echo: [u8; 4],
}

/// A TCP header with at most the timestamps.
#[repr(C, align(2))]
#[derive(Clone, Copy, NoUninit)]
struct Acknowledgement {
    source: [u8; 2],
    destination: [u8; 2],
    seq: [u8; 4],
    ack: [u8; 4],
    data_offset: u8,
    flags: TcpFlags,
    window: [u8; 2],
    checksum: [u8; 2],
    urgent: [u8; 2],
    timestamps: Timestamps,
}

/// Turns a segment for which [`Fate::Reflect`](crate::swallow::Fate::Reflect) was found into its acknowledgement. If
/// that fails, the packet may have been cut, and must be swallowed.
#[inline(never)]
pub fn reflect(packet: &TcContext) -> bool {
    let done = turn(packet).is_some();
    if done {
        TargetCounter::Reflected.count();
    } else {
        TargetCounter::ReflectFailed.count();
    }
    done
}

#[inline(always)]
fn turn(packet: &TcContext) -> Option<()> {
    let mut ip = Ip::zeroed();
    if !parse::link_into(packet, Link::Ethernet, &mut ip) {
        return None;
    }
    let mut flow = Flow::zeroed();
    response_flow(packet, &ip, &mut flow)?;
    let answered = maps::session_entry(&flow)?.answered();
    let tcp: TcpHeader = packet.read(ip.payload()).ok()?;
    let stamped = tcp.length() == TcpHeader::LENGTH + TIMESTAMPS;
    let length = if stamped { TcpHeader::LENGTH + TIMESTAMPS } else { TcpHeader::LENGTH };
    let timestamps = if stamped {
        let theirs: Timestamps = packet.read(ip.payload() + TcpHeader::LENGTH).ok()?;
        Timestamps { head: theirs.head, value: theirs.echo, echo: theirs.value }
    } else {
        Timestamps::zeroed()
    };
    let mut segment = Acknowledgement {
        source: tcp.ports.destination,
        destination: tcp.ports.source,
        seq: tcp.ack,
        ack: answered.to_be_bytes(),
        data_offset: tcp.data_offset,
        flags: ACK,
        window: WINDOW.to_be_bytes(),
        checksum: [0; 2],
        urgent: REFLECTION,
        timestamps,
    };
    // A checksum that the interface was to complete covers only the pseudo-header as yet, and nobody will look at the
    // rest.
    let addresses =
        sum(&bytemuck::cast::<_, [u16; 8]>(flow.client.0)) + sum(&bytemuck::cast::<_, [u16; 8]>(flow.server.0));
    let pseudo = |length: u32| addresses + word(protocol::TCP as u32) + word(length);
    segment.checksum = if u16::from_ne_bytes(tcp.checksum) == fold(pseudo(ip.payload_len)) {
        fold(pseudo(length))
    } else {
        !fold(pseudo(length) + sum(&bytemuck::cast::<_, [u16; 16]>(segment)))
    }
    .to_ne_bytes();

    let Macs([destination, source]) = packet.read(0).ok()?;
    if ip.is_v6() {
        let Ipv6Addresses([from, to]) = packet.read(ip.header() + 8).ok()?;
        cut(packet, ip.payload() + length)?;
        store(packet, ip.header() + 8, &Ipv6Addresses([to, from]))?;
        store(packet, ip.header() + 4, &Word((length as u16).to_be_bytes()))?;
    } else {
        let Ipv4Addresses([from, to]) = packet.read(ip.header() + 12).ok()?;
        let Word(before) = packet.read(ip.header() + 2).ok()?;
        let Word(checksum) = packet.read(ip.header() + 10).ok()?;
        let total = ((ip.payload() - ip.header() + length) as u16).to_be_bytes();
        // RFC 1624, equation 3.
        let not = |octets: [u8; 2]| !u16::from_ne_bytes(octets) as u32;
        let checksum = !fold(not(checksum) + not(before) + u16::from_ne_bytes(total) as u32);
        cut(packet, ip.payload() + length)?;
        store(packet, ip.header() + 12, &Ipv4Addresses([to, from]))?;
        store(packet, ip.header() + 2, &Word(total))?;
        store(packet, ip.header() + 10, &Word(checksum.to_ne_bytes()))?;
    }
    if stamped {
        store(packet, ip.payload(), &segment)?;
    } else {
        let head: [u8; TcpHeader::LENGTH as usize] = *bytemuck::bytes_of(&segment).first_chunk()?;
        store(packet, ip.payload(), &head)?;
    }
    store(packet, 0, &Macs([source, destination]))
}

/// Cuts the packet, and makes of a coalesced one a single segment.
#[inline(always)]
fn cut(packet: &TcContext, length: u32) -> Option<()> {
    // SAFETY: the context is valid.
    (unsafe { bpf_skb_change_tail(packet.skb.skb, length, 0) } == 0).then_some(())
}

#[inline(always)]
fn store<T: NoUninit>(packet: &TcContext, offset: u32, value: &T) -> Option<()> {
    let from = (&raw const *value).cast();
    // SAFETY: the context is valid, and the value has that many octets, all of them initialised.
    (unsafe { bpf_skb_store_bytes(packet.skb.skb, offset, from, size_of::<T>() as u32, 0) } == 0).then_some(())
}

/// The sum of words in the order in which they lie in memory, which is as good as any (RFC 1071, section 2 B).
#[inline(always)]
fn sum(words: &[u16]) -> u32 {
    let mut sum = 0;
    for word in words {
        sum += *word as u32;
    }
    sum
}

/// The low half of a number, in network order.
#[inline(always)]
fn word(number: u32) -> u32 {
    (number as u16).to_be() as u32
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum + (sum >> 16)) as u16
}
