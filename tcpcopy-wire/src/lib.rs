//! Packet building: from a replayed segment to the octets that a socket takes.
//!
//! ```text
//! Transmit ─► Packets ─┬─ headers    IP and TCP headers and TCP options, made once per Transmit
//!                      ├─ checksum   RFC 1071
//!                      └─ frame      Ethernet header, and what the kernel is told of a super-packet
//! ```
//!
//! [`Packets`] cuts a [`Transmit`](tcpcopy_replay::Transmit) into packets and appends them, one at a time, to a buffer
//! of the caller, who owns the socket, the path and its MTU. Nothing here does IO, allocates by itself or can panic on
//! a payload.

#![forbid(unsafe_code)]

mod checksum;
mod frame;
mod headers;
mod packets;

pub use self::{
    frame::{EthernetHeader, MacAddress},
    packets::{Form, Packets, Written},
};
