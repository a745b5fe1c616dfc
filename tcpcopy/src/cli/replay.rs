//! How connections are replayed: waiting, time-outs, sizes. The letters are those of tcpcopy 1.0.

use std::time::Duration;

use clap::Args;
use tcpcopy_replay::RoundTrip;

use super::UsageError;
use crate::source::Replay;

/// The longest round trip that can be asked for, ms.
const LONGEST_ROUND_TRIP: u64 = 10_000;

/// The arguments of the replay, as typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Replay")]
pub struct ReplayArgs {
    /// Replay only connections that were captured from their SYN on; join none at a later request
    #[arg(short = 'O', long)]
    complete_only: bool,
    /// Send a request without waiting until the target has answered the one before
    #[arg(short = 'W', long)]
    no_wait: bool,
    /// Milliseconds after which the target's responses are acknowledged, as by clients so far away, or live: each
    /// client's own round-trip time, taken from its handshake. The target's congestion window grows at their pace, at
    /// the cost of a packet for every acknowledgement. Needs `intercept --ack relay`. 0: at once, or with what is sent
    /// next
    #[arg(short = 'R', long, value_name = "MILLISECONDS|live", default_value = "0", value_parser = parse_round_trip)]
    round_trip: RoundTrip,
    /// Seconds after which a replayed connection is given up that still has something to send, or whose client has
    /// closed, and that neither client nor target has used
    #[arg(
        short = 't', long, value_name = "SECONDS", default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
    )]
    session_timeout: u64,
    /// The same for keep-alive connections between two requests: all was sent, the client is still there. What the
    /// client has said before, a login for instance, is missing afterwards [default: as long as the live connection
    /// lasts]
    #[arg(short = 'k', long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=864_000))]
    keepalive_timeout: Option<u64>,
    /// Megabytes that all workers together may take for what waits to be replayed, besides their rings, each worker and
    /// each copy an equal share; what comes on top is not replayed, and counted
    #[arg(
        short = 'm', long, value_name = "MEGABYTES", default_value_t = 512,
        value_parser = clap::value_parser!(u32).range(1..=1 << 20),
    )]
    max_memory: u32,
    /// Octets of the largest IP packet sent to a target [default: what the route carries, which is also the most]
    #[arg(short = 'M', long, value_name = "OCTETS", value_parser = clap::value_parser!(u16).range(576..))]
    mtu: Option<u16>,
    /// Octets of payload of the largest TCP segment, sent and asked for [default: what fits the MTU, which is also the
    /// most]
    #[arg(short = 'D', long, value_name = "OCTETS", value_parser = clap::value_parser!(u16).range(88..))]
    mss: Option<u16>,
    /// No effect, for scripts of tcpcopy 1.0: going on without intercept, and dialling it again, is always so
    #[arg(short = 'L', long)]
    lonely: bool,
}

impl ReplayArgs {
    /// Validates the arguments. `copies` is how often each connection is replayed, at most.
    pub(super) fn validate(&self, workers: u32, copies: u32) -> Result<Replay, UsageError> {
        if self.max_memory < workers * copies {
            return Err(UsageError::Memory { megabytes: self.max_memory, workers, copies });
        }
        Ok(Replay {
            complete_only: self.complete_only,
            wait: !self.no_wait,
            round_trip: self.round_trip,
            session_timeout: Duration::from_secs(self.session_timeout),
            keepalive_timeout: self.keepalive_timeout.map(Duration::from_secs),
            memory: (self.max_memory as usize) << 20,
            mtu: self.mtu,
            mss: self.mss,
        })
    }
}

/// A text that is no round-trip time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("neither live nor a number of milliseconds from 0 to {LONGEST_ROUND_TRIP}")]
struct RoundTripError;

fn parse_round_trip(text: &str) -> Result<RoundTrip, RoundTripError> {
    match text.parse() {
        _ if text == "live" => Ok(RoundTrip::Live),
        Ok(0) => Ok(RoundTrip::Near),
        Ok(ms @ 1..=LONGEST_ROUND_TRIP) => Ok(RoundTrip::Same(Duration::from_millis(ms))),
        _ => Err(RoundTripError),
    }
}
