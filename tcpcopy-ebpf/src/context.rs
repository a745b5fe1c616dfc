//! The packets that the kernel hands to a program.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};

use crate::packet::{Packet, Unreadable};

impl Packet for TcContext {
    #[inline(always)]
    fn len(&self) -> u32 {
        self.skb.len()
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        // SAFETY: the context is valid.
        match unsafe { (*self.skb.skb).gso_segs } {
            // Not coalesced.
            0 => 1,
            segments => segments,
        }
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    unsafe fn load_bytes(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Unreadable> {
        // SAFETY: the context is valid, and so is the destination by the caller's promise.
        match unsafe { bpf_skb_load_bytes(self.as_ptr(), offset, to.cast(), len) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }
}

impl Packet for XdpContext {
    #[inline(always)]
    fn len(&self) -> u32 {
        // SAFETY: the context is valid.
        unsafe { bpf_xdp_get_buff_len(self.ctx) as u32 }
    }

    #[inline(always)]
    fn segments(&self) -> u32 {
        1
    }

    #[inline(always)]
    fn linear(&self) -> (usize, usize) {
        (self.data(), self.data_end())
    }

    #[inline(always)]
    unsafe fn load_bytes(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Unreadable> {
        // SAFETY: the context is valid, and so is the destination by the caller's promise.
        match unsafe { bpf_xdp_load_bytes(self.ctx, offset, to.cast(), len) } {
            0 => Ok(()),
            _ => Err(Unreadable),
        }
    }
}
