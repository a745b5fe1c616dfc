//! The engine's settings.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tcpcopy_common::mark::{Epoch, MarkKey};

use crate::{identity::Identity, input::proxy_protocol::ProxyVersion, tcp::distance::RoundTrip};

/// Names a control channel, and so a host with a service under test; chosen by the caller.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TargetId(pub u16);

/// Where the connections of one `-x` entry are replayed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RuleTarget {
    /// The channel that reports this service's responses.
    pub target: TargetId,
    /// The service under test.
    pub address: SocketAddr,
}

/// The right to open sessions at a target, which its control channel has handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Names the owner of a session in the mark, and in every report.
    pub instance: u32,
    /// The key of the mark.
    pub key: MarkKey,
    /// The time at the target, which the mark has to show; `intercept` says when another has begun.
    pub epoch: Epoch,
}

/// The engine's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Indexed by [`LiveSegment::rule`](crate::segment::LiveSegment::rule).
    pub rules: Vec<RuleTarget>,
    /// By rule, an address of this host that its target can answer: probes come from there, which prove that the
    /// target's `intercept` sees what is sent there. Unspecified: none is known, so that nothing can be proved. Empty:
    /// nothing is proved, nor watched.
    pub probe_from: Vec<IpAddr>,
    /// How long a session that still has something to send, or whose live connection is over, may be without a captured
    /// segment and without progress at the target; then it is reset and counted.
    pub session_timeout: Duration,
    /// The same for a session that has sent everything while its live connection is open: keep-alive between requests.
    /// `None`: it lasts as long as the live connection does. What a client has said once (a login, a prepared
    /// statement) is not said again after a long silence, and a pool of connections is silent for hours.
    pub keepalive_timeout: Option<Duration>,
    /// Replaces a live client's address in 127/8 or `::1`, which no other host can answer.
    pub loopback_client: Option<IpAddr>,
    /// Who the clients are at the targets.
    pub identity: Identity,
    /// The header of the PROXY protocol that each target connection begins with: it tells who the live client is, and
    /// which address it has connected to.
    pub proxy_protocol: Option<ProxyVersion>,
    /// Replay only connections whose SYN was captured.
    pub complete_only: bool,
    /// Whether a connection may be joined although its SYN was not captured. Unlike
    /// [`complete_only`](Self::complete_only) this does not concern connections that are known. It is off when the
    /// caller admits more and more connections: one that was not admitted at its SYN must not get in half-way.
    pub join_open: bool,
    /// Whether a segment waits until the target has answered what the live client had read before sending it.
    pub gate: bool,
    /// How long the target must be quiet after an answer that seems complete, before the gate opens: Linux sets PSH on
    /// every write, so PSH alone does not end an answer.
    pub gate_quiet: Duration,
    /// The longest that a segment waits for an answer. A session that has reached it [`GATE_STRIKES`] times is no
    /// longer gated.
    pub gate_limit: Duration,
    /// Whether a connection may be continued at a request boundary on another target connection: after an early close
    /// by the target, after a loss in the capture, or because it was open before start-up.
    pub rejoin: bool,
    /// How long a gap in a live client's stream may stay open before its session is given up.
    pub gap_timeout: Duration,
    /// The round trip that clients emulate.
    pub round_trip: RoundTrip,
    /// Maximum memory of all buffers, in bytes.
    pub max_memory: usize,
    /// Maximum memory of one connection's buffer, in bytes.
    pub max_session_memory: usize,
    /// Maximum connections at once.
    pub max_sessions: usize,
    /// Maximum segment size announced to IPv4 targets, and the most that is sent in one segment, less the timestamps;
    /// in bytes.
    pub mss_v4: u16,
    /// The same for IPv6.
    pub mss_v6: u16,
    /// What tests of the adapter seam send in place of the live clients' octets.
    #[cfg(test)]
    pub(crate) script: Option<crate::input::adapter::script::Script>,
}

/// How often a session may reach [`Config::gate_limit`] until it is no longer gated.
pub const GATE_STRIKES: u8 = 3;

impl Default for Config {
    fn default() -> Self {
        Self {
            rules: Vec::new(),
            probe_from: Vec::new(),
            session_timeout: Duration::from_secs(120),
            keepalive_timeout: None,
            loopback_client: None,
            identity: Identity::default(),
            proxy_protocol: None,
            complete_only: false,
            join_open: true,
            gate: true,
            gate_quiet: Duration::from_micros(500),
            gate_limit: Duration::from_secs(2),
            rejoin: true,
            gap_timeout: Duration::from_secs(3),
            round_trip: RoundTrip::Near,
            max_memory: 512 << 20,
            max_session_memory: 32 << 20,
            max_sessions: 1 << 20,
            mss_v4: 1460,
            mss_v6: 1440,
            #[cfg(test)]
            script: None,
        }
    }
}
