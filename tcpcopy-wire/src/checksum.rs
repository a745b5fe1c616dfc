//! The Internet checksum (RFC 1071).

pub(crate) use tcpcopy_common::checksum::Checksum;

/// Computes the checksum word by word, as a reference.
#[cfg(test)]
pub(crate) fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_rfc_1071() {
        // Section 3: the sum is ddf2.
        let sum = Checksum::default().with(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]).finish();
        assert_eq!(u16::from_be_bytes(sum), !0xddf2);
    }

    #[test]
    fn the_largest_sum_does_not_overflow() {
        let ones = vec![0xff; 65_536];
        assert_eq!(Checksum::default().with(&ones).with(&ones).finish(), [0, 0]);
    }

    proptest! {
        #[test]
        fn equals_the_naive_sum(
            first in proptest::collection::vec(any::<[u8; 2]>(), 0..200),
            second in proptest::collection::vec(any::<u8>(), 0..3000),
        ) {
            let first = first.concat();
            let sum = Checksum::default().with(&first).with(&second).finish();
            prop_assert_eq!(u16::from_be_bytes(sum), naive(&[first, second].concat()));
        }
    }
}
