//! The sockets of the test host.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock_tuple},
    helpers::generated::{bpf_sk_release, bpf_skc_lookup_tcp},
    programs::TcContext,
};
use tcpcopy_common::flow::{Flow, IpAddress};

/// States of a socket (`include/net/tcp_states.h`).
const TCP_TIME_WAIT: u32 = 6;
const TCP_LISTEN: u32 = 10;

/// Octets of the addresses and ports of an IPv4 connection, and of an IPv6 one: the length tells the kernel which it
/// is.
const TUPLE_V4: u32 = 12;
const TUPLE_V6: u32 = 36;

/// Returns 1 if the network namespace in which the packet comes in has a socket for this very connection, in whatever
/// state between SYN-SENT and LAST-ACK, be it opened from there or from here: SYNs of it would disturb somebody. A
/// listener waits for SYNs, and a socket in TIME-WAIT takes them (RFC 9293, section 3.6.1): its connection is over on
/// both sides.
///
/// Not inlined, and it returns a number: see [`link_into`](tcpcopy_ebpf::parse::link_into).
#[inline(never)]
pub fn is_taken(ctx: &TcContext, flow: &Flow) -> u32 {
    let mut tuple = [0u32; TUPLE_V6 as usize / 4];
    let [a, b] = flow.client_port;
    let [c, d] = flow.server_port;
    let ports = u32::from_ne_bytes([a, b, c, d]);
    let len = if flow.client.is_v4() {
        let ([.., client], [.., server]) = (words(&flow.client), words(&flow.server));
        (tuple[0], tuple[1], tuple[2]) = (client, server, ports);
        TUPLE_V4
    } else {
        let ([c0, c1, c2, c3], [s0, s1, s2, s3]) = (words(&flow.client), words(&flow.server));
        tuple = [c0, c1, c2, c3, s0, s1, s2, s3, ports];
        TUPLE_V6
    };
    let tuple = (&raw mut tuple).cast::<bpf_sock_tuple>();
    // SAFETY: the context is valid, and `len` octets of the tuple are initialised. A socket that is found is released
    // before the program goes on.
    unsafe {
        let socket = bpf_skc_lookup_tcp(ctx.skb.skb.cast(), tuple, len, BPF_F_CURRENT_NETNS as i64 as u64, 0);
        if socket.is_null() {
            return 0;
        }
        let state = (&raw const (*socket).state).read_volatile();
        bpf_sk_release(socket.cast());
        u32::from(state != TCP_LISTEN && state != TCP_TIME_WAIT)
    }
}

/// The octets as numbers in the order of this host, which stand in memory as they do in the packet.
#[inline(always)]
fn words(address: &IpAddress) -> [u32; 4] {
    bytemuck::cast(address.0)
}
