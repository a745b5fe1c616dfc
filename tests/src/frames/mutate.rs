//! Changing frames.

use super::read::{Reading, read};
use crate::forge::checksum;

/// The shortest frame that the kernel sends: an Ethernet header.
const SHORTEST: usize = 14;
/// The longest: with one tag and 1500 octets behind.
const LONGEST: usize = SHORTEST + 1_500;
const IPV4: usize = 20;
const IPV6: usize = 40;

/// Changes, inserts, removes or repeats some octets, most of them in the headers; of half of them the checksums are
/// right afterwards.
pub fn mutate(dice: &mut fastrand::Rng, frame: &mut Vec<u8>) {
    const INTERESTING: [u8; 16] = [0, 1, 2, 4, 6, 8, 16, 17, 20, 0x40, 0x45, 0x60, 0x7f, 0x80, 0xfd, 0xff];
    for _ in 0..dice.u8(1..=4) {
        let end = frame.len().min(if dice.u8(..4) == 0 { usize::MAX } else { 100 });
        let at = dice.usize(..end);
        match dice.u8(..8) {
            0 | 1 => frame[at] ^= 1 << dice.u8(..8),
            2 => frame[at] = dice.u8(..),
            3 | 4 => frame[at] = dice.choice(INTERESTING).unwrap_or_default(),
            5 if dice.bool() => frame.truncate(at.max(SHORTEST)),
            5 => frame.insert(at, dice.u8(..)),
            6 if frame.len() > SHORTEST + 4 => drop(frame.drain(at.min(frame.len() - 4)..).take(4).count()),
            _ => {
                let piece = frame[at..(at + dice.usize(1..16)).min(frame.len())].to_vec();
                let to = dice.usize(..frame.len());
                frame.splice(to..to, piece);
            }
        }
        frame.resize(frame.len().clamp(SHORTEST, LONGEST), 0);
    }
    if dice.bool() {
        repair(frame);
    }
}

/// Makes the checksums of a frame right that has nothing before its IP header but Ethernet's.
pub fn repair(frame: &mut [u8]) {
    sum_up(&mut frame[SHORTEST..]);
}

/// Makes the checksums of a packet right: that of an IPv4 header, and those of TCP and ICMP where they follow the IP
/// header at once.
pub(super) fn sum_up(packet: &mut [u8]) {
    let header = match packet.first() {
        Some(first) if first >> 4 == 4 && packet.len() >= IPV4 => {
            let length = usize::from(first & 0x0f) * 4;
            let Some(header) = packet.get_mut(..length).filter(|header| header.len() >= IPV4) else { return };
            header[10..12].fill(0);
            let sum = checksum(header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            length
        }
        Some(first) if first >> 4 == 6 && packet.len() >= IPV6 => IPV6,
        _ => return,
    };
    let (protocol, addresses) = match packet[0] >> 4 {
        4 => (packet[9], packet[12..IPV4].to_vec()),
        _ => (packet[6], packet[8..IPV6].to_vec()),
    };
    let (at, with_pseudo_header) = match protocol {
        6 => (16, true),
        1 => (2, false),
        58 => (2, true),
        _ => return,
    };
    let payload = &mut packet[header..];
    let Some(field) = payload.get_mut(at..at + 2) else { return };
    field.fill(0);
    let pseudo = [&addresses[..], &(payload.len() as u32).to_be_bytes(), &[0, 0, 0, protocol]].concat();
    let sum = if with_pseudo_header { checksum(&[&pseudo, &*payload].concat()) } else { checksum(payload) };
    payload[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Returns the frame of a marked SYN once for each bit that its tag covers, with this bit changed: of addresses, ports,
/// sequence number, instance, stamp and tag. None if it is no frame of a marked SYN without VLAN tag, IP options and
/// extension headers.
pub fn sealed_bits(frame: &[u8]) -> Vec<Vec<u8>> {
    let Reading::Segment { mark: Some(mark), .. } = read(frame) else { return Vec::new() };
    let (addresses, tcp) = match frame[SHORTEST] {
        0x45 => (SHORTEST + 12..SHORTEST + IPV4, SHORTEST + IPV4),
        first if first >> 4 == 6 => (SHORTEST + 8..SHORTEST + IPV6, SHORTEST + IPV6),
        _ => return Vec::new(),
    };
    let octets = addresses.chain(tcp..tcp + 8).chain(mark + 4..mark + 16);
    let bits = octets.flat_map(|octet| (0..8).map(move |bit| (octet, bit)));
    let change = |(octet, bit): (usize, u8)| {
        let mut frame = frame.to_vec();
        frame[octet] ^= 1 << bit;
        repair(&mut frame);
        frame
    };
    bits.map(change).collect()
}
