//! What `intercept` looks at on its host, and what it finds there.

use std::{fs, net::IpAddr, path::Path};

use crate::{
    bpf::{BpfError, Guarded, Mended},
    finding::Finding,
    net::{encapsulation::Encapsulation, sockdiag::Support},
};

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

/// Why there is no interception where a route or a policy wraps packets up.
pub(super) fn wrapped_up(found: &Encapsulation) -> anyhow::Error {
    anyhow::anyhow!(
        "answers could leave this host wrapped up ({found}), in which form they are not recognised and would reach \
         clients; remove that, or use a tunnel with an interface of its own (`ip link add type …`, `ip xfrm` with if_id)"
    )
}

/// Finds programs of others in a chain with ours.
pub(super) fn chain(mended: &Mended) -> Finding {
    match mended {
        Mended::Overtaken { interface, direction } => {
            Finding::warning(format!("a program of another agent had come before ours at {direction} of {interface}"))
                .because(
                    "ours is the first again; until then it may not have seen all packets, and answers may have left",
                )
                .remedy("let the other agent attach its programs behind those that are there")
        }
        Mended::Followed { interface } => {
            Finding::info(format!("programs of another agent come after ours at egress of {interface}"))
                .because("answers are looked for behind them too, in case that they change addresses")
        }
        Mended::Ended { interface } => {
            Finding::warning(format!("a program of another agent ends the chain at egress of {interface}"))
                .because("ours behind it sees nothing: an answer whose addresses it has changed leaves for a client")
                .remedy("let it return TCX_NEXT (-1), not TCX_PASS (0), or change no addresses of replayed connections")
        }
    }
}

/// Finds that sockets are not guarded against interfaces that are not hooked yet, or not all of them.
pub(super) fn guard(guarded: &Result<Guarded, BpfError>) -> Option<Finding> {
    const CONSEQUENCE: &str = "between its coming up and its being hooked, answers may leave by a new interface";
    let remedy = "let no interface come up with an address at once, or start intercept where it sees the control groups \
                  of the whole host (cgroup2)";
    match guarded {
        Ok(Guarded::Host) => None,
        Ok(Guarded::Container) => Some(
            Finding::info("the sockets of this container are guarded against new interfaces, and no others")
                .because(format!("{CONSEQUENCE} for services elsewhere"))
                .remedy(remedy),
        ),
        Err(error) => Some(Finding::warning(error.to_string()).because(CONSEQUENCE).remedy(remedy)),
    }
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
