//! The reader's side of a BPF ring buffer, with *need-wakeup* notification.
//!
//! A reader owns its ring: it alone moves the consumer position. The protocol against lost wake-ups is described in
//! [`tcpcopy_common::wakeup`].

use std::{
    mem::offset_of,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering, fence},
    },
};

use rustix::{
    mm::{MapFlags, ProtFlags},
    param::page_size,
};
use tcpcopy_common::wakeup::Signals;

use super::{BpfError, error::patiently};

// From the kernel's uapi/linux/bpf.h: the header of every record.
const BUSY: u32 = 1 << 31;
const DISCARDED: u32 = 1 << 30;
const HEADER: usize = 8;

/// One ring, and the signals with which its reader asks to be woken and its producers tell of what did not fit.
#[derive(Debug)]
pub struct RingReader {
    fd: OwnedFd,
    /// One page: the consumer position, ours to write.
    consumer: Mapping,
    /// One page with the producer position, then the data twice in a row, so that no record is ever split.
    producer: Mapping,
    /// Size of the data less one; the size is a power of two.
    mask: usize,
    /// Where the next record starts; ahead of the shared consumer position only inside [`drain`](Self::drain).
    position: usize,
    signals: ReaderSignals,
    /// Lost records that are known.
    lost: u32,
}

impl RingReader {
    /// Takes over the reading of the ring `fd` of `bytes` (a power of two of pages).
    pub(super) fn new(fd: OwnedFd, bytes: u32, signals: ReaderSignals) -> Result<Self, BpfError> {
        let page = page_size();
        let size = bytes as usize;
        let map = |len, protection, offset| {
            Mapping::new(fd.as_fd(), len, protection, offset).map_err(|error| BpfError::ring(bytes, error))
        };
        let consumer = map(page, ProtFlags::READ | ProtFlags::WRITE, 0)?;
        let producer = map(page + 2 * size, ProtFlags::READ, page as u64)?;
        let mut reader = Self { fd, consumer, producer, mask: size - 1, position: 0, signals, lost: 0 };
        reader.position = reader.consumer_position().load(Ordering::Acquire);
        Ok(reader)
    }

    /// Hands at most `budget` records to `f`, oldest first, and returns how many it were. The records' space is given
    /// back to the producers on the way; a record may be followed by undefined octets up to the size of its bucket.
    ///
    /// Discarded records are no records: they are consumed up to the next one that is not, also with a budget of 0. A
    /// wake-up is a discarded record behind the one that it announces; left in the ring it would keep
    /// [`prepare_sleep`](Self::prepare_sleep) from letting the reader sleep, and the descriptor readable.
    pub fn drain(&mut self, budget: usize, mut f: impl FnMut(&[u8])) -> usize {
        // Give space back in large steps, because each store takes the cache line away from the producers, but soon
        // enough that they never starve.
        let step = (self.mask + 1) / 8;
        let mut published = self.position;
        let mut produced = self.producer_position().load(Ordering::Acquire);
        let mut records = 0;
        loop {
            if self.position == produced {
                produced = self.producer_position().load(Ordering::Acquire);
                if self.position == produced {
                    break;
                }
            }
            match self.record(self.position) {
                Record::Busy => break,
                Record::Discarded(len) => self.position = self.position.wrapping_add(len),
                Record::Data(_) if records == budget => break,
                Record::Data(data) => {
                    f(data);
                    let len = (HEADER + data.len()).next_multiple_of(8);
                    self.position = self.position.wrapping_add(len);
                    records += 1;
                }
            }
            if self.position.wrapping_sub(published) >= step {
                self.consumer_position().store(self.position, Ordering::Release);
                published = self.position;
            }
        }
        if self.position != published {
            self.consumer_position().store(self.position, Ordering::Release);
        }
        records
    }

    /// Returns how many octets of the ring hold records that were not drained yet.
    #[must_use]
    pub fn used(&self) -> usize {
        self.producer_position().load(Ordering::Acquire).wrapping_sub(self.position)
    }

    /// Returns whether there was no room for a record since this was asked the last time.
    pub fn has_lost(&mut self) -> bool {
        let lost = self.signals.lost().load(Ordering::Relaxed);
        std::mem::replace(&mut self.lost, lost) != lost
    }

    /// Returns how many octets the ring has.
    #[must_use]
    pub const fn size(&self) -> usize {
        self.mask + 1
    }

    /// Returns the records that [`drain`](Self::drain) would hand out next, as far as they are there.
    pub fn upcoming(&self) -> impl Iterator<Item = &[u8]> {
        let produced = self.producer_position().load(Ordering::Acquire);
        let mut position = self.position;
        std::iter::from_fn(move || {
            while position != produced {
                let record = self.record(position);
                let (len, data) = match record {
                    Record::Busy => return None,
                    Record::Discarded(len) => (len, None),
                    Record::Data(data) => ((HEADER + data.len()).next_multiple_of(8), Some(data)),
                };
                position = position.wrapping_add(len);
                if data.is_some() {
                    return data;
                }
            }
            None
        })
    }

    /// Announces that the reader is about to sleep until the descriptor becomes readable. False when there are records
    /// already (one that is still being written counts): then do not sleep, the announcement is withdrawn.
    ///
    /// Sleep no longer than [`MAX_SLEEP_MS`](tcpcopy_common::wakeup::MAX_SLEEP_MS), and call [`awake`](Self::awake)
    /// afterwards.
    pub fn prepare_sleep(&mut self) -> bool {
        self.signals.need_wakeup().store(1, Ordering::Relaxed);
        // Either this load sees the producer's record, or the producer, which looks at the flag after its record is
        // visible, sees the flag.
        fence(Ordering::SeqCst);
        if self.producer_position().load(Ordering::Acquire) == self.position {
            return true;
        }
        self.awake();
        false
    }

    /// Says that the reader no longer wants to be woken.
    pub fn awake(&mut self) {
        self.signals.need_wakeup().store(0, Ordering::Relaxed);
    }

    fn consumer_position(&self) -> &AtomicUsize {
        // SAFETY: the mapping is page-aligned, at least a page long and lives as long as `self`. The kernel accesses
        // the position atomically.
        unsafe { self.consumer.ptr.cast::<AtomicUsize>().as_ref() }
    }

    fn producer_position(&self) -> &AtomicUsize {
        // SAFETY: as above; an atomic load does not write, so that a read-only mapping will do.
        unsafe { self.producer.ptr.cast::<AtomicUsize>().as_ref() }
    }

    /// Returns the record at a position that the caller knows to be before the producer position, and not before our
    /// own.
    fn record(&self, position: usize) -> Record<'_> {
        let offset = page_size() + (position & self.mask);
        // SAFETY: the offset is within the first copy of the data, and 8-aligned as all record sizes are.
        let start = unsafe { self.producer.ptr.cast::<u8>().add(offset) };
        // SAFETY: see above; the kernel writes the header atomically. Acquire pairs with the exchange that commits it,
        // so that the record's octets are visible with it.
        let header = unsafe { start.cast::<AtomicU32>().as_ref() }.load(Ordering::Acquire);
        if header & BUSY != 0 {
            return Record::Busy;
        }
        // The kernel never writes a longer one; with the bound the slice cannot leave the mapping whatever happens.
        let len = ((header & !DISCARDED) as usize).min(self.mask + 1 - HEADER);
        if header & DISCARDED != 0 {
            return Record::Discarded((HEADER + len).next_multiple_of(8));
        }
        // SAFETY: a committed record stays as it is until the consumer position passes it, which takes `&mut self`. It
        // ends within the second copy of the data.
        Record::Data(unsafe { std::slice::from_raw_parts(start.as_ptr().add(HEADER), len) })
    }
}

impl AsFd for RingReader {
    /// Becomes readable when a producer wakes the reader.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

enum Record<'a> {
    Busy,
    /// Its length, header and padding included.
    Discarded(usize),
    Data(&'a [u8]),
}

/// The map of [`Signals`], mapped into memory.
#[derive(Clone, Debug)]
pub(super) struct SignalPage {
    page: Arc<Mapping>,
    entries: u32,
}

impl SignalPage {
    pub(super) fn new(map: BorrowedFd<'_>, entries: u32) -> Result<Self, BpfError> {
        let len = entries as usize * size_of::<Signals>();
        let page = Mapping::new(map, len, ProtFlags::READ | ProtFlags::WRITE, 0)
            .map_err(|error| BpfError::ring(len as u32, error))?;
        Ok(Self { page: Arc::new(page), entries })
    }

    /// Returns those of the ring with that index, which is less than the number of entries.
    pub(super) fn of(&self, ring: u32) -> ReaderSignals {
        assert!(ring < self.entries, "signals for each ring");
        ReaderSignals { page: Arc::clone(&self.page), ring }
    }
}

/// One ring's signals.
#[derive(Debug)]
pub(super) struct ReaderSignals {
    page: Arc<Mapping>,
    ring: u32,
}

impl ReaderSignals {
    fn need_wakeup(&self) -> &AtomicU32 {
        self.word(offset_of!(Signals, need_wakeup))
    }

    fn lost(&self) -> &AtomicU32 {
        self.word(offset_of!(Signals, lost))
    }

    fn word(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the index is within the mapping (checked by `SignalPage::of`), entries are 64-aligned, the offset is
        // that of a word in one, and both sides access it atomically.
        unsafe { self.page.ptr.cast::<Signals>().add(self.ring as usize).byte_add(offset).cast::<AtomicU32>().as_ref() }
    }
}

/// A shared memory mapping of a map; unmapped in `Drop`.
#[derive(Debug)]
struct Mapping {
    ptr: NonNull<core::ffi::c_void>,
    len: usize,
}

// SAFETY: the memory belongs to no thread, and it is only accessed through atomics or as records that are at rest.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    fn new(fd: BorrowedFd<'_>, len: usize, protection: ProtFlags, offset: u64) -> rustix::io::Result<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
        let map = || unsafe { rustix::mm::mmap(std::ptr::null_mut(), len, protection, MapFlags::SHARED, fd, offset) };
        let ptr = patiently(map)?;
        NonNull::new(ptr).map(|ptr| Self { ptr, len }).ok_or(rustix::io::Errno::NOMEM)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and no reference into it outlives its owner. A failure would leak it, no more.
        let _ = unsafe { rustix::mm::munmap(self.ptr.as_ptr(), self.len) };
    }
}

/// Returns the size of the ring to create where `bytes` are asked for: the next power of two of pages, at most 2 GiB.
pub(super) fn ring_size(bytes: u32) -> u32 {
    let page = page_size() as u32;
    bytes.clamp(page, 1 << 31).next_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_powers_of_two_of_pages() {
        let page = page_size() as u32;
        for (wish, size) in [(0, page), (1, page), (page + 1, 2 * page), (3 << 20, 4 << 20), (u32::MAX, 1 << 31)] {
            assert_eq!(ring_size(wish), size, "{wish}");
        }
    }
}
