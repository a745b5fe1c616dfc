//! What `intercept` is asked to do: its settings, complete and free of contradictions.
//!
//! Whoever builds them (`cli`, from the command line) has checked what can be checked without touching the system.

use std::net::SocketAddr;

use crate::{affinity::CpuList, bpf::TcAttach, process::descriptors};

/// Where sessions are learned, and how their responses are treated.
#[derive(Debug)]
pub struct Settings {
    /// Interfaces on which marked SYNs are learned, each once; not empty.
    pub interfaces: Vec<String>,
    /// Where the control channel listens.
    pub listen: Vec<SocketAddr>,
    /// TCX or clsact.
    pub attach: TcAttach,
    /// Who acknowledges large answers.
    pub ack: Ack,
    /// Capacity of the session map.
    pub max_sessions: u32,
    /// The processor of the thread that reports.
    pub pin: Option<CpuList>,
    /// Octets of the report ring, a power of two.
    pub ring_bytes: u32,
}

impl Settings {
    /// Returns the descriptors that a start takes at the least: what it always opens, and links: one on each interface
    /// of the host, of which there are so many, and another where sessions are learned.
    #[must_use]
    pub fn descriptors(&self, present: usize) -> usize {
        descriptors::BASE + self.listen.len() + self.interfaces.len() + present.max(self.interfaces.len())
    }
}

/// Who acknowledges answers of more than a few segments, on behalf of the replayed clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ack {
    /// The programs in the kernel, on the spot: large answers cost the source no packets.
    Reflect,
    /// `tcpcopy`: the target sees the network between the two, or clients far away.
    Relay,
}
