//! Positions in the two streams of octets that a session joins: what a live client sent, and what is sent in its place.

macro_rules! offset_space {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) struct $name(u64);

        impl $name {
            /// Before the first octet.
            pub(crate) const START: Self = Self(0);

            /// After `octets` octets.
            pub(crate) const fn new(octets: u64) -> Self {
                Self(octets)
            }

            /// The number of octets before it.
            pub(crate) const fn get(self) -> u64 {
                self.0
            }

            /// `octets` further on.
            #[must_use]
            pub(crate) const fn plus(self, octets: u64) -> Self {
                Self(self.0 + octets)
            }

            /// How many octets lie between `earlier` and this; none if it is later.
            pub(crate) const fn since(self, earlier: Self) -> u64 {
                self.0.saturating_sub(earlier.0)
            }
        }
    };
}

offset_space! {
    /// A position in a live client's stream as captured: octets since the start of the connection, or since capture
    /// began.
    LiveOffset
}
offset_space! {
    /// A position in what is sent on one target connection: octets since its SYN. A FIN counts as one.
    SentOffset
}

impl SentOffset {
    /// The position `distance` octets away, unless that lies before the first octet.
    pub(crate) const fn offset_by(self, distance: i64) -> Option<Self> {
        match self.0.checked_add_signed(distance) {
            Some(octets) => Some(Self(octets)),
            None => None,
        }
    }
}
