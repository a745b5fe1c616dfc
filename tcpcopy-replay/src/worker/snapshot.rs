//! What a worker has counted, as it is handed to the main thread.

use tcpcopy_common::{
    figures,
    figures::{Group, Section, counter},
};

use crate::Stats;

/// What a worker has counted. `Packets` are the figures of its [`Sink`](super::Sink), `Seen` those of the targets.
#[derive(Clone, Debug, Default)]
pub struct Snapshot<Packets, Seen> {
    /// The figures of each copy.
    pub copies: Vec<CopySnapshot>,
    /// The sink's figures.
    pub inject: Packets,
    /// What the targets saw of our sessions.
    pub targets: Seen,
    /// What the worker itself has counted.
    pub own: Counts,
}

figures! {
    /// What a worker counts beside its engines.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Counts {
        /// Captured records that contradict themselves.
        pub bad_records: u64 = counter(Section::NotCopied),
        /// Reports of a kind that this release does not know.
        pub unknown_reports: u64 = counter(Section::NotReported),
        /// Segments of a flow for whose IP version no target is given.
        pub no_target: u64 = counter(Section::NotCopied).named("no_target_for_ip_version"),
        /// Payload octets of a flow for whose IP version no target is given.
        pub no_target_bytes: u64 = counter(Section::NotCopied).named("no_target_for_ip_version_bytes").bytes(),
        /// Times a worker slept until it was woken.
        pub sleeps: u64 = counter(Section::Cost),
        /// Times a worker napped, and could not be woken.
        pub naps: u64 = counter(Section::Cost),
    }
}

figures! {
    /// What a worker has counted of one copy.
    #[derive(Clone, Debug, Default)]
    pub struct CopySnapshot {
        /// The engine's figures.
        pub engine: Stats = Group,
        /// Segments of a service that other copies have a target for, but not this one.
        pub elsewhere: u64 = counter(Section::NotSelected).named("no_target_in_this_copy"),
        /// Payload octets of a service that other copies have a target for, but not this one.
        pub elsewhere_bytes: u64 = counter(Section::NotSelected).named("no_target_in_this_copy_bytes").bytes(),
    }
}
