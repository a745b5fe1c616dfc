//! The header of the PROXY protocol, written from its specification and not from the engine.

use std::net::IpAddr;

use tcpcopy_common::flow::Flow;
use tcpcopy_replay::ProxyVersion;

/// Octets of version 2 before the addresses.
const FIXED: usize = 16;

/// The header that a live connection is to be introduced with: none without a version.
pub fn header(version: Option<ProxyVersion>, live: &Flow) -> Vec<u8> {
    let (client, server) = (IpAddr::from(live.client), IpAddr::from(live.server));
    match (version, client, server) {
        (None, ..) => Vec::new(),
        (Some(ProxyVersion::V1), ..) => {
            let family = if client.is_ipv4() { "TCP4" } else { "TCP6" };
            let [from, to] = [live.client_port, live.server_port].map(u16::from_be_bytes);
            ["PROXY", family, &client.to_string(), &server.to_string(), &from.to_string(), &format!("{to}\r\n")]
                .join(" ")
                .into_bytes()
        }
        (Some(ProxyVersion::V2), IpAddr::V4(client), IpAddr::V4(server)) => {
            binary(0x11, &client.octets(), &server.octets(), live)
        }
        (Some(ProxyVersion::V2), IpAddr::V6(client), IpAddr::V6(server)) => {
            binary(0x21, &client.octets(), &server.octets(), live)
        }
        (Some(ProxyVersion::V2), ..) => panic!("a connection between two versions of IP"),
    }
}

fn binary(family: u8, client: &[u8], server: &[u8], live: &Flow) -> Vec<u8> {
    let length = [0, (client.len() + server.len() + 4) as u8];
    let signature = [0x0d, 0x0a, 0x0d, 0x0a, 0x00, 0x0d, 0x0a, 0x51, 0x55, 0x49, 0x54, 0x0a];
    [&signature[..], &[0x21, family], &length, client, server, &live.client_port, &live.server_port].concat()
}

/// Where the header ends that these octets begin with, as its reader finds out; `None` until it is whole.
///
/// # Panics
/// When there is none.
pub fn end(version: ProxyVersion, octets: &[u8]) -> Option<usize> {
    match version {
        ProxyVersion::V1 => {
            let end = octets.windows(2).position(|two| two == b"\r\n").map(|at| at + 2);
            assert!(end.unwrap_or(octets.len()) <= 107, "too long: {}", octets.escape_ascii());
            end
        }
        ProxyVersion::V2 => {
            let length: [u8; 2] = *octets.get(..FIXED)?.last_chunk()?;
            let end = FIXED + usize::from(u16::from_be_bytes(length));
            (octets.len() >= end).then_some(end)
        }
    }
}
