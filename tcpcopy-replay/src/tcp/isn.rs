//! The initial sequence number, the timestamp and the options of a SYN.

use tcpcopy_common::{
    flow::Flow,
    mark::{Mark, Stamp},
};

use crate::{
    config::{Config, Credentials},
    secret::{Purpose, Secret},
    segment::{SynOptions, TransmitOptions},
    tcp::{receiver::WINDOW_SCALE, seq::ReplaySeq},
    time::Nanos,
};

/// The sequence number and the timestamp that a target connection begins with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Opening {
    pub isn: ReplaySeq,
    /// The TSval, the same in all segments of a connection, so that a retransmission does not look old.
    pub tsval: u32,
}

/// How far above an earlier connection one begins that the clock does not put there.
const STEP: u32 = 1 << 16;

/// Chooses sequence number and timestamp for a new connection on `flow`: a clock plus a keyed hash of the four-tuple
/// (RFC 6528), so that they grow from one connection of a four-tuple to the next and a target in TIME-WAIT takes the
/// SYN (RFC 6191).
///
/// `used` is what the connection before had reached, if it is still known: the new one lies above, however fast that
/// was.
pub(crate) fn opening(secret: Secret, now: Nanos, flow: &Flow, used: Option<Opening>) -> Opening {
    let hash = secret.hash(flow, Purpose::Opening);
    // 64 ns per number as in Linux: faster than any session sends on average, and half a circle lasts two minutes.
    let isn = ReplaySeq::new(((now.0 >> 6) as u32).wrapping_add(hash as u32));
    let tsval = ((now.0 / 1_000_000) as u32).wrapping_add((hash >> 32) as u32);
    match used {
        None => Opening { isn, tsval },
        Some(used) => Opening {
            isn: if isn.is_after(used.isn.plus(1)) { isn } else { used.isn.plus(STEP) },
            tsval: if (tsval.wrapping_sub(used.tsval) as i32) > 0 { tsval } else { used.tsval.wrapping_add(1) },
        },
    }
}

/// Chooses them for a connection that may meet one of ours, whose next sequence number is `last`: just above that,
/// because the number shows the target's programs whose the one that is met is
/// ([`MEETS_WITHIN`](tcpcopy_common::mark::MEETS_WITHIN)).
pub(crate) fn above(secret: Secret, now: Nanos, flow: &Flow, last: ReplaySeq) -> Opening {
    Opening { isn: last.plus(STEP), ..opening(secret, now, flow, None) }
}

/// Returns the options of a SYN that goes now. `meets`: see [`Stamp::meets`].
pub(crate) fn syn_options(
    config: &Config,
    credentials: &Credentials,
    flow: &Flow,
    opening: Opening,
    meets: bool,
) -> TransmitOptions {
    let stamp = Stamp { meets, probes: false, epoch: credentials.epoch };
    let syn = marked(config, credentials, stamp, flow, opening.isn);
    TransmitOptions { syn: Some(syn), timestamps: Some((opening.tsval, 0)) }
}

/// Returns the options of a SYN that only asks whether it is seen: see [`Stamp::probes`].
pub(crate) fn probe_options(
    config: &Config,
    credentials: &Credentials,
    flow: &Flow,
    seq: ReplaySeq,
) -> TransmitOptions {
    let stamp = Stamp { meets: false, probes: true, epoch: credentials.epoch };
    TransmitOptions { syn: Some(marked(config, credentials, stamp, flow, seq)), timestamps: None }
}

fn marked(config: &Config, credentials: &Credentials, stamp: Stamp, flow: &Flow, isn: ReplaySeq) -> SynOptions {
    let mss = if flow.server.is_v4() { config.mss_v4 } else { config.mss_v6 };
    let mark = Mark::new(&credentials.key, credentials.instance, stamp, flow, isn.to_be());
    SynOptions { mss, window_scale: Some(WINDOW_SCALE), mark }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::flow;

    #[test]
    fn a_later_connection_lies_above_an_earlier_one() {
        let now = Nanos(1 << 40);
        let first = opening(Secret::new(3), now, &flow(1), None);
        let later = opening(Secret::new(3), Nanos(now.0 + 1_000_000), &flow(1), None);
        assert!(later.isn.is_after(first.isn) && later.tsval == first.tsval.wrapping_add(1));
        // Even when the earlier one sent a lot in no time.
        let used = Opening { isn: first.isn.plus(1 << 30), tsval: first.tsval };
        let next = opening(Secret::new(3), now, &flow(1), Some(used));
        assert!(next.isn.is_after(used.isn) && next.tsval == used.tsval.wrapping_add(1));
    }

    #[test]
    fn an_outsider_cannot_tell_one_four_tuple_s_numbers_from_another_s() {
        let now = Nanos(1 << 40);
        let gap = |port| {
            opening(Secret::new(3), now, &flow(port + 1), None)
                .isn
                .distance(opening(Secret::new(3), now, &flow(port), None).isn)
        };
        assert!((1..100).any(|p| gap(p) != gap(p + 1)));
    }

    #[test]
    fn numbers_grow_with_the_clock_and_pass_what_was_used() {
        let at = |ms: u64, used| opening(Secret::new(3), Nanos((1 << 40) + ms * 1_000_000), &flow(1), used);
        let first = at(0, None);
        let later = at(5, Some(first));
        assert_eq!((later.isn.distance(first.isn), later.tsval.wrapping_sub(first.tsval)), (5 * 15_625, 5));
        // The clock has not moved, or just so far that the SYN of the one before has the number.
        for used in [first.isn, first.isn.plus(1), first.isn.plus(u32::MAX)] {
            let next = at(0, Some(Opening { isn: used, tsval: first.tsval }));
            assert_eq!((next.isn, next.tsval), (used.plus(1 << 16), first.tsval.wrapping_add(1)));
        }
        let next = at(0, Some(Opening { isn: first.isn.plus(u32::MAX - 1), tsval: first.tsval.wrapping_sub(9) }));
        assert_eq!((next.isn, next.tsval), (first.isn, first.tsval));
    }

    #[test]
    fn timestamps_differ_from_one_four_tuple_to_the_next() {
        let tsval = |port| opening(Secret::new(3), Nanos(1 << 40), &flow(port), None).tsval;
        assert!((1..100).all(|port| tsval(port) != tsval(port + 1)));
    }
}
