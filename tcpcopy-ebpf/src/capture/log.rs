//! What the programs say with `RUST_LOG=debug`. Otherwise user space sets the level so low that the verifier removes it
//! all.
//!
//! A function of its own, because writing a line takes much of a stack. It returns zero for the reason that
//! [`link_into`](tcpcopy_ebpf::parse::link_into) gives.

use aya_log_ebpf::debug;
use tcpcopy_common::flow::Flow;

/// A client of the live service opens a connection.
#[inline(never)]
pub fn syn_captured(flow: &Flow) -> u32 {
    debug!((), "captured the SYN {:i}:{} > {:i}:{}", flow.client.0, client(flow), flow.server.0, server(flow));
    0
}

#[inline(always)]
fn client(flow: &Flow) -> u16 {
    u16::from_be_bytes(flow.client_port)
}

#[inline(always)]
fn server(flow: &Flow) -> u16 {
    u16::from_be_bytes(flow.server_port)
}
