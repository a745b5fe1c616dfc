//! Greetings: whether the servers of a rule speak first, as those of SMTP, FTP and MySQL do.

use std::time::Duration;

/// Who speaks first on the connections of a rule. The live server's greeting cannot be told from what is captured: the
/// first segment with payload acknowledges the SYN and perhaps a greeting, in one number that nothing compares with.
/// So the target tells: payload that acknowledges only our SYN is a greeting.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum FirstSpeaker {
    /// No connection has shown it yet: the first ones wait [`PROBE`] for a greeting.
    #[default]
    Unknown,
    /// The client: first segments go at once.
    Client,
    /// The server: first segments wait for its greeting, like any other for an answer.
    Server,
}

/// How long the first connection of a rule waits for a greeting that may not come.
pub(crate) const PROBE: Duration = Duration::from_millis(50);
/// What comes later is no greeting, but for instance a complaint about an idle connection.
pub(crate) const GREETING: Duration = Duration::from_secs(1);
