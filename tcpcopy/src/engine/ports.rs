//! What a target connection begins with: the client port that the target sees, the initial sequence number, the timestamp.

use tcpcopy_common::{flow::Flow, mark::Mark};

use super::{
    config::{Config, Credentials},
    receiver::WINDOW_SCALE,
    seq::ReplaySeq,
    session::Opening,
    table::keyed_hash,
};
use crate::{
    segment::{SynOptions, TransmitOptions},
    time::Nanos,
};

/// Client ports that are tried for one session.
pub(super) const MOST_PORTS: u8 = 32;
/// Below are the ports of services.
const FIRST_PORT: u64 = 1024;

/// Distinguishes the uses of the keyed hash.
const SALT_SEQUENCE: u64 = 1 << 32;
const SALT_PORT: u64 = 1 << 33;

/// The four-tuple to try: with the live client's own port at first, then with others.
pub(super) fn candidate(seed: u64, wanted: &Flow, attempt: u8) -> Flow {
    if attempt == 0 {
        return *wanted;
    }
    let hash = keyed_hash(seed, wanted, SALT_PORT + u64::from(attempt));
    let span = u64::from(u16::MAX) + 1 - FIRST_PORT;
    let port = FIRST_PORT + ((u128::from(hash) * u128::from(span)) >> 64) as u64;
    Flow { client_port: (port as u16).to_be_bytes(), ..*wanted }
}

/// Sequence number and timestamp for a new connection on `flow`: a clock plus a keyed hash of the four-tuple (RFC 6528), so
/// that they grow from one connection of a four-tuple to the next and a target in TIME-WAIT takes the SYN (RFC 6191).
///
/// `used` is what the connection before had come to, if it is still known: the new one lies above, however fast that was.
pub(super) fn opening(seed: u64, now: Nanos, flow: &Flow, used: Option<Opening>) -> Opening {
    let hash = keyed_hash(seed, flow, SALT_SEQUENCE);
    // 64 ns per number as in Linux: faster than any session sends on average, and half a circle lasts two minutes.
    let isn = ReplaySeq::new(((now.0 >> 6) as u32).wrapping_add(hash as u32));
    let tsval = ((now.0 / 1_000_000) as u32).wrapping_add((hash >> 32) as u32);
    match used {
        None => Opening { isn, tsval },
        Some(used) => Opening {
            isn: if isn.is_after(used.isn.plus(1)) { isn } else { used.isn.plus(1 << 16) },
            tsval: if (tsval.wrapping_sub(used.tsval) as i32) > 0 { tsval } else { used.tsval.wrapping_add(1) },
        },
    }
}

/// The options of the SYN.
pub(super) fn syn_options(
    config: &Config,
    credentials: &Credentials,
    flow: &Flow,
    opening: Opening,
) -> TransmitOptions {
    let mss = if flow.server.is_v4() { config.mss_v4 } else { config.mss_v6 };
    let mark = Mark::new(&credentials.key, credentials.instance, flow, opening.isn.to_be());
    TransmitOptions {
        syn: Some(SynOptions { mss, window_scale: Some(WINDOW_SCALE), mark }),
        timestamps: Some((opening.tsval, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::tests::flow;

    #[test]
    fn other_ports_are_no_service_ports_and_differ() {
        let mut ports: Vec<_> =
            (0..MOST_PORTS).map(|n| u16::from_be_bytes(candidate(3, &flow(40_000), n).client_port)).collect();
        assert_eq!(ports[0], 40_000);
        assert!(ports.iter().all(|&p| u64::from(p) >= FIRST_PORT));
        ports.sort_unstable();
        ports.dedup();
        assert!(ports.len() > usize::from(MOST_PORTS) - 2);
    }

    #[test]
    fn a_later_connection_lies_above_an_earlier_one() {
        let now = Nanos(1 << 40);
        let first = opening(3, now, &flow(1), None);
        let later = opening(3, Nanos(now.0 + 1_000_000), &flow(1), None);
        assert!(later.isn.is_after(first.isn) && later.tsval == first.tsval.wrapping_add(1));
        // Even when the earlier one sent a lot in no time.
        let used = Opening { isn: first.isn.plus(1 << 30), tsval: first.tsval };
        let next = opening(3, now, &flow(1), Some(used));
        assert!(next.isn.is_after(used.isn) && next.tsval == used.tsval.wrapping_add(1));
    }

    #[test]
    fn an_outsider_cannot_tell_one_four_tuple_s_numbers_from_another_s() {
        let now = Nanos(1 << 40);
        let gap = |port| opening(3, now, &flow(port + 1), None).isn.distance(opening(3, now, &flow(port), None).isn);
        assert!((1..100).any(|p| gap(p) != gap(p + 1)));
    }
}
