//! The packets that the kernel hands to a program.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_CSUM_LEVEL_QUERY,
    helpers::generated::{bpf_csum_level, bpf_skb_load_bytes, bpf_xdp_get_buff_len, bpf_xdp_load_bytes},
    programs::{TcContext, XdpContext},
};

use crate::packet::{Packet, Unreadable};

/// A frame for this host (`linux/if_packet.h`). TCP drops all others: those for another host, and for groups.
const PACKET_HOST: u32 = 0;

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
    fn is_for_others(&self) -> bool {
        // SAFETY: the context is valid.
        unsafe { (*self.skb.skb).pkt_type != PACKET_HOST }
    }

    #[inline(always)]
    fn is_verified(&self) -> bool {
        // SAFETY: the context is valid. The helper fails when no interface has verified it.
        self.segments() > 1 || unsafe { bpf_csum_level(self.skb.skb, BPF_CSUM_LEVEL_QUERY.into()) } >= 0
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

    /// Only a group's address is told from that of the interface, which may change. A network card hands over no other
    /// unicast address, unless it is in promiscuous mode.
    #[inline(always)]
    fn is_for_others(&self) -> bool {
        let destination: Result<[u8; 6], Unreadable> = self.read(0);
        destination.is_ok_and(|[first, ..]| first & 1 != 0)
    }

    #[inline(always)]
    fn is_verified(&self) -> bool {
        false
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
