//! The eBPF programs of the test host: `learn` opens a session for each SYN with a valid mark, and `swallow_*` reports the
//! responses to these sessions and keeps them from the network.
//!
//! A program here only turns a result into a verdict. [`maps`] holds what outlives a packet; what is known of packets is in the
//! library of this crate.
#![no_std]
#![no_main]
#![expect(missing_docs, reason = "the attribute macros do not hand on the documentation of the programs")]

#[path = "../counters.rs"]
mod counters;
mod fragment;
mod learn;
mod log;
mod maps;
#[path = "../panic.rs"]
mod panic;
mod reflect;
mod reports;
#[path = "../ring.rs"]
mod ring;
mod sockets;
mod swallow;
#[path = "../wakeup.rs"]
mod wakeup;

use aya_ebpf::{
    bindings::{BPF_F_INGRESS, TC_ACT_SHOT, TC_ACT_STOLEN},
    helpers::generated::bpf_redirect,
    macros::classifier,
    programs::TcContext,
};
use tcpcopy_ebpf::parse::Link;

use crate::{learn::Verdict, swallow::Fate};

/// Not our business: the next program of the chain decides, or the stack goes on. The same number means `TC_ACT_UNSPEC`
/// to clsact.
const TCX_NEXT: i32 = -1;

/// Ingress, on interfaces with an Ethernet header.
#[classifier]
pub fn learn(ctx: TcContext) -> i32 {
    admit(learn::learn(&ctx, Link::Ethernet))
}

/// Ingress, on interfaces without a link header.
#[classifier]
pub fn learn_l3(ctx: TcContext) -> i32 {
    admit(learn::learn(&ctx, Link::Bare))
}

/// Egress on a TCX link, on interfaces with an Ethernet header.
#[classifier]
pub fn swallow_tcx(ctx: TcContext) -> i32 {
    swallow_by_redirect(&ctx, swallow::swallow(&ctx, Link::Ethernet))
}

/// Egress on a TCX link, on interfaces without a link header.
#[classifier]
pub fn swallow_tcx_l3(ctx: TcContext) -> i32 {
    swallow_by_redirect(&ctx, swallow::swallow(&ctx, Link::Bare))
}

/// Egress as a clsact filter, on interfaces with an Ethernet header.
#[classifier]
pub fn swallow_clsact(ctx: TcContext) -> i32 {
    swallow_by_stealing(&ctx, swallow::swallow(&ctx, Link::Ethernet))
}

/// Egress as a clsact filter, on interfaces without a link header.
#[classifier]
pub fn swallow_clsact_l3(ctx: TcContext) -> i32 {
    swallow_by_stealing(&ctx, swallow::swallow(&ctx, Link::Bare))
}

#[inline(always)]
fn admit(verdict: Verdict) -> i32 {
    match verdict {
        Verdict::Pass => TCX_NEXT,
        Verdict::Drop => TC_ACT_SHOT,
    }
}

/// TCX ignores `TC_ACT_STOLEN` (the response would leave), and `TC_ACT_SHOT` tells the sending TCP that it failed. A
/// redirection to an interface that does not exist looks like success to the sender, and drops the packet.
#[inline(always)]
fn swallow_by_redirect(ctx: &TcContext, fate: Fate) -> i32 {
    match fate {
        Fate::Leave => TCX_NEXT,
        Fate::Reflect if reflect::reflect(ctx) => give_back(ctx),
        // SAFETY: the helper has no preconditions.
        Fate::Swallow | Fate::Reflect => unsafe { bpf_redirect(0, 0) as i32 },
    }
}

#[inline(always)]
fn swallow_by_stealing(ctx: &TcContext, fate: Fate) -> i32 {
    match fate {
        Fate::Leave => TCX_NEXT,
        Fate::Reflect if reflect::reflect(ctx) => give_back(ctx),
        Fate::Swallow | Fate::Reflect => TC_ACT_STOLEN,
    }
}

/// The packet comes in by the interface that it was about to leave by.
#[inline(always)]
fn give_back(ctx: &TcContext) -> i32 {
    // SAFETY: the context is valid, and the helper has no preconditions.
    unsafe { bpf_redirect((*ctx.skb.skb).ifindex, u64::from(BPF_F_INGRESS)) as i32 }
}
