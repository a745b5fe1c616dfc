//! What makes a fuse blow.

/// Why nothing is sent to a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The target's programs do not report probes.
    ProbeUnseen,
    /// Probes of this host are reported, but neither SYNs nor probes from clients' addresses are.
    SynsUnseen,
    /// SYNs have come to the target's programs, and nothing has answered them.
    Unanswered,
    /// SYNs have come to the target's programs, and the target has answered them without its programs seeing that.
    AnswersUnseen,
}
