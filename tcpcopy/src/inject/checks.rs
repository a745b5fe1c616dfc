//! What is found on the way to the targets.

use std::{fs, io, net::IpAddr};

use crate::finding::Finding;

/// Looks for connection tracking on this host. Through raw sockets, injected packets pass netfilter. Their responses
/// never come back, so each replayed session leaves an unreplied entry for minutes, and a full table drops live
/// packets.
pub(super) fn connection_tracking() -> Option<Finding> {
    let read = |name| -> Option<u64> {
        let text = fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}")).ok()?;
        text.trim().parse().ok()
    };
    judge_connection_tracking(read("count"), read("max"))
}

/// Judges by the entries that there are and the most that there can be. Where the module is loaded but nothing here
/// uses it, the table stays empty.
fn judge_connection_tracking(count: Option<u64>, max: Option<u64>) -> Option<Finding> {
    let (count @ 1.., max) = (count?, max?) else { return None };
    Some(
        Finding::warning("connection tracking is active on this host")
            .because(format!(
                "{count} of {max} entries; each replayed session sent through a raw socket takes one, and a full table \
                 drops live packets"
            ))
            .remedy(
                "use packet sockets, or exempt the packets to the target (nft: notrack at hook output, priority raw)",
            ),
    )
}

/// Finds that the next hop to a target does not answer at the start.
pub(super) fn silent_next_hop(hop: IpAddr, target: IpAddr, interface: &str) -> Finding {
    Finding::warning(format!("{hop}, the next hop to the target {target}, does not answer on {interface}"))
        .remedy("until it does, packets go through a raw socket")
}

/// Finds that a target cannot be reached any more.
pub(super) fn unreachable(target: IpAddr) -> Finding {
    Finding::warning(format!("the target {target} cannot be reached"))
        .because("there is no route any more, or its next hop does not answer")
        .remedy("packets to it are discarded and counted until that changes")
}

/// Finds that the kernel refuses a packet, told once for each reason.
pub(super) fn refused(error: &io::Error) -> Finding {
    Finding::warning("the kernel refuses an injected packet")
        .because(error.to_string())
        .remedy("from now on this is only counted")
}

#[cfg(test)]
mod tests {
    use super::*;

    const TARGET: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 3));

    #[test]
    fn connection_tracking_is_a_finding_only_where_its_table_is_used() {
        for (count, max) in [(None, None), (Some(0), Some(262_144)), (Some(5), None)] {
            assert_eq!(judge_connection_tracking(count, max), None, "{count:?} of {max:?}");
        }
        let text = judge_connection_tracking(Some(5), Some(262_144)).unwrap().to_string();
        assert!(text.starts_with("connection tracking is active on this host: 5 of 262144 entries; "), "{text}");
        assert!(text.ends_with("(nft: notrack at hook output, priority raw)"), "{text}");
    }

    #[test]
    fn what_goes_wrong_on_the_way_says_what_becomes_of_the_packets() {
        assert_eq!(
            silent_next_hop([10, 0, 0, 1].into(), TARGET, "eth0").to_string(),
            "10.0.0.1, the next hop to the target 10.0.0.3, does not answer on eth0; until it does, packets \
             go through a raw socket"
        );
        assert_eq!(
            unreachable(TARGET).to_string(),
            "the target 10.0.0.3 cannot be reached: there is no route any more, or its next hop does not answer; \
             packets to it are discarded and counted until that changes"
        );
        let text = refused(&io::Error::from_raw_os_error(libc::EPERM)).to_string();
        assert!(text.starts_with("the kernel refuses an injected packet: Operation not permitted"), "{text}");
        assert!(text.ends_with("; from now on this is only counted"), "{text}");
    }
}
