//! Tests of the whole engine in virtual time: a scripted live client, a lossy path, a model of the target's TCP.
//!
//! After every step the statistics must balance, and agree with what the sessions really hold.

mod acknowledge;
mod adapter;
mod chaos;
mod close;
mod concurrent;
mod distance;
mod fairness;
mod fins;
mod forgery;
mod fuse;
mod gating;
mod harness;
mod idle;
mod join;
mod joining;
mod limits;
mod loss;
mod misbehaving;
mod multipath;
mod orphans;
mod owed;
mod proxy_protocol;
mod recovery;
mod reports;
mod segments;
mod sending;
mod sessions;
mod target;
mod upkeep;
mod urgent;
mod vlans;

use tcpcopy_common::flow::{Flow, IpAddress};

/// A four-tuple of a client with this port, for the unit tests of the engine's parts.
pub(crate) fn flow(port: u16) -> Flow {
    let [client, server] = [1, 2].map(|host| IpAddress::from_v4([10, 0, 0, host]));
    Flow::tcp((client, port.to_be_bytes()), (server, [0, 80]))
}
