//! What the programs need to know of, and do to, the host network: interfaces, routes, neighbours, sockets.
//!
//! | question | module |
//! |---|---|
//! | Which interfaces are there, and when do they come and go? | [`interface`] |
//! | Where does a packet to this address leave; which interface does live traffic come in by? | [`route`] |
//! | Which link-layer address has this next hop? | [`neighbour`] |
//! | Which TCP sockets are there, and how is one torn down? | [`sockdiag`] |
//!
//! Everything asks the kernel over netlink, synchronously: a request is answered within the system call that sends it,
//! so there is nothing to wait for. All of it concerns the network namespace of the calling thread.

use std::{io, net::IpAddr};

pub mod interface;
pub mod neighbour;
pub(crate) mod netlink;
pub mod route;
pub mod sockdiag;
#[cfg(test)]
pub(crate) mod testing;

/// A question to the kernel about its network, or a change to it, that failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket to be had.
    #[error("cannot open a netlink socket: {}{}", .0, forbidden(.0))]
    Open(io::Error),
    /// The kernel answered with an error.
    #[error("the kernel refused to {action}: {source}{}", remedy(.source))]
    Refused {
        /// What was asked for.
        action: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The kernel answered with something else than what was asked for.
    #[error("cannot read the kernel's answer to \"{action}\": the kernel is too old (5.10 is needed), or much newer")]
    Unexpected {
        /// What was asked for.
        action: String,
    },
    /// Packets to this address would go nowhere.
    #[error("there is no route to {destination}: correct the address, or add a route (ip route add …)")]
    NoRoute {
        /// The address.
        destination: IpAddr,
    },
    /// No interface stands out.
    #[error(
        "cannot tell which interface to use: there is no default route, and {}; name one",
        candidates(.found)
    )]
    NoDefaultInterface {
        /// Interfaces that are up and have an address.
        found: Vec<String>,
    },
    /// An interface that is not there.
    #[error("there is no interface {name}; `ip link` lists those of this network namespace")]
    NoInterface {
        /// Its name, or its index.
        name: String,
    },
    /// Neither ARP nor neighbour discovery found the owner of an address.
    #[error(
        "{address} does not answer ARP or neighbour discovery on {interface}: check that the host is up and on that \
         link, or set its address by hand (ip neigh replace {address} lladdr … dev {interface})"
    )]
    NeighbourSilent {
        /// The next hop.
        address: IpAddr,
        /// The interface that leads to it.
        interface: String,
    },
    /// `SOCK_DESTROY` is not there.
    #[error(
        "this kernel cannot destroy sockets of others (SOCK_DESTROY): it needs CONFIG_INET_DIAG and \
         CONFIG_INET_DIAG_DESTROY (as modules: modprobe tcp_diag)"
    )]
    DestroyUnsupported,
}

/// What forbids a socket, where the kernel's answer is one of those that a filter gives.
fn forbidden(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES | libc::EAFNOSUPPORT | libc::ENOSYS) => {
            "; a container's seccomp profile must allow AF_NETLINK"
        }
        _ => "",
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => "; run as root or with CAP_NET_ADMIN",
        Some(libc::ENODEV | libc::ENXIO) => "; the interface is gone, see `ip link`",
        _ => "",
    }
}

fn candidates(found: &[String]) -> String {
    match found {
        [] => "no interface is up and has an address".into(),
        many => format!("{} have addresses", many.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_socket_that_is_forbidden_is_blamed_on_a_filter() {
        let text = |errno| NetError::Open(io::Error::from_raw_os_error(errno)).to_string();
        assert!(text(libc::EPERM).contains("seccomp"));
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS] {
            assert!(!text(errno).contains("seccomp"), "{}", text(errno));
        }
    }
}
