//! What the two sides tell each other when a channel opens.

use std::{fmt, net::SocketAddr};

use tcpcopy_common::{
    mark::{Epoch, MarkKey},
    prefix::Prefix,
};

/// The longest name of a source, in octets.
pub(super) const MAX_NAME: usize = 64;
/// The longest explanation of a refusal, in octets.
pub(super) const MAX_REFUSAL: usize = 256;

/// Who dials: one worker of one source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Index of the worker in its process.
    pub worker: u16,
    /// The instance that the worker held before its channel broke and wants back.
    pub resume: Option<Resume>,
    /// Of which targets' responses it wants the first octets, and how many: each target at most once, at most
    /// [`MAX_TARGETS`](super::MAX_TARGETS) of them. Of all others it wants the headers only. It holds for sessions that
    /// begin on this channel; a session that is resumed keeps what it has.
    pub prefixes: Vec<(SocketAddr, Prefix)>,
    name: String,
}

impl Hello {
    /// Introduces `worker` of the source called `name` (a host name, for logs), who wants the headers of responses
    /// only. Control characters are taken out of the name, and it is cut to 64 octets.
    #[must_use]
    pub fn new(worker: u16, resume: Option<Resume>, name: &str) -> Self {
        Self { worker, resume, prefixes: Vec::new(), name: printable(name, MAX_NAME) }
    }

    /// The same worker, who wants this of responses: see [`prefixes`](Self::prefixes).
    #[must_use]
    pub fn with_prefixes(self, prefixes: Vec<(SocketAddr, Prefix)>) -> Self {
        Self { prefixes, ..self }
    }

    /// The source's name for itself: printable, but nothing proves it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Proof that a worker held an instance before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resume {
    /// [`Welcome::instance`] of the lost channel.
    pub instance: u32,
    /// [`Welcome::token`] of the lost channel.
    pub token: Token,
}

/// A secret that `intercept` gives out with an instance. Compared in constant time, and never printed.
#[derive(Clone, Copy, Eq)]
pub struct Token(pub [u8; 16]);

impl PartialEq for Token {
    fn eq(&self, other: &Self) -> bool {
        // No early exit: the time taken must not tell how many octets of a guess were right.
        std::hint::black_box(self.0.iter().zip(&other.0).fold(0, |difference, (a, b)| difference | (a ^ b))) == 0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

/// What `intercept` assigns to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Goes into every mark; responses of sessions so marked come over this channel.
    pub instance: u32,
    /// Makes the marks.
    pub key: MarkKey,
    /// The present epoch, which marks have to show.
    pub epoch: Epoch,
    /// Proves after a reconnection that the instance was ours.
    pub token: Token,
}

/// Why `intercept` turns an authenticated worker away.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {text}")]
pub struct Refusal {
    /// For the program.
    pub code: RefusalCode,
    text: String,
}

impl Refusal {
    /// A refusal with an explanation for people. Control characters are taken out, and it is cut to 256 octets.
    #[must_use]
    pub fn new(code: RefusalCode, text: &str) -> Self {
        Self { code, text: printable(text, MAX_REFUSAL) }
    }

    /// The explanation.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }
}

/// The kinds of [`Refusal`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalCode {
    /// The token does not prove the instance, or the instance is gone: register anew, without resuming.
    CannotResume,
    /// No instance is free.
    Full,
    /// What is asked for of the responses' first octets cannot be.
    BadPrefix,
    /// A code of a newer release.
    Other(u8),
}

impl RefusalCode {
    /// The code on the wire.
    pub(super) const fn to_wire(self) -> u8 {
        match self {
            Self::CannotResume => 1,
            Self::Full => 2,
            Self::BadPrefix => 3,
            Self::Other(code) => code,
        }
    }

    pub(super) const fn from_wire(code: u8) -> Self {
        match code {
            1 => Self::CannotResume,
            2 => Self::Full,
            3 => Self::BadPrefix,
            code => Self::Other(code),
        }
    }
}

impl fmt::Display for RefusalCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CannotResume => f.write_str("the earlier instance cannot be resumed"),
            Self::Full => f.write_str("no more workers fit"),
            Self::BadPrefix => f.write_str("it cannot report the first octets of responses as asked for"),
            Self::Other(code) => write!(f, "reason {code}"),
        }
    }
}

/// What of `text` may go over the wire and from there into a log: no control characters, at most `max` octets.
fn printable(text: &str, max: usize) -> String {
    let mut result = String::new();
    for c in text.chars().filter(|c| !c.is_control()) {
        if result.len() + c.len_utf8() > max {
            break;
        }
        result.push(c);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_at_a_character_and_lose_control_characters() {
        assert_eq!(Hello::new(0, None, "web\n1\u{1b}[31m").name(), "web1[31m");
        let name = "ä".repeat(40);
        assert_eq!(Hello::new(0, None, &name).name(), "ä".repeat(32));
    }

    #[test]
    fn secrets_stay_out_of_debug_output() {
        let welcome = Welcome { instance: 5, key: MarkKey { k0: 77, k1: 77 }, epoch: Epoch(1), token: Token([77; 16]) };
        let resume = Resume { instance: 5, token: Token([77; 16]) };
        assert!(!format!("{welcome:?} {:?}", Hello::new(0, Some(resume), "")).contains("77"));
    }

    #[test]
    fn tokens_are_equal_only_when_every_octet_is() {
        assert_eq!(Token([3; 16]), Token([3; 16]));
        for i in 0..16 {
            let mut other = [3; 16];
            other[i] ^= 0x80;
            assert_ne!(Token([3; 16]), Token(other));
        }
    }

    #[test]
    fn refusal_codes_survive_the_wire() {
        for code in 0..=255 {
            assert_eq!(RefusalCode::from_wire(code).to_wire(), code);
        }
    }
}
