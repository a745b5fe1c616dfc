//! A loader that does not read what the kernel says about its own types.
//!
//! aya's takes `/sys/kernel/btf/vmlinux` apart whenever one is made, to relocate programs that look into the kernel's
//! structures. Ours do not. It is 5 MB to read and four times that in memory, which is more than either program needs
//! later.

use std::{io, thread};

use aya::EbpfLoader;
use rustix::{
    process::chroot,
    thread::{UnshareFlags, unshare_unsafe},
};

/// A directory with files that are called by numbers only.
const NO_SYS: &str = "/proc/self/fdinfo";

/// Makes a loader for objects without CO-RE relocations.
pub(super) fn loader<'a>() -> EbpfLoader<'a> {
    // aya cannot be told to leave that file alone. So the loader is made where there is none: in a thread with a root
    // of its own.
    let made = thread::Builder::new().spawn(|| leave_sys().map(|()| EbpfLoader::new()));
    let made = made.and_then(|made| made.join().unwrap_or_else(|_| Err(io::Error::other("the thread panicked"))));
    match made {
        Ok(loader) => loader,
        Err(error) => {
            log::debug!("loading eBPF takes more memory than it should: {error}");
            EbpfLoader::new()
        }
    }
}

/// Moves the root of this thread, and of no other, to where there is no `/sys`.
fn leave_sys() -> io::Result<()> {
    // SAFETY: the thread was made for this, and shares nothing that depends on its root or working directory.
    unsafe { unshare_unsafe(UnshareFlags::FS) }?;
    Ok(chroot(NO_SYS)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_without_sys_leaves_it_to_the_others() {
        const SYS: &str = "/sys/kernel";
        if !rustix::process::geteuid().is_root() {
            return crate::net::testing::skip("another root needs root");
        }
        thread::spawn(|| {
            leave_sys().unwrap();
            assert!(!std::fs::exists(SYS).unwrap());
        })
        .join()
        .unwrap();
        assert!(std::fs::exists(SYS).unwrap());
    }
}
