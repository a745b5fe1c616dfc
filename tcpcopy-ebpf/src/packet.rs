//! Bounds-checked reading of packets, alike for XDP and TC.
//!
//! Headers are usually in the linear part of a packet, where they can be read directly, which costs next to nothing.
//! But a coalesced packet has only some 74 octets there, and an XDP frame can have fragments: the rest comes by a
//! helper.

use core::mem::MaybeUninit;

use bytemuck::AnyBitPattern;

/// The packet does not have the octets that were to be read.
#[derive(Clone, Copy)]
pub struct Unreadable;

/// No header that we read starts farther into a packet. It bounds offsets for the verifier.
const MAX_HEADER_OFFSET: usize = 8192;

/// A packet under a program's eyes.
#[expect(clippy::len_without_is_empty, reason = "the kernel hands over no empty packets")]
pub trait Packet {
    /// Octets of the whole packet, link header included.
    fn len(&self) -> u32;

    /// Returns how many packets of the wire this is: more than one where the stack, or an interface, has coalesced
    /// them.
    fn segments(&self) -> u32;

    /// Whether TCP will drop it because its link header names another host, or a group.
    fn is_for_others(&self) -> bool;

    /// Whether its checksum is known to be right, or to be none: an interface has verified it, or it was coalesced of
    /// segments that had been verified. What an interface has not verified the stack will.
    fn is_verified(&self) -> bool;

    /// Addresses of the linear part's start and end.
    fn linear(&self) -> (usize, usize);

    /// Copies `len` octets at `offset` of the packet to `to`, wherever in the packet they are.
    ///
    /// # Safety
    /// `to` has room for `len` octets, which are not none: see [`bounded`] for a length that is not a constant.
    unsafe fn load_bytes(&self, offset: u32, to: *mut u8, len: u32) -> Result<(), Unreadable>;

    /// Reads a header at `offset`.
    ///
    /// `T` must not need an alignment of more than 2 octets: that is how IP and TCP headers lie in a packet.
    #[inline(always)]
    fn read<T: AnyBitPattern>(&self, offset: u32) -> Result<T, Unreadable> {
        const { assert!(align_of::<T>() <= 2) };
        let offset = opaque(offset as usize);
        if offset > MAX_HEADER_OFFSET {
            return Err(Unreadable);
        }
        let (start, end) = self.linear();
        let at = start + offset;
        if at + size_of::<T>() <= end {
            // SAFETY: the octets are within the linear part (the verifier checks this too), aligned enough, and every
            // bit pattern is a `T`.
            return Ok(unsafe { (at as *const T).read() });
        }
        let mut value = MaybeUninit::<T>::uninit();
        // SAFETY: there is room for a `T`, and no `T` in use is empty.
        unsafe { self.load_bytes(offset as u32, value.as_mut_ptr().cast(), size_of::<T>() as u32) }?;
        // SAFETY: the helper has filled it, and every bit pattern is a `T`.
        Ok(unsafe { value.assume_init() })
    }
}

/// Returns the same value, of which the optimiser now knows nothing.
///
/// The verifier must see the comparison that bounds a length or an offset. Where the optimiser can prove the bound
/// itself it removes the comparison, and the verifier, which sees less, refuses the program.
#[inline(always)]
pub fn opaque(value: usize) -> usize {
    let mut value = value;
    // There must be an instruction: two positions in the source for one place in the code, and the kernel refuses the
    // debug information.
    // SAFETY: a register moved to itself.
    #[cfg(target_arch = "bpf")]
    unsafe {
        core::arch::asm!("{0} = {0}", inout(reg) value, options(pure, nomem, nostack, preserves_flags));
    }
    // Elsewhere there is no verifier, and the instruction is another one.
    #[cfg(not(target_arch = "bpf"))]
    {
        value = core::hint::black_box(value);
    }
    value
}

/// Returns `len` if it is 1 to `most`, in a form that shows the verifier of every kernel both bounds.
///
/// `len != 0` shows it nothing: before Linux 6.8 an inequality never moves a bound, and since 7.2 it does not where
/// the signed range of `len` has zero in its middle, as a difference of two lengths has. The helpers that copy octets
/// then refuse the length ("invalid zero-sized read"). A comparison from above bounds `len - 1` on all of them, and
/// adding one to a bounded number keeps both bounds.
#[inline(always)]
pub fn bounded(len: u32, most: u32) -> Option<u32> {
    // A zero becomes the largest number, which is more than any `most`.
    let before = opaque(len.wrapping_sub(1) as usize);
    if before >= most as usize {
        return None;
    }
    // Opaque once more, or the optimiser takes the subtraction and the addition away.
    Some(opaque(before) as u32 + 1)
}
