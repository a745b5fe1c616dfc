//! Sizes of rings.

/// The smallest ring: it must hold the largest record, a 64 KiB super-packet with its header, several times over.
const MIN_RING: u32 = 256 << 10;
/// The largest ring the kernel makes: 512 MiB keeps sizes and offsets well inside 32 bits.
const MAX_RING: u32 = 512 << 20;

/// A size that no ring can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a ring has 256K to 512M octets")]
pub(super) struct RingSizeError;

/// Parses a size with an optional binary suffix, within the bounds of a ring.
pub(super) fn parse_ring_size(text: &str) -> Result<u32, RingSizeError> {
    let (digits, shift) = match text.char_indices().last() {
        Some((at, 'k' | 'K')) => (&text[..at], 10),
        Some((at, 'm' | 'M')) => (&text[..at], 20),
        Some((at, 'g' | 'G')) => (&text[..at], 30),
        _ => (text, 0),
    };
    let size = digits.parse::<u32>().ok().and_then(|n| n.checked_mul(1 << shift));
    match size {
        Some(size) if (MIN_RING..=MAX_RING).contains(&size) => Ok(size.next_power_of_two()),
        _ => Err(RingSizeError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_sizes_are_rounded_up_to_a_power_of_two() {
        assert_eq!(parse_ring_size("300K"), Ok(512 << 10));
        assert!(parse_ring_size("1G").is_err());
        assert!(parse_ring_size("99999999999999").is_err());
    }
}
