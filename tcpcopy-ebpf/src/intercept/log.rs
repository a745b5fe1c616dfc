//! What the programs say with `RUST_LOG=debug`. Otherwise user space sets the level so low that the verifier removes it
//! all.
//!
//! Functions of their own, because writing a line takes much of a stack. They return zero for the reason that
//! [`link_into`](tcpcopy_ebpf::parse::link_into) gives.

use aya_log_ebpf::debug;
use tcpcopy_common::flow::Flow;

/// A session is open.
#[inline(never)]
pub fn learned(flow: &Flow) -> u32 {
    debug!((), "learned the session of {:i}:{}", flow.client.0, client(flow));
    0
}

/// A mark is not valid, or there is no room for its session: the counters tell.
#[inline(never)]
pub fn refused(flow: &Flow) -> u32 {
    debug!((), "dropped the marked SYN of {:i}:{}", flow.client.0, client(flow));
    0
}

/// The target has accepted a replayed connection.
#[inline(never)]
pub fn syn_ack_swallowed(flow: &Flow) -> u32 {
    debug!((), "swallowed the SYN+ACK to {:i}:{}", flow.client.0, client(flow));
    0
}

#[inline(always)]
fn client(flow: &Flow) -> u16 {
    u16::from_be_bytes(flow.client_port)
}
