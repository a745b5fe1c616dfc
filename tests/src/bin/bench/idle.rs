//! A program that does nothing, beside those that are measured: what the kernel's statistics say of it is what they
//! cost themselves.

use lab::{
    Host,
    classifier::{Classifier, NEXT},
};

/// The program, attached. Detached when this is dropped.
pub struct Idle {
    _program: Classifier,
}

impl Idle {
    /// What the kernel calls it.
    pub const NAME: &str = "idle";

    /// Attaches it at the end of the chain of programs for what comes in at a host, by a link (Linux 6.6).
    pub fn attach(host: &Host) -> anyhow::Result<Self> {
        Ok(Self { _program: Classifier::attach(host, &host.interface, Self::NAME, &NEXT)? })
    }
}
