//! The kernel's side: a seccomp filter that hands system calls over, and the descriptor by which they come
//! (seccomp_unotify(2), Linux 5.5).
//!
//! The filter is installed between fork and exec, so nothing of the program changes. Its descriptor gets to this
//! process by a page of shared memory that says its number, and pidfd_getfd(2): no system call that the filter might
//! hand over is made meanwhile.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    ptr,
    sync::atomic::{AtomicI32, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open},
};

use crate::PATIENCE;

/// `SECCOMP_IOCTL_NOTIF_RECV` and `SECCOMP_IOCTL_NOTIF_SEND` of `linux/seccomp.h`: `_IOWR('!', …)` with the sizes of
/// their structures.
const RECEIVE: u64 = 0xc050_2100;
const SEND: u64 = 0xc018_2101;
const _: () = assert!(size_of::<libc::seccomp_notif>() == 0x50 && size_of::<libc::seccomp_notif_resp>() == 0x18);

/// `AUDIT_ARCH_*` of this machine (`linux/audit.h`).
#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// How often a new process is looked for that has not said the number of its descriptor yet.
const LOOK: Duration = Duration::from_millis(1);

/// What a new process and this one tell each other, in memory that both have.
#[derive(Default)]
struct Shared {
    process: AtomicI32,
    /// The descriptor, or the negative error number.
    listener: AtomicI32,
    taken: AtomicI32,
}

/// A program whose system calls will be handed over, once it is there.
pub(super) struct Expected(&'static Shared);

/// A system call that waits for its result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiting {
    id: u64,
    /// The thread that makes it.
    pub(super) thread: u32,
    /// Which call.
    pub(super) number: i64,
    pub(super) arguments: [u64; 6],
}

/// The descriptor by which system calls come.
pub(super) struct Listener {
    fd: OwnedFd,
    /// The process that was started.
    pub(super) process: OwnedFd,
}

/// Has `command` hand over the system calls with these numbers when it runs.
pub(super) fn install(command: &mut Command, numbers: &[i64]) -> io::Result<Expected> {
    // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing.
    let memory = unsafe {
        libc::mmap(
            ptr::null_mut(),
            size_of::<Shared>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if memory == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the page is never unmapped, is aligned, and zeros are a valid value; all access to it is atomic.
    let shared: &'static Shared = unsafe { &*memory.cast::<Shared>() };
    let filter = filter(numbers);
    let prepare = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
        // SAFETY: the program is well formed, and outlives the call, which copies it.
        let listener = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                libc::SECCOMP_FILTER_FLAG_NEW_LISTENER,
                &raw const program,
            )
        };
        if listener < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: it takes nothing.
        shared.process.store(unsafe { libc::getpid() }, Ordering::Relaxed);
        shared.listener.store(listener as i32, Ordering::Release);
        while shared.taken.load(Ordering::Acquire) == 0 {
            // SAFETY: it takes nothing.
            unsafe { libc::sched_yield() };
        }
        Ok(())
    };
    // SAFETY: between fork and exec only system calls are made, on memory that was made before.
    unsafe { command.pre_exec(prepare) };
    Ok(Expected(shared))
}

/// Returns a classic BPF program that hands these calls over and lets all others through.
fn filter(numbers: &[i64]) -> Vec<libc::sock_filter> {
    let load = |offset| libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset };
    let give = |action| libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: action };
    // Another architecture's numbers mean other calls.
    let mut program = vec![load(4), libc::sock_filter { code: 0x15, jt: 1, jf: 0, k: ARCHITECTURE }];
    program.extend([give(libc::SECCOMP_RET_ALLOW), load(0)]);
    for &number in numbers {
        program.push(libc::sock_filter { code: 0x15, jt: 0, jf: 1, k: number as u32 });
        program.push(give(libc::SECCOMP_RET_USER_NOTIF));
    }
    program.push(give(libc::SECCOMP_RET_ALLOW));
    program
}

impl Expected {
    /// Waits for the program, which must be started within [`PATIENCE`], and takes the descriptor over.
    pub(super) fn take(self) -> anyhow::Result<Listener> {
        let Self(shared) = self;
        let deadline = Instant::now() + PATIENCE;
        let number = loop {
            match shared.listener.load(Ordering::Acquire) {
                0 => ensure!(Instant::now() < deadline, "the program was not started"),
                number => break number,
            }
            thread::sleep(LOOK);
        };
        let process = shared.process.load(Ordering::Relaxed);
        let process = Pid::from_raw(process).context("a process has an identifier")?;
        let process = pidfd_open(process, PidfdFlags::empty()).context("the program has ended")?;
        let fd = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).context("cannot take the listener over");
        shared.taken.store(1, Ordering::Release);
        Ok(Listener { fd: fd?, process })
    }
}

impl Listener {
    /// Waits for the next call, at most for `limit`; an error when the program has ended.
    pub(super) fn next(&self, limit: Duration) -> io::Result<Option<Waiting>> {
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        if poll(&mut fds, Some(&limit)).or_else(|e| if e == rustix::io::Errno::INTR { Ok(0) } else { Err(e) })? == 0 {
            return Ok(None);
        }
        if !fds[0].revents().contains(PollFlags::IN) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: all zeros is a valid value, and what the kernel wants it to be.
        let mut notice: libc::seccomp_notif = unsafe { std::mem::zeroed() };
        // SAFETY: the structure is the one that this request fills in.
        if unsafe { libc::ioctl(self.fd.as_raw_fd(), RECEIVE as _, &raw mut notice) } < 0 {
            let error = io::Error::last_os_error();
            // The thread was interrupted or killed meanwhile: it asks again, or never.
            let gone = matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR));
            return if gone { Ok(None) } else { Err(error) };
        }
        let data = notice.data;
        Ok(Some(Waiting { id: notice.id, thread: notice.pid, number: data.nr.into(), arguments: data.args }))
    }

    /// Lets a call happen, or has it fail with an error number. One whose thread is gone needs no answer.
    pub(super) fn answer(&self, waiting: &Waiting, error: Option<i32>) {
        let response = libc::seccomp_notif_resp {
            id: waiting.id,
            val: 0,
            error: error.map_or(0, |error| -error),
            flags: if error.is_none() { libc::SECCOMP_USER_NOTIF_FLAG_CONTINUE as u32 } else { 0 },
        };
        // SAFETY: the structure is the one that this request reads.
        unsafe { libc::ioctl(self.fd.as_raw_fd(), SEND as _, &raw const response) };
    }

    /// Returns a descriptor of ours for one of the program's.
    pub(super) fn duplicate(&self, fd: i32) -> rustix::io::Result<OwnedFd> {
        pidfd_getfd(&self.process, fd, PidfdGetfdFlags::empty())
    }
}
