//! Sequence numbers, and timestamps: a type for each space, all arithmetic modulo 2^32 (RFC 9293, section 3.4).

macro_rules! sequence_space {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        // Packed, so that an `Option` of one takes five octets, not eight: a session has many of them.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        #[repr(Rust, packed)]
        pub(crate) struct $name(u32);

        #[allow(dead_code, reason = "every space offers the same arithmetic")]
        impl $name {
            /// Converts from a number in host order.
            pub(crate) const fn new(n: u32) -> Self {
                Self(n)
            }

            /// Converts from the field of a header.
            pub(crate) const fn from_be(octets: [u8; 4]) -> Self {
                Self(u32::from_be_bytes(octets))
            }

            /// Returns the number in host order.
            pub(crate) const fn get(self) -> u32 {
                self.0
            }

            /// Returns the field of a header.
            pub(crate) const fn to_be(self) -> [u8; 4] {
                self.0.to_be_bytes()
            }

            /// Returns the number `n` octets further on.
            #[must_use]
            pub(crate) const fn plus(self, n: u32) -> Self {
                Self(self.0.wrapping_add(n))
            }

            /// Returns how far this lies behind `other` (positive) or before it (negative); total, because the spaces
            /// are circles: what is more than half a circle away counts as on the other side.
            pub(crate) const fn distance(self, other: Self) -> i32 {
                self.0.wrapping_sub(other.0) as i32
            }

            /// Whether this comes later than `other`.
            pub(crate) const fn is_after(self, other: Self) -> bool {
                self.distance(other) > 0
            }
        }
    };
}

sequence_space! {
    /// The live client's sequence numbers: what it sends.
    LiveSeq
}
sequence_space! {
    /// The live server's sequence numbers, known from what the live client acknowledges.
    LiveAck
}
sequence_space! {
    /// The live client's timestamps (TSval), which are compared like sequence numbers (RFC 7323, section 5.2).
    LiveStamp
}
sequence_space! {
    /// The replayed client's sequence numbers: what is sent to the target.
    ReplaySeq
}
sequence_space! {
    /// The target's sequence numbers.
    TargetSeq
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        let before = LiveSeq::new(u32::MAX - 1);
        let after = before.plus(4);
        assert_eq!(after.get(), 2);
        assert!(after.is_after(before) && !before.is_after(after) && !after.is_after(after));
        assert_eq!((after.distance(before), before.distance(after)), (4, -4));
    }

    #[test]
    fn the_opposite_side_of_the_circle_does_not_panic() {
        assert_eq!(LiveSeq::new(0).distance(LiveSeq::new(1 << 31)), i32::MIN);
    }
}
