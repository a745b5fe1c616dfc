//! How each target is reached, kept up to date while routes and neighbours change.
//!
//! A packet socket bypasses the kernel's routing and neighbour resolution, so both have to be done for it, before the
//! first packet and for ever after: it does not keep neighbours alive either, and to one that is unresolved its packets
//! vanish without an error.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use log::Level;
use netlink_packet_route::{RouteNetlinkMessage, neighbour::NeighbourState};
use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd},
    io::retry_on_intr,
};
use tcpcopy_common::flow::IpAddress;
use tcpcopy_wire::EthernetHeader;

use super::{
    address::SocketAddress,
    checks,
    error::{Backend, InjectError},
};
use crate::{
    clock::nap,
    finding::Finding,
    log_limit::{LogLimit, limited},
    net::{
        NetError,
        interface::{self, Interface, Mac},
        neighbour,
        netlink::{Announcements, Drained, Netlink},
        route::{self, RouteKind},
    },
    poll,
    privileges::{self, Need},
};

/// How long to wait, at start, for a next hop to answer: the kernel asks three times, a second apart.
const RESOLVE: Duration = Duration::from_secs(3);
/// How often everything is looked at without an announcement: path MTUs change silently, and a next hop that is down is
/// asked again.
const REVIEW: Duration = Duration::from_secs(5);
/// The least time between two looks, so that a route flap of a full BGP table costs little.
const CALM: Duration = Duration::from_millis(20);

static UNREACHABLE: LogLimit = LogLimit::new("unreachable targets");

/// How one target is reached at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Path {
    pub(super) target: IpAddress,
    /// The largest IP packet, in octets.
    pub(super) mtu: u16,
    pub(super) way: Way,
}

/// The socket that packets to a target go to, and the address to give it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// The frame socket, with this link header.
    Frame(SocketAddress, EthernetHeader),
    /// The packet socket, which makes the link header, if there is one.
    Packet(SocketAddress),
    /// The raw socket of the target's IP version.
    Raw(SocketAddress),
    /// None: there is no route, or the next hop does not answer.
    Blocked,
}

/// The paths to all targets, shared by all injectors, with a thread that keeps them up to date.
pub struct Paths {
    backend: Backend,
    shared: Arc<Shared>,
    stop: OwnedFd,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    /// Grows with each change.
    generation: AtomicU64,
    current: Mutex<Arc<[Path]>>,
}

/// A route, judged by what kind of socket can use it.
#[derive(Clone, Debug)]
enum Plan {
    /// Only a raw socket.
    Raw { mtu: u16 },
    /// A packet socket, without a link-layer address: the link has none (tun, PPP).
    Link { ifindex: u32, mtu: u16 },
    /// A packet or frame socket, once the next hop's link-layer address is known.
    Hop(Hop),
}

/// A next hop on an Ethernet.
#[derive(Clone, Debug)]
struct Hop {
    address: IpAddr,
    ifindex: u32,
    interface: String,
    mtu: u16,
    /// The interface's own address, where frames can be sent.
    source: Option<Mac>,
}

impl Hop {
    fn new(address: IpAddr, mtu: u16, out: Interface) -> Self {
        // Over hardware that does not add tags, the link header of a VLAN has the tag in it. The kernel takes the
        // header of a frame to be as long, which makes nonsense of its super-packets.
        let source = out.mac.filter(|_| out.kind.as_deref() != Some("vlan"));
        Self { address, ifindex: out.index, interface: out.name, mtu, source }
    }

    /// Returns the way by this hop, whose link-layer address is `mac`.
    fn way(&self, v6: bool, mac: Mac) -> Way {
        let to = SocketAddress::link(self.ifindex, v6, Some(mac));
        match self.source {
            Some(source) => Way::Frame(to, EthernetHeader::new(mac, source, v6)),
            None => Way::Packet(to),
        }
    }
}

impl Paths {
    /// Finds the way to each of `targets`: their routes, and their next hops' link-layer addresses, for whose answer it
    /// waits at most three seconds. From then on, a thread follows the changes.
    ///
    /// # Errors
    /// When a target cannot be reached; the message says why.
    pub fn open(backend: Backend, targets: &[IpAddr]) -> Result<Self, InjectError> {
        // Subscribe first: a change between the look-up and the watch must not be missed.
        let announcements = Announcements::subscribe(&[
            libc::RTNLGRP_LINK,
            libc::RTNLGRP_NEIGH,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV6_RULE,
        ])?;
        let mut netlink = Netlink::route()?;
        let targets: Vec<IpAddr> = targets.iter().map(IpAddr::to_canonical).collect();
        let plans: Vec<_> =
            targets.iter().map(|&target| plan(&mut netlink, backend, target)).collect::<Result<_, _>>()?;
        // Ask all before waiting for any.
        for plan in &plans {
            if let Plan::Hop(hop) = plan {
                neighbour::provoke(&mut netlink, hop.address, hop.ifindex)?;
            }
        }
        let deadline = Instant::now() + RESOLVE;
        let first: Vec<Path> = targets
            .iter()
            .zip(&plans)
            .map(|(&target, plan)| first_path(backend, target, plan, deadline))
            .collect::<Result<_, _>>()?;
        if first.iter().any(|path| matches!(path.way, Way::Raw(_))) {
            checks::connection_tracking().iter().for_each(Finding::log);
        }

        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|e| InjectError::Watch(e.into()))?;
        let shared = Arc::new(Shared { generation: AtomicU64::new(1), current: Mutex::new(first.clone().into()) });
        let watcher = Watcher {
            backend,
            targets,
            hops: hops(&plans),
            paths: first,
            shared: Arc::clone(&shared),
            netlink,
            announcements,
            stop: stop.try_clone().map_err(InjectError::Watch)?,
        };
        let watcher = std::thread::Builder::new()
            .name("tcpcopy-paths".into())
            .spawn(move || {
                privileges::keep(&[Need::Network]);
                watcher.run();
            })
            .map_err(InjectError::Watch)?;
        Ok(Self { backend, shared, stop, watcher: Some(watcher) })
    }

    pub(super) fn backend(&self) -> Backend {
        self.backend
    }

    /// Returns a number that grows when a path changes: one atomic load.
    pub(super) fn generation(&self) -> u64 {
        self.shared.generation.load(Ordering::Acquire)
    }

    pub(super) fn current(&self) -> Arc<[Path]> {
        Arc::clone(&self.shared.current.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        // Writing to an eventfd fails only if it overflows.
        if retry_on_intr(|| rustix::io::write(&self.stop, &1u64.to_ne_bytes())).is_ok()
            && let Some(watcher) = self.watcher.take()
        {
            // A panic of it was logged, and has ended the program.
            let _ = watcher.join();
        }
    }
}

/// Decides what kind of socket can reach `target`.
fn plan(netlink: &mut Netlink, backend: Backend, target: IpAddr) -> Result<Plan, InjectError> {
    let route = route::lookup(netlink, target)?;
    let mtu = u16::try_from(route.mtu).unwrap_or(u16::MAX);
    match (route.kind, backend) {
        (RouteKind::Shared, _) => return Err(InjectError::TargetNotUnicast { target }),
        (RouteKind::Local, Backend::Packet) => return Err(InjectError::TargetIsLocal { target }),
        (RouteKind::Local, _) | (_, Backend::Raw) => return Ok(Plan::Raw { mtu }),
        (RouteKind::Unicast, Backend::Auto | Backend::Packet) => {}
    }
    let out = interface::get(netlink, route.oif)?;
    if out.link_type == interface::ETHERNET {
        return Ok(Plan::Hop(Hop::new(route.next_hop(target), mtu, out)));
    }
    match backend {
        Backend::Packet if out.loopback => Err(InjectError::TargetIsLocal { target }),
        // Links whose addresses are longer than Ethernet's (InfiniBand).
        Backend::Packet if out.resolves => {
            Err(InjectError::LinkUnsupported { interface: out.name, link_type: out.link_type })
        }
        Backend::Packet => Ok(Plan::Link { ifindex: out.index, mtu }),
        Backend::Auto | Backend::Raw => Ok(Plan::Raw { mtu }),
    }
}

fn first_path(backend: Backend, target: IpAddr, plan: &Plan, deadline: Instant) -> Result<Path, InjectError> {
    let key = IpAddress::from(target);
    let path = |mtu, way| Path { target: key, mtu, way };
    Ok(match plan {
        Plan::Raw { mtu } => path(*mtu, Way::Raw(SocketAddress::ip(target))),
        Plan::Link { ifindex, mtu } => path(*mtu, Way::Packet(SocketAddress::link(*ifindex, target.is_ipv6(), None))),
        Plan::Hop(hop) => {
            let left = deadline.saturating_duration_since(Instant::now());
            match neighbour::resolve(hop.address, hop.ifindex, &hop.interface, left) {
                Ok(mac) => path(hop.mtu, hop.way(target.is_ipv6(), mac)),
                Err(NetError::NeighbourSilent { .. }) if backend == Backend::Auto => {
                    checks::silent_next_hop(hop.address, target, &hop.interface).log();
                    path(hop.mtu, Way::Raw(SocketAddress::ip(target)))
                }
                Err(e) => return Err(e.into()),
            }
        }
    })
}

/// Returns the next hops whose neighbour entries matter.
fn hops(plans: &[Plan]) -> Vec<IpAddr> {
    plans.iter().filter_map(|plan| if let Plan::Hop(hop) = plan { Some(hop.address) } else { None }).collect()
}

/// The thread's state.
struct Watcher {
    backend: Backend,
    targets: Vec<IpAddr>,
    hops: Vec<IpAddr>,
    paths: Vec<Path>,
    shared: Arc<Shared>,
    netlink: Netlink,
    announcements: Announcements,
    stop: OwnedFd,
}

impl Watcher {
    fn run(mut self) {
        let mut last = Instant::now();
        let mut dirty = false;
        loop {
            let due = last + if dirty { CALM } else { REVIEW };
            match self.wait(due.saturating_duration_since(Instant::now())) {
                Woken::Stop => return,
                Woken::Announced => dirty |= self.announced(),
                Woken::Timeout => {}
            }
            let now = Instant::now();
            let review = now >= last + REVIEW;
            if review || dirty && now >= last + CALM {
                self.update(review);
                dirty = false;
                last = now;
            }
        }
    }

    fn wait(&self, time: Duration) -> Woken {
        let mut fds = [
            PollFd::new(&self.stop, PollFlags::IN),
            PollFd::from_borrowed_fd(self.announcements.as_fd(), PollFlags::IN),
        ];
        poll::ready(&mut fds, time);
        match fds.each_ref().map(|fd| !fd.revents().is_empty()) {
            [true, _] => Woken::Stop,
            [_, true] => Woken::Announced,
            _ => Woken::Timeout,
        }
    }

    /// Reads the announcements. Whether any of them can matter.
    fn announced(&mut self) -> bool {
        let mut matters = false;
        let drained = self.announcements.drain(|message| {
            matters |= match &message {
                RouteNetlinkMessage::NewNeighbour(n) | RouteNetlinkMessage::DelNeighbour(n) => {
                    neighbour::subject(n).is_some_and(|address| self.hops.contains(&address))
                }
                _ => true,
            };
        });
        match drained {
            Ok(Drained::All) => matters,
            Ok(Drained::Gap) => {
                // More may wait, so that the next sleep would be none.
                nap(CALM);
                true
            }
            Err(e) => {
                limited!(
                    "unread announcements",
                    Level::Warn,
                    "announcements of routes and neighbours cannot be read: {e}"
                );
                // They may still be there, so that the next sleep would be none.
                nap(CALM);
                true
            }
        }
    }

    /// Looks up all paths anew and publishes them if one changed. In a `review`, next hops that are down are asked
    /// again.
    fn update(&mut self, review: bool) {
        let targets = std::mem::take(&mut self.targets);
        let plans: Vec<_> = targets.iter().map(|&target| plan(&mut self.netlink, self.backend, target)).collect();
        let mut changed = false;
        for (i, (&target, plan)) in targets.iter().zip(&plans).enumerate() {
            let before = self.paths[i];
            let now = self.path(target, plan, &before, review);
            if now != before {
                changed = true;
                report(target, &before, &now);
                self.paths[i] = now;
            }
        }
        self.targets = targets;
        self.hops = plans.iter().flatten().flat_map(|plan| hops(std::slice::from_ref(plan))).collect();
        if changed {
            *self.shared.current.lock().unwrap_or_else(PoisonError::into_inner) = self.paths.as_slice().into();
            self.shared.generation.fetch_add(1, Ordering::Release);
        }
    }

    fn path(&mut self, target: IpAddr, plan: &Result<Plan, InjectError>, before: &Path, review: bool) -> Path {
        let path = |mtu, way| Path { target: before.target, mtu, way };
        match plan {
            Ok(Plan::Raw { mtu }) => path(*mtu, Way::Raw(SocketAddress::ip(target))),
            Ok(Plan::Link { ifindex, mtu }) => {
                path(*mtu, Way::Packet(SocketAddress::link(*ifindex, target.is_ipv6(), None)))
            }
            Ok(Plan::Hop(hop)) => path(hop.mtu, self.hop(target, hop, before, review)),
            Err(InjectError::Net(NetError::Refused { .. } | NetError::Unexpected { .. } | NetError::Open(_))) => {
                // The question failed, which says nothing about the path.
                *before
            }
            Err(_) => path(before.mtu, Way::Blocked),
        }
    }

    /// Returns the way by a next hop whose neighbour entry may need care.
    fn hop(&mut self, target: IpAddr, hop: &Hop, before: &Path, review: bool) -> Way {
        let Ok(entry) = neighbour::lookup(&mut self.netlink, hop.address, hop.ifindex) else { return before.way };
        let usable = entry.as_ref().and_then(neighbour::Neighbour::usable);
        let state = entry.map_or(NeighbourState::None, |entry| entry.state);
        let ask = match state {
            NeighbourState::Stale | NeighbourState::None => true,
            NeighbourState::Failed => review,
            _ => false,
        };
        if ask && let Err(e) = neighbour::provoke(&mut self.netlink, hop.address, hop.ifindex) {
            log::debug!("{e}");
        }
        match (usable, state, before.way) {
            (Some(mac), ..) => hop.way(target.is_ipv6(), mac),
            // Raw since the start, because nobody answered: the kernel itself queues for the next hop.
            (None, _, raw @ Way::Raw(_)) if self.backend == Backend::Auto => raw,
            (None, NeighbourState::Failed, _) => Way::Blocked,
            // The entry was removed, or is being resolved anew. The address that was valid a moment ago most likely is.
            (None, _, Way::Packet(to) | Way::Frame(to, _)) if to.ifindex() == Some(hop.ifindex) => before.way,
            (None, ..) => Way::Blocked,
        }
    }
}

enum Woken {
    Stop,
    Announced,
    Timeout,
}

fn report(target: IpAddr, before: &Path, now: &Path) {
    match now.way {
        Way::Blocked => checks::unreachable(target).log_within(&UNREACHABLE),
        _ if before.way != now.way => {
            limited!("paths", Level::Info, "packets to the target {target} take another path now");
        }
        _ => limited!("MTUs", Level::Info, "the MTU of the path to the target {target} is now {}", now.mtu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_for_links_whose_header_is_always_the_same() {
        let way = |kind: Option<&str>, mac| {
            let out = Interface {
                index: 3,
                name: "e".into(),
                up: true,
                loopback: false,
                resolves: true,
                mtu: 1500,
                link_type: interface::ETHERNET,
                mac,
                kind: kind.map(str::to_owned),
                master: None,
                lower: None,
            };
            Hop::new([192, 0, 2, 1].into(), 1500, out).way(false, [1; 6])
        };
        let to = SocketAddress::link(3, false, Some([1; 6]));
        let frame = Way::Frame(to, EthernetHeader::new([1; 6], [2; 6], false));
        assert_eq!(way(None, Some([2; 6])), frame);
        assert_eq!(way(Some("bond"), Some([2; 6])), frame);
        assert_eq!(way(Some("vlan"), Some([2; 6])), Way::Packet(to));
        assert_eq!(way(None, None), Way::Packet(to));
    }
}
