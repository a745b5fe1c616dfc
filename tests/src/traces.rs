//! What a program could leave behind in the kernel.

use std::{collections::BTreeSet, fs, io, mem::size_of_val};

use anyhow::Context as _;

use crate::Host;

/// A kind of object of the BPF subsystem; the value is the command of `bpf(2)` that opens one by its identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u32)]
pub enum Kind {
    /// A program.
    Program = 13,
    /// A map.
    Map = 14,
    /// A link, which attaches a program.
    Link = 30,
}

/// The BPF objects of a process: unlike a list of all of the machine's, it is not disturbed by other users.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BpfObjects(BTreeSet<(Kind, u32)>);

impl BpfObjects {
    /// Collects those which a process holds open, and the programs behind its links.
    pub fn of(pid: u32) -> anyhow::Result<Self> {
        let directory = format!("/proc/{pid}/fdinfo");
        let mut objects = BTreeSet::new();
        for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {directory}"))? {
            // A descriptor may be closed meanwhile.
            let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
            for line in text.lines() {
                let mut words = line.split_whitespace();
                let kind = match words.next() {
                    Some("prog_id:") => Kind::Program,
                    Some("map_id:") => Kind::Map,
                    Some("link_id:") => Kind::Link,
                    _ => continue,
                };
                objects.extend(words.next().and_then(|id| id.parse().ok()).map(|id| (kind, id)));
            }
        }
        Ok(Self(objects))
    }

    /// Returns how many there are of a kind.
    pub fn count(&self, kind: Kind) -> usize {
        self.0.iter().filter(|(k, _)| *k == kind).count()
    }

    /// Returns those which the kernel still has.
    pub fn remaining(&self) -> Vec<(Kind, u32)> {
        self.0.iter().copied().filter(|(kind, id)| exists(*kind, *id)).collect()
    }
}

fn exists(kind: Kind, id: u32) -> bool {
    // The identifier, the next one, flags: `union bpf_attr`'s part for these commands.
    let attributes: [u32; 3] = [id, 0, 0];
    // SAFETY: the kernel only reads the attributes, which outlive the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, kind as u32, attributes.as_ptr(), size_of_val(&attributes)) };
    if fd >= 0 {
        // SAFETY: the descriptor is ours and nobody else knows it.
        unsafe { libc::close(fd as i32) };
        return true;
    }
    io::Error::last_os_error().raw_os_error() != Some(libc::ENOENT)
}

/// Returns the network configuration of a host, as text, to compare with later: qdiscs, filters, programs on links,
/// routes, permanent neighbours, listening sockets and sysctls.
pub fn network_state(host: &Host) -> anyhow::Result<Vec<String>> {
    let mut state = Vec::new();
    let mut add = |command: &str| -> anyhow::Result<()> {
        state.extend(host.output(command)?.lines().map(|line| format!("{command}: {line}")));
        Ok(())
    };
    for command in [
        "tc qdisc show",
        "ip -details link show",
        "ip -4 route show table all",
        "ip -6 route show table all",
        "ip rule show",
        "ip -4 neighbour show nud permanent",
        "ip -6 neighbour show nud permanent",
        "ss -Hltn",
        "ss -Hw -a",
    ] {
        add(command)?;
    }
    let interfaces = host.run(|| fs::read_to_string("/proc/thread-self/net/dev"))??;
    for line in interfaces.lines() {
        if let Some((interface, _)) = line.split_once(':') {
            for direction in ["ingress", "egress"] {
                add(&format!("tc filter show dev {} {direction}", interface.trim()))?;
            }
        }
    }
    // Figures like nf_conntrack_count are no settings.
    let settings = host.sysctls()?.into_iter().filter(|(name, _)| !name.ends_with("_count"));
    state.extend(settings.map(|(name, value)| format!("{name}: {}", value.trim())));
    Ok(state)
}

/// Lines of one state that the other has not.
pub fn differences(before: &[String], after: &[String]) -> Vec<String> {
    let (old, new): (BTreeSet<_>, BTreeSet<_>) = (before.iter().collect(), after.iter().collect());
    let gone = old.difference(&new).map(|line| format!("- {line}"));
    gone.chain(new.difference(&old).map(|line| format!("+ {line}"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Lab, laboratory};

    #[test]
    fn a_quiet_host_does_not_change_and_a_qdisc_is_noticed() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let before = network_state(&lab.source).unwrap();
        assert_eq!(differences(&before, &network_state(&lab.source).unwrap()), Vec::<String>::new());
        lab.source.output("tc qdisc add dev eth0 clsact").unwrap();
        let changes = differences(&before, &network_state(&lab.source).unwrap());
        assert!(changes.iter().any(|line| line.contains("clsact")), "{changes:#?}");
    }

    #[test]
    fn bpf_objects_end_with_their_process() {
        assert!(!exists(Kind::Program, u32::MAX - 1));
        assert_eq!(BpfObjects::of(std::process::id()).unwrap().remaining(), []);
    }
}
