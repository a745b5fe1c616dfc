//! Of which targets' responses a worker wants the first octets: what it says in its Hello, and what that may be.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
};

use bytemuck::{Pod, Zeroable};
use tcpcopy_common::{flow::IpAddress, prefix::Prefix};

use super::registration::{Refusal, RefusalCode};

/// The most targets in one Hello, so that its length is bounded.
pub const MAX_TARGETS: usize = 64;

/// A target, and how many octets of its responses are wanted: as it travels, and so perhaps not what it may be.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct TargetPrefix {
    /// IPv4 in its IPv4-mapped form.
    address: [u8; 16],
    /// Network order.
    port: [u8; 2],
    /// Little-endian.
    octets: [u8; 2],
}

const _: () = assert!(size_of::<TargetPrefix>() == 20 && align_of::<TargetPrefix>() == 1);

impl TargetPrefix {
    /// Asks for a prefix of what `target` answers.
    #[must_use]
    pub fn new(target: SocketAddr, prefix: Prefix) -> Self {
        let IpAddress(address) = target.ip().into();
        Self { address, port: target.port().to_be_bytes(), octets: prefix.octets().to_le_bytes() }
    }

    fn target(&self) -> SocketAddr {
        SocketAddr::new(IpAddr::from(IpAddress(self.address)), u16::from_be_bytes(self.port))
    }
}

/// Reads what a worker wants.
///
/// # Errors
/// The [`Refusal`] that the worker is to be told: a length that no prefix has, or a target that is there twice.
pub(super) fn read(prefixes: &[TargetPrefix]) -> Result<Vec<(SocketAddr, Prefix)>, Refusal> {
    let mut targets = HashSet::new();
    let mut read = Vec::with_capacity(prefixes.len());
    for asked in prefixes {
        let (target, octets) = (asked.target(), u16::from_le_bytes(asked.octets));
        let refused = |why: String| Refusal::new(RefusalCode::BadPrefix, &why);
        let prefix = Prefix::new(octets).ok_or_else(|| {
            refused(format!(
                "the first {octets} octets of each response of {target} are asked for; possible are 0 and the powers of \
                 two from {} to {}",
                Prefix::LEAST.octets(),
                Prefix::MOST.octets()
            ))
        })?;
        if !targets.insert(target) {
            return Err(refused(format!("the first octets of the responses of {target} are asked for twice")));
        }
        read.push((target, prefix));
    }
    Ok(read)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(target: &str, octets: u16) -> TargetPrefix {
        TargetPrefix { octets: octets.to_le_bytes(), ..TargetPrefix::new(target.parse().unwrap(), Prefix::NONE) }
    }

    #[test]
    fn what_a_prefix_can_be_is_read_and_all_else_is_refused_by_name() {
        for octets in 0..=u16::MAX {
            let read = read(&[asked("10.0.0.4:80", 16), asked("[2001:db8::3]:443", octets)]);
            match Prefix::new(octets) {
                Some(prefix) => {
                    let [_, (target, read)] = read.unwrap()[..] else { panic!("two targets") };
                    assert_eq!((target, read), ("[2001:db8::3]:443".parse().unwrap(), prefix));
                }
                None => {
                    let refusal = read.unwrap_err();
                    assert_eq!(refusal.code, RefusalCode::BadPrefix);
                    let expected =
                        format!("the first {octets} octets of each response of [2001:db8::3]:443 are asked for");
                    assert!(refusal.text().starts_with(&expected), "{}", refusal.text());
                    assert!(refusal.text().ends_with("powers of two from 16 to 2048"), "{}", refusal.text());
                }
            }
        }
        assert_eq!(read(&[]), Ok(vec![]));
    }

    #[test]
    fn a_target_that_is_there_twice_is_refused_whichever_form_its_address_has() {
        let other_port = [asked("10.0.0.3:80", 16), asked("10.0.0.3:81", 32), asked("[fd00::3]:80", 16)];
        assert_eq!(read(&other_port).unwrap().len(), 3);
        for again in ["10.0.0.3:80", "[::ffff:10.0.0.3]:80"] {
            let refusal = read(&[other_port[0], other_port[1], asked(again, 16)]).unwrap_err();
            assert_eq!(refusal.code, RefusalCode::BadPrefix);
            assert!(refusal.text().contains("10.0.0.3:80 are asked for twice"), "{}", refusal.text());
        }
    }
}
