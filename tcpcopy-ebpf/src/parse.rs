//! The one parser of link, IP and TCP headers. Source and target must never disagree about what a packet is.
//!
//! Lengths are not judged here: a caller that does not care for the flow must not pay for it, and one that does has a
//! reason of its own to name.

#![warn(clippy::cast_possible_truncation, clippy::cast_sign_loss)]

use bytemuck::{AnyBitPattern, NoUninit, Zeroable};
use tcpcopy_common::{flow::IpAddress, tcp_flags::TcpFlags};

use crate::packet::{Packet, Unreadable};

/// IANA protocol numbers.
pub mod protocol {
    pub const ICMP: u8 = 1;
    pub const TCP: u8 = 6;
    pub const ICMPV6: u8 = 58;

    // IPv6 extension headers (RFC 8200, section 4, and the registry).
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION_OPTIONS: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HOST_IDENTITY: u8 = 139;
    pub const SHIM6: u8 = 140;
}

/// What a packet starts with.
#[derive(Clone, Copy)]
pub enum Link {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Bare,
}

/// The packet is not IP, or it ends within its IP headers, or it has more of them than we follow.
#[derive(Clone, Copy)]
pub struct NotIp;

impl From<Unreadable> for NotIp {
    fn from(_: Unreadable) -> Self {
        Self
    }
}

const ETHERTYPE_IPV4: [u8; 2] = 0x0800u16.to_be_bytes();
const ETHERTYPE_IPV6: [u8; 2] = 0x86ddu16.to_be_bytes();
const ETHERTYPE_VLAN: [u8; 2] = 0x8100u16.to_be_bytes();
const ETHERTYPE_QINQ: [u8; 2] = 0x88a8u16.to_be_bytes();
const ETHERNET_HEADER: u32 = 14;
const VLAN_TAG: u32 = 4;
/// An outer and an inner tag (IEEE 802.1Q, the former 802.1ad).
const MAX_VLAN_TAGS: usize = 2;
/// Octets of the fixed IPv6 header.
#[expect(clippy::cast_possible_truncation, reason = "a handful of octets")]
pub const IPV6_HEADER: u32 = size_of::<Ipv6Header>() as u32;
/// More extension headers than RFC 8200, section 4.1, lets a packet have.
const MAX_EXTENSION_HEADERS: usize = 8;

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct Ethertype([u8; 2]);

/// RFC 791, section 3.1.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct Ipv4Header {
    version_ihl: u8,
    _tos: u8,
    total_length: [u8; 2],
    identification: [u8; 2],
    flags_offset: [u8; 2],
    _ttl: u8,
    protocol: u8,
    _checksum: [u8; 2],
    _addresses: [u8; 8],
}

/// RFC 8200, section 3.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct Ipv6Header {
    version_class: u8,
    _class_flow: [u8; 3],
    payload_length: [u8; 2],
    next_header: u8,
    _hop_limit: u8,
    _addresses: [u8; 32],
}

/// The first two octets of every IPv6 extension header.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct ExtensionHeader {
    next_header: u8,
    length: u8,
}

/// RFC 8200, section 4.5.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct FragmentHeader {
    next_header: u8,
    _reserved: u8,
    offset_flags: [u8; 2],
    identification: [u8; 4],
}

/// The start of a TCP header.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
pub struct Ports {
    pub source: [u8; 2],
    pub destination: [u8; 2],
}

/// RFC 9293, section 3.1.
#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern, NoUninit)]
pub struct TcpHeader {
    pub ports: Ports,
    pub seq: [u8; 4],
    pub ack: [u8; 4],
    pub data_offset: u8,
    pub flags: TcpFlags,
    pub window: [u8; 2],
    pub checksum: [u8; 2],
    pub urgent: [u8; 2],
}

impl TcpHeader {
    #[expect(clippy::cast_possible_truncation, reason = "20 octets")]
    pub const LENGTH: u32 = size_of::<Self>() as u32;

    /// Octets of the header, options included: less than [`LENGTH`](Self::LENGTH) when it is malformed.
    #[inline(always)]
    pub fn length(&self) -> u32 {
        ((self.data_offset >> 4) as u32) * 4
    }
}

/// Where in its datagram a packet's payload belongs.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
pub struct Fragment {
    /// Octets before it.
    pub offset: u32,
    /// The identification that the fragments of a datagram share.
    pub id: u32,
    /// 1 when others follow.
    pub more: u8,
    /// Zero.
    _padding: [u8; 3],
}

impl Fragment {
    /// Says where the payload of a fragment belongs; `more` is 1 when others follow.
    #[inline(always)]
    const fn new(offset: u16, id: u32, more: u8) -> Self {
        Self { offset: offset as u32, id, more, _padding: [0; 3] }
    }
}

/// What the IP headers of a packet say.
///
/// Without padding, as `NoUninit` proves: the optimiser copies neighbouring fields as one word, padding included, and
/// before Linux 6.3 the verifier refuses to read octets of the stack that nobody has written. The same holds for every
/// structure that programs keep on the stack.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
pub struct Ip {
    pub fragment: Fragment,
    /// Octets of the payload, as the headers have it; zero when they contradict each other.
    pub payload_len: u32,
    /// Offset of the (fixed) IP header in the packet. Its type, like that of the next field, is so short that the
    /// verifier forgets the value when it is in memory: else it would follow each combination of headers apart, to the
    /// end.
    header: u16,
    /// Offset of the payload in the packet.
    payload: u16,
    /// What the payload is; for all fragments of a datagram the same, but see [`ip`].
    pub protocol: u8,
    v6: u8,
    jumbo: u8,
    _padding: u8,
}

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct Ipv4Addresses {
    source: [u8; 4],
    destination: [u8; 4],
}

#[repr(C, align(2))]
#[derive(Clone, Copy, AnyBitPattern)]
struct Ipv6Addresses {
    source: [u8; 16],
    destination: [u8; 16],
}

/// Does what [`IpAddress::from_v4`] does, with words instead of octets: a quarter of the instructions.
#[inline(always)]
fn mapped(address: [u8; 4]) -> IpAddress {
    IpAddress(bytemuck::cast([0, 0, u32::from_ne_bytes([0, 0, 0xff, 0xff]), u32::from_ne_bytes(address)]))
}

/// Source and destination address.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct Addresses {
    pub source: IpAddress,
    pub destination: IpAddress,
}

impl Ip {
    /// Reads the addresses: apart, because packets that nobody cares for need not pay for it.
    #[inline(always)]
    pub fn addresses(&self, packet: &impl Packet) -> Result<Addresses, Unreadable> {
        if self.is_v6() {
            let Ipv6Addresses { source, destination } = packet.read(self.header as u32 + 8)?;
            Ok(Addresses { source: IpAddress(source), destination: IpAddress(destination) })
        } else {
            let Ipv4Addresses { source, destination } = packet.read(self.header as u32 + 12)?;
            Ok(Addresses { source: mapped(source), destination: mapped(destination) })
        }
    }

    #[inline(always)]
    pub fn is_v6(&self) -> bool {
        self.v6 != 0
    }

    /// Returns whether the headers give no length, because it does not fit the field: a coalesced packet of more than
    /// 64 KiB.
    #[inline(always)]
    pub fn is_jumbo(&self) -> bool {
        self.jumbo != 0
    }

    /// Returns the offset of the (fixed) IP header in the packet.
    #[inline(always)]
    pub fn header(&self) -> u32 {
        self.header as u32
    }

    /// Returns the offset of the payload in the packet.
    #[inline(always)]
    pub fn payload(&self) -> u32 {
        self.payload as u32
    }
}

/// Parses the link header with up to two VLAN tags in it (a tag in the packet's metadata does not show here), and the
/// IP headers.
#[inline(always)]
pub fn link(packet: &impl Packet, link: Link) -> Result<Ip, NotIp> {
    match link {
        Link::Bare => ip(packet, 0),
        Link::Ethernet => {
            let mut offset = ETHERNET_HEADER;
            for _ in 0..=MAX_VLAN_TAGS {
                let Ethertype(ethertype) = packet.read(offset - 2)?;
                match ethertype {
                    ETHERTYPE_IPV4 => return ipv4(packet, offset),
                    ETHERTYPE_IPV6 => return ipv6(packet, offset),
                    ETHERTYPE_VLAN | ETHERTYPE_QINQ => offset += VLAN_TAG,
                    _ => return Err(NotIp),
                }
            }
            Err(NotIp)
        }
    }
}

/// Does what [`link`] does, for the programs of the target, and is not inlined: the stack has only 512 octets for all
/// that is, and the verifier follows a caller's paths once only when it finds the same in memory after each path
/// through the headers.
///
/// Fills `ip` and returns true, or returns false. (A function that returns nothing, or a structure, may happen to leave
/// the address of a variable in the register of the result, which the verifier refuses.)
#[inline(never)]
pub fn link_into(packet: &impl Packet, link_header: Link, ip: &mut Ip) -> bool {
    match link(packet, link_header) {
        Ok(parsed) => {
            *ip = parsed;
            true
        }
        Err(NotIp) => false,
    }
}

/// Parses the IP headers that start at `offset`.
///
/// A fragment that is not the first has no extension headers but those before the fragment header: its protocol may be
/// that of an extension header.
#[inline(always)]
pub fn ip(packet: &impl Packet, offset: u32) -> Result<Ip, NotIp> {
    let Ethertype([version, _]) = packet.read(offset)?;
    match version >> 4 {
        4 => ipv4(packet, offset),
        6 => ipv6(packet, offset),
        _ => Err(NotIp),
    }
}

/// Returns the same value, of which the verifier now knows nothing but its type.
#[inline(always)]
fn forget(value: u16) -> u16 {
    let mut cell = 0u16;
    // SAFETY: the references are valid.
    unsafe {
        (&raw mut cell).write_volatile(value);
        (&raw const cell).read_volatile()
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "headers begin within the first 64 KiB, and flags have a bit each")]
fn ipv4(packet: &impl Packet, offset: u32) -> Result<Ip, NotIp> {
    let header: Ipv4Header = packet.read(offset)?;
    let header_len = ((header.version_ihl & 0x0f) as u32) * 4;
    if header.version_ihl >> 4 != 4 || header_len < size_of::<Ipv4Header>() as u32 {
        return Err(NotIp);
    }
    let total_len = u16::from_be_bytes(header.total_length) as u32;
    let flags_offset = u16::from_be_bytes(header.flags_offset);
    Ok(Ip {
        fragment: Fragment::new(
            (flags_offset & 0x1fff) * 8,
            u16::from_be_bytes(header.identification) as u32,
            (flags_offset >> 13) as u8 & 1,
        ),
        payload_len: total_len.saturating_sub(header_len),
        header: offset as u16,
        payload: (offset + header_len) as u16,
        protocol: header.protocol,
        v6: 0,
        jumbo: (total_len == 0) as u8,
        _padding: 0,
    })
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "headers begin within the first 64 KiB, and flags have a bit each")]
fn ipv6(packet: &impl Packet, offset: u32) -> Result<Ip, NotIp> {
    let header: Ipv6Header = packet.read(offset)?;
    if header.version_class >> 4 != 6 {
        return Err(NotIp);
    }
    let payload_len = u16::from_be_bytes(header.payload_length) as u32;
    let first = offset + size_of::<Ipv6Header>() as u32;
    let mut ip = Ip {
        fragment: Fragment::zeroed(),
        payload_len,
        header: offset as u16,
        payload: first as u16,
        protocol: header.next_header,
        v6: 1,
        jumbo: (payload_len == 0) as u8,
        _padding: 0,
    };
    if ip.protocol == protocol::TCP {
        return Ok(ip);
    }
    for _ in 0..MAX_EXTENSION_HEADERS {
        // Through memory, which makes the verifier forget the offset: else it would follow each combination of headers
        // apart.
        ip.payload = forget(ip.payload);
        match ip.protocol {
            protocol::HOP_BY_HOP
            | protocol::ROUTING
            | protocol::DESTINATION_OPTIONS
            | protocol::MOBILITY
            | protocol::HOST_IDENTITY
            | protocol::SHIM6 => {
                let extension: ExtensionHeader = packet.read(ip.payload())?;
                ip.protocol = extension.next_header;
                ip.payload += 8 + extension.length as u16 * 8;
            }
            // Its length is in units of four octets (RFC 4302, section 2.2).
            protocol::AUTHENTICATION => {
                let extension: ExtensionHeader = packet.read(ip.payload())?;
                ip.protocol = extension.next_header;
                ip.payload += 8 + extension.length as u16 * 4;
            }
            protocol::FRAGMENT => {
                let extension: FragmentHeader = packet.read(ip.payload())?;
                let offset_flags = u16::from_be_bytes(extension.offset_flags);
                ip.protocol = extension.next_header;
                ip.payload += size_of::<FragmentHeader>() as u16;
                let id = u32::from_be_bytes(extension.identification);
                ip.fragment = Fragment::new(offset_flags & !7, id, offset_flags as u8 & 1);
                if ip.fragment.offset != 0 {
                    break;
                }
            }
            _ => break,
        }
    }
    ip.payload_len = payload_len.saturating_sub(ip.payload() - first);
    Ok(ip)
}
