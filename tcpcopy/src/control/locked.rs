//! Memory for secrets: it is not written to swap or into dumps, and is erased when it is given back.

use std::{
    io,
    ops::{Deref, DerefMut},
    ptr::{NonNull, null_mut},
    sync::Once,
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous, munmap};
use zeroize::Zeroize as _;

use crate::finding::Finding;

/// `N` octets in pages of their own.
pub(super) struct Locked<const N: usize>(NonNull<[u8; N]>);

// SAFETY: the memory is owned by this value alone.
unsafe impl<const N: usize> Send for Locked<N> {}
// SAFETY: shared references only read.
unsafe impl<const N: usize> Sync for Locked<N> {}

impl<const N: usize> Locked<N> {
    /// Makes room for `N` octets, all zero. Where the limit on locked memory (`RLIMIT_MEMLOCK`) leaves none, the memory
    /// can be swapped out, which is warned of once.
    ///
    /// # Errors
    /// When there is no memory.
    pub(super) fn new() -> io::Result<Self> {
        static WARNED: Once = Once::new();
        let flags = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: the kernel chooses where; nothing else is there.
        let memory = unsafe { mmap_anonymous(null_mut(), N, flags.0, flags.1) }?;
        let address = NonNull::new(memory.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the range was mapped just now, and neither changes its octets.
        let (locked, hidden) = unsafe { (mlock(memory, N), madvise(memory, N, Advice::LinuxDontDump)) };
        if let Err(error) = locked.and(hidden) {
            WARNED.call_once(|| not_locked(error.into()).log());
        }
        Ok(Self(address))
    }
}

fn not_locked(error: io::Error) -> Finding {
    Finding::warning("the key may be written to swap")
        .because(error.to_string())
        .remedy("raise the limit on locked memory (`ulimit -l`, `LimitMEMLOCK=` of systemd)")
}

impl<const N: usize> Deref for Locked<N> {
    type Target = [u8; N];

    fn deref(&self) -> &[u8; N] {
        // SAFETY: the memory is mapped as long as this value lives, and was zero at first.
        unsafe { self.0.as_ref() }
    }
}

impl<const N: usize> DerefMut for Locked<N> {
    fn deref_mut(&mut self) -> &mut [u8; N] {
        // SAFETY: as above, and nobody else has a reference.
        unsafe { self.0.as_mut() }
    }
}

impl<const N: usize> Drop for Locked<N> {
    fn drop(&mut self) {
        self.zeroize();
        // SAFETY: the range was mapped by `new`, and nobody has a reference any more. It cannot fail for such a range.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), N) };
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Returns the flags of the mapping that holds an address (proc(5), `VmFlags`).
    fn flags(address: usize) -> Vec<String> {
        let maps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut within = false;
        for line in maps.lines() {
            let range = line.split(' ').next().and_then(|range| range.split_once('-'));
            let bounds = range.map(|(from, to)| [from, to].map(|bound| usize::from_str_radix(bound, 16)));
            if let Some([Ok(from), Ok(to)]) = bounds {
                within = (from..to).contains(&address);
            } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| within) {
                return flags.split_whitespace().map(str::to_owned).collect();
            }
        }
        Vec::new()
    }

    #[test]
    fn secrets_are_in_locked_pages_that_no_dump_contains() {
        let mut secret = Locked::<32>::new().unwrap();
        assert_eq!(*secret, [0; 32]);
        secret.fill(7);
        let flags = flags(secret.as_ptr() as usize);
        let has = |flag: &str| flags.iter().any(|f| f == flag);
        assert!(has("dd"), "{flags:?}");
        // A page always fits into the limit, unless it is zero.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
        assert!(has("lo") || limit == Some(0), "{flags:?}");
    }
}
