//! What the process and each of its threads may do, beyond what any process may.
//!
//! To load and attach programs takes capabilities; to run takes few of them. [`harden`] is for the whole process and
//! comes before anything else; each thread then [keeps](keep) what its work needs. That holds for the thread alone
//! (capabilities(7)), so a new thread has what the thread had that made it, until it calls `keep` itself.
//!
//! All of this is rustix, which is linked for other system calls anyway: crates for capabilities bring the same few calls
//! in a larger frame.

use std::io;

use rustix::{
    io::Errno,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

use crate::finding::Finding;

/// What the loading of programs and maps takes. `CAP_PERFMON` is asked for by verifiers before Linux 6.12 or so for
/// `tcpcopy`, and by all for `intercept`.
pub const LOADING: CapabilitySet = CapabilitySet::BPF.union(CapabilitySet::PERFMON).union(CapabilitySet::NET_ADMIN);

/// What the sockets that send packets take.
pub const SENDING: CapabilitySet = CapabilitySet::NET_RAW;

/// What either program may need until it is ready: beside [`LOADING`] and [`SENDING`] a port below 1024, and on Linux 5.10 a limit on locked memory that is higher than the hard one (`SYS_RESOURCE`). `SYS_CHROOT` saves
/// memory (`bpf::loader`).
const STARTING: CapabilitySet = LOADING
    .union(SENDING)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_RESOURCE)
    .union(CapabilitySet::SYS_CHROOT);

/// Capabilities by the names that people grant them by.
const NAMES: [(CapabilitySet, &str); 4] = [
    (CapabilitySet::BPF, "CAP_BPF"),
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
];

/// Work of a running thread that the kernel does for the privileged only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// To attach programs, resolve neighbours, or destroy sockets: `CAP_NET_ADMIN`.
    Network,
    /// To read and write maps whose descriptors are ours. Since Linux 5.19 this takes no capability; before, it takes
    /// `CAP_BPF` where `kernel.unprivileged_bpf_disabled` is set. The kernel is asked.
    Maps,
}

/// Gives up, for the whole process and for good, what none of its work needs: new privileges by execve(2), and memory
/// in core dumps, which would have keys and the clients' octets in it. For the main thread before it makes others.
pub fn harden() -> Vec<Finding> {
    // Nothing is executed, so nothing is lost by this either. It takes CAP_SETPCAP, and is of little worth without.
    let _: io::Result<()> = empty_bounding_set().map_err(Into::into);
    let without = [
        (set_no_new_privs(true), "execve(2) may give this process new privileges"),
        (no_dumps(), "memory of this process, with keys and payload, may end in a core dump"),
    ];
    without
        .into_iter()
        .filter_map(|(result, danger)| result.err().map(|error| Finding::warning(danger).because(error.to_string())))
        .collect()
}

/// Forbids core dumps, to files and to programs that collect them, and with them reading the memory of this process by
/// others of the same user. To be called again when the process has become another user, which undoes it.
pub fn no_dumps() -> rustix::io::Result<()> {
    // What collects dumps by a pipe is not bound by the limit, and the limit can be seen from outside.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
}

fn empty_bounding_set() -> rustix::io::Result<()> {
    for capability in (0..u64::BITS).map(|bit| CapabilitySet::from_bits_retain(1 << bit)) {
        match remove_capability_from_bounding_set(capability) {
            Ok(()) => {}
            // Those beyond are not known to this kernel.
            Err(Errno::INVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Leaves this thread, and those that it makes, the capabilities by which the programs start: for a process that has
/// become another user.
///
/// # Errors
/// When the kernel refuses.
pub fn keep_for_the_start() -> io::Result<()> {
    let held = capabilities(None)?.permitted;
    // It stands for capabilities that a container may have been granted it for.
    let admin = if held.contains(LOADING) { CapabilitySet::empty() } else { CapabilitySet::SYS_ADMIN };
    Ok(set(held & (STARTING | admin))?)
}

/// Leaves this thread the capabilities for `needs`, as far as it has them, and gives up all others for good.
pub fn keep(needs: &[Need]) {
    if let Err(error) = kept(needs).and_then(set) {
        Finding::warning("a thread keeps all its capabilities").because(error.to_string()).log();
    }
}

/// Returns the capabilities for `needs` that this thread has.
fn kept(needs: &[Need]) -> rustix::io::Result<CapabilitySet> {
    let all = capabilities(None)?;
    let mut kept = CapabilitySet::empty();
    if needs.contains(&Need::Network) {
        kept |= CapabilitySet::NET_ADMIN;
    }
    if needs.contains(&Need::Maps) {
        set_capabilities(None, CapabilitySets { effective: kept & all.permitted, ..all })?;
        if maps_are_refused() {
            let has_bpf = all.permitted.contains(CapabilitySet::BPF);
            kept |= if has_bpf { CapabilitySet::BPF } else { CapabilitySet::SYS_ADMIN };
        }
    }
    Ok(kept & all.permitted)
}

/// Makes `kept` all that this thread has. Ambient capabilities go with inheritable ones.
fn set(kept: CapabilitySet) -> rustix::io::Result<()> {
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

/// Returns whether bpf(2) refuses whatever this thread asks of it.
fn maps_are_refused() -> bool {
    /// The command, and the head of `union bpf_attr` for it.
    const BPF_MAP_LOOKUP_ELEM: libc::c_int = 1;
    #[repr(C)]
    struct LookUp {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    // No descriptor: whoever may ask is told so (EBADF).
    let attr = LookUp { map_fd: u32::MAX, padding: 0, key: 0, value: 0, flags: 0 };
    // SAFETY: `attr` is initialised memory of the given size, which the kernel only reads; it holds no address.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &raw const attr, size_of::<LookUp>()) };
    result < 0 && io::Error::last_os_error().raw_os_error() == Some(libc::EPERM)
}

/// Returns the names of those `wanted` capabilities that this thread cannot use. Unknown counts as having them.
#[must_use]
pub fn missing(wanted: CapabilitySet) -> Vec<&'static str> {
    capabilities(None).map_or_else(|_| Vec::new(), |sets| names(wanted, sets.effective))
}

/// Returns the names of those `wanted` capabilities that `held` does not amount to.
fn names(wanted: CapabilitySet, held: CapabilitySet) -> Vec<&'static str> {
    // CAP_SYS_ADMIN contains those that were split off from it (Linux 5.8).
    let implied = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let held = if held.contains(CapabilitySet::SYS_ADMIN) { held | implied } else { held };
    let lacking = wanted - held;
    NAMES.iter().filter(|(capability, _)| lacking.contains(*capability)).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    /// Runs in a thread of its own, which alone loses its capabilities.
    fn apart<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
        thread::spawn(run).join().unwrap()
    }

    #[test]
    fn a_thread_keeps_what_it_needs_and_its_parent_what_it_had() {
        if !rustix::process::geteuid().is_root() {
            return crate::net::testing::skip("there is nothing to give up without root");
        }
        let before = capabilities(None).unwrap();
        for (needs, least) in [
            (&[][..], CapabilitySet::empty()),
            (&[Need::Network], CapabilitySet::NET_ADMIN),
            (&[Need::Maps], CapabilitySet::empty()),
            (&[Need::Network, Need::Maps], CapabilitySet::NET_ADMIN),
        ] {
            let (after, refused) = apart(move || {
                keep(needs);
                (capabilities(None).unwrap(), maps_are_refused())
            });
            let most = if needs.contains(&Need::Maps) { least | CapabilitySet::BPF } else { least };
            assert!(after.permitted.contains(least) && most.contains(after.permitted), "{needs:?}: {after:?}");
            assert_eq!((after.effective, after.inheritable), (after.permitted, CapabilitySet::empty()), "{needs:?}");
            assert!(!needs.contains(&Need::Maps) || !refused, "{needs:?}: maps cannot be used");
        }
        assert_eq!(capabilities(None).unwrap(), before);
    }

    #[test]
    fn what_is_given_up_does_not_come_back_and_is_kept_only_if_it_was_there() {
        let after = apart(|| {
            keep(&[]);
            keep(&[Need::Network, Need::Maps]);
            keep_for_the_start().unwrap();
            capabilities(None).unwrap()
        });
        assert_eq!(after.permitted, CapabilitySet::empty());
    }

    #[test]
    fn missing_capabilities_have_their_names_and_sys_admin_implies_two() {
        let all = LOADING | CapabilitySet::NET_RAW;
        assert_eq!(names(all, CapabilitySet::empty()), ["CAP_BPF", "CAP_PERFMON", "CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert_eq!(names(LOADING, CapabilitySet::BPF | CapabilitySet::NET_ADMIN), ["CAP_PERFMON"]);
        assert_eq!(names(all, CapabilitySet::SYS_ADMIN), ["CAP_NET_ADMIN", "CAP_NET_RAW"]);
        assert!(names(LOADING, LOADING).is_empty());
    }
}
