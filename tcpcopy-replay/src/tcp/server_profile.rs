//! The server profile: behaviour of the servers of a rule that its connections learn, and share.

use crate::{
    causality::{farewell::Farewells, greeting::FirstSpeaker, joining::Joins},
    tcp::nagle::Nagle,
};

/// Server behaviour learned per rule and shared by its connections.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ServerProfile {
    /// Who speaks first.
    pub first_speaker: FirstSpeaker,
    /// Whether they wait for acknowledgements before they send the rest of a response.
    pub nagle: Nagle,
    /// Whether they go on with what begins in the middle.
    pub joins: Joins,
    /// Whether ends are worth waiting with.
    pub farewells: Farewells,
}
