//! What can go wrong between us and the kernel's BPF subsystem.

use std::{error::Error, io, time::Duration};

use aya::{EbpfError, maps::MapError};
use rustix::io::Errno;

use crate::net::NetError;

/// An eBPF program, map or ring could not be set up or used.
#[derive(Debug, thiserror::Error)]
pub enum BpfError {
    /// The process lacks the privileges.
    #[error(
        "the kernel refused the eBPF programs (EPERM): run as root or with the capabilities CAP_BPF, CAP_NET_ADMIN and \
         CAP_PERFMON; a container may need them granted too, and its seccomp filter has to allow bpf(2)"
    )]
    Permission,
    /// One of the interfaces carries the packets of the other, so that each would be captured twice.
    #[error("`{upper}` is stacked on `{lower}`, so that every packet would be captured twice: name only one of them")]
    Stacked {
        /// The device below: a port of a bridge or bond, or the parent of a VLAN.
        lower: String,
        /// The device above.
        upper: String,
    },
    /// Two rules for the same address and port.
    #[error("two rules name {address} port {port}: remove one of them")]
    DuplicateRule {
        /// The address of both, or "any address".
        address: String,
        /// The port of both.
        port: u16,
    },
    /// The number of workers is out of range.
    #[error("{workers} workers asked for, but 1 to {max} are possible")]
    Workers {
        /// As given.
        workers: u32,
        /// The largest possible number.
        max: u32,
    },
    /// XDP sees Ethernet frames only.
    #[error("`{interface}` has no Ethernet header, which XDP needs: capture at TC ingress")]
    XdpNotEthernet {
        /// Its name.
        interface: String,
    },
    /// The driver has no native XDP, or not in its present configuration.
    #[error(
        "the driver of `{interface}` refused XDP in {mode} mode ({source}): capture at TC ingress, or try without LRO \
         and with fewer or more queues (`ethtool -K`, `ethtool -L`)"
    )]
    XdpRefused {
        /// Its name.
        interface: String,
        /// "native" or "generic".
        mode: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The MTU is too large for native XDP.
    #[error(
        "the MTU of `{interface}` is too large for XDP in its driver: lower it (`ip link set mtu`) or capture at TC \
         ingress"
    )]
    XdpMtu {
        /// Its name.
        interface: String,
    },
    /// There is an XDP program already.
    #[error(
        "`{interface}` has another XDP program (`bpftool net` shows it): capture at TC ingress, which \
         disturbs no other program"
    )]
    XdpBusy {
        /// Its name.
        interface: String,
    },
    /// The kernel lacks a feature.
    #[error("this kernel lacks {}, which came with Linux {}: {}", .0.name(), .0.since(), .0.remedy())]
    Kernel(KernelFeature),
    /// The object could not be loaded.
    #[error("loading the eBPF object failed: it needs Linux 5.10 or later with CONFIG_BPF_SYSCALL")]
    Object(#[source] Box<EbpfError>),
    /// The object lacks a program or a map: it was not built from this source.
    #[error("the eBPF object lacks `{name}`: build again from clean (`cargo clean -p tcpcopy`)")]
    Missing {
        /// The program or map.
        name: &'static str,
    },
    /// The verifier refused a program that it accepts from a process with this capability.
    #[error(
        "the eBPF program `{program}` was refused by the kernel's verifier, as this process lacks the capability \
         CAP_PERFMON: grant it beside CAP_BPF and CAP_NET_ADMIN, or run as root"
    )]
    Perfmon {
        /// Its name.
        program: &'static str,
    },
    /// The verifier refused a program.
    #[error(
        "the eBPF program `{program}` was refused by the kernel's verifier (Linux {kernel}); please report it with the \
         end of what that said (RUST_LOG=info,tcpcopy::bpf=debug shows all of it):\n{log}"
    )]
    Verifier {
        /// Its name.
        program: &'static str,
        /// The kernel's release, as `uname -r` has it.
        kernel: String,
        /// The last lines of its log, which give the reason.
        log: String,
    },
    /// The kernel refused a program before the verifier could see it.
    #[error("the kernel (Linux {kernel}) did not load the eBPF program `{program}` ({reason})")]
    Load {
        /// Its name.
        program: &'static str,
        /// The kernel's release, as `uname -r` has it.
        kernel: String,
        /// The kernel's answer.
        reason: String,
    },
    /// A program could not be attached.
    #[error("attaching the eBPF program `{program}` to `{interface}` failed ({reason})")]
    Attach {
        /// Its name.
        program: &'static str,
        /// Where.
        interface: String,
        /// The kernel's answer.
        reason: String,
    },
    /// A map could not be read or written.
    #[error("the eBPF map `{map}` could not be {action}")]
    Map {
        /// Its name.
        map: &'static str,
        /// "read" or "written".
        action: &'static str,
        /// The kernel's answer.
        source: Box<MapError>,
    },
    /// A ring buffer could not be created or mapped.
    #[error("a ring buffer of {bytes} bytes could not be made ({source}): is there enough memory?")]
    Ring {
        /// Its size.
        bytes: u32,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel could not be asked about its interfaces.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// A feature that not every supported kernel has, and that can be done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelFeature {
    /// XDP programs that see packets in several buffers.
    XdpFragments,
    /// Links of TC programs.
    Tcx,
}

impl KernelFeature {
    /// Returns its name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::XdpFragments => "XDP with fragments",
            Self::Tcx => "TCX",
        }
    }

    /// Returns the version of Linux that brought it.
    const fn since(self) -> &'static str {
        match self {
            Self::XdpFragments => "5.18",
            Self::Tcx => "6.6",
        }
    }

    /// Returns what does without it.
    const fn remedy(self) -> &'static str {
        match self {
            Self::XdpFragments => "capture at TC ingress",
            Self::Tcx => "attach with clsact",
        }
    }
}

impl BpfError {
    pub(super) fn object(error: EbpfError) -> Self {
        if is_eperm(&error) { Self::Permission } else { Self::Object(Box::new(error)) }
    }

    pub(super) fn attach(program: &'static str, interface: &str, error: &(dyn Error + 'static)) -> Self {
        if is_eperm(error) {
            return Self::Permission;
        }
        Self::Attach { program, interface: interface.to_owned(), reason: with_causes(error) }
    }

    pub(super) fn read(map: &'static str) -> impl Fn(MapError) -> Self {
        move |error| Self::Map { map, action: "read", source: Box::new(error) }
    }

    pub(super) fn write(map: &'static str) -> impl Fn(MapError) -> Self {
        move |error| Self::Map { map, action: "written", source: Box::new(error) }
    }

    pub(super) fn ring(bytes: u32, error: impl Into<io::Error>) -> Self {
        let source = error.into();
        if source.raw_os_error() == Some(EPERM) { Self::Permission } else { Self::Ring { bytes, source } }
    }
}

const EPERM: i32 = Errno::PERM.raw_os_error();

/// Returns whether an operating-system error EPERM is at the bottom of `error`.
pub(super) fn is_eperm(error: &(dyn Error + 'static)) -> bool {
    is_one_of(error, &[Errno::PERM])
}

/// Returns whether one of these operating-system errors is at the bottom of `error`.
fn is_one_of(error: &(dyn Error + 'static), errors: &[Errno]) -> bool {
    let is_one = |answer: &io::Error| Errno::from_io_error(answer).is_some_and(|answer| errors.contains(&answer));
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref().is_some_and(is_one) || error.downcast_ref().is_some_and(|e| errors.contains(e)) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What the kernel says when a signal has come (the verifier: EAGAIN), a lock is held, or memory is short for a moment.
const PASSING: [Errno; 4] = [Errno::INTR, Errno::AGAIN, Errno::BUSY, Errno::NOMEM];
/// How often it is asked then, as libbpf does.
const TRIES: u32 = 5;
/// Between two of these.
const PAUSE: Duration = Duration::from_millis(1);

/// Asks the kernel for something, and again when it refuses for a reason that passes. For what does the same, or
/// nothing, when it is done twice.
pub(super) fn patiently<T, E: Error + 'static>(mut ask: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let mut tries = 1;
    loop {
        match ask() {
            Err(error) if tries < TRIES && is_one_of(&error, &PASSING) => {
                log::debug!("asking the kernel again: {}", with_causes(&error));
                std::thread::sleep(PAUSE);
                tries += 1;
            }
            done => return done,
        }
    }
}

/// Returns the message of `error` and of what caused it, in one line.
pub(super) fn with_causes(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Takes the absence of what was to be removed for success.
pub(super) fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use aya::{programs::ProgramError, sys::SyscallError};

    use super::*;
    use crate::bpf::refusal::refusal;

    #[test]
    fn a_refusal_for_want_of_privileges_says_what_to_do() {
        let eperm = || SyscallError { call: "bpf_map_create", io_error: io::Error::from_raw_os_error(EPERM) };
        let errors = [
            BpfError::object(EbpfError::MapError(MapError::SyscallError(eperm()))),
            refusal("capture_tc", &ProgramError::SyscallError(eperm())),
            BpfError::attach("capture_tc", "eth0", &ProgramError::SyscallError(eperm())),
            BpfError::ring(4096, Errno::PERM),
        ];
        for error in errors {
            assert!(error.to_string().contains("run as root or with the capabilities"), "{error}");
        }
    }

    #[test]
    fn only_what_passes_is_asked_for_again_and_not_for_ever() {
        let failing = |errno: Errno, times: u32| {
            let mut asked = 0;
            let refused =
                || MapError::SyscallError(SyscallError { call: "bpf_map_update_elem", io_error: errno.into() });
            let result = patiently(|| {
                asked += 1;
                if asked > times { Ok(()) } else { Err(refused()) }
            });
            (result.is_ok(), asked)
        };
        for errno in PASSING {
            assert_eq!(failing(errno, 1), (true, 2), "{errno}");
            assert_eq!(failing(errno, u32::MAX), (false, TRIES), "{errno}");
        }
        for errno in [Errno::PERM, Errno::NOENT, Errno::TOOBIG, Errno::MFILE] {
            assert_eq!(failing(errno, 1), (false, 1), "{errno}");
        }
    }

    #[test]
    fn another_refusal_keeps_its_cause() {
        let error = SyscallError { call: "bpf_link_create", io_error: Errno::BUSY.into() };
        let text = BpfError::attach("learn", "eth0", &error).to_string();
        assert!(
            text.contains("`learn`") && text.contains("`bpf_link_create` failed: ") && text.contains("busy"),
            "{text}"
        );
    }
}
