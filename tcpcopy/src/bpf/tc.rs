//! Attaching TC programs: as TCX links, or on kernels before 6.6 as filters of a clsact qdisc.
//!
//! A TCX link dies with the process. A filter and its qdisc do not: they are removed in `Drop`, and what a killed
//! process left behind is removed when the same program is attached again.

use aya::programs::{
    LinkOrder, ProgramError, SchedClassifier, TcAttachType,
    tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcError},
};
use netlink_packet_route::{
    RouteNetlinkMessage,
    tc::{TcHandle, TcMessage},
};
use rustix::io::Errno;

use super::{BpfError, error::patiently};
use crate::net::{NetError, interface::Interface, netlink::Netlink};

/// Attaches `program` at the head of the chain: a program of others that ends the chain cannot hide packets from it.
pub(super) fn attach_tcx(
    program: &mut SchedClassifier,
    name: &'static str,
    interface: &str,
    direction: TcAttachType,
) -> Result<SchedClassifierLink, BpfError> {
    let order = || TcAttachOptions::TcxOrder(LinkOrder::first());
    patiently(|| program.attach_with_options(interface, direction, order()))
        .and_then(|id| program.take_link(id))
        .map_err(|error| attach_error(name, interface, error))
}

/// Attaches `program` as a filter of the highest priority. There must be a [`Qdisc`].
pub(super) fn attach_filter(
    program: &mut SchedClassifier,
    name: &'static str,
    interface: &str,
    direction: TcAttachType,
) -> Result<SchedClassifierLink, BpfError> {
    let options = NlOptions { priority: 1, ..NlOptions::default() };
    program
        .attach_with_options(interface, direction, TcAttachOptions::Netlink(options))
        .and_then(|id| program.take_link(id))
        .map_err(|error| attach_error(name, interface, error))
}

fn attach_error(name: &'static str, interface: &str, error: ProgramError) -> BpfError {
    match error {
        ProgramError::TcError(TcError::NetlinkError(error)) if error.raw_os_error() == Some(EPERM) => {
            BpfError::Permission
        }
        // What else the look-up of its name may say is no proof that it is gone.
        ProgramError::TcError(TcError::IoError(error)) if error.raw_os_error() == Some(ENODEV) => {
            NetError::NoInterface { name: interface.to_owned() }.into()
        }
        error => BpfError::attach(name, interface, &error),
    }
}

/// The clsact qdisc of an interface. If it was made here, it is removed in `Drop`, unless another program has put
/// filters into it meanwhile. Drop our own filters first.
#[derive(Debug)]
pub(super) struct Qdisc {
    ifindex: u32,
    ours: bool,
}

impl Qdisc {
    /// Makes the qdisc if there is none, and removes the filters named in `stale` that a killed process left.
    pub(super) fn ensure(interface: &Interface, stale: &[(&'static str, TcAttachType)]) -> Result<Self, BpfError> {
        let mut ours = false;
        for (name, direction) in stale {
            // An error means that there is none, or no qdisc.
            if tc::qdisc_detach_program(&interface.name, *direction, name).is_ok() {
                log::warn!("{}: removed the filter `{name}` that a killed process had left", interface.name);
                // Then the qdisc most likely was its as well.
                ours = true;
            }
        }
        match tc::qdisc_add_clsact(&interface.name) {
            Ok(()) => ours = true,
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(EEXIST) => {}
            Err(TcError::NetlinkError(error)) if error.raw_os_error() == Some(EPERM) => {
                return Err(BpfError::Permission);
            }
            Err(error) => return Err(BpfError::attach("clsact", &interface.name, &error)),
        }
        Ok(Self { ifindex: interface.index, ours })
    }

    fn is_empty(&self) -> Result<bool, NetError> {
        for minor in [TcHandle::MIN_INGRESS, TcHandle::MIN_EGRESS] {
            let mut message = self.message();
            message.header.parent.minor = minor;
            let query = RouteNetlinkMessage::GetTrafficFilter(message);
            let filters: Vec<RouteNetlinkMessage> = Netlink::route()?.dump(query, "list the filters")?;
            if !filters.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn message(&self) -> TcMessage {
        let mut message = TcMessage::default();
        message.header.index = self.ifindex as i32;
        message.header.parent = TcHandle::CLSACT;
        message
    }
}

impl Drop for Qdisc {
    fn drop(&mut self) {
        if !self.ours {
            return;
        }
        let removed = self.is_empty().and_then(|empty| {
            if empty {
                let delete = RouteNetlinkMessage::DelQueueDiscipline(self.message());
                let action = || "remove our clsact qdisc".to_owned();
                Netlink::route()?.change(delete, 0).map_err(|source| NetError::Refused { action: action(), source })?;
            }
            Ok(())
        });
        match removed {
            // The interface is gone, and the qdisc with it.
            Err(NetError::Refused { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => {}
            Err(error) => log::warn!("the clsact qdisc of interface {} could not be removed: {error}", self.ifindex),
            Ok(()) => {}
        }
    }
}

const EPERM: i32 = Errno::PERM.raw_os_error();
const ENODEV: i32 = Errno::NODEV.raw_os_error();
const EEXIST: i32 = Errno::EXIST.raw_os_error();

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    /// Who takes an interface for gone does not hook it, and answers leave by it.
    #[test]
    fn an_interface_is_not_taken_for_gone_for_want_of_a_descriptor() {
        let error = |errno: Errno| {
            let error = ProgramError::TcError(TcError::IoError(io::Error::from(errno)));
            attach_error("swallow_tcx", "eth0", error)
        };
        assert!(matches!(error(Errno::NODEV), BpfError::Net(NetError::NoInterface { .. })));
        for errno in [Errno::MFILE, Errno::NFILE, Errno::NOMEM, Errno::NOBUFS] {
            let error = error(errno);
            assert!(matches!(error, BpfError::Attach { .. }), "{error}");
            assert!(error.to_string().contains(&io::Error::from(errno).to_string()), "{error}");
        }
    }
}
