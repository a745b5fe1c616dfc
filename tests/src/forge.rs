//! Packets that no stack has sent: a host forges segments of others.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsRawFd as _,
};

use anyhow::Context as _;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{Host, topology};

/// No more data from the sender.
pub const FIN: u8 = 0x01;
/// Synchronise sequence numbers.
pub const SYN: u8 = 0x02;
/// Reset the connection.
pub const RST: u8 = 0x04;
/// Push function.
pub const PSH: u8 = 0x08;
/// The acknowledgement number counts.
pub const ACK: u8 = 0x10;

/// A segment to forge.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Whose it claims to be.
    pub source: SocketAddr,
    /// Whom it is for; of the same family.
    pub destination: SocketAddr,
    /// The sequence number.
    pub seq: u32,
    /// The acknowledgement number.
    pub ack: u32,
    /// The control bits.
    pub flags: u8,
    /// TCP options, a multiple of four octets.
    pub options: Vec<u8>,
    /// The payload.
    pub payload: Vec<u8>,
    /// Added to the checksum.
    pub checksum_error: u16,
}

impl Segment {
    /// A segment without options or payload, and with a right checksum.
    pub const fn new(source: SocketAddr, destination: SocketAddr, flags: u8, seq: u32, ack: u32) -> Self {
        Self { source, destination, seq, ack, flags, options: Vec::new(), payload: Vec::new(), checksum_error: 0 }
    }

    /// Returns the packet from its IP header on.
    pub fn packet(&self) -> Vec<u8> {
        let mut tcp = Vec::new();
        tcp.extend(self.source.port().to_be_bytes());
        tcp.extend(self.destination.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([((20 + self.options.len()) as u8 / 4) << 4, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        tcp.extend(&self.options);
        tcp.extend(&self.payload);
        let octets = |address: IpAddr| match address {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let addresses = [octets(self.source.ip()), octets(self.destination.ip())].concat();
        let pseudo = [&addresses[..], &(tcp.len() as u32).to_be_bytes(), &[0, 0, 0, 6], &tcp].concat();
        let sum = checksum(&pseudo).wrapping_add(self.checksum_error);
        tcp[16..18].copy_from_slice(&sum.to_be_bytes());
        let mut packet = if self.source.is_ipv4() {
            let length = (20 + tcp.len() as u16).to_be_bytes();
            let mut header = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, 6, 0, 0];
            header.extend(&addresses);
            let sum = checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            header
        } else {
            let length = (tcp.len() as u16).to_be_bytes();
            let mut header = vec![0x60, 0, 0, 0, length[0], length[1], 6, 64];
            header.extend(&addresses);
            header
        };
        packet.extend(tcp);
        packet
    }
}

/// RFC 1071.
pub(crate) fn checksum(octets: &[u8]) -> u16 {
    let words = octets.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let sum: u32 = words.sum();
    let sum = (sum & 0xffff) + (sum >> 16);
    !((sum & 0xffff) + (sum >> 16)) as u16
}

/// A host that forges segments.
#[derive(Debug)]
pub struct Forger {
    socket: Socket,
    mac: [u8; 6],
}

impl Forger {
    /// At `host`, on its link; the frames are for `to`.
    pub fn new(host: &Host, to: &Host) -> anyhow::Result<Self> {
        let socket = host.run(|| open(&host.interface))?.context("cannot forge; it needs CAP_NET_RAW")?;
        let text = topology::mac(to, "eth0");
        let mut mac = [0; 6];
        for (octet, digits) in mac.iter_mut().zip(text.split(':')) {
            *octet = u8::from_str_radix(digits, 16)?;
        }
        Ok(Self { socket, mac })
    }

    /// The same for another host's link-layer address, which nobody has.
    #[must_use]
    pub fn to_nobody(mut self) -> Self {
        self.mac[5] ^= 0x55;
        self
    }

    /// Sends a segment.
    pub fn send(&self, segment: &Segment) -> io::Result<()> {
        let ethertype: [u8; 2] = if segment.source.is_ipv4() { [0x08, 0x00] } else { [0x86, 0xdd] };
        let frame = [&self.mac[..], &[2, 0x7c, 0, 0, 0xee, 0], &ethertype, &segment.packet()].concat();
        self.socket.send(&frame).map(|_| ())
    }
}

fn open(interface: &str) -> io::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name is a string with its end.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: the address is valid when zeroed.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_ifindex = index as i32;
    // SAFETY: the address outlives the call, and is as long as it says.
    let result = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as libc::socklen_t)
    };
    if result == 0 { Ok(socket) } else { Err(io::Error::last_os_error()) }
}
