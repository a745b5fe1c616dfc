//! Why a service has not answered a SYN, as far as the sockets and neighbours of this host tell.

use std::time::Duration;

use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_sock_diag::{TCP_LISTEN, TCP_TIME_WAIT};
use tcpcopy_common::{
    flow::{Flow, IpAddress},
    response::option,
};
use tcpcopy_replay::Nanos;

use crate::net::{NetError, neighbour, netlink::Netlink, route, sockdiag::SockDiag};

/// How long a service that was full is taken to be so: thousands of SYNs may wait for an answer.
const STILL_FULL: Duration = Duration::from_millis(20);

/// Looks up the services that replayed clients want.
#[derive(Default)]
pub(super) struct Services {
    /// Opened when it is first needed; a kernel that cannot be asked explains nothing.
    diag: Option<SockDiag>,
    full: Option<(IpAddress, [u8; 2], Nanos)>,
}

impl Services {
    /// Returns the [`option`]s that a report about a SYN of `flow` has.
    pub(super) fn look_up(&mut self, flow: &Flow, now: Nanos) -> u8 {
        let of_service =
            |(address, port, _): &(IpAddress, [u8; 2], Nanos)| (*address, *port) == (flow.server, flow.server_port);
        if self.full.as_ref().is_some_and(|full| of_service(full) && now.since(full.2) < STILL_FULL) {
            return option::SERVICE_FULL;
        }
        if self.diag.is_none() {
            self.diag = SockDiag::open().ok();
        }
        let Some(diag) = &mut self.diag else { return 0 };
        match diag.find(flow) {
            Ok(Some(socket)) if socket.state == TCP_LISTEN => {
                let (waiting, most) = socket.waiting;
                if waiting <= most {
                    return 0;
                }
                self.full = Some((flow.server, flow.server_port, now));
                option::SERVICE_FULL
            }
            // What waits for stray segments only is of an earlier connection.
            Ok(Some(socket)) if socket.state != TCP_TIME_WAIT => option::ANSWERED | waits(flow.client),
            Ok(_) => 0,
            Err(e) => {
                log::debug!("{e}");
                0
            }
        }
    }
}

/// Returns [`option::NEIGHBOUR_SILENT`] if what is sent to `client` waits for a link-layer address. Rarely asked.
fn waits(client: IpAddress) -> u8 {
    let is_silent = || -> Result<bool, NetError> {
        let mut netlink = Netlink::route()?;
        let client = client.into();
        let route = route::lookup(&mut netlink, client)?;
        let neighbour = neighbour::lookup(&mut netlink, route.next_hop(client), route.oif)?;
        Ok(neighbour.is_some_and(|n| matches!(n.state, NeighbourState::Incomplete | NeighbourState::Failed)))
    };
    match is_silent() {
        Ok(true) => option::NEIGHBOUR_SILENT,
        Ok(false) => 0,
        Err(e) => {
            log::debug!("{e}");
            0
        }
    }
}
