//! Pseudo-terminals: what programs that are started by hand have, and lose with a dropped ssh session.

use std::{
    io,
    os::{
        fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::Command,
    ptr::null_mut,
};

use rustix::io::{FdFlags, fcntl_setfd};

/// The far end of a terminal; it hangs up when dropped.
#[derive(Debug)]
pub struct Terminal {
    _far_end: OwnedFd,
}

impl Terminal {
    /// Makes a terminal, which will be the controlling one of the command's process, alone in a session of its own.
    pub fn give(command: &mut Command) -> anyhow::Result<Self> {
        let (mut far_end, mut near_end) = (-1, -1);
        // SAFETY: the two pointers are to local variables, and the others may be null.
        let result = unsafe { libc::openpty(&mut far_end, &mut near_end, null_mut(), null_mut(), null_mut()) };
        if result != 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: both were just opened, and nobody else has them.
        let [far_end, near_end] = [far_end, near_end].map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
        for end in [&far_end, &near_end] {
            fcntl_setfd(end, FdFlags::CLOEXEC)?;
        }
        let control = move || {
            rustix::process::setsid()?;
            // SAFETY: the argument of this request is a number.
            match unsafe { libc::ioctl(near_end.as_raw_fd(), libc::TIOCSCTTY, 0) } {
                -1 => Err(io::Error::last_os_error()),
                _ => Ok(()),
            }
        };
        // SAFETY: between fork and exec only system calls are made.
        unsafe { command.pre_exec(control) };
        Ok(Self { _far_end: far_end })
    }

    /// Hangs up, as a dropped ssh session does.
    pub fn hang_up(self) {}
}
