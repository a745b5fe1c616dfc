//! Frames of every shape, as they should be.

use std::net::{IpAddr, SocketAddr};

use super::mutate::sum_up;
use crate::forge::{ACK, FIN, PSH, RST, SYN, Segment};

/// The link-layer address at the host's end of a [cable](crate::cable), which frames are for.
pub const INNER: [u8; 6] = [2, 0x7c, 0, 0, 0xee, 1];
/// The one at the other end, which they come from.
pub const OUTER: [u8; 6] = [2, 0x7c, 0, 0, 0xee, 2];

/// An IPv4 header's length without options, and that of IPv6's.
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Returns frames with segments of a connection that is open, from `source` to `destination`, with numbers of which
/// nobody should think anything, and with `payload`: plain, with TCP options, VLAN tags, IP options and extension
/// headers, in fragments, padded, cut, with lengths that lie.
pub fn segments(dice: &mut fastrand::Rng, source: SocketAddr, destination: SocketAddr, payload: &[u8]) -> Vec<Vec<u8>> {
    let mut segment = |flags: u8, options: &[u8], payload: &[u8]| Segment {
        options: options.to_vec(),
        payload: payload.to_vec(),
        ..Segment::new(source, destination, flags, dice.u32(..), dice.u32(..))
    };
    let timestamps = [&[1, 1, 8, 10][..], &[7; 8]].concat();
    let plain = segment(ACK | PSH, &[], payload).packet();
    let mut packets = vec![
        plain.clone(),
        segment(ACK, &[], &[]).packet(),
        segment(ACK, &timestamps, &[b'x'; 1_400]).packet(),
        segment(ACK | PSH, &[&timestamps[..], &[1, 1, 5, 10], &[9; 8]].concat(), payload).packet(),
        segment(SYN | ACK, &[2, 4, 5, 0xb4, 1, 3, 3, 7], &[]).packet(),
        segment(RST, &[], &[]).packet(),
        segment(RST | ACK, &[], payload).packet(),
        segment(FIN | ACK, &timestamps, payload).packet(),
        Segment { checksum_error: 1, ..segment(ACK | PSH, &[], payload) }.packet(),
    ];
    packets.extend(odd(&plain, dice));
    let mut frames: Vec<Vec<u8>> = packets.iter().map(|packet| frame(packet)).collect();
    frames.push(tagged(&plain, &[[0x81, 0]]));
    frames.push(tagged(&plain, &[[0x88, 0xa8], [0x81, 0]]));
    frames.push([frame(&plain), vec![0xee; 6]].concat());
    let whole = frame(&plain);
    frames.extend([14, 20, 33, 38, 53, 60, 67].map(|length| whole[..length.min(whole.len())].to_vec()));
    frames
}

/// Returns frames with SYNs that open a connection from `source` to `destination`.
pub fn syns(dice: &mut fastrand::Rng, source: SocketAddr, destination: SocketAddr) -> Vec<Vec<u8>> {
    let mut syn = |options: &[u8]| {
        let options = options.to_vec();
        Segment { options, ..Segment::new(source, destination, SYN, dice.u32(..), 0) }.packet()
    };
    let plain = syn(&[2, 4, 5, 0xb4, 1, 3, 3, 7]);
    // Experiments of others (RFC 6994): of another identifier, of another kind.
    let others = [syn(&[253, 4, b't', b'x']), syn(&[254, 6, b't', b'c', 0, 0, 1, 1])];
    // The mark of nobody, one that is too short, and one that goes on behind the end of the options.
    let marks = [
        syn(&[&[253, 16, b't', b'c'][..], &[5; 12]].concat()),
        syn(&[253, 8, b't', b'c', 0, 0, 0, 1]),
        syn(&[1, 1, 1, 1, 253, 16, b't', b'c']),
    ];
    let mut frames: Vec<Vec<u8>> = [plain.clone()].iter().chain(&others).chain(&marks).map(|p| frame(p)).collect();
    frames.push(tagged(&plain, &[[0x81, 0]]));
    frames.extend(odd(&plain, dice).iter().map(|packet| frame(packet)));
    frames
}

/// Returns frames with the ICMP errors (RFC 792, RFC 4443) that quote a packet, from a router to who has sent it.
pub fn icmp_errors(router: IpAddr, to: IpAddr, quoted: &[u8]) -> Vec<Vec<u8>> {
    let kinds: &[[u8; 2]] = match to {
        IpAddr::V4(_) => &[[3, 3], [3, 4], [11, 0], [12, 0]],
        IpAddr::V6(_) => &[[1, 4], [2, 0], [3, 0], [4, 0]],
    };
    let error = |[kind, code]: &[u8; 2]| {
        // A next hop's MTU that is none.
        let mut icmp = vec![*kind, *code, 0, 0, 0, 0, 5, 0xdc];
        icmp.extend(&quoted[..quoted.len().min(500)]);
        let mut packet = match (router, to) {
            (IpAddr::V4(router), IpAddr::V4(to)) => {
                let length = ((IPV4 + icmp.len()) as u16).to_be_bytes();
                let header = [0x45, 0, length[0], length[1], 0, 0, 0, 0, 64, 1, 0, 0];
                [&header[..], &router.octets(), &to.octets()].concat()
            }
            (IpAddr::V6(router), IpAddr::V6(to)) => {
                let length = (icmp.len() as u16).to_be_bytes();
                let header = [0x60, 0, 0, 0, length[0], length[1], 58, 64];
                [&header[..], &router.octets(), &to.octets()].concat()
            }
            _ => return Vec::new(),
        };
        packet.extend(icmp);
        sum_up(&mut packet);
        frame(&packet)
    };
    kinds.iter().map(error).filter(|frame| !frame.is_empty()).collect()
}

/// Puts the packet into a frame.
fn frame(packet: &[u8]) -> Vec<u8> {
    tagged(packet, &[])
}

fn tagged(packet: &[u8], tags: &[[u8; 2]]) -> Vec<u8> {
    let ethertype: [u8; 2] = if packet[0] >> 4 == 4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    let tags: Vec<u8> = tags.iter().flat_map(|[a, b]| [*a, *b, 0, 7]).collect();
    [&INNER[..], &OUTER, &tags, &ethertype, packet].concat()
}

/// Returns the packet with other IP headers: options or extension headers, as a fragment, with lengths that lie.
fn odd(plain: &[u8], dice: &mut fastrand::Rng) -> Vec<Vec<u8>> {
    let id = dice.u8(..);
    let mut packets = Vec::new();
    let mut changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut packet = plain.to_vec();
        change(&mut packet);
        sum_up(&mut packet);
        packets.push(packet);
    };
    let v4 = plain[0] >> 4 == 4;
    let length = if v4 { 2 } else { 4 };
    for error in [-1, 1, 100, -30] {
        changed(&|packet: &mut Vec<u8>| {
            let old = i16::from_be_bytes([packet[length], packet[length + 1]]);
            packet[length..length + 2].copy_from_slice(&old.wrapping_add(error).to_be_bytes());
        });
    }
    changed(&|packet: &mut Vec<u8>| packet[length..length + 2].fill(0));
    let tcp = if v4 { IPV4 } else { IPV6 };
    for words in [0, 4, 6, 15] {
        changed(&|packet: &mut Vec<u8>| packet[tcp + 12] = words << 4);
    }
    if v4 {
        // First, next, and one that overlaps the TCP header (RFC 1858); and options of IP.
        for [high, low] in [[0x20, 0], [0x20, 185], [0, 185], [0, 1]] {
            changed(&|packet: &mut Vec<u8>| packet[5..8].copy_from_slice(&[id, high, low]));
        }
        changed(&|packet: &mut Vec<u8>| {
            packet[0] = 0x48;
            packet[3] = packet[3].wrapping_add(12);
            packet.splice(IPV4..IPV4, [1; 12]);
        });
    } else {
        // Hop-by-hop and destination options; fragments as above, and one that is whole (RFC 6946).
        let chains: [&[&[u8]]; 6] = [
            &[&[0, 0, 1, 4, 0, 0, 0, 0], &[60, 1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]],
            &[&[44, 0, 0, 0, 0, 0, 0, id]],
            &[&[44, 0, 0, 1, 0, 0, 0, id]],
            &[&[44, 0, 5, 0xc1, 0, 0, 0, id]],
            &[&[44, 0, 5, 0xc0, 0, 0, 0, id]],
            &[&[0, 0, 1, 4, 0, 0, 0, 0], &[43, 0, 4, 0, 0, 0, 0, 0], &[44, 0, 0, 8, 0, 0, 0, id]],
        ];
        for chain in chains {
            changed(&|packet: &mut Vec<u8>| {
                // Each header begins with its own number here, in whose place comes that of the next.
                let numbers: Vec<u8> = chain.iter().map(|header| header[0]).chain([6]).collect();
                let mut headers = Vec::new();
                for (header, next) in chain.iter().zip(&numbers[1..]) {
                    headers.push(*next);
                    headers.extend(&header[1..]);
                }
                packet[6] = numbers[0];
                packet[5] = packet[5].wrapping_add(headers.len() as u8);
                packet.splice(IPV6..IPV6, headers);
            });
        }
    }
    packets
}
