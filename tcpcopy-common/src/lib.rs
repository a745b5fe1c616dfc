//! Types that cross the boundary between the eBPF programs and user space.
//!
//! Everything here is `#[repr(C)]`, without padding the compiler chose and without a `bool`, an `Option` or a Rust
//! enum in it: the bytes one side writes are the bytes the other reads. Numbers that come from a packet stay in network
//! byte order as byte arrays; numbers that we make (times, lengths, identifiers) are in host order.
#![no_std]

pub mod capture;
pub mod counters;
pub mod flow;
pub mod mark;
#[cfg(feature = "user")]
mod pod;
pub mod response;
pub mod wakeup;

/// TCP control bits, as in octet 13 of the header (RFC 9293, section 3.1).
pub mod tcp_flags {
    /// No more data from the sender.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset the connection.
    pub const RST: u8 = 0x04;
    /// Push function.
    pub const PSH: u8 = 0x08;
    /// The acknowledgement field is significant.
    pub const ACK: u8 = 0x10;
}
