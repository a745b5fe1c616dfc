//! What `intercept` looks at on its host, and what it finds there.

use std::{fs, net::IpAddr, path::Path};

use crate::{finding::Finding, net::sockdiag::Support};

/// Looks for a strict reverse-path filter on an interface, which drops replayed packets without a word.
pub(super) fn reverse_path_filter(interface: &str) -> Option<Finding> {
    let read = |name: &str| {
        let file = Path::new("/proc/sys/net/ipv4/conf").join(name).join("rp_filter");
        fs::read_to_string(file).ok().and_then(|value| value.trim().parse().ok()).unwrap_or(0)
    };
    judge_reverse_path_filter(interface, read("all"), read(interface))
}

/// Judges a reverse-path filter by the setting for all interfaces and that of the interface, of which the kernel uses
/// the larger (Documentation/networking/ip-sysctl.rst): 1 is strict, 2 loose.
fn judge_reverse_path_filter(interface: &str, all: u8, own: u8) -> Option<Finding> {
    (all.max(own) == 1).then(|| {
        Finding::warning(format!("net.ipv4.conf.{interface}.rp_filter is 1 (strict)"))
            .because("the kernel drops replayed packets whose client it would answer by another interface")
            .remedy("set it to 2 if the target receives nothing")
    })
}

/// Finds that sockets of others cannot be destroyed on this kernel, or not even be listed.
pub(super) fn socket_support(support: Support) -> Option<Finding> {
    let what = match support {
        Support::Destroy => return None,
        Support::List => "this kernel cannot destroy sockets of others (SOCK_DESTROY)",
        Support::Nothing => "this kernel can neither list nor destroy sockets of others (sock_diag)",
    };
    let finding = Finding::warning(what)
        .because(
            "at the end the service is told that its clients have reset the replayed connections; those of a lost tcpcopy \
             stay until they time out",
        )
        .remedy("a kernel with CONFIG_INET_DIAG and CONFIG_INET_DIAG_DESTROY can (as modules: modprobe tcp_diag)");
    Some(finding)
}

/// Finds a client on the link of `interface` that does not answer ARP or neighbour discovery: answers to it wait for
/// its link-layer address, and never come to the programs that swallow them.
pub(super) fn absent_client(client: IpAddr, interface: &str) -> Finding {
    Finding::warning(format!("client {client} is on the link of {interface} but nobody answers for it"))
        .because("the answers to it wait for a neighbour, and its connections fail")
        .remedy(format!(
            "route its network by a neighbour that is made up (ip route add NETWORK via ADDRESS dev {interface}), or give it \
             one: ip neigh replace {client} lladdr 02:00:00:00:00:01 dev {interface} nud permanent"
        ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_strict_reverse_path_filter_is_a_finding() {
        for (all, own, strict) in
            [(0, 0, false), (0, 1, true), (1, 0, true), (1, 1, true), (2, 1, false), (1, 2, false)]
        {
            assert_eq!(judge_reverse_path_filter("eth0", all, own).is_some(), strict, "all {all}, own {own}");
        }
        assert_eq!(
            judge_reverse_path_filter("eth0", 1, 0).unwrap().to_string(),
            "net.ipv4.conf.eth0.rp_filter is 1 (strict): the kernel drops replayed packets whose client it would answer \
             by another interface; set it to 2 if the target receives nothing"
        );
    }

    #[test]
    fn the_command_against_an_absent_client_is_ready_to_be_copied() {
        let text = absent_client([10, 0, 0, 9].into(), "eth0").to_string();
        assert!(text.starts_with("client 10.0.0.9 is on the link of eth0 but nobody answers for it: "), "{text}");
        assert!(text.ends_with("ip neigh replace 10.0.0.9 lladdr 02:00:00:00:00:01 dev eth0 nud permanent"), "{text}");
    }
}
