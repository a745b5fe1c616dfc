//! The replay core: takes segments of live clients and responses of targets, and yields segments for the targets.
//!
//! It is sans-IO: it reads no clock, no random source and no socket, and links nothing that could. `handle_*` takes
//! input, `poll_*` yields output, and `now` is an argument; so everything it does can be tested in virtual time.
//!
//! ```text
//!            engine      one connection per four-tuple ── store (slab, tables, timers)
//!              │
//! live ──► input         reassembly: the live client's octets, in order
//!              │
//!             tcp        one client TCP endpoint at the target: send, receive, recover, acknowledge, end
//!              │
//!          causality     the gate: may this request be sent yet? which ones has the target answered?
//!              ▼
//!         Engine::poll_transmit
//! ```
//!
//! A *connection* is what a live client does; a *session* is one replay of it, on one or (after an early close by the
//! target) several target connections in turn. A connection without a session is *parked*: what it sends is discarded,
//! and counted, until a request begins at which a session can join.

#![deny(unsafe_code)]
#![warn(unreachable_pub)]
// The second line of the same rule: clippy.toml at the top of the workspace has the list.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

mod causality;
mod config;
mod engine;
mod identity;
mod input;
mod multipath;
mod record;
mod report;
mod secret;
pub mod segment;
mod stats;
mod store;
mod tcp;
#[cfg(feature = "testing")]
pub mod testing;
mod time;
pub mod worker;

pub use self::{
    config::{Config, Credentials, GATE_STRIKES, RuleTarget, TargetId},
    engine::{Engine, Fault, FuseEvent},
    identity::{AddressPool, Identity, Ports, Slot},
    input::proxy_protocol::ProxyVersion,
    multipath::Multipath,
    record::{BadRecord, Checksums, LiveRecord},
    report::{ProbeReport, Report, SegmentReport, SessionReport, SynReport, UnansweredReport, UnknownKind},
    segment::{LiveAnswer, LiveOptions, LiveSegment, SynOptions, Transmit, TransmitOptions},
    stats::{ByReason, Histogram, Ledger, Reason, Refused, Sessions, Stats, Unbalanced},
    tcp::RoundTrip,
    time::Nanos,
};
