//! What goes wrong in a soak.

use std::{fmt, time::Duration};

use serde::Serialize;

use crate::bad_path::Weather;

/// Something that goes wrong, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL for `tcpcopy`, which is started again.
    KillTcpcopy,
    /// SIGKILL for `intercept`, which is started again.
    KillIntercept,
    /// SIGTERM for `tcpcopy`, which is started again.
    RestartTcpcopy,
    /// SIGTERM for `intercept`, which is started again.
    RestartIntercept,
    /// SIGSTOP for `tcpcopy`, and SIGCONT.
    PauseTcpcopy,
    /// SIGSTOP for `intercept`, and SIGCONT.
    PauseIntercept,
    /// The service under test ends, and is started again.
    RestartService,
    /// The target's cable has no carrier.
    LinkDown,
    /// The target gets another address, and loses it.
    AddressChange,
    /// The path to the target loses, duplicates and reorders packets.
    BadPath,
    /// A stranger sends SYNs, data and RSTs under the addresses of others.
    Forgery,
}

const ALL: [Fault; 11] = [
    Fault::KillTcpcopy,
    Fault::KillIntercept,
    Fault::RestartTcpcopy,
    Fault::RestartIntercept,
    Fault::PauseTcpcopy,
    Fault::PauseIntercept,
    Fault::RestartService,
    Fault::LinkDown,
    Fault::AddressChange,
    Fault::BadPath,
    Fault::Forgery,
];

impl Fault {
    pub(super) fn draw(dice: &mut fastrand::Rng) -> Self {
        dice.choice(ALL).unwrap_or(Self::Forgery)
    }

    /// A path that is as bad as the seed says.
    pub(super) fn weather(dice: &mut fastrand::Rng) -> Weather {
        Weather {
            lose: dice.u32(0..50),
            duplicate: dice.u32(0..20),
            reorder: dice.u32(0..50),
            delay: Duration::from_millis(dice.u64(0..5)),
            only_from: None,
            seed: dice.u64(..),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::KillTcpcopy => "tcpcopy killed",
            Self::KillIntercept => "intercept killed",
            Self::RestartTcpcopy => "tcpcopy restarted",
            Self::RestartIntercept => "intercept restarted",
            Self::PauseTcpcopy => "tcpcopy stopped for a while",
            Self::PauseIntercept => "intercept stopped for a while",
            Self::RestartService => "service under test restarted",
            Self::LinkDown => "no carrier at the target",
            Self::AddressChange => "another address at the target",
            Self::BadPath => "loss, duplication and reordering",
            Self::Forgery => "forged SYNs, data and RSTs",
        })
    }
}
