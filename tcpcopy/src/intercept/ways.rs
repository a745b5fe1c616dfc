//! The ways by which replayed packets come: the operator is told of those that he has not named.

use std::collections::HashSet;

use crate::{
    finding::Finding,
    net::{
        NetError,
        interface::{Interface, above, interfaces},
    },
};

/// The interfaces that were named, and the others by which sessions have come.
#[derive(Debug, Default)]
pub(super) struct Ways {
    named: Vec<String>,
    /// By index: those that the operator knows of.
    known: HashSet<u32>,
}

impl Ways {
    /// Remembers the names of the interfaces on which replayed packets are expected.
    #[must_use]
    pub(super) fn new(named: Vec<String>) -> Self {
        Self { named, known: HashSet::new() }
    }

    /// What there is to tell of the interfaces of these indices, by which sessions come.
    ///
    /// # Errors
    /// When the kernel cannot be asked for its interfaces.
    pub(super) fn findings(&mut self, seen: impl IntoIterator<Item = u32>) -> Result<Vec<Finding>, NetError> {
        let new: Vec<u32> = seen.into_iter().filter(|index| !self.known.contains(index)).collect();
        if new.is_empty() {
            return Ok(Vec::new());
        }
        let all = interfaces()?;
        self.known.retain(|index| all.iter().any(|interface| interface.index == *index));
        self.known.extend(&new);
        Ok(new.into_iter().filter_map(|index| judge(&all, &self.named, index)).collect())
    }
}

/// Finds sessions that come by the interface of this index, unless it was named, or one that is stacked on it.
fn judge(all: &[Interface], named: &[String], index: u32) -> Option<Finding> {
    let interface = all.iter().find(|interface| interface.index == index)?;
    let above = above(all, index);
    let is_named = |interface: &Interface| named.contains(&interface.name);
    if is_named(interface) || all.iter().any(|i| above.contains(&i.index) && is_named(i)) {
        return None;
    }
    let name = &interface.name;
    Some(
        Finding::warning(format!("replayed connections come by {name}"))
            .because("it is not among those that were named; they are learned, and their answers are swallowed")
            .remedy(format!("name {name} too if that is their way"))
            .option(Some("-i")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::testing::{ip, isolated};

    #[test]
    fn ways_that_were_not_named_are_told_of_once() {
        isolated(|_| {
            for line in ["v0 type veth peer name v1", "v2 type veth peer name v3", "br0 type bridge"] {
                ip(&format!("link add {line}"));
            }
            ip("link set v2 master br0");
            let index = |name| crate::net::interface::by_name(name).unwrap().index;
            let mut ways = Ways::new(vec!["v0".into(), "br0".into()]);
            // The port of a bridge that was named is what its packets come by.
            assert_eq!(ways.findings([index("v0"), index("v2"), index("br0"), 4711]).unwrap(), []);
            let told = ways.findings([index("v1"), index("v0")]).unwrap();
            assert_eq!(told.len(), 1);
            assert!(told[0].to_string().starts_with("replayed connections come by v1: "), "{}", told[0]);
            assert_eq!(ways.findings([index("v1")]).unwrap(), []);
        });
    }
}
