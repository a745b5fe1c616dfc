//! The server profile: behaviour of the servers of a rule that its connections learn, and share.

use crate::{causality::greeting::FirstSpeaker, tcp::nagle::Nagle};

/// Server behaviour learned per rule and shared by its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerProfile {
    /// Who speaks first.
    pub first_speaker: FirstSpeaker,
    /// Whether they wait for acknowledgements before they send the rest of a response.
    pub nagle: Nagle,
}
