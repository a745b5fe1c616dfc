//! Packets: the eBPF programs' parser and option reader on arbitrary octets, ring records, and packets that we build
//! ourselves. Each is compared with an implementation that is not ours, or with a plain one.
//!
//! The first octet says which of them the rest is for.

mod built;
mod headers;
mod options;
mod record;

use tcpcopy_ebpf::packet::{Packet, Unreadable};

/// The target.
pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind % 5 {
        0 => headers::check(data, tcpcopy_ebpf::parse::Link::Ethernet),
        1 => headers::check(data, tcpcopy_ebpf::parse::Link::Bare),
        2 => options::check(data),
        3 => built::check(data),
        _ => record::check(data),
    }
}

/// A packet as a program sees it, of which the first `linear` octets can be read directly. Its memory ends where the
/// packet ends, so that a sanitizer notices who reads further.
struct Octets {
    /// From the allocator, which aligns it to more than the two octets that [`Packet::read`] needs.
    octets: Box<[u8]>,
    linear: usize,
}

impl Octets {
    fn new(octets: &[u8], linear: usize) -> Self {
        Self { octets: octets.into(), linear: linear.min(octets.len()) }
    }
}

impl Packet for Octets {
    fn len(&self) -> u32 {
        self.octets.len() as u32
    }

    fn segments(&self) -> u32 {
        1
    }

    fn is_for_others(&self) -> bool {
        false
    }

    fn is_verified(&self) -> bool {
        false
    }

    fn linear(&self) -> (usize, usize) {
        let start = self.octets.as_ptr() as usize;
        (start, start + self.linear)
    }

    unsafe fn load_bytes(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Unreadable> {
        let octets = self.octets.get(offset as usize..).and_then(|rest| rest.get(..len as usize)).ok_or(Unreadable)?;
        assert!(!octets.is_empty(), "the kernel's helpers refuse to load nothing");
        // SAFETY: by the caller's promise there is room for `len` octets, which is how many there are.
        unsafe { std::ptr::copy_nonoverlapping(octets.as_ptr(), to, octets.len()) };
        Ok(())
    }
}
