//! Addresses and ports, as typed.

use std::net::{IpAddr, Ipv6Addr};

/// A text that is no address here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// `::ffff:10.0.0.1`.
    #[error("{0:?} is an IPv4 address in IPv6 form, which no packet carries: write it as IPv4")]
    Mapped(String),
    /// In brackets, but not of IPv6.
    #[error("{0:?} is not an IPv6 address")]
    NotIpv6(String),
    /// Without brackets it is unclear where its port would begin.
    #[error("IPv6 address {0:?} needs brackets: [{0}]")]
    NoBrackets(String),
    /// Nothing is there.
    #[error("an address is missing")]
    Missing,
    /// Anything else, such as a host name.
    #[error("{0:?} is not an IP address (host names are not looked up: the address that is meant matters here)")]
    NotAnAddress(String),
}

/// A text that is no port.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port (1 to 65535)")]
pub struct PortError(String);

/// Parses an address; an IPv6 address must stand in brackets.
pub(super) fn parse_address(text: &str) -> Result<IpAddr, AddressError> {
    match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(v6) => match v6.parse::<Ipv6Addr>() {
            Ok(address) if address.to_ipv4_mapped().is_some() => Err(AddressError::Mapped(v6.to_owned())),
            Ok(address) => Ok(IpAddr::V6(address)),
            Err(_) => Err(AddressError::NotIpv6(v6.to_owned())),
        },
        None if text.contains(':') => Err(AddressError::NoBrackets(text.to_owned())),
        None if text.is_empty() => Err(AddressError::Missing),
        None => text.parse().map(IpAddr::V4).map_err(|_| AddressError::NotAnAddress(text.to_owned())),
    }
}

/// Parses a port, 1 to 65535.
pub(super) fn parse_port(text: &str) -> Result<u16, PortError> {
    match text.parse() {
        Ok(0) | Err(_) => Err(PortError(text.to_owned())),
        Ok(port) => Ok(port),
    }
}
