//! The sections of figures.

macro_rules! sections {
    ($($(#[doc = $help:literal])* $variant:ident = $name:literal,)*) => {
        /// A section: an object in the JSON, a group of rows in the table. In the order in which they are shown.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Section {
            $($(#[doc = $help])* $variant,)*
        }

        impl Section {
            /// Returns the name: snake case, with the unit at its end where all figures of the section share one.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// Returns what its figures have in common.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => concat!($($help, "\n",)*).trim_ascii(),)* }
            }
        }
    };
}

sections! {
    /// The run itself.
    Run = "run",
    /// What was captured, and how far it came.
    Stages = "stages",
    /// What the target's kernel saw of replayed sessions, right behind its network card.
    SeenOnTheWire = "seen_on_the_wire",
    /// Live traffic that was not to be copied.
    NotSelected = "not_selected",
    /// Live traffic that should have been copied and was not.
    NotCopied = "not_copied",
    /// Segments that claim to be a live client's, and that the live server's TCP refuses: they are not replayed, and in
    /// no other count of what was captured.
    Refused = "refused_by_live_server",
    /// Replayed connections. At the source: `seen = finished + active + aborted`.
    Sessions = "sessions",
    /// Sessions that ended early, by reason.
    Aborted = "aborted",
    /// Payload octets of live clients, each counted once per copy: `captured = sent + pending + discarded`.
    Bytes = "bytes",
    /// Payload octets that were captured and given up, by reason.
    Discarded = "discarded",
    /// SYNs of connections that were captured from their start: `captured = sent + pending + discarded`.
    Syns = "syns",
    /// SYNs that were captured and given up, by reason.
    SynsDiscarded = "syns_discarded",
    /// FINs: `captured = sent + pending + discarded`.
    Fins = "fins",
    /// FINs that were captured and given up, by reason.
    FinsDiscarded = "fins_discarded",
    /// What the replay did beside sending each octet once.
    Replay = "replay",
    /// Targets to which nothing was sent, and why; those that another worker or copy has stopped are not counted again.
    StoppedTargets = "stopped_targets",
    /// Packets that were built and not sent.
    NotInjected = "not_injected",
    /// SYNs that were dropped at the target because they are no session's.
    RefusedSyns = "refused_syns",
    /// What the target sent to replayed clients, and no client got.
    Swallowed = "swallowed",
    /// Responses that `intercept` acknowledged itself (`--ack reflect`).
    AcknowledgedHere = "acknowledged_here",
    /// Reports of responses to their owners.
    Reports = "reports",
    /// Responses of which their owner was not told.
    NotReported = "not_reported",
    /// Connections to the control port of `intercept`, by what became of them.
    ControlConnections = "control_connections",
    /// How late segments with payload are first sent.
    Lag = "lag_us",
    /// How long segments waited for the answer to the request before them.
    GateWait = "gate_wait_us",
    /// What it costs.
    Cost = "cost",
}

impl Section {
    /// Returns whether a table shows figures that are zero: they are the ones that one looks for, or tell that nothing
    /// came so far.
    #[must_use]
    pub const fn shows_zeros(self) -> bool {
        matches!(self, Self::Run | Self::Stages | Self::SeenOnTheWire | Self::Sessions | Self::Bytes | Self::Swallowed)
    }
}
