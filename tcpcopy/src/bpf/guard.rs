//! The guard at the sockets of the test host: what comes by an interface that is not hooked yet opens no connection, and
//! what would leave by one stays.
//!
//! An interface is announced when it is there already. Between that and our programs on it nobody would tell a replayed
//! connection from another. The guard's two programs see the packets of all sockets in our control group and those
//! below it, whatever interfaces there are or will be: from the root of the hierarchy, those of the whole host.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd as _, OwnedFd},
};

use aya::{
    maps::{Array, HashMap, MapData},
    programs::{CgroupAttachMode, CgroupSkb, CgroupSkbAttachType, ProgramError, cgroup_skb::CgroupSkbLink},
};
use rustix::{
    fs::{AtFlags, Mode, OFlags, open, openat, statat},
    mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen},
};
use socket2::SockRef;
use tcpcopy_common::hooks::{Landmark, SWALLOWS};

use super::{
    BpfError,
    error::{patiently, with_causes},
    names::{map, program},
    object::Object,
};
use crate::{control::random_bytes, net::interface::interfaces};

/// The programs, and where they are attached.
const PROGRAMS: [(&str, CgroupSkbAttachType); 2] =
    [(program::GUARD_INGRESS, CgroupSkbAttachType::Ingress), (program::GUARD_EGRESS, CgroupSkbAttachType::Egress)];

/// Whose packets the guard sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guarded {
    /// Those of all sockets of the host.
    Host,
    /// Those of the control group of this container, and of those below it.
    Container,
}

/// The guard, attached. Dropping this detaches it.
#[expect(dead_code, reason = "held for their Drop")]
pub(super) struct Guard {
    links: Vec<CgroupSkbLink>,
    landmark: UdpSocket,
}

/// Loads the programs of the guard.
///
/// # Errors
/// [`BpfError::Guard`] where the kernel has no programs at control groups.
pub(super) fn load(object: &mut Object) -> Result<(), BpfError> {
    PROGRAMS.iter().try_for_each(|(name, _)| {
        let program = object.program::<CgroupSkb>(name)?;
        patiently(|| program.load()).map_err(|error| refused("load the programs that guard sockets", &error))
    })
}

/// Says what our programs do ([`hooks`](tcpcopy_common::hooks)) on the interface of an index.
pub(super) fn note(object: &mut Object, ifindex: u32, done: u32) -> Result<(), BpfError> {
    let mut hooks = table(object)?;
    patiently(|| hooks.insert(ifindex, done, 0)).map_err(BpfError::write(map::HOOKS))
}

/// Says that our programs do nothing on the interface of an index.
pub(super) fn forget(object: &mut Object, ifindex: u32) {
    // One that nothing was said about is just as well.
    let _ = table(object).map(|mut hooks| patiently(|| hooks.remove(&ifindex)));
}

fn table(object: &mut Object) -> Result<HashMap<&mut MapData, u32, u32>, BpfError> {
    object.map_mut(map::HOOKS)?.try_into().map_err(BpfError::write(map::HOOKS))
}

impl Guard {
    /// Attaches the programs that [`load`] has loaded.
    ///
    /// # Errors
    /// [`BpfError::Guard`] where that is not possible, and those of maps and interfaces.
    pub(super) fn attach(object: &mut Object) -> Result<(Self, Guarded), BpfError> {
        let group = control_group()?;
        // What the host sends to itself reaches no client.
        for interface in interfaces()?.iter().filter(|interface| interface.loopback) {
            note(object, interface.index, SWALLOWS)?;
        }
        let landmark = landmark(object)?;
        let attach = |(name, direction): &(&'static str, CgroupSkbAttachType)| {
            let program = object.program::<CgroupSkb>(name)?;
            // A link lets others be there, and takes no flags that say so.
            let attached = patiently(|| program.attach(&group, *direction, CgroupAttachMode::Single));
            attached.and_then(|id| program.take_link(id)).map_err(|error| refused("guard sockets", &error))
        };
        let links = PROGRAMS.iter().map(attach).collect::<Result<_, _>>()?;
        // The root of the hierarchy has no type.
        let is_root = statat(&group, "cgroup.type", AtFlags::empty()).is_err();
        Ok((Self { links, landmark }, if is_root { Guarded::Host } else { Guarded::Container }))
    }
}

fn refused(action: &'static str, error: &ProgramError) -> BpfError {
    BpfError::Guard { action, reason: with_causes(error) }
}

/// Opens the topmost control group that can be seen.
fn control_group() -> Result<OwnedFd, BpfError> {
    let failed = |reason: String| BpfError::Guard { action: "find the hierarchy of control groups (cgroup2)", reason };
    let mounts = fs::read_to_string("/proc/self/mounts").map_err(|error| failed(error.to_string()))?;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    // Device, directory, type, and more.
    let opened = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, directory, "cgroup2", ..] => open(directory, flags, Mode::empty()).ok(),
        _ => None,
    });
    if let Some(group) = opened {
        return Ok(group);
    }
    // `ip netns exec` hides it. What is mounted here is seen by nobody, and gone with its descriptor.
    fsopen("cgroup2", FsOpenFlags::FSOPEN_CLOEXEC)
        .and_then(|context| {
            fsconfig_create(context.as_fd())?;
            let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY;
            let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
            openat(&mount, ".", flags, Mode::empty())
        })
        .map_err(|errno| failed(errno.to_string()))
}

/// Makes the socket by which the programs recognise this network namespace.
fn landmark(object: &mut Object) -> Result<UdpSocket, BpfError> {
    let failed = |reason: String| BpfError::Guard { action: "mark this network namespace", reason };
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).map_err(|error| failed(error.to_string()))?;
    let port = socket.local_addr().map_err(|error| failed(error.to_string()))?.port().to_be_bytes();
    let mark = u32::from_ne_bytes(random_bytes().map_err(|error| failed(error.to_string()))?).max(1);
    SockRef::from(&socket).set_mark(mark).map_err(|error| failed(error.to_string()))?;
    let mut landmarks: Array<&mut MapData, Landmark> =
        object.map_mut(map::LANDMARK)?.try_into().map_err(BpfError::write(map::LANDMARK))?;
    let landmark = Landmark { mark, port, _reserved: [0; 2] };
    patiently(|| landmarks.set(0, landmark, 0)).map_err(BpfError::write(map::LANDMARK))?;
    Ok(socket)
}
