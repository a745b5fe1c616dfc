//! Building packets, right or wrong ones.

use std::net::{IpAddr, SocketAddr};

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{ACK, PSH, TcpFlags},
};

/// A TCP segment with its headers. Every field can be set to something that no stack would send.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) source: SocketAddr,
    pub(super) destination: SocketAddr,
    pub(super) ethernet: bool,
    /// The destination in the Ethernet header.
    pub(super) mac: [u8; 6],
    pub(super) vlan_ethertypes: Vec<u16>,
    pub(super) ip_options: Vec<u8>,
    /// IPv6 extension headers, each with its protocol number; the chain of next headers is made from these.
    pub(super) extensions: Vec<(u8, Vec<u8>)>,
    pub(super) fragment_flags_offset: u16,
    pub(super) fragment_id: u16,
    /// Added to the length field of the IP header.
    pub(super) ip_length_error: i32,
    pub(super) seq: u32,
    pub(super) ack: u32,
    pub(super) window: u16,
    pub(super) flags: TcpFlags,
    /// In words, instead of what fits.
    pub(super) data_offset: Option<u8>,
    pub(super) options: Vec<u8>,
    pub(super) payload: Vec<u8>,
    /// Octets behind the IP packet.
    pub(super) padding: usize,
    /// Cut to this length.
    pub(super) cut: Option<usize>,
}

pub(super) fn packet(source: &str, destination: &str) -> Packet {
    Packet {
        source: source.parse().unwrap(),
        destination: destination.parse().unwrap(),
        ethernet: true,
        // That of loopback, which test runs take for the interface.
        mac: [0; 6],
        vlan_ethertypes: Vec::new(),
        ip_options: Vec::new(),
        extensions: Vec::new(),
        fragment_flags_offset: 0,
        fragment_id: 0,
        ip_length_error: 0,
        seq: 0x0102_0304,
        ack: 0x0506_0708,
        window: 0x090a,
        flags: ACK | PSH,
        data_offset: None,
        options: Vec::new(),
        payload: b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        padding: 0,
        cut: None,
    }
}

impl Packet {
    /// The four-tuple, seen from the sender of this packet as the client.
    pub(super) fn flow(&self) -> Flow {
        let end = |end: SocketAddr| (end.ip().into(), end.port().to_be_bytes());
        Flow::tcp(end(self.source), end(self.destination))
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let tcp = self.tcp();
        let (ethertype, ip) = match (self.source.ip(), self.destination.ip()) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                let header_len = 20 + self.ip_options.len();
                let total = (header_len + tcp.len()) as i32 + self.ip_length_error;
                let mut ip = vec![0x40 | (header_len / 4) as u8, 0];
                ip.extend((total as u16).to_be_bytes());
                ip.extend(self.fragment_id.to_be_bytes());
                ip.extend(self.fragment_flags_offset.to_be_bytes());
                ip.extend([64, 6, 0, 0]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                ip.extend(&self.ip_options);
                (0x0800u16, ip)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                let extensions: usize = self.extensions.iter().map(|(_, octets)| octets.len()).sum();
                let length = (extensions + tcp.len()) as i32 + self.ip_length_error;
                let mut chain = self.extensions.iter().map(|(kind, _)| *kind).chain([6]);
                let mut ip = vec![0x60, 0, 0, 0];
                ip.extend((length as u16).to_be_bytes());
                ip.extend([chain.next().unwrap(), 64]);
                ip.extend(source.octets());
                ip.extend(destination.octets());
                for (_, octets) in &self.extensions {
                    ip.push(chain.next().unwrap());
                    ip.extend(&octets[1..]);
                }
                (0x86dd, ip)
            }
            _ => unreachable!("both addresses of one version"),
        };
        let mut bytes = Vec::new();
        if self.ethernet {
            bytes.extend(self.mac);
            bytes.extend([2, 0, 0, 0, 0, 2]);
            for vlan in &self.vlan_ethertypes {
                bytes.extend(vlan.to_be_bytes());
                bytes.extend([0, 7]);
            }
            bytes.extend(ethertype.to_be_bytes());
        }
        bytes.extend(ip);
        bytes.extend(tcp);
        bytes.resize(bytes.len() + self.padding, 0xee);
        bytes.truncate(self.cut.unwrap_or(usize::MAX));
        bytes
    }

    fn tcp(&self) -> Vec<u8> {
        let data_offset = self.data_offset.unwrap_or((20 + self.options.len()) as u8 / 4);
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([data_offset << 4, self.flags.octet()]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0; 4]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        tcp
    }
}
