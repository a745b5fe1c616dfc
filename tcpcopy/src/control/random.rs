//! Secret random octets, from the kernel.

use snow::resolvers::{CryptoResolver, DefaultResolver};

/// The kernel gave no random octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel gives no random numbers: getrandom(2) failed; is a seccomp filter or a very old kernel in the way?"
)]
pub struct RandomError;

/// Octets fit for keys and tokens.
///
/// # Errors
/// [`RandomError`] when getrandom(2) fails.
pub fn random_bytes<const N: usize>() -> Result<[u8; N], RandomError> {
    let mut bytes = [0; N];
    // The generator that the handshake's ephemeral keys come from: one source of randomness to trust, not two.
    let mut generator = DefaultResolver.resolve_rng().ok_or(RandomError)?;
    generator.try_fill_bytes(&mut bytes).map_err(|_| RandomError)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_draws_differ() {
        assert_ne!(random_bytes::<16>().unwrap(), random_bytes::<16>().unwrap());
    }
}
