//! Types that cross the boundary between the eBPF programs and user space.
//!
//! Everything here is `#[repr(C)]`, without padding the compiler chose and without a `bool`, an `Option` or a Rust
//! enum in it: the bytes one side writes are the bytes the other reads. Numbers that come from a packet stay in network
//! byte order as byte arrays; numbers that we make (times, lengths, identifiers) are in host order.
#![no_std]

pub mod capture;
pub mod checksum;
pub mod counters;
pub mod figures;
pub mod flow;
pub mod mark;
#[cfg(feature = "user")]
mod pod;
pub mod prefix;
pub mod response;
pub mod tcp_flags;
pub mod wakeup;
