//! Prefetching: asks the processor for memory before it is needed. The cache lines of many connections then come at the
//! same time, not one after the other. A hint: without it everything works, slower.

/// The size of a cache line.
const LINE: usize = 64;

/// Prefetches all of a value.
pub(crate) fn prefetch<T>(value: &T) {
    let start = std::ptr::from_ref(value).cast::<u8>();
    for offset in (0..size_of::<T>()).step_by(LINE) {
        fetch(start.wrapping_add(offset));
    }
    // It need not begin where a line begins.
    fetch(start.wrapping_add(size_of::<T>() - 1));
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn fetch(address: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
    // SAFETY: a prefetch reads nothing that the program could see, and does not fault whatever the address is.
    unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) }
}

/// Other processors do without.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
const fn fetch(_address: *const u8) {}
