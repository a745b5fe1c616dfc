//! The eBPF programs of the production host: they copy the segments of matching live clients into the rings of the workers, and
//! the headers of the SYN-ACKs that those get, and let every packet go on, whatever happens.
//!
//! A program here only turns a result into a verdict. [`maps`] holds what outlives a packet; what is known of packets is in the
//! library of this crate.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the attribute macros do not hand on the documentation of the programs")]

mod answer;
mod copy;
#[path = "../counters.rs"]
mod counters;
mod log;
mod maps;
#[path = "../panic.rs"]
mod panic;
mod records;
#[path = "../ring.rs"]
mod ring;
#[path = "../wakeup.rs"]
mod wakeup;

use aya_ebpf::{
    bindings::xdp_action::XDP_PASS,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use tcpcopy_ebpf::parse::Link;

/// Not our business: the next program of the chain decides, or the stack goes on. The same number means `TC_ACT_UNSPEC`
/// to clsact.
const TCX_NEXT: i32 = -1;

/// On network drivers.
#[xdp(frags)]
pub fn capture_xdp(ctx: XdpContext) -> u32 {
    copy::capture(&ctx, Link::Ethernet);
    XDP_PASS
}

/// On interfaces with an Ethernet header.
#[classifier]
pub fn capture_tc(ctx: TcContext) -> i32 {
    copy::capture(&ctx, Link::Ethernet);
    TCX_NEXT
}

/// On interfaces without a link header.
#[classifier]
pub fn capture_tc_l3(ctx: TcContext) -> i32 {
    copy::capture(&ctx, Link::Bare);
    TCX_NEXT
}

/// On what leaves by interfaces with an Ethernet header.
#[classifier]
pub fn answer_tc(ctx: TcContext) -> i32 {
    answer::tell(&ctx, Link::Ethernet);
    TCX_NEXT
}

/// On what leaves by interfaces without a link header.
#[classifier]
pub fn answer_tc_l3(ctx: TcContext) -> i32 {
    answer::tell(&ctx, Link::Bare);
    TCX_NEXT
}
