//! A second reading of frames, which shares nothing with that of the programs. It takes lengths as they come: what
//! octets say counts, wherever the packet claims to end.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::forge::{ACK, SYN};

/// Who has sent a segment, and whom it is for.
pub type Ends = (SocketAddr, SocketAddr);

/// What a frame is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reading {
    /// A TCP segment, or its first fragment.
    Segment {
        /// Its ends.
        ends: Ends,
        /// The control bits; `None` when it ends before them.
        flags: Option<u8>,
        /// Where in the frame our mark begins, or what looks like it, among the options.
        mark: Option<usize>,
        /// Of a first fragment.
        id: Option<u32>,
    },
    /// A fragment that is not the first of its datagram.
    Fragment {
        /// The sender's address.
        source: IpAddr,
        /// The receiver's.
        destination: IpAddr,
        /// What the fragments of a datagram share.
        id: u32,
    },
    /// An ICMP error that quotes a segment with these ends.
    Error(Ends),
    /// Something else.
    Other,
}

impl Reading {
    /// Returns whether it is a segment that opens a connection.
    pub fn is_syn(&self) -> bool {
        matches!(self, Self::Segment { flags: Some(flags), .. } if flags & (SYN | ACK) == SYN)
    }

    /// Returns whether it is a SYN that bears our mark, right or wrong.
    pub fn is_marked_syn(&self) -> bool {
        self.is_syn() && matches!(self, Self::Segment { mark: Some(_), .. })
    }

    /// Returns the control bits of a segment.
    pub fn flags(&self) -> u8 {
        if let Self::Segment { flags: Some(flags), .. } = self { *flags } else { 0 }
    }

    /// Returns the ends of a segment.
    pub fn ends(&self) -> Option<Ends> {
        if let Self::Segment { ends, .. } = self { Some(*ends) } else { None }
    }
}

/// The headers of IP.
struct Ip {
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    /// Where what is behind them begins.
    payload: usize,
    offset: u32,
    /// Of a fragment.
    id: Option<u32>,
}

/// Reads a frame, with up to three VLAN tags.
pub fn read(frame: &[u8]) -> Reading {
    try_to(frame).unwrap_or(Reading::Other)
}

fn try_to(frame: &[u8]) -> Option<Reading> {
    let mut at = 12;
    for _ in 0..3 {
        if matches!(frame.get(at..at + 2)?, [0x81, 0] | [0x88, 0xa8]) {
            at += 4;
        }
    }
    let ip = match frame.get(at..at + 2)? {
        [0x08, 0] => ipv4(frame, at + 2)?,
        [0x86, 0xdd] => ipv6(frame, at + 2)?,
        _ => return None,
    };
    match ip.protocol {
        _ if ip.offset > 0 => {
            Some(Reading::Fragment { source: ip.source, destination: ip.destination, id: ip.id.unwrap_or_default() })
        }
        6 => {
            let flags = frame.get(ip.payload + 13).copied();
            Some(Reading::Segment { ends: ends(frame, &ip)?, flags, mark: mark(frame, ip.payload), id: ip.id })
        }
        1 | 58 => {
            let v4 = ip.protocol == 1;
            let errors: &[u8] = if v4 { &[3, 11, 12] } else { &[1, 2, 3, 4] };
            if !errors.contains(frame.get(ip.payload)?) || v4 != ip.source.is_ipv4() {
                return None;
            }
            let at = ip.payload + 8;
            let quoted = if frame.get(at)? >> 4 == 4 { ipv4(frame, at)? } else { ipv6(frame, at)? };
            (quoted.protocol == 6 && quoted.offset == 0).then_some(())?;
            Some(Reading::Error(ends(frame, &quoted)?))
        }
        _ => None,
    }
}

fn ipv4(frame: &[u8], at: usize) -> Option<Ip> {
    let header: &[u8; 20] = frame.get(at..at + 20)?.first_chunk()?;
    let length = usize::from(header[0] & 0x0f) * 4;
    (header[0] >> 4 == 4 && length >= 20).then_some(())?;
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let address = |at: usize| IpAddr::V4(Ipv4Addr::new(header[at], header[at + 1], header[at + 2], header[at + 3]));
    Some(Ip {
        source: address(12),
        destination: address(16),
        protocol: header[9],
        payload: at + length,
        offset: u32::from(fragment & 0x1fff) * 8,
        id: (fragment & 0x3fff != 0).then(|| u16::from_be_bytes([header[4], header[5]]).into()),
    })
}

fn ipv6(frame: &[u8], at: usize) -> Option<Ip> {
    let header: &[u8; 40] = frame.get(at..at + 40)?.first_chunk()?;
    (header[0] >> 4 == 6).then_some(())?;
    let address = |at: usize| Some(IpAddr::V6(Ipv6Addr::from(*header.get(at..at + 16)?.first_chunk::<16>()?)));
    let mut ip = Ip {
        source: address(8)?,
        destination: address(24)?,
        protocol: header[6],
        payload: at + 40,
        offset: 0,
        id: None,
    };
    for _ in 0..8 {
        let here = ip.payload;
        let length = match ip.protocol {
            0 | 43 | 60 | 135 | 139 | 140 => 8 + usize::from(*frame.get(here + 1)?) * 8,
            51 => 8 + usize::from(*frame.get(here + 1)?) * 4,
            44 => {
                let header: &[u8; 8] = frame.get(here..here + 8)?.first_chunk()?;
                let offset = u16::from_be_bytes([header[2], header[3]]);
                ip.offset = u32::from(offset & !7);
                ip.id = Some(u32::from_be_bytes([header[4], header[5], header[6], header[7]]));
                8
            }
            _ => break,
        };
        ip.protocol = *frame.get(here)?;
        ip.payload += length;
        if ip.offset > 0 {
            break;
        }
    }
    Some(ip)
}

fn ends(frame: &[u8], ip: &Ip) -> Option<Ends> {
    let ports = frame.get(ip.payload..ip.payload + 4)?;
    let port = |at: usize| u16::from_be_bytes([ports[at], ports[at + 1]]);
    Some((SocketAddr::new(ip.source, port(0)), SocketAddr::new(ip.destination, port(2))))
}

/// Finds the experiment of tcpcopy among the options of a segment that begins at `tcp` (RFC 9293, section 3.1, and RFC
/// 6994).
fn mark(frame: &[u8], tcp: usize) -> Option<usize> {
    let end = tcp + usize::from(frame.get(tcp + 12)? >> 4) * 4;
    let mut at = tcp + 20;
    frame.get(at..end)?;
    while at < end {
        match frame[at] {
            0 => return None,
            1 => at += 1,
            kind => {
                let length = usize::from(*frame.get(at + 1).filter(|_| at + 1 < end)?);
                if length < 2 || at + length > end {
                    return None;
                }
                if kind == 253 && length >= 4 && frame[at + 2..at + 4] == *b"tc" {
                    return Some(at);
                }
                at += length;
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frames;

    #[test]
    fn every_shape_of_a_segment_is_read_as_one_unless_it_is_cut_off() {
        for (source, destination) in [("192.0.2.1:5", "192.0.2.2:80"), ("[2001:db8::1]:5", "[2001:db8::2]:80")] {
            let ends: Ends = (source.parse().unwrap(), destination.parse().unwrap());
            let mut dice = fastrand::Rng::with_seed(1);
            let frames = frames::segments(&mut dice, ends.0, ends.1, b"GET / HTTP/1.1\r\n\r\n");
            let readings: Vec<Reading> = frames.iter().map(|frame| read(frame)).collect();
            let of_it = readings.iter().filter(|reading| reading.ends() == Some(ends)).count();
            let later = readings.iter().filter(|reading| matches!(reading, Reading::Fragment { .. })).count();
            let other = readings.iter().filter(|reading| **reading == Reading::Other).count();
            assert_eq!(of_it + later + other, frames.len());
            assert!(later >= 3 && other <= 5 && of_it >= 20, "{of_it} {later} {other}: {readings:?}");
            let syns: Vec<Reading> = frames::syns(&mut dice, ends.0, ends.1).iter().map(|frame| read(frame)).collect();
            assert!(syns.iter().filter(|syn| syn.is_syn()).count() >= 12, "{syns:?}");
            assert_eq!(syns.iter().filter(|syn| syn.is_marked_syn()).count(), 2, "{syns:?}");
            let quoted = &frames[0][14..];
            for error in frames::icmp_errors(ends.1.ip(), ends.0.ip(), quoted) {
                assert_eq!(read(&error), Reading::Error(ends));
            }
        }
    }
}
