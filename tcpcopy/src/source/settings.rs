//! What `tcpcopy` is asked to do: its settings, complete and free of contradictions.
//!
//! Whoever builds them (`cli`, from the command line) has checked what can be checked without touching the system.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tcpcopy_common::prefix::Prefix;
use tcpcopy_replay::{AddressPool, ProxyVersion, RoundTrip};

use crate::{
    affinity::CpuList,
    bpf::{ClientFilter, Hook},
    inject::Backend,
    process::descriptors,
};

/// What is copied, and how it is replayed.
#[derive(Debug)]
pub struct Settings {
    /// What is copied where; not empty.
    pub rules: Vec<Rule>,
    /// Where the control channels lead, each address once.
    pub intercepts: Vec<SocketAddr>,
    /// Whether to end, and not to wait, when one of them is not there at the start.
    pub require_intercept: bool,
    /// For each rule, the intercept that swallows its target's responses: an index into [`intercepts`](Self::intercepts).
    pub intercept_of: Vec<usize>,
    /// Interfaces that are captured from; empty to find them from the routes.
    pub interfaces: Vec<String>,
    /// Capture hook.
    pub hook: Hook,
    /// Injection backend.
    pub inject: Backend,
    /// Whether frames for other hosts are captured too, as on a mirror port.
    pub promiscuous: bool,
    /// Whether packet sockets bypass the queueing discipline.
    pub bypass_qdisc: bool,
    /// The address that stands in for a loopback client's.
    pub loopback_client: Option<IpAddr>,
    /// Worker threads: 1 to [`MAX_WORKERS`](tcpcopy_common::capture::MAX_WORKERS).
    pub workers: u32,
    /// A processor for each worker.
    pub pin: Option<CpuList>,
    /// Octets of one worker's ring, a power of two.
    pub ring_bytes: u32,
    /// Which connections are copied.
    pub selection: Selection,
    /// How often, and as whom, the target sees their clients.
    pub clients: Clients,
    /// How they are replayed.
    pub replay: Replay,
}

impl Settings {
    /// Returns the descriptors that a start takes at the least: what it always opens, and what each worker does.
    #[must_use]
    pub fn descriptors(&self) -> usize {
        let channels = self.intercepts.len() * (self.clients.copies * most_targets(&self.rules)) as usize;
        descriptors::BASE + self.workers as usize * (descriptors::WORKER + channels) + self.interfaces.len()
    }
}

/// A live service, and a target that it is copied to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The live service's address; any address of the target's family when absent.
    pub address: Option<IpAddr>,
    /// The live service's port.
    pub port: u16,
    /// The service under test.
    pub target: SocketAddr,
    /// How many of the first octets of its responses are reported. Where several rules have this target, as many as any
    /// of them asks for.
    pub prefix: Prefix,
}

/// Which live connections are copied: by client, and by lot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// Share of the connections, %: 1 to 100.
    pub percentage: u8,
    /// How long the percentage grows to that from 0; from the start it is that if `None`.
    pub ramp: Option<Duration>,
    /// Which clients; all of them when `None`.
    pub clients: Option<ClientFilter>,
}

/// Whom the target sees: how often each client, and with which address and port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clients {
    /// How often each connection is replayed to each of its targets: 1 to 64.
    pub copies: u32,
    /// Addresses in place of the clients' own.
    pub addresses: Option<AddressPool>,
    /// Where the search for a free port begins: 1 to 1023.
    pub region: Option<u16>,
    /// The header that tells the target who a client is.
    pub proxy_protocol: Option<ProxyVersion>,
}

/// How connections are replayed: waiting, time-outs, sizes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// Whether only connections are replayed that were captured from their SYN on.
    pub complete_only: bool,
    /// Whether a request waits until the target has answered the one before.
    pub wait: bool,
    /// How far away from the target clients seem to be.
    pub round_trip: RoundTrip,
    /// When an unused session is given up that has something to send, or whose client has closed.
    pub session_timeout: Duration,
    /// When an unused session is given up that has sent all and whose client is still there, if ever.
    pub keepalive_timeout: Option<Duration>,
    /// Octets that everything that waits to be replayed may take.
    pub memory: usize,
    /// Octets of the largest IP packet, if it is not what the route carries.
    pub mtu: Option<u16>,
    /// Octets of the largest payload of a segment, if it is not what fits the MTU.
    pub mss: Option<u16>,
}

/// Returns how many targets of one IP version a service has, at most: so often a connection is copied.
#[must_use]
pub fn most_targets(rules: &[Rule]) -> u32 {
    let of_service = |rule: &Rule| {
        let same =
            |r: &&Rule| r.port == rule.port && r.address == rule.address && r.target.is_ipv4() == rule.target.is_ipv4();
        rules.iter().filter(same).count() as u32
    };
    rules.iter().map(of_service).max().unwrap_or(0)
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A rule for a service at any address.
    pub(in crate::source) fn rule(port: u16, target: &str) -> Rule {
        Rule { address: None, port, target: target.parse().unwrap(), prefix: Prefix::NONE }
    }

    /// One worker and one copy, all connections, nothing out of the ordinary. `intercept_of` belongs to `rules`.
    pub(in crate::source) fn settings(rules: Vec<Rule>, intercepts: &[&str], intercept_of: &[usize]) -> Settings {
        Settings {
            rules,
            intercepts: intercepts.iter().map(|address| address.parse().unwrap()).collect(),
            require_intercept: false,
            intercept_of: intercept_of.to_vec(),
            interfaces: vec!["eth0".into()],
            hook: Hook::Auto,
            inject: Backend::Auto,
            promiscuous: false,
            bypass_qdisc: false,
            loopback_client: None,
            workers: 1,
            pin: None,
            ring_bytes: 1 << 20,
            selection: Selection { percentage: 100, ramp: None, clients: None },
            clients: Clients { copies: 1, addresses: None, region: None, proxy_protocol: None },
            replay: Replay {
                complete_only: false,
                wait: true,
                round_trip: RoundTrip::Near,
                session_timeout: Duration::from_secs(120),
                keepalive_timeout: None,
                memory: 64 << 20,
                mtu: None,
                mss: None,
            },
        }
    }
}
