//! What clients sent on each connection, put together from what a sniffer saw.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use crate::capture::{Packet, TCP};

const SYN: u8 = 0x02;

/// The streams of one direction, to one port.
#[derive(Debug, Default)]
pub struct Streams {
    port: u16,
    /// By client; a port that is used again begins another stream.
    connections: HashMap<(IpAddr, u16), Vec<Stream>>,
}

#[derive(Debug)]
struct Stream {
    /// The sequence number of the first octet.
    first: u32,
    /// By offset. Retransmissions are there once.
    pieces: BTreeMap<u32, Vec<u8>>,
}

impl Streams {
    /// Begins without streams; only what goes to this port is collected.
    pub fn to(port: u16) -> Self {
        Self { port, ..Self::default() }
    }

    /// Adds packets. What came before the SYN of its connection was seen is left out.
    pub fn add(&mut self, packets: impl IntoIterator<Item = Packet>) {
        for packet in packets.into_iter().filter(|p| p.protocol == TCP && p.destination_port == self.port) {
            let streams = self.connections.entry((packet.source, packet.source_port)).or_default();
            if packet.flags & SYN != 0 {
                let first = packet.seq.wrapping_add(1);
                if streams.last().is_none_or(|stream| stream.first != first) {
                    streams.push(Stream { first, pieces: BTreeMap::new() });
                }
                continue;
            }
            let Some(stream) = streams.last_mut() else { continue };
            if !packet.payload.is_empty() {
                stream.pieces.insert(packet.seq.wrapping_sub(stream.first), packet.payload);
            }
        }
    }

    /// Returns the octets of every connection that carried some, sorted, so that they compare with those at another
    /// place.
    pub fn contents(&self) -> Vec<Vec<u8>> {
        let all = self.connections.values().flatten().map(Stream::octets);
        let mut all: Vec<Vec<u8>> = all.filter(|octets| !octets.is_empty()).collect();
        all.sort();
        all
    }
}

impl Stream {
    /// Returns the octets up to the first one that is missing.
    fn octets(&self) -> Vec<u8> {
        let mut octets = Vec::new();
        for (&offset, piece) in &self.pieces {
            let Some(overlap) = octets.len().checked_sub(offset as usize) else { break };
            octets.extend_from_slice(piece.get(overlap..).unwrap_or_default());
        }
        octets
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn packet(seq: u32, flags: u8, payload: &[u8]) -> Packet {
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        Packet {
            time_ns: 0,
            source: address,
            destination: address,
            protocol: TCP,
            source_port: 1,
            destination_port: 80,
            seq,
            ack: 0,
            flags,
            options: Vec::new(),
            payload: payload.to_vec(),
        }
    }

    #[test]
    fn order_and_repetition_do_not_matter_and_a_gap_ends_a_stream() {
        let mut streams = Streams::to(80);
        let first = u32::MAX - 2;
        streams.add([
            packet(first, SYN, b""),
            packet(first.wrapping_add(4), 0x10, b"lo"),
            packet(first.wrapping_add(1), 0x10, b"hel"),
            packet(first.wrapping_add(3), 0x10, b"llo"),
            packet(first, SYN, b""),
            packet(first.wrapping_add(9), 0x10, b"lost before"),
            packet(7, SYN, b""),
            packet(8, 0x11, b"another"),
        ]);
        assert_eq!(streams.contents(), [b"another".to_vec(), b"hello".to_vec()]);
    }
}
