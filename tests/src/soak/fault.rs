//! What goes wrong in a soak.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde::Serialize;

use super::{LIVE_WITNESS, Soak};
use crate::{
    Family,
    bad_path::Weather,
    forge::{ACK, PSH, RST, SYN, Segment},
};

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

/// The number of a request that nobody has sent.
pub(super) const FORGED: u64 = u64::MAX;
/// Forgeries in a row: of each a SYN, data and a RST.
const FORGERIES: u32 = 500;
/// The queue of an interface is full.
const ENOBUFS: i32 = 105;

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

impl Soak {
    /// A stranger knocks, and asks without having been answered, from addresses that nobody has.
    pub(super) fn forge(&mut self) -> anyhow::Result<()> {
        let payload = format!("GET /size/1?id={FORGED} HTTP/1.1\r\nHost: live\r\n\r\n").into_bytes();
        for _ in 0..FORGERIES {
            self.forged += 1;
            let number = self.forged;
            for family in Family::BOTH {
                let client = SocketAddr::new(nowhere(family, number), self.dice.u16(1_024..));
                let server = self.lab.source.socket(family, LIVE_WITNESS);
                let isn = self.dice.u32(..);
                let next = isn.wrapping_add(1);
                let data = Segment::new(client, server, ACK | PSH, next, self.dice.u32(..));
                for segment in [
                    Segment::new(client, server, SYN, isn, 0),
                    Segment { payload: payload.clone(), ..data },
                    Segment::new(client, server, RST, self.dice.u32(..), 0),
                ] {
                    match self.forger.send(&segment) {
                        Err(error) if error.raw_os_error() != Some(ENOBUFS) => return Err(error.into()),
                        _ => {}
                    }
                }
            }
            if number.is_multiple_of(16) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        Ok(())
    }
}

/// An address that nobody has, on a way that all hosts know.
fn nowhere(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from((198 << 24 | 18 << 16) + number % (1 << 17)).into(),
        Family::V6 => Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
    }
}
