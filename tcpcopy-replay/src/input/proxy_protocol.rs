//! The header of the PROXY protocol: it tells a server behind a proxy who the proxy's client is.
//!
//! It is what a target connection begins with, so that the service under test learns the addresses of the live
//! connection whatever address the replayed client has. The protocol is HAProxy's ("The PROXY protocol, versions 1 &
//! 2", `doc/proxy-protocol.txt`). Of it, this is all that a sender needs: one line of text, or one fixed layout. A
//! crate for it would be mostly a parser.

use std::net::IpAddr;

use tcpcopy_common::flow::Flow;

/// The version of the header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyVersion {
    /// A line of text (section 2.1).
    V1,
    /// Binary (section 2.2).
    V2,
}

/// The longest header: of version 1, with two IPv6 addresses of 39 octets and two ports of 5. The 107 octets of section
/// 2.1 are for a form that has no addresses.
const MAX_LEN: usize = "PROXY TCP6 ".len() + 39 + 1 + 39 + 1 + 5 + 1 + 5 + "\r\n".len();
/// What version 2 begins with.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";
/// Version 2, and the command PROXY: the connection is made on behalf of another.
const VERSION_AND_COMMAND: u8 = 0x21;
/// `AF_INET` and `STREAM`.
const TCP_V4: u8 = 0x11;
/// `AF_INET6` and `STREAM`.
const TCP_V6: u8 = 0x21;

/// The header of one connection.
#[derive(Clone, Debug)]
pub(crate) struct Header {
    octets: [u8; MAX_LEN],
    len: u8,
}

impl Header {
    /// None.
    pub(crate) const EMPTY: Self = Self { octets: [0; MAX_LEN], len: 0 };

    /// The header that introduces a live connection: its client is the source, its server the destination.
    pub(crate) fn new(version: ProxyVersion, live: &Flow) -> Self {
        let mut header = Self::EMPTY;
        match version {
            ProxyVersion::V1 => header.write_text(live),
            ProxyVersion::V2 => header.write_binary(live),
        }
        header
    }

    /// Its octets.
    pub(crate) fn as_slice(&self) -> &[u8] {
        &self.octets[..usize::from(self.len)]
    }

    /// Its length in octets.
    pub(crate) const fn len(&self) -> u8 {
        self.len
    }

    fn write_text(&mut self, live: &Flow) {
        let v4 = is_v4(live);
        let family = if v4 { "TCP4" } else { "TCP6" };
        let [client, server] = [live.client, live.server]
            .map(|address| if v4 { IpAddr::V4(address.v4_octets().into()) } else { IpAddr::V6(address.0.into()) });
        let [from, to] = [live.client_port, live.server_port].map(u16::from_be_bytes);
        let line = format!("PROXY {family} {client} {server} {from} {to}\r\n");
        self.push(line.as_bytes());
    }

    fn write_binary(&mut self, live: &Flow) {
        let (v4_client, v4_server) = (live.client.v4_octets(), live.server.v4_octets());
        let (family, client, server): (_, &[u8], &[u8]) =
            if is_v4(live) { (TCP_V4, &v4_client, &v4_server) } else { (TCP_V6, &live.client.0, &live.server.0) };
        self.push(SIGNATURE);
        self.push(&[VERSION_AND_COMMAND, family]);
        // Of the addresses and ports, in network byte order.
        let len = client.len() + server.len() + 4;
        self.push(&[0, len as u8]);
        for part in [client, server, &live.client_port, &live.server_port] {
            self.push(part);
        }
    }

    /// Appends octets; no header is longer than there is room.
    fn push(&mut self, part: &[u8]) {
        let begin = usize::from(self.len);
        if let Some(room) = self.octets.get_mut(begin..begin + part.len()) {
            room.copy_from_slice(part);
            self.len += part.len() as u8;
        }
    }
}

/// Whether both addresses are of IPv4; the packets of a connection are of one version.
fn is_v4(live: &Flow) -> bool {
    live.client.is_v4() && live.server.is_v4()
}

#[cfg(test)]
mod tests {
    use tcpcopy_common::flow::IpAddress;

    use super::*;

    fn flow(client: &str, client_port: u16, server: &str, server_port: u16) -> Flow {
        let end = |text: &str, port: u16| (IpAddress::from(text.parse::<IpAddr>().unwrap()), port.to_be_bytes());
        Flow::tcp(end(client, client_port), end(server, server_port))
    }

    fn header(version: ProxyVersion, live: &Flow) -> Vec<u8> {
        let header = Header::new(version, live);
        assert_eq!(usize::from(header.len()), header.as_slice().len());
        header.as_slice().to_vec()
    }

    #[test]
    fn version_1_is_the_line_of_section_2_1() {
        for (live, line) in [
            (flow("192.168.0.1", 56324, "192.168.0.11", 443), "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"),
            (flow("0.0.0.0", 0, "255.255.255.255", 65535), "PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n"),
            (flow("fd00::1", 4660, "::", 80), "PROXY TCP6 fd00::1 :: 4660 80\r\n"),
            (flow("2001:db8:0:1::", 1, "1:0:0:2::3", 2), "PROXY TCP6 2001:db8:0:1:: 1:0:0:2::3 1 2\r\n"),
        ] {
            assert_eq!(header(ProxyVersion::V1, &live).escape_ascii().to_string(), line.escape_default().to_string());
        }
    }

    #[test]
    fn version_2_is_the_layout_of_section_2_2() {
        let v4 = header(ProxyVersion::V2, &flow("10.1.2.3", 0x1234, "10.9.8.7", 80));
        let expected = b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c\
            \x0a\x01\x02\x03\x0a\x09\x08\x07\x12\x34\x00\x50";
        assert_eq!(v4, expected);
        let v6 = header(ProxyVersion::V2, &flow("fd00::1", 0x1234, "fd00::2", 80));
        assert_eq!(v6[..16], *b"\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x21\x00\x24");
        assert_eq!(v6[16..32], *b"\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
        assert_eq!(v6[32..48], *b"\xfd\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x02");
        assert_eq!(v6[48..], *b"\x12\x34\x00\x50");
    }

    #[test]
    fn the_longest_one_has_room_and_two_versions_of_ip_are_one() {
        let all = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff";
        let longest = header(ProxyVersion::V1, &flow(all, 65535, all, 65535));
        assert_eq!((longest.len(), longest.ends_with(b" 65535 65535\r\n")), (MAX_LEN, true));
        // No packet has them, and no header may be cut short.
        let mixed = flow("10.0.0.1", 1, all, 2);
        assert_eq!(header(ProxyVersion::V2, &mixed).len(), 52);
        let line = header(ProxyVersion::V1, &mixed);
        assert!(
            line.starts_with(b"PROXY TCP6 ::ffff:10.0.0.1 ffff:") && line.ends_with(b" 1 2\r\n"),
            "{}",
            line.escape_ascii()
        );
    }
}
