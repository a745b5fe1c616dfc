//! The reaper: forgets sessions whose socket is gone, destroys sockets whose owner is gone.
//!
//! An entry of the session map may go only when nothing can answer for it any more, or a response would leave the host
//! (S3): the target has no socket for the four-tuple, and the replayed client has been silent for [`LINGER`], so that
//! not even a late retransmission can provoke a RST.

use std::{
    collections::HashSet,
    net::IpAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tcpcopy_common::{counters::TargetCounter, flow::Flow, response::Session};

use super::{
    refused::RefusedSyns,
    registry::{Instances, lock},
};
use crate::{
    bpf::Interceptor,
    mailbox::{Closed, Inbox},
    net::{
        NetError, interface, neighbour,
        sockdiag::{Family, SockDiag, TcpSocket},
    },
    time::{Nanos, now},
};

/// How often the reaper looks.
const INTERVAL: Duration = Duration::from_secs(1);
/// How long the replayed client of a session without a socket must have been silent. More than twice the longest back-off
/// of the replay engine's retransmissions (60 s), and than the usual keep-alive time-outs of servers whose sockets are in
/// another network namespace, where they cannot be seen.
const LINGER: Duration = Duration::from_secs(130);
/// How often sockets are destroyed again at the end before we give up.
const FINAL_ROUNDS: u32 = 100;
/// Between two of these rounds.
const FINAL_PAUSE: Duration = Duration::from_millis(20);
/// After so many rounds in which there was nothing to destroy and nothing to swallow, all is over.
const FINAL_QUIET: u32 = 3;

/// The reaper's state.
pub struct Reaper {
    interceptor: Arc<Mutex<Interceptor>>,
    instances: Arc<Instances>,
    inbox: Inbox<()>,
    /// Clients about whom the operator was told already.
    unreachable: HashSet<IpAddr>,
    refused: RefusedSyns,
}

impl Reaper {
    /// A reaper that ends when an order comes.
    #[must_use]
    pub fn new(interceptor: Arc<Mutex<Interceptor>>, instances: Arc<Instances>, inbox: Inbox<()>) -> Self {
        Self { interceptor, instances, inbox, unreachable: HashSet::new(), refused: RefusedSyns::default() }
    }

    /// Runs until it is told to stop, then destroys every replayed connection.
    pub fn run(mut self) {
        loop {
            if let Err(e) = self.round() {
                log::warn!("cannot look after the replayed connections: {e}");
            }
            self.inbox.wait(None, std::iter::empty(), INTERVAL);
            match self.inbox.next() {
                Ok(None) => {}
                Ok(Some(())) | Err(Closed) => return self.destroy_all(),
            }
        }
    }

    fn round(&mut self) -> Result<(), NetError> {
        self.instances.expire();
        let looked = now();
        if let Ok(counters) = lock(&self.interceptor).counters() {
            self.refused.lines(|c| counters.get(c), looked).iter().for_each(|line| log::warn!("{line}"));
        }
        let sessions = self.sessions();
        if sessions.is_empty() {
            return Ok(());
        }
        let mut sock_diag = SockDiag::open()?;
        let sockets = connections(&mut sock_diag)?;
        for (flow, session) in &sessions {
            if sockets.contains(flow) {
                if !self.instances.is_known(session.instance) {
                    destroy(&mut sock_diag, flow);
                }
            } else if looked.since(Nanos(session.last_seen_ns)) >= LINGER {
                self.forget(flow, session);
            }
        }
        self.warn_of_unreachable_clients(&sessions)
    }

    fn sessions(&self) -> Vec<(Flow, Session)> {
        let interceptor = lock(&self.interceptor);
        interceptor
            .sessions()
            .filter_map(|entry| entry.inspect_err(|e| log::warn!("cannot read the session map: {e}")).ok())
            .collect()
    }

    fn forget(&self, flow: &Flow, seen: &Session) {
        let mut interceptor = lock(&self.interceptor);
        // The owner may have taken the four-tuple for a new session since we looked.
        match interceptor.session(flow) {
            Ok(Some(current)) if current == *seen => {
                if let Err(e) = interceptor.remove_session(flow) {
                    log::warn!("cannot forget a session: {e}");
                }
            }
            Ok(_) => {}
            Err(e) => log::warn!("cannot read the session map: {e}"),
        }
    }

    /// An answer to a client that is on-link but absent waits for ARP or ND and never reaches our egress program.
    fn warn_of_unreachable_clients(&mut self, sessions: &[(Flow, Session)]) -> Result<(), NetError> {
        let failed = neighbour::unresolved()?;
        if failed.is_empty() {
            return Ok(());
        }
        let clients: HashSet<IpAddr> = sessions.iter().map(|(f, _)| f.client.into()).collect();
        for neighbour in failed {
            if clients.contains(&neighbour.address) && self.unreachable.insert(neighbour.address) {
                let device = interface::by_index(neighbour.ifindex)?.name;
                log::warn!(
                    "client {} is on the link of {device} but nobody answers for it, so the answers to it wait for a neighbour \
                     and its connections fail; give it one: ip neigh replace {} lladdr 02:00:00:00:00:01 dev {device} nud permanent",
                    neighbour.address,
                    neighbour.address,
                );
            }
        }
        Ok(())
    }

    /// Destroys the sockets of all replayed sessions, so that none answers after our programs are detached.
    ///
    /// The channels are closed, so the sources send no more; but what they have sent may still be under way, become a
    /// socket, or be answered with a RST. So this goes on until there are no sockets and nothing was swallowed for a while.
    fn destroy_all(&self) {
        let mut swallowed = self.swallowed();
        let mut quiet = 0;
        for _ in 0..FINAL_ROUNDS {
            let sessions = self.sessions();
            if sessions.is_empty() {
                return;
            }
            let looked = SockDiag::open().and_then(|mut diag| connections(&mut diag).map(|found| (diag, found)));
            let (mut sock_diag, sockets) = match looked {
                Ok(looked) => looked,
                Err(e) => return log::error!("cannot list the sockets of replayed connections: {e}"),
            };
            let left: Vec<&Flow> = sessions.iter().map(|(f, _)| f).filter(|f| sockets.contains(f)).collect();
            let before = std::mem::replace(&mut swallowed, self.swallowed());
            quiet = if left.is_empty() && swallowed == before { quiet + 1 } else { 0 };
            if quiet == FINAL_QUIET {
                return;
            }
            log::debug!("destroying {} replayed connections", left.len());
            left.into_iter().for_each(|flow| destroy(&mut sock_diag, flow));
            std::thread::sleep(FINAL_PAUSE);
        }
        log::warn!("some replayed connections could not be destroyed; their answers may reach clients");
    }

    fn swallowed(&self) -> u64 {
        lock(&self.interceptor).counters().map_or(0, |c| c.get(TargetCounter::Swallowed))
    }
}

/// All TCP connections of the host, seen from their clients.
fn connections(sock_diag: &mut SockDiag) -> Result<HashSet<Flow>, NetError> {
    let mut found = HashSet::new();
    // An IPv4 connection of a dual-stack listener is a socket of the IPv6 family.
    for family in [Family::V4, Family::V6] {
        found.extend(sock_diag.tcp_sockets(family)?.iter().map(TcpSocket::flow));
    }
    Ok(found)
}

fn destroy(sock_diag: &mut SockDiag, flow: &Flow) {
    if let Err(e) = sock_diag.destroy(flow) {
        log::warn!("cannot destroy a replayed connection: {e}");
    }
}
