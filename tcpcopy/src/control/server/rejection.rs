//! Why a connection to the control port did not become a channel, and how often.

use std::{
    io,
    sync::atomic::{AtomicU64, Ordering},
};

use tcpcopy_common::{
    figures,
    figures::{Section, counter},
};

use super::admission::Phase;
use crate::{
    control::{handshake::HandshakeError, registration::Refusal},
    log_limit::LogLimit,
};

figures! {
    /// What became of the connections to the port. Their sum, with the handshakes under way, is the number of connections.
    #[derive(Debug, Default)]
    pub struct ServerCounters {
        /// Established channels.
        pub accepted: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: another key.
        pub bad_key: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: not our protocol, or not as it should be.
        pub garbage: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: not finished in time, or nothing said.
        pub timeout: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: too many handshakes at a time, of which this was the oldest of the network that had most.
        pub too_many: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: another version of the protocol.
        pub wrong_version: AtomicU64 = counter(Section::ControlConnections),
        /// Refused: one side with a key, the other with `--insecure`.
        pub insecure_mismatch: AtomicU64 = counter(Section::ControlConnections),
        /// Refused although authenticated: no instance is free, the one to resume is not known any more, or what is
        /// asked for cannot be.
        pub refused: AtomicU64 = counter(Section::ControlConnections),
        /// Closed by the peer during the handshake, or broken: port scanners and health checks look like this.
        pub closed: AtomicU64 = counter(Section::ControlConnections),
        /// Failed for a reason of our own, such as no random numbers.
        pub failed: AtomicU64 = counter(Section::ControlConnections),
    }
}

/// Why a connection did not become a channel.
#[derive(Debug, thiserror::Error)]
pub(super) enum Rejection {
    #[error("too many handshakes at a time")]
    TooMany,
    #[error("the handshake did not finish: {} within {} s", .0.awaited(), .0.limit().as_secs())]
    Timeout(Phase),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error("{0}")]
    Refused(Refusal),
    #[error("cannot use the accepted socket: {0}")]
    Socket(io::Error),
}

/// A flood of one kind must not hide the others, so each has a limit of its own.
mod limits {
    use super::LogLimit;

    pub(super) static TOO_MANY: LogLimit = LogLimit::new("too many control connections");
    pub(super) static TIMEOUT: LogLimit = LogLimit::new("control connections that did not finish");
    pub(super) static REFUSED: LogLimit = LogLimit::new("refused workers");
    pub(super) static FAILED: LogLimit = LogLimit::new("failed control connections");
    pub(super) static GARBAGE: LogLimit = LogLimit::new("control connections of another protocol");
    pub(super) static VERSION: LogLimit = LogLimit::new("control connections of another version");
    pub(super) static SECURITY: LogLimit = LogLimit::new("control connections with or without a key");
    pub(super) static BAD_KEY: LogLimit = LogLimit::new("control connections with another key");
    pub(super) static CLOSED: LogLimit = LogLimit::new("broken control connections");
}

impl ServerCounters {
    /// Counts a rejection, and returns the limit on lines about its kind.
    pub(super) fn count(&self, rejection: &Rejection) -> &'static LogLimit {
        let (counter, limit) = match rejection {
            Rejection::TooMany => (&self.too_many, &limits::TOO_MANY),
            Rejection::Timeout(_) => (&self.timeout, &limits::TIMEOUT),
            Rejection::Refused(_) => (&self.refused, &limits::REFUSED),
            Rejection::Socket(_) => (&self.failed, &limits::FAILED),
            Rejection::Handshake(error) => match error {
                HandshakeError::NotTcpcopy | HandshakeError::Frame(_) | HandshakeError::Tampered => {
                    (&self.garbage, &limits::GARBAGE)
                }
                HandshakeError::Version { .. } => (&self.wrong_version, &limits::VERSION),
                HandshakeError::SecurityMismatch { .. } => (&self.insecure_mismatch, &limits::SECURITY),
                HandshakeError::BadKey => (&self.bad_key, &limits::BAD_KEY),
                HandshakeError::Closed | HandshakeError::Io(_) => (&self.closed, &limits::CLOSED),
                HandshakeError::Noise(_) => (&self.failed, &limits::FAILED),
            },
        };
        counter.fetch_add(1, Ordering::Relaxed);
        limit
    }
}
