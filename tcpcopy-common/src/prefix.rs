//! The first octets of responses: how many of them a rule asks for.

use bytemuck::{Pod, Zeroable};

use crate::flow::IpAddress;

/// How many octets of a response segment's payload its report carries, from the first on: none, or a power of two from
/// 16 to 2,048. A shorter payload is carried whole.
///
/// Few values, because all that is gained by others is some octets of a ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(u16);

impl Prefix {
    /// Headers only.
    pub const NONE: Self = Self(0);
    /// The fewest octets that can be asked for: enough for a status line's beginning.
    pub const LEAST: Self = Self(16);
    /// The most: a whole segment of an Ethernet, and the headers of nearly every answer.
    pub const MOST: Self = Self(2048);

    /// The prefix of so many octets; `None` where that can be no prefix.
    #[must_use]
    pub const fn new(octets: u16) -> Option<Self> {
        match octets {
            0 => Some(Self::NONE),
            octets if octets.is_power_of_two() && octets >= Self::LEAST.0 && octets <= Self::MOST.0 => {
                Some(Self(octets))
            }
            _ => None,
        }
    }

    /// How many octets these are at most.
    #[must_use]
    pub const fn octets(self) -> u16 {
        self.0
    }
}

/// Key of the map that has each target's [`Prefix`] in octets, host order. A target without an entry is reported by its
/// headers.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct PrefixKey {
    /// The target's address.
    pub address: IpAddress,
    /// The instance whose sessions it is for, host order.
    pub instance: u32,
    /// The target's port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub _reserved: [u8; 2],
}

const _: () = assert!(size_of::<PrefixKey>() == 24);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_and_powers_of_two_from_16_to_2048_are_prefixes_and_nothing_else_is() {
        let all = (0..=u16::MAX).filter_map(|octets| {
            let prefix = Prefix::new(octets)?;
            assert_eq!(prefix.octets(), octets);
            Some(octets)
        });
        assert!(all.eq([0, 16, 32, 64, 128, 256, 512, 1024, 2048]));
        assert_eq!((Prefix::default(), Prefix::new(0)), (Prefix::NONE, Some(Prefix::NONE)));
    }
}
