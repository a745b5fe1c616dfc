//! Counters that the programs keep, one per-CPU array each: the enum is the index, the sum over CPUs is the value.

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $help:literal])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name {
            $($(#[doc = $help])* $variant,)*
        }

        impl $name {
            /// All of them, in the order of the array.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];
            /// How many there are.
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The name in tables, JSON and metrics: snake case.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }
    };
}

counters! {
    /// What the source's capture programs count. "Matched" means: of a flow that a rule names.
    CaptureCounter {
        /// Matched segments put into a ring.
        Captured = "captured_segments",
        /// Their payload octets.
        CapturedBytes = "captured_bytes",
        /// Matched segments with neither payload nor SYN, FIN or RST: not copied.
        PureAck = "pure_acks_skipped",
        /// Packets of clients that are not wanted: not copied. (Pure ACKs are among them.)
        Filtered = "filtered",
        /// Packets of connections that are not in the sample: not copied. (Pure ACKs are among them.)
        NotSampled = "not_sampled",
        /// Discarded: the worker's ring was full.
        RingFull = "ring_full",
        /// Payload octets lost with [`RingFull`](Self::RingFull).
        RingFullBytes = "ring_full_bytes",
        /// SYN and FIN flags lost with [`RingFull`](Self::RingFull).
        RingFullControl = "ring_full_syn_fin",
        /// Discarded: no ring at the index of the flow's worker.
        NoRing = "no_ring",
        /// Discarded: the packet's octets could not be read.
        CopyFailed = "copy_failed",
        /// Discarded: larger than a record (IPv6 jumbograms of BIG TCP).
        TooLarge = "too_large",
        /// Payload octets lost with [`NoRing`](Self::NoRing), [`CopyFailed`](Self::CopyFailed) and
        /// [`TooLarge`](Self::TooLarge).
        OtherBytes = "other_bytes",
        /// SYN and FIN flags lost with these three.
        OtherControl = "other_syn_fin",
        /// Discarded: an IP fragment, which has no whole TCP header or no whole payload. Counted when the address or the
        /// port of a rule can be seen in it, or cannot be excluded.
        Fragment = "fragment",
        /// Discarded: TCP or IP lengths of a matched packet contradict each other.
        Malformed = "malformed",
        /// Forced wake-ups of a sleeping worker.
        Wakeups = "wakeups",
    }
}

counters! {
    /// What the target's programs count.
    TargetCounter {
        /// Sessions learned from a SYN with a valid mark.
        Learned = "sessions_learned",
        /// The same SYN again.
        SynRepeated = "syn_repeated",
        /// SYN dropped: its tag is wrong.
        BadTag = "syn_bad_tag",
        /// SYN dropped: its instance is unknown.
        UnknownInstance = "syn_unknown_instance",
        /// SYN dropped: the session map is full.
        MapFull = "session_map_full",
        /// SYN dropped: another instance holds the four-tuple.
        Collision = "collision",
        /// Sessions given up because the target's own traffic took their four-tuple.
        Reclaimed = "reclaimed",
        /// Response segments swallowed.
        Swallowed = "swallowed_segments",
        /// Their payload octets.
        SwallowedBytes = "swallowed_bytes",
        /// ICMP errors that quote a session, swallowed.
        SwallowedIcmp = "swallowed_icmp",
        /// Response segments that were turned into their acknowledgement and given back to the target. They are among the
        /// swallowed.
        Reflected = "reflected",
        /// The same failed: the target sends the segment again.
        ReflectFailed = "reflect_failed",
        /// Reflected acknowledgements that came in.
        ReflectionSeen = "reflections_seen",
        /// Fragments of responses, swallowed.
        SwallowedFragments = "swallowed_fragments",
        /// Reports lost because the ring was full (the response is swallowed all the same).
        ReportLost = "reports_lost",
        /// Marked SYNs whose headers could not be read: dropped.
        Malformed = "malformed",
        /// Forced wake-ups of a sleeping `intercept`.
        Wakeups = "wakeups",
    }
}
