//! Large memory in huge pages.
//!
//! A million sessions are half a gigabyte, of which each segment touches a few places at random. With pages of 4 KiB
//! the processor then spends more time looking for where a page is than reading it; a huge page (2 MiB) needs one entry
//! for what would be 512. Linux gives them to those who ask (`/sys/kernel/mm/transparent_hugepage/enabled` says
//! `madvise` on most systems), and the engine, which asks the system for nothing, gets them through the program's
//! allocator.

use std::alloc::{GlobalAlloc, Layout, System};

use rustix::mm::{Advice, madvise};

/// A huge page.
pub const HUGE_PAGE: usize = 2 << 20;
/// What may lie idle at the end of one for the rest to be in it.
const SPARE: usize = HUGE_PAGE / 16;

/// The system's allocator, which puts large memory into huge pages where the system has them.
#[derive(Debug)]
pub struct HugePages;

/// Returns how much of such memory is to be in huge pages. Octets, which need no alignment, are read in a row, so that
/// small pages do; and the system makes memory of small pages longer without copying it.
const fn huge(layout: Layout) -> usize {
    if layout.align() == 1 { 0 } else { layout.size().saturating_add(SPARE) / HUGE_PAGE * HUGE_PAGE }
}

/// Returns the layout that is asked of the system.
fn wider(layout: Layout) -> Layout {
    match huge(layout) {
        0 => layout,
        huge => Layout::from_size_align(layout.size().max(huge), layout.align().max(HUGE_PAGE)).unwrap_or(layout),
    }
}

// SAFETY: all memory comes from the system's allocator and goes back to it, each with the same layout, which is at
// least as strict as the caller's.
unsafe impl GlobalAlloc for HugePages {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's layout has a size other than zero, and so has the wider one.
        let memory = unsafe { System.alloc(wider(layout)) };
        let huge = huge(layout);
        if huge > 0 && !memory.is_null() {
            // SAFETY: the range is ours, as the wider layout is at least as long; the advice changes no octet of it.
            // Where it is not taken (a kernel without huge pages) everything works, slower.
            let _ = unsafe { madvise(memory.cast(), huge, Advice::LinuxHugepage) };
        }
        memory
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: it was allocated with this layout.
        unsafe { System.dealloc(memory, wider(layout)) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that the size, rounded up to the alignment, does not overflow.
        let wanted = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if huge(layout) == 0 && huge(wanted) == 0 {
            // SAFETY: the caller's promise is passed on.
            return unsafe { System.realloc(memory, layout, size) };
        }
        // SAFETY: as above.
        let new = unsafe { self.alloc(wanted) };
        if !new.is_null() {
            // SAFETY: both are as long as the shorter of them, and new memory overlaps nothing.
            unsafe { std::ptr::copy_nonoverlapping(memory, new, layout.size().min(size)) };
            // SAFETY: the caller gives this up.
            unsafe { self.dealloc(memory, layout) };
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).unwrap()
    }

    #[test]
    fn memory_keeps_its_octets_when_it_grows_into_huge_pages_and_back() {
        // SAFETY: each piece of memory is used within its size, with its present layout, and given back once.
        unsafe {
            let mut memory = HugePages.alloc(layout(1 << 20));
            memory.write_bytes(7, 1 << 20);
            memory = HugePages.realloc(memory, layout(1 << 20), 5 << 20);
            assert_eq!(memory.addr() % HUGE_PAGE, 0);
            memory.add(1 << 20).write_bytes(8, 4 << 20);
            memory = HugePages.realloc(memory, layout(5 << 20), (1 << 20) + 1);
            let octets = std::slice::from_raw_parts(memory, (1 << 20) + 1);
            assert!(octets[..1 << 20].iter().all(|&octet| octet == 7) && octets[1 << 20] == 8);
            HugePages.dealloc(memory, layout((1 << 20) + 1));
        }
    }

    #[test]
    fn only_whole_huge_pages_are_used_and_little_is_spare() {
        let sizes = [0, HUGE_PAGE / 2, HUGE_PAGE - SPARE, HUGE_PAGE, HUGE_PAGE * 3 / 2, 5 * HUGE_PAGE - 1];
        assert_eq!(sizes.map(|size| huge(layout(size)) / HUGE_PAGE), [0, 0, 1, 1, 1, 5]);
        assert_eq!(sizes.map(|size| wider(layout(size)).size() - size), [0, 0, SPARE, 0, 0, 1]);
        let octets = Layout::from_size_align(5 * HUGE_PAGE, 1).unwrap();
        assert_eq!((huge(octets), wider(octets)), (0, octets));
    }

    #[test]
    fn the_system_is_asked_for_huge_pages() {
        const SIZE: usize = 8 << 20;
        // SAFETY: the memory is used within its size, and given back with its layout.
        let (memory, flags) = unsafe {
            let memory = HugePages.alloc(layout(SIZE));
            (memory, flags_of(memory.addr() + HUGE_PAGE))
        };
        if std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists() {
            assert!(flags.split(' ').any(|flag| flag == "hg"), "{flags}");
        } else {
            crate::net::testing::skip("this kernel has no huge pages");
        }
        // SAFETY: as above.
        unsafe { HugePages.dealloc(memory, layout(SIZE)) };
    }

    /// Returns what the kernel says about the mapping of an address.
    fn flags_of(address: usize) -> String {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut inside = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let number = |digits| usize::from_str_radix(digits, 16).ok();
            if let Some((start, end)) = range.and_then(|(start, end)| number(start).zip(number(end))) {
                inside = (start..end).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags: ").filter(|_| inside) {
                return flags.to_owned();
            }
        }
        panic!("no mapping");
    }
}
