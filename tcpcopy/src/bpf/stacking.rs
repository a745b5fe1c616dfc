//! Interfaces that carry each other's packets: a segment captured on two of them would be copied twice.

use super::BpfError;
use crate::net::interface::Interface;

/// Refuses `chosen` when a packet would pass two of them: a port and its bridge or bond, a device and its VLAN.
pub(super) fn refuse(all: &[Interface], chosen: &[&Interface]) -> Result<(), BpfError> {
    for lower in chosen {
        let above = above(all, lower.index);
        if let Some(upper) = chosen.iter().find(|upper| above.contains(&upper.index)) {
            return Err(BpfError::Stacked { lower: lower.name.clone(), upper: upper.name.clone() });
        }
    }
    Ok(())
}

/// Indices of all interfaces that are stacked on the one of index `lower`, however high.
fn above(all: &[Interface], lower: u32) -> Vec<u32> {
    let mut found = Vec::new();
    let mut next = Some(lower);
    let mut visited = 0;
    while let Some(lower) = next {
        let controller = all.iter().find(|i| i.index == lower).and_then(|i| i.master);
        let children = all.iter().filter(|i| i.lower == Some(lower)).map(|i| i.index);
        for index in controller.into_iter().chain(children) {
            if !found.contains(&index) {
                found.push(index);
            }
        }
        next = found.get(visited).copied();
        visited += 1;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interface::ETHERNET;

    fn interface(index: u32, name: &str, master: Option<u32>, lower: Option<u32>) -> Interface {
        Interface {
            index,
            name: name.to_owned(),
            up: true,
            loopback: false,
            resolves: true,
            mtu: 1500,
            link_type: ETHERNET,
            mac: None,
            kind: None,
            master,
            lower,
        }
    }

    #[test]
    fn interfaces_that_see_the_same_packets_are_refused_together() {
        // eth0 and eth1 in bond0; a VLAN on that in a bridge, and another VLAN; eth2 by itself.
        let all = [
            interface(1, "eth0", Some(4), None),
            interface(2, "eth1", Some(4), None),
            interface(3, "eth2", None, None),
            interface(4, "bond0", None, None),
            interface(5, "bond0.7", Some(6), Some(4)),
            interface(6, "br0", None, None),
            interface(7, "bond0.8", None, Some(4)),
        ];
        let refused = |names: &[&str]| {
            let chosen: Vec<_> = names.iter().map(|name| all.iter().find(|i| i.name == *name).unwrap()).collect();
            refuse(&all, &chosen).is_err()
        };
        assert!(refused(&["eth0", "bond0"]));
        assert!(refused(&["bond0", "bond0.7"]));
        assert!(refused(&["bond0.8", "eth1"]));
        assert!(refused(&["eth2", "br0", "eth0"]));
        assert!(!refused(&["eth0", "eth1", "eth2"]));
        assert!(!refused(&["br0", "bond0.8", "eth2"]));
    }
}
