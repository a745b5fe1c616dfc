//! The system calls that are handed over, and what each is about.

use std::{fs, os::fd::OwnedFd};

use rustix::net::{AddressFamily, SocketType, sockopt};

use super::listener::{Listener, Waiting};

/// What a system call works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum On {
    /// Nothing that has a descriptor.
    Nothing,
    /// A netlink socket.
    Netlink,
    /// A TCP connection.
    Tcp,
    /// A TCP socket that listens.
    Listener,
    /// A UDP socket.
    Udp,
    /// A Unix socket.
    Unix,
    /// A packet socket.
    Packet,
    /// A raw IP socket.
    Raw,
    /// An eventfd.
    Event,
    /// An epoll instance.
    Epoll,
    /// A pipe: standard output and standard error in the laboratory.
    Pipe,
    /// A file with a name.
    File,
    /// An eBPF map, program or link.
    Bpf,
    /// The command of bpf(2), prctl(2) or fcntl(2).
    Command(u64),
    /// Anything else.
    Other,
}

/// A system call, by its name and what it is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Its name, as `strace` has it.
    pub name: &'static str,
    /// What it works on.
    pub on: On,
}

/// Where a call says what it works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Subject {
    /// Nowhere.
    None,
    /// A descriptor in this argument.
    Descriptor(usize),
    /// A number in this argument.
    Command(usize),
    /// Domain and type of a socket that is to be made.
    NewSocket,
}

macro_rules! calls {
    ($($number:ident $name:literal $subject:expr),* $(,)?) => {
        /// Number, name and subject of each call that is handed over.
        const CALLS: &[(i64, &str, Subject)] = &[$((libc::$number, $name, $subject)),*];
    };
}

use Subject::{Command, Descriptor, NewSocket, None as Alone};

// What both programs ask of the kernel, and that can fail for a reason that is not theirs. Left out: futex(2), which
// the standard library repeats by itself; close(2) and munmap(2), which do what they have to whatever they return;
// brk(2), which has no error number; and calls that only tell what the kernel knows anyway (getpid, sched_yield,
// clock_gettime …).
calls! {
    SYS_read "read" Descriptor(0),
    SYS_write "write" Descriptor(0),
    SYS_writev "writev" Descriptor(0),
    SYS_openat "openat" Alone,
    SYS_fstat "fstat" Descriptor(0),
    SYS_newfstatat "newfstatat" Alone,
    SYS_statx "statx" Alone,
    SYS_lseek "lseek" Descriptor(0),
    SYS_ftruncate "ftruncate" Descriptor(0),
    SYS_fsync "fsync" Descriptor(0),
    SYS_flock "flock" Descriptor(0),
    SYS_fchown "fchown" Descriptor(0),
    SYS_unlinkat "unlinkat" Alone,
    SYS_readlinkat "readlinkat" Alone,
    SYS_fcntl "fcntl" Command(1),
    SYS_ioctl "ioctl" Descriptor(0),
    SYS_dup3 "dup3" Descriptor(0),
    SYS_pipe2 "pipe2" Alone,
    SYS_ppoll "ppoll" Alone,
    SYS_epoll_pwait "epoll_pwait" Descriptor(0),
    SYS_epoll_ctl "epoll_ctl" Descriptor(2),
    SYS_epoll_create1 "epoll_create1" Alone,
    SYS_eventfd2 "eventfd2" Alone,
    SYS_socket "socket" NewSocket,
    SYS_socketpair "socketpair" NewSocket,
    SYS_bind "bind" Descriptor(0),
    SYS_listen "listen" Descriptor(0),
    SYS_accept4 "accept4" Descriptor(0),
    SYS_connect "connect" Descriptor(0),
    SYS_getsockname "getsockname" Descriptor(0),
    SYS_getpeername "getpeername" Descriptor(0),
    SYS_setsockopt "setsockopt" Descriptor(0),
    SYS_getsockopt "getsockopt" Descriptor(0),
    SYS_sendto "sendto" Descriptor(0),
    SYS_recvfrom "recvfrom" Descriptor(0),
    SYS_sendmsg "sendmsg" Descriptor(0),
    SYS_recvmsg "recvmsg" Descriptor(0),
    SYS_sendmmsg "sendmmsg" Descriptor(0),
    SYS_shutdown "shutdown" Descriptor(0),
    SYS_bpf "bpf" Command(0),
    SYS_mmap "mmap" Descriptor(4),
    SYS_mlock "mlock" Alone,
    SYS_clone3 "clone3" Alone,
    SYS_clone "clone" Alone,
    SYS_unshare "unshare" Alone,
    SYS_chroot "chroot" Alone,
    SYS_nanosleep "nanosleep" Alone,
    SYS_clock_nanosleep "clock_nanosleep" Alone,
    SYS_getrandom "getrandom" Alone,
    SYS_prctl "prctl" Command(0),
    SYS_capget "capget" Alone,
    SYS_capset "capset" Alone,
    SYS_prlimit64 "prlimit64" Alone,
    SYS_sched_getaffinity "sched_getaffinity" Alone,
    SYS_sched_setaffinity "sched_setaffinity" Alone,
    SYS_rt_sigaction "rt_sigaction" Alone,
    SYS_sigaltstack "sigaltstack" Alone,
}

/// Calls that only x86-64 has, for which others have newer ones.
#[cfg(target_arch = "x86_64")]
const OLD_CALLS: &[(i64, &str, Subject)] = &[
    (libc::SYS_poll, "poll", Alone),
    (libc::SYS_epoll_wait, "epoll_wait", Descriptor(0)),
    (libc::SYS_open, "open", Alone),
    (libc::SYS_readlink, "readlink", Alone),
];
#[cfg(not(target_arch = "x86_64"))]
const OLD_CALLS: &[(i64, &str, Subject)] = &[];

/// The first call of a Rust program that the dynamic linker does not make.
pub(super) const FIRST: &str = "sigaltstack";

fn all() -> impl Iterator<Item = &'static (i64, &'static str, Subject)> {
    CALLS.iter().chain(OLD_CALLS)
}

/// Returns the numbers of all calls that are handed over.
pub(super) fn numbers() -> Vec<i64> {
    all().map(|(number, ..)| *number).collect()
}

/// Returns the name of a call that is handed over.
pub(super) fn name(number: i64) -> &'static str {
    all().find(|(known, ..)| *known == number).map_or("unknown", |(_, name, _)| name)
}

impl Call {
    /// Finds out what a call is about.
    pub(super) fn of(waiting: &Waiting, listener: &Listener) -> Self {
        let (name, subject) =
            all().find(|(number, ..)| *number == waiting.number).map_or(("unknown", Alone), |call| (call.1, call.2));
        let on = match subject {
            Alone => On::Nothing,
            Command(argument) => On::Command(waiting.arguments[argument]),
            NewSocket => {
                // The flags are above the type.
                let kind = SocketType::from_raw((waiting.arguments[1] & 0xf) as u32);
                of_socket(AddressFamily::from_raw(waiting.arguments[0] as u16), kind, false)
            }
            // The upper half of the register is not part of a descriptor.
            Descriptor(argument) => match waiting.arguments[argument] as i32 {
                -1 => On::Nothing,
                fd => of_descriptor(waiting.thread, fd, listener),
            },
        };
        Self { name, on }
    }
}

fn of_descriptor(thread: u32, fd: i32, listener: &Listener) -> On {
    let Ok(target) = fs::read_link(format!("/proc/{thread}/fd/{fd}")) else { return On::Other };
    match &*target.to_string_lossy() {
        "anon_inode:[eventfd]" => On::Event,
        "anon_inode:[eventpoll]" => On::Epoll,
        socket if socket.starts_with("socket:") => listener.duplicate(fd).map_or(On::Other, |fd| of_open_socket(&fd)),
        bpf if bpf.starts_with("anon_inode:bpf") => On::Bpf,
        pipe if pipe.starts_with("pipe:") => On::Pipe,
        file if file.starts_with('/') => On::File,
        _ => On::Other,
    }
}

fn of_open_socket(fd: &OwnedFd) -> On {
    let listens = sockopt::socket_acceptconn(fd).unwrap_or(false);
    match (sockopt::socket_domain(fd), sockopt::socket_type(fd)) {
        (Ok(domain), Ok(kind)) => of_socket(domain, kind, listens),
        _ => On::Other,
    }
}

fn of_socket(domain: AddressFamily, kind: SocketType, listens: bool) -> On {
    match (domain, kind) {
        (AddressFamily::NETLINK, _) => On::Netlink,
        (AddressFamily::PACKET, _) => On::Packet,
        (AddressFamily::UNIX, _) => On::Unix,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) if listens => On::Listener,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::STREAM) => On::Tcp,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::DGRAM) => On::Udp,
        (AddressFamily::INET | AddressFamily::INET6, SocketType::RAW) => On::Raw,
        _ => On::Other,
    }
}
