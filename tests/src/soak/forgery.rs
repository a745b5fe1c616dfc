//! The forger of a soak.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::{
    Family,
    forge::{ACK, Forger, PSH, RST, SYN, Segment},
};

/// The number of a request that nobody has sent.
pub(super) const FORGED: u64 = u64::MAX;
/// Forgeries in a row: of each a SYN, data and a RST.
const FORGERIES: u32 = 500;
/// The queue of an interface is full.
const ENOBUFS: i32 = 105;

/// A stranger knocks at `server`, and asks without having been answered, from addresses that nobody has. `number` is of
/// the last forgery.
pub(super) fn forge(
    forger: &Forger,
    dice: &mut fastrand::Rng,
    number: &mut u32,
    server: impl Fn(Family) -> SocketAddr,
) -> anyhow::Result<()> {
    let payload = format!("GET /size/1?id={FORGED} HTTP/1.1\r\nHost: live\r\n\r\n").into_bytes();
    for _ in 0..FORGERIES {
        *number += 1;
        for family in Family::BOTH {
            let client = SocketAddr::new(nowhere(family, *number), dice.u16(1_024..));
            let server = server(family);
            let isn = dice.u32(..);
            let next = isn.wrapping_add(1);
            let data = Segment::new(client, server, ACK | PSH, next, dice.u32(..));
            for segment in [
                Segment::new(client, server, SYN, isn, 0),
                Segment { payload: payload.clone(), ..data },
                Segment::new(client, server, RST, dice.u32(..), 0),
            ] {
                match forger.send(&segment) {
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

/// An address that nobody has, on a way that all hosts know.
fn nowhere(family: Family, number: u32) -> IpAddr {
    match family {
        Family::V4 => Ipv4Addr::from((198 << 24 | 18 << 16) + number % (1 << 17)).into(),
        Family::V6 => Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, (number >> 16) as u16, number as u16).into(),
    }
}
