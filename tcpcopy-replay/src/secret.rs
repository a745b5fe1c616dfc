//! The engine's secret: initial sequence numbers, timestamps and dealt ports follow from it and the four-tuple.

use tcpcopy_common::{
    flow::Flow,
    mark::{self, MarkKey},
};

/// What a hash is for. Hashes for different purposes are independent of each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Initial sequence number and timestamp.
    Opening,
    /// The `n`th port to try when the client's own is taken.
    OtherPort(u8),
    /// The `n`th place to try in a slot of dealt ports.
    DealtPort(u8),
    /// The address of a pool that a client has.
    PoolAddress,
    /// The port of a probe.
    Probe,
}

/// The key of a pseudo-random function of four-tuples.
///
/// RFC 6528, section 3, asks for one that outsiders cannot compute, however many of its results they have seen: a host
/// that can guess the initial sequence number of another connection can inject into it.
#[derive(Clone, Copy)]
pub(crate) struct Secret(MarkKey);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl Secret {
    /// Expands a seed to a key. As hard to guess as the seed.
    pub(crate) const fn new(seed: u64) -> Self {
        Self(MarkKey { k0: seed, k1: seed.rotate_left(32) ^ 0x243f_6a88_85a3_08d3 })
    }

    /// Returns the SipHash-2-4 of a four-tuple and a purpose, which stands where a mark has ISN and instance.
    pub(crate) fn hash(&self, flow: &Flow, purpose: Purpose) -> u64 {
        let (purpose, number) = match purpose {
            Purpose::Opening => (1, 0),
            Purpose::OtherPort(n) => (2, n),
            Purpose::DealtPort(n) => (3, n),
            Purpose::PoolAddress => (4, 0),
            Purpose::Probe => (5, 0),
        };
        mark::hash(&self.0, purpose, flow, [number, 0, 0, 0], 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::engine::tests::flow;

    #[test]
    fn seed_four_tuple_purpose_and_number_each_make_another_hash() {
        let mut hashes = HashSet::new();
        let purposes = (0..40).flat_map(|n| [Purpose::OtherPort(n), Purpose::DealtPort(n)]);
        let purposes: Vec<_> = purposes.chain([Purpose::Opening, Purpose::PoolAddress, Purpose::Probe]).collect();
        for seed in [0, 1, u64::MAX] {
            for port in 0..10 {
                for &purpose in &purposes {
                    assert!(hashes.insert(Secret::new(seed).hash(&flow(port), purpose)), "{seed} {port} {purpose:?}");
                }
            }
        }
    }

    /// The reference: 64 bits of a keyed hash, without a pattern that a linear one would show.
    #[test]
    fn hashes_of_neighbouring_four_tuples_have_no_common_difference() {
        let secret = Secret::new(5);
        let hash = |port| secret.hash(&flow(port), Purpose::Opening);
        let differences: HashSet<u64> = (0..1000).map(|port| hash(port) ^ hash(port + 1)).collect();
        assert_eq!(differences.len(), 1000);
        let ones: u32 = (0..1000).map(|port| hash(port).count_ones()).sum();
        // 32,000 expected, standard deviation 127; the seed is fixed.
        assert!((31_200..32_800).contains(&ones), "{ones}");
    }

    #[test]
    fn a_secret_does_not_get_into_a_log() {
        assert_eq!(format!("{:?}", Secret::new(0x1234_5678)), "Secret(..)");
    }
}
