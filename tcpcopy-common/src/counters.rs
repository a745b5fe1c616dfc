//! Counters that the programs keep, one per-CPU array each: the enum is the index, the sum over CPUs is the value.

use crate::figures::{Family, Section, counter};

macro_rules! counters {
    ($(#[$doc:meta])* $name:ident { $($(#[doc = $help:literal])* $variant:ident = $declaration:expr,)* }) => {
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
            #[expect(clippy::cast_possible_truncation, reason = "a handful")]
            pub const COUNT: u32 = Self::ALL.len() as u32;
            /// Their declarations, in the same order.
            pub const FAMILIES: &'static [Family] =
                &[$($declaration.declared(stringify!($variant), concat!($($help, "\n",)*)),)*];

            /// Returns its declaration.
            #[must_use]
            pub const fn family(self) -> &'static Family {
                &Self::FAMILIES[self as usize]
            }
        }
    };
}

counters! {
    /// What the source's capture programs count. "Matched" means: of a flow that a rule names.
    CaptureCounter {
        /// Matched segments put into a ring.
        Captured = counter(Section::Stages).named("captured_segments"),
        /// Payload octets of matched segments put into a ring, live retransmissions included.
        CapturedBytes = counter(Section::Stages).named("captured_bytes").bytes(),
        /// SYN-ACKs of the live servers to matched clients.
        Answers = counter(Section::Stages).named("syn_acks_seen"),
        /// Matched segments with neither payload nor SYN, FIN or RST: not copied.
        PureAck = counter(Section::Cost).named("pure_acks_skipped"),
        /// Packets of clients that are not wanted: not copied. (Pure ACKs are among them.)
        Filtered = counter(Section::NotSelected).named("filtered"),
        /// Packets of connections that are not in the sample: not copied. (Pure ACKs are among them.)
        NotSampled = counter(Section::NotSelected).named("not_sampled"),
        /// Packets in frames for other hosts, which an interface in promiscuous mode overhears, or for groups: TCP drops them, and
        /// they are not copied.
        OtherHost = counter(Section::NotSelected).named("other_host"),
        /// Discarded: the worker's ring was full.
        RingFull = counter(Section::NotCopied).named("ring_full"),
        /// Payload octets lost with segments that found a ring full.
        RingFullBytes = counter(Section::NotCopied).named("ring_full_bytes").bytes(),
        /// SYN and FIN flags lost with segments that found a ring full.
        RingFullControl = counter(Section::NotCopied).named("ring_full_syn_fin"),
        /// Discarded: no ring at the index of the flow's worker.
        NoRing = counter(Section::NotCopied).named("no_ring"),
        /// Discarded: the packet's octets could not be read.
        CopyFailed = counter(Section::NotCopied).named("copy_failed"),
        /// Discarded: larger than a record (IPv6 jumbograms of BIG TCP).
        TooLarge = counter(Section::NotCopied).named("too_large"),
        /// Payload octets lost with segments without a ring, that could not be read, or that are too large.
        OtherBytes = counter(Section::NotCopied).named("other_bytes").bytes(),
        /// SYN and FIN flags lost with segments without a ring, that could not be read, or that are too large.
        OtherControl = counter(Section::NotCopied).named("other_syn_fin"),
        /// Discarded: an IP fragment, which has no whole TCP header or no whole payload. Counted when the address or
        /// the port of a rule can be seen in it, or cannot be excluded.
        Fragment = counter(Section::NotCopied).named("fragment"),
        /// Discarded: TCP or IP lengths of a matched packet contradict each other.
        Malformed = counter(Section::NotCopied).named("malformed"),
        /// Forced wake-ups of a sleeping worker.
        Wakeups = counter(Section::Cost).named("wakeups"),
    }
}

counters! {
    /// What the target's programs count.
    TargetCounter {
        /// Sessions learned from a SYN with a valid mark.
        Learned = counter(Section::Sessions).named("sessions_learned"),
        /// SYNs of sessions that are known already: retransmissions.
        SynRepeated = counter(Section::Sessions).named("syn_repeated"),
        /// SYN dropped: its tag is wrong.
        BadTag = counter(Section::RefusedSyns).named("syn_bad_tag"),
        /// SYN dropped: its mark is right, but was made more than some four seconds ago.
        Stale = counter(Section::RefusedSyns).named("syn_stale"),
        /// SYN dropped: its instance is unknown.
        UnknownInstance = counter(Section::RefusedSyns).named("syn_unknown_instance"),
        /// SYN dropped: the session map is full.
        MapFull = counter(Section::RefusedSyns).named("session_map_full"),
        /// SYN dropped: another instance, or a connection of the target's own, holds the four-tuple.
        Collision = counter(Section::RefusedSyns).named("collision"),
        /// Sessions given up because the target's own traffic took their four-tuple.
        Reclaimed = counter(Section::Sessions).named("reclaimed"),
        /// SYNs that only asked whether they are seen: reported, and dropped.
        Probed = counter(Section::Sessions).named("probes_seen"),
        /// Response segments swallowed.
        Swallowed = counter(Section::Swallowed).named("swallowed_segments"),
        /// Payload octets of the swallowed response segments.
        SwallowedBytes = counter(Section::Swallowed).named("swallowed_bytes").bytes(),
        /// ICMP errors that quote a session, swallowed.
        SwallowedIcmp = counter(Section::Swallowed).named("swallowed_icmp"),
        /// Response segments that were turned into their acknowledgement and given back to the target. They are among
        /// the swallowed.
        Reflected = counter(Section::AcknowledgedHere).named("reflected"),
        /// Response segments that should have been reflected and could not be: the target sends them again.
        ReflectFailed = counter(Section::AcknowledgedHere).named("reflect_failed"),
        /// Reflected acknowledgements that came in.
        ReflectionSeen = counter(Section::AcknowledgedHere).named("reflections_seen"),
        /// Fragments of responses, swallowed.
        SwallowedFragments = counter(Section::Swallowed).named("swallowed_fragments"),
        /// Reports lost because the ring was full, of whichever instance. (The response is swallowed all the same.)
        ReportLost = counter(Section::Reports).named("reports_lost"),
        /// Reports without the first octets of their response, though they were asked for: the ring had no room for
        /// them, or they could not be read.
        PrefixLost = counter(Section::Reports).named("prefixes_lost"),
        /// Marked SYNs whose headers could not be read: dropped.
        Malformed = counter(Section::RefusedSyns).named("malformed"),
        /// Forced wake-ups of a sleeping `intercept`.
        Wakeups = counter(Section::Reports).named("wakeups"),
    }
}
