//! The Internet checksum (RFC 1071).

/// A running ones' complement sum of 16-bit words, in the host's byte order: RFC 1071, section 2(B), lets one add in
/// either order and store the result in that same order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Checksum(u64);

impl Checksum {
    /// Adds `bytes`. An odd number of them counts as if a zero followed, so only the last piece may be odd.
    #[inline]
    #[must_use]
    pub fn with(mut self, bytes: &[u8]) -> Self {
        // The 32-bit halves of eight octets at a time, in two 64-bit sums: those cannot overflow before 2^32 steps, so
        // there is no carry to handle, and the loop becomes vector instructions.
        let (mut low, mut high) = (0u64, 0u64);
        let (chunks, rest) = bytes.as_chunks::<8>();
        for chunk in chunks {
            let word = u64::from_ne_bytes(*chunk);
            low += word & 0xffff_ffff;
            high += word >> 32;
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        let word = u64::from_ne_bytes(last);
        self.0 += fold32(low) + fold32(high) + (word & 0xffff_ffff) + (word >> 32);
        self
    }

    /// Returns the checksum in the byte order of the header.
    #[inline]
    #[must_use]
    pub fn finish(self) -> [u8; 2] {
        self.partial().map(|octet| !octet)
    }

    /// Returns the sum so far, as it stands in the header of a packet whose checksum the kernel completes.
    #[inline]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "twice folded, the sum has 16 bits")]
    pub fn partial(self) -> [u8; 2] {
        let mut sum = fold32(self.0);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        (sum as u16).to_ne_bytes()
    }
}

/// Adds the 32-bit halves, which keeps the sum of 16-bit words modulo 0xffff.
#[inline]
fn fold32(sum: u64) -> u64 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    (sum & 0xffff_ffff) + (sum >> 32)
}
