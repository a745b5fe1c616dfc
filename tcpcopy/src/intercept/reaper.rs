//! The reaper: forgets sessions whose socket is gone, destroys sockets whose owner is gone.
//!
//! An entry of the session map may go only when nothing can answer for it any more, or a response would leave the host
//! (S3): the target has no socket for the four-tuple, and the replayed client has been silent for [`LINGER`], so that
//! not even a late retransmission can provoke a RST. By then TIME-WAIT is over (60 s), so such sockets are not looked
//! at.
//!
//! A socket is destroyed only if a session has opened it (S2). No session begins on the four-tuple of a connection of
//! the target's own, and the SYN of such a connection ends the session that is there before there is a socket. So a
//! listed socket is a session's if that was in the map before the list was made, and still is afterwards; what the
//! socket is by the time it is destroyed, its cookie tells.
//!
//! Most sessions have an owner and are not silent. So the map is read now and then, and the kernel is asked for sockets only
//! when that has found suspects.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Duration,
};

use log::Level;
use tcpcopy_common::{
    counters::TargetCounter,
    flow::Flow,
    response::{Session, state},
};
use tcpcopy_replay::Nanos;

use super::{checks, refused::RefusedSyns, registry::Instances};
use crate::{
    bpf::{BpfError, Sessions, TargetCounters, Walk},
    clock::now,
    finding::Finding,
    log_limit::{LogLimit, limited},
    mailbox::{Closed, Inbox},
    net::{
        NetError, interface,
        neighbour::{self, Neighbour},
        sockdiag::{Connections, SockDiag, Support, TcpSocket},
    },
    poll,
};

/// How often the reaper looks whether something has happened: an owner has ended, a neighbour is missing.
const INTERVAL: Duration = Duration::from_secs(1);
/// How often it goes through the session map when nothing has. Sessions stay so much longer than they must, which is
/// little beside [`LINGER`]; and a map of a hundred thousand takes some milliseconds.
const WALK_INTERVAL: Duration = Duration::from_secs(10);
/// How long the replayed client of a session without a socket must have been silent. More than twice the longest
/// back-off of the replay engine's retransmissions (60 s), and than the usual keep-alive time-outs of servers whose
/// sockets are in another network namespace, where they cannot be seen.
const LINGER: Duration = Duration::from_secs(130);
/// Suspects that are looked into together: what bounds the reaper's memory, to about 7 MB.
const SUSPECTS: usize = 1 << 16;
/// How often sockets are destroyed again at the end before we give up.
const FINAL_ROUNDS: u32 = 100;
/// Between two of these rounds.
const FINAL_PAUSE: Duration = Duration::from_millis(20);
/// After so many rounds in which there was nothing to destroy and nothing to swallow, all is over.
const FINAL_QUIET: u32 = 3;

/// Of so many absent clients the operator is told: who needs more lines needs a route, not a neighbour for each.
const TOLD_CLIENTS: usize = 256;

static ABSENT_CLIENTS: LogLimit = LogLimit::new("absent clients");

/// Sessions that may have to go, or whose sockets may.
type Suspects = HashMap<Flow, Session>;

/// Why the reaper could not do its work.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReapError {
    /// The session map cannot be read.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The kernel cannot be asked for sockets or neighbours.
    #[error(transparent)]
    Net(#[from] NetError),
}

/// The reaper's state.
pub(super) struct Reaper {
    sessions: Sessions,
    counters: Arc<TargetCounters>,
    instances: Arc<Instances>,
    inbox: Inbox<()>,
    /// When the session map is due.
    walk_at: Nanos,
    /// Hosts that do not answer for their address, as of the last round.
    absent: HashSet<IpAddr>,
    /// Clients about whom the operator was told already, [`TOLD_CLIENTS`] at most.
    unreachable: HashSet<IpAddr>,
    refused: RefusedSyns,
    /// What can be done with sockets.
    support: Support,
}

impl Reaper {
    /// A reaper that ends when an order comes.
    #[must_use]
    pub(super) fn new(
        sessions: Sessions,
        counters: Arc<TargetCounters>,
        instances: Arc<Instances>,
        support: Support,
        inbox: Inbox<()>,
    ) -> Self {
        Self {
            sessions,
            counters,
            instances,
            inbox,
            walk_at: Nanos::default(),
            absent: HashSet::new(),
            unreachable: HashSet::new(),
            refused: RefusedSyns::default(),
            support,
        }
    }

    /// Runs until it is told to stop, then destroys every replayed connection, if it can: after a panic of the rounds,
    /// too. Returns the sessions, which are all that is left.
    pub(super) fn run(mut self) -> Sessions {
        // What a round that panics leaves behind is true at every moment: sets of addresses, and a time.
        if catch_unwind(AssertUnwindSafe(|| self.rounds())).is_err() {
            // The main thread knows, and ends the program: first the channels and the keys, then this.
            while self.inbox.next() == Ok(None) {
                std::thread::sleep(FINAL_PAUSE);
            }
        }
        if self.support == Support::Destroy {
            self.destroy_all();
        }
        self.sessions
    }

    fn rounds(&mut self) {
        loop {
            if let Err(e) = self.round(now()) {
                limited!(
                    "the care for replayed connections",
                    Level::Warn,
                    "cannot look after the replayed connections: {e}"
                );
            }
            poll::wait(&self.inbox, std::iter::empty(), INTERVAL);
            match self.inbox.next() {
                Ok(None) => {}
                Ok(Some(())) | Err(Closed) => return,
            }
        }
    }

    fn round(&mut self, now: Nanos) -> Result<(), ReapError> {
        let orphaned = self.instances.expire();
        let counters = self.counters.read()?;
        self.refused.findings(|c| counters.get(c), now).iter().for_each(Finding::log);
        if counters.get(TargetCounter::Learned) == 0 {
            return Ok(());
        }
        let absent = neighbour::unresolved()?;
        let news = absent.iter().any(|neighbour| !self.absent.contains(&neighbour.address));
        self.absent = absent.iter().map(|neighbour| neighbour.address).collect();
        if orphaned || news || now >= self.walk_at {
            let destroyed = self.walk(now, &absent)?;
            // What was still under way may have become a socket meanwhile.
            self.walk_at = now.after(if destroyed > 0 { INTERVAL } else { WALK_INTERVAL });
        }
        Ok(())
    }

    /// Goes through all sessions; returns how many sockets were destroyed.
    fn walk(&mut self, now: Nanos, absent: &[Neighbour]) -> Result<usize, ReapError> {
        let mut suspects = Suspects::new();
        let mut destroyed = 0;
        let mut waited_for = HashSet::<IpAddr>::new();
        let mut walk = self.sessions.walk();
        loop {
            let Some(batch) = walk.batch()? else { break };
            for (flow, session) in batch {
                if !self.absent.is_empty() && self.absent.contains(&flow.client.into()) {
                    waited_for.insert(flow.client.into());
                }
                if is_silent(session, now) || !self.instances.is_known(session.instance) {
                    suspects.insert(*flow, *session);
                }
            }
            if suspects.len() >= SUSPECTS {
                destroyed += judge(&mut walk, &self.instances, self.support, now, std::mem::take(&mut suspects))?;
            }
        }
        destroyed += judge(&mut walk, &self.instances, self.support, now, suspects)?;
        self.warn_of_unreachable_clients(absent.iter().filter(|n| waited_for.contains(&n.address)))?;
        Ok(destroyed)
    }

    /// An answer to a client that is on-link but absent waits for ARP or ND and never reaches our egress program.
    fn warn_of_unreachable_clients<'a>(
        &mut self,
        clients: impl Iterator<Item = &'a Neighbour>,
    ) -> Result<(), NetError> {
        for neighbour in clients {
            if self.unreachable.len() < TOLD_CLIENTS && self.unreachable.insert(neighbour.address) {
                let device = interface::by_index(neighbour.ifindex)?.name;
                checks::absent_client(neighbour.address, &device).log_within(&ABSENT_CLIENTS);
            }
        }
        Ok(())
    }

    /// Destroys the sockets of all replayed sessions, so that none answers after our programs are detached.
    ///
    /// The channels are closed, so the sources send no more; but what they have sent may still be under way, become a
    /// socket, or be answered with a RST. So this goes on until there are no sockets and nothing was swallowed for a
    /// while.
    fn destroy_all(&mut self) {
        let mut swallowed = self.swallowed();
        let mut quiet = 0;
        for _ in 0..FINAL_ROUNDS {
            match self.left() {
                Ok(None) => return,
                Ok(Some((mut sock_diag, left))) => {
                    let before = std::mem::replace(&mut swallowed, self.swallowed());
                    quiet = if left.is_empty() && swallowed == before { quiet + 1 } else { 0 };
                    if quiet == FINAL_QUIET {
                        return;
                    }
                    log::debug!("destroying {} replayed connections", left.len());
                    left.iter().for_each(|socket| destroy(&mut sock_diag, socket));
                }
                // What is short now need not be so in the next round; nothing is detached before.
                Err(e) => {
                    quiet = 0;
                    let what = "cannot list the sockets of replayed connections";
                    limited!("sockets that are not listed", Level::Warn, "{what}: {e}");
                }
            }
            std::thread::sleep(FINAL_PAUSE);
        }
        log::warn!("some replayed connections could not be destroyed; their answers may reach clients");
    }

    /// Replayed connections with a socket in whatever state; `None` when there are no sessions.
    fn left(&mut self) -> Result<Option<(SockDiag, Vec<TcpSocket>)>, ReapError> {
        let mut sessions = Suspects::new();
        let mut walk = self.sessions.walk();
        while let Some(batch) = walk.batch()? {
            sessions.extend(batch.map(|(flow, session)| (*flow, *session)));
        }
        if sessions.is_empty() {
            return Ok(None);
        }
        let mut sock_diag = SockDiag::open()?;
        let mut left = Vec::new();
        sock_diag.connections(Connections::All, |socket| {
            if let Some(session) = sessions.get(&socket.flow()) {
                left.push((socket.clone(), *session));
            }
        })?;
        Ok(Some((sock_diag, opened_by_sessions(&self.sessions, left)?)))
    }

    fn swallowed(&self) -> u64 {
        self.counters.read().map_or(0, |c| c.get(TargetCounter::Swallowed))
    }
}

/// The sockets that were opened by the session that was on their four-tuple when they were listed.
fn opened_by_sessions(sessions: &Sessions, listed: Vec<(TcpSocket, Session)>) -> Result<Vec<TcpSocket>, BpfError> {
    let mut opened = Vec::new();
    for (socket, session) in listed {
        // One that looks for an orphan, and has not found it, may have met anything.
        if session.state != state::MEETING && sessions.lasts(&socket.flow(), &session)? {
            opened.push(socket);
        }
    }
    Ok(opened)
}

fn is_silent(session: &Session, now: Nanos) -> bool {
    now.since(Nanos(session.last_seen_ns)) >= LINGER
}

/// Destroys the sockets of suspects without an owner, and forgets the silent ones that have none; returns how many were destroyed.
fn judge(
    walk: &mut Walk<'_>,
    instances: &Instances,
    support: Support,
    now: Nanos,
    mut suspects: Suspects,
) -> Result<usize, ReapError> {
    if suspects.is_empty() {
        return Ok(0);
    }
    let mut destroyed = 0;
    if support != Support::Nothing {
        let mut sock_diag = SockDiag::open()?;
        let mut orphans = Vec::new();
        sock_diag.connections(Connections::NotInTimeWait, |socket| {
            if let Some(session) = suspects.remove(&socket.flow())
                && !instances.is_known(session.instance)
            {
                orphans.push((socket.clone(), session));
            }
        })?;
        if support == Support::Destroy {
            let orphans = opened_by_sessions(walk.sessions(), orphans)?;
            orphans.iter().for_each(|socket| destroy(&mut sock_diag, socket));
            destroyed = orphans.len();
        }
    }
    for (flow, session) in suspects.iter().filter(|(_, session)| is_silent(session, now)) {
        if let Err(e) = walk.forget(flow, session) {
            limited!("sessions that are not forgotten", Level::Warn, "cannot forget a session: {e}");
        }
    }
    Ok(destroyed)
}

fn destroy(sock_diag: &mut SockDiag, socket: &TcpSocket) {
    if let Err(e) = sock_diag.destroy_socket(socket) {
        limited!("connections that are not destroyed", Level::Warn, "cannot destroy a replayed connection: {e}");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read as _,
        net::{SocketAddr, TcpListener, TcpStream},
    };

    use bytemuck::Zeroable as _;

    use super::*;
    use crate::{
        bpf::{Intercept, InterceptSetup, Interceptor, TcAttach},
        control::{Hello, Registry as _},
        mailbox::mailbox,
        net::testing::{flow, ip, isolated},
    };

    const NOW: Nanos = Nanos(1_000_000_000_000);

    /// A reaper of a host without any session yet, and an instance that is known there.
    fn reaper() -> (Reaper, u32) {
        let setup = InterceptSetup {
            attach: TcAttach::Auto,
            max_sessions: 64,
            ring_bytes: 1 << 16,
            reflect: false,
            debug: false,
        };
        let Intercept { instances, sessions, counters, .. } = Interceptor::load(&setup).unwrap();
        let instances = Arc::new(Instances::new(instances, mailbox().unwrap().0));
        let owner = instances.register(&Hello::new(0, None, "test"), SocketAddr::from(([0; 4], 0))).unwrap();
        let inbox = mailbox().unwrap().1;
        (Reaper::new(sessions, Arc::new(counters), instances, Support::Destroy, inbox), owner.instance)
    }

    impl Reaper {
        fn add(&mut self, flow: &Flow, instance: u32, silent: Duration) {
            let seen = NOW.0 - silent.as_nanos() as u64;
            let session = Session { opened_ns: seen, last_seen_ns: seen, instance, ..Session::zeroed() };
            self.sessions.add(flow, &session).unwrap();
        }

        fn has(&self, flow: &Flow) -> bool {
            self.sessions.get(flow).unwrap().is_some()
        }
    }

    /// A connection with both ends.
    fn connection(listener: &TcpListener) -> (TcpStream, TcpStream, Flow) {
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = listener.accept().unwrap().0;
        let flow = flow(client.local_addr().unwrap(), client.peer_addr().unwrap());
        (client, server, flow)
    }

    #[test]
    fn only_silent_sessions_without_a_socket_are_forgotten() {
        isolated(|_| {
            let (mut reaper, owner) = reaper();
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let (_client, _server, with_socket) = connection(&listener);
            let without = |port| flow(([192, 0, 2, 7], port).into(), listener.local_addr().unwrap());
            let (silent, young) = (without(40_000), without(40_001));
            reaper.add(&with_socket, owner, LINGER);
            reaper.add(&silent, owner, LINGER);
            reaper.add(&young, owner, LINGER - Duration::from_nanos(1));
            assert_eq!(reaper.walk(NOW, &[]).unwrap(), 0);
            let left = [with_socket, silent, young].map(|flow| reaper.has(&flow));
            assert_eq!(left, [true, false, true]);
            // A segment has come since the walk.
            let seen = Session { last_seen_ns: NOW.0 - LINGER.as_nanos() as u64, instance: owner, ..Session::zeroed() };
            assert!(!reaper.sessions.walk().forget(&young, &seen).unwrap());
            assert!(reaper.has(&young));
        });
    }

    #[test]
    fn a_socket_that_is_bound_to_an_interface_is_destroyed_too() {
        isolated(|_| {
            let (mut reaper, owner) = reaper();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind_device(Some(b"lo")).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(1).unwrap();
            let (_client, mut server, flow) = connection(&socket.into());
            reaper.add(&flow, owner.wrapping_add(1), Duration::ZERO);
            assert_eq!(reaper.walk(NOW, &[]).unwrap(), 1);
            assert_eq!(server.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
            assert!(reaper.left().unwrap().unwrap().1.is_empty());
        });
    }

    #[test]
    fn sockets_whose_owner_is_gone_are_destroyed_and_their_sessions_stay_until_all_is_silent() {
        isolated(|_| {
            let (mut reaper, owner) = reaper();
            let listener = TcpListener::bind("[::]:0").unwrap();
            let (_client, mut owned, of_owner) = connection(&listener);
            let (_other, mut orphan, of_nobody) = connection(&listener);
            reaper.add(&of_owner, owner, Duration::ZERO);
            reaper.add(&of_nobody, owner.wrapping_add(1), Duration::ZERO);
            assert_eq!(reaper.walk(NOW, &[]).unwrap(), 1);
            let read = |socket: &mut TcpStream| {
                socket.set_nonblocking(true).unwrap();
                socket.read(&mut [0]).unwrap_err().raw_os_error()
            };
            assert_eq!(read(&mut orphan), Some(libc::ECONNABORTED));
            assert_eq!(read(&mut owned), Some(libc::EAGAIN));
            assert!(reaper.has(&of_nobody) && reaper.has(&of_owner));
            assert_eq!(reaper.walk(NOW, &[]).unwrap(), 0, "there is none any more");
        });
    }

    /// S2: a socket that no session has opened is somebody's.
    #[test]
    fn a_connection_of_the_target_s_own_is_not_destroyed() {
        isolated(|_| {
            let (mut reaper, owner) = reaper();
            let listener = TcpListener::bind("[::]:0").unwrap();
            let (_client, mut own, flow) = connection(&listener);
            let gone = owner.wrapping_add(1);
            let seen = Session { opened_ns: 5, instance: gone, isn: [1; 4], state: state::OPEN, ..Session::zeroed() };
            let later = Session { opened_ns: 6, ..seen };
            let judged = |reaper: &mut Reaper, seen: Session| {
                judge(
                    &mut reaper.sessions.walk(),
                    &reaper.instances,
                    Support::Destroy,
                    NOW,
                    Suspects::from([(flow, seen)]),
                )
                .unwrap()
            };
            // The session has gone, because a client of the target's own has come, or there is another, or it looks
            // for an orphan.
            assert_eq!(judged(&mut reaper, seen), 0);
            reaper.sessions.add(&flow, &later).unwrap();
            assert_eq!(judged(&mut reaper, seen), 0);
            let looking = Session { state: state::MEETING, ..seen };
            reaper.sessions.add(&flow, &looking).unwrap();
            assert_eq!(judged(&mut reaper, looking), 0);
            assert!(reaper.left().unwrap().unwrap().1.is_empty());
            // What has come since the walk is no reason.
            reaper.sessions.add(&flow, &Session { last_seen_ns: NOW.0, answered: 9, ..seen }).unwrap();
            assert_eq!(judged(&mut reaper, seen), 1);
            assert_eq!(own.read(&mut [0]).unwrap_err().raw_os_error(), Some(libc::ECONNABORTED));
        });
    }

    #[test]
    fn a_connection_that_the_target_asks_for_is_not_destroyed() {
        isolated(|_| {
            ip("route add 198.51.100.9/32 dev lo");
            let (mut reaper, owner) = reaper();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let away = SocketAddr::from(([198, 51, 100, 9], 80));
            assert_eq!(socket.connect(&away.into()).unwrap_err().raw_os_error(), Some(libc::EINPROGRESS));
            let flow = flow(away, socket.local_addr().unwrap().as_socket().unwrap());
            reaper.add(&flow, owner.wrapping_add(1), Duration::ZERO);
            assert_eq!(reaper.walk(NOW, &[]).unwrap(), 0);
            assert!(reaper.left().unwrap().unwrap().1.is_empty());
            assert_eq!(socket.take_error().unwrap().map(|e| e.raw_os_error()), None);
        });
    }
}
