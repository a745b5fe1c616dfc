//! The kernel's version, and the BPF system calls that aya does not offer in the form that we need.
//!
//! - A ring buffer that no object declares, to put into an array of maps.
//! - An XDP *link*: aya falls back to netlink when the kernel answers EINVAL, and what netlink attaches would survive
//!   us.
//! - Reading many entries of a map at once (Linux 5.6).

use std::{
    io,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd},
};

use aya::util::KernelVersion;
use bytemuck::{NoUninit, Pod, Zeroable};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_LOOKUP_BATCH: libc::c_int = 24;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_TYPE_RINGBUF: u32 = 27;
const BPF_XDP: u32 = 37;
/// Generic mode: the stack runs the program on the socket buffer.
pub(super) const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
/// Native mode: the driver runs the program.
pub(super) const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
struct MapCreate {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    map_name: [u8; 16],
}

/// The head of `union bpf_attr` for `BPF_LINK_CREATE`.
#[repr(C)]
#[derive(Clone, Copy, NoUninit, Zeroable)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

/// `union bpf_attr` for the commands on many entries of a map. Addresses are of memory of ours.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Returns whether the running kernel is of that version or later.
pub(super) fn kernel_at_least(major: u8, minor: u8) -> bool {
    KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(major, minor, 0))
}

/// Creates a ring buffer. `bytes` is a power of two of pages.
pub(super) fn create_ring(bytes: u32) -> io::Result<OwnedFd> {
    bpf(
        BPF_MAP_CREATE,
        &MapCreate {
            map_type: BPF_MAP_TYPE_RINGBUF,
            max_entries: bytes,
            map_name: *b"CAPTURE_RING\0\0\0\0",
            ..MapCreate::zeroed()
        },
    )
}

/// Attaches an XDP program in the mode of `flags`. The program is detached when the last descriptor is closed.
pub(super) fn create_xdp_link(program: impl AsFd, ifindex: u32, flags: u32) -> io::Result<OwnedFd> {
    let prog_fd = program.as_fd().as_raw_fd() as u32;
    bpf(BPF_LINK_CREATE, &LinkCreate { prog_fd, target_ifindex: ifindex, attach_type: BPF_XDP, flags })
}

/// Reads entries of a hash map, at most as many as both slices have room for: all of some buckets, from the start or
/// from where an earlier call has ended. Returns how many there were, and where to go on unless that was the end.
///
/// `K` and `V` must have the sizes of the map's keys and values.
///
/// # Errors
/// The kernel's: ENOSPC when there is not even room for the next bucket.
pub(super) fn lookup_batch<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    from: Option<u32>,
    keys: &mut [K],
    values: &mut [V],
) -> io::Result<(usize, Option<u32>)> {
    let room = keys.len().min(values.len());
    let mut next = 0u32;
    let mut attr = Batch {
        in_batch: from.as_ref().map_or(0, |from| std::ptr::from_ref(from) as u64),
        out_batch: &raw mut next as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: room as u32,
        map_fd: map.as_raw_fd() as u32,
        ..Batch::zeroed()
    };
    // SAFETY: `attr` is laid out as `union bpf_attr` for this command, and all it points to outlives the call. The
    // kernel writes at most `count` keys and values, of the sizes that the caller has promised, and any octets are
    // valid ones.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_BATCH, &raw mut attr, size_of::<Batch>()) };
    let count = (attr.count as usize).min(room);
    if result == 0 {
        return Ok((count, Some(next)));
    }
    let error = io::Error::last_os_error();
    if error.raw_os_error() == Some(libc::ENOENT) { Ok((count, None)) } else { Err(error) }
}

fn bpf<A: NoUninit>(command: libc::c_int, attr: &A) -> io::Result<OwnedFd> {
    let size = size_of::<A>() as libc::c_uint;
    // SAFETY: `attr` is initialised memory of `size` bytes without padding, laid out as the head of `union bpf_attr`;
    // the kernel takes what lies beyond the given size as zero, and neither command writes to it.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attr), size) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: both commands return a descriptor that is new and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(result as libc::c_int) })
}
