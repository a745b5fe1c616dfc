//! The networks of the laboratory.
//!
//! ```text
//! Bridge             client ──┐
//!                    source ──┼── switch
//!                    target ──┘
//!
//! RoutedClient       client ── router ──┐
//!                              source ──┼── switch
//!                              target ──┘
//!
//! AbsentClient       client ── source ──┬── switch     the client's address is on the target's link by its prefix,
//!                              target ──┘              and nobody there holds it
//!
//! AsymmetricReturn   client ── router ──┐
//!                         │    source ──┼── switch
//!                         │    target ──┘              the target's route to the client is the other link to the
//!                         └────(eth1)─┘              router
//!
//! TwoSources         client ──┐
//!                    source ──┼── switch
//!                    target ──┤
//!        client2 ── source2 ──┘                        client2 has the client's addresses
//!
//! TwoTargets         client ──┐
//!                    source ──┼── switch
//!                    target ──┤
//!                   target2 ──┘
//!
//! Stranger           client ──┐
//!                    source ──┼── switch
//!                    target ──┤
//!                  stranger ──┘                        source and target reach 198.18.0.0/15 and fd66::/16 by it
//! ```
//!
//! Addresses on the switch: 10.77.0.0/24 and fd77::/64, client 1, source 2, target 3, source2 4, target2 5, stranger 6,
//! router 254. The network behind the router: 10.78.0.0/24 and fd78::/64. The target's second link: 10.79.0.0/24 and
//! fd79::/64.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    host::Host,
    namespace::{self, Namespace},
};

/// Where the hosts are, see the [module](self).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Shape {
    /// All on one link.
    #[default]
    Bridge,
    /// The client is behind a router.
    RoutedClient,
    /// The client's address is on the target's link, where no host has it.
    AbsentClient,
    /// The target answers by another interface than the one it receives by.
    AsymmetricReturn,
    /// Two sources whose clients have the same address.
    TwoSources,
    /// Two hosts under test.
    TwoTargets,
    /// A host that has no part in anything, and the route to networks that nobody has.
    Stranger,
}

/// How to build a laboratory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Where the hosts are.
    pub shape: Shape,
    /// Another MTU than 1500.
    pub mtu: Option<u32>,
    /// Put all hosts on the switch into this VLAN: their addresses are on `eth0.<vlan>`, and `eth0` sees the tags.
    pub vlan: Option<u16>,
}

/// The laboratory: hosts, and the network between them. Offloads are what the kernel gives to a veth.
#[derive(Debug)]
pub struct Lab {
    /// Where live clients run.
    pub client: Host,
    /// The production host.
    pub source: Host,
    /// The host under test.
    pub target: Host,
    /// Hosts that only some shapes have: `router`, `client2`, `source2`, `target2`, `stranger`.
    pub others: Vec<Host>,
    pub(crate) switch: Arc<Namespace>,
}

impl Lab {
    /// Builds client, source and target on one link.
    pub fn bridge() -> anyhow::Result<Self> {
        Self::new(Options::default())
    }

    /// Builds one of the shapes, with everything else as usual.
    pub fn shaped(shape: Shape) -> anyhow::Result<Self> {
        Self::new(Options { shape, ..Options::default() })
    }

    /// Builds the namespaces and connects them.
    pub fn new(options: Options) -> anyhow::Result<Self> {
        namespace::remove_stale();
        let network = Network::new(options)?;
        let source = network.host("source", "eth0", 77, 2)?;
        let target = network.host("target", "eth0", 77, 3)?;
        network.plug(&source)?;
        network.plug(&target)?;
        let mut others = Vec::new();
        let client = match options.shape {
            Shape::Bridge | Shape::TwoSources | Shape::TwoTargets | Shape::Stranger => {
                let client = network.host("client", "eth0", 77, 1)?;
                network.plug(&client)?;
                network.acquaint(&[&client, &source, &target])?;
                client
            }
            Shape::AbsentClient => {
                let client = network.host("client", "eth0", 77, 1)?;
                network.cable(&client, "eth0", &source, "eth1")?;
                network.on_link(&client, "eth0", &source, "eth1")?;
                network.on_link(&source, "eth1", &client, "eth0")?;
                network.acquaint(&[&source, &target])?;
                client
            }
            Shape::RoutedClient | Shape::AsymmetricReturn => {
                let client = network.host("client", "eth0", 78, 1)?;
                let router = network.host("router", "eth0", 77, 254)?;
                network.plug(&router)?;
                network.acquaint(&[&source, &target, &router])?;
                network.cable(&client, "eth0", &router, "eth1")?;
                network.address(&client, "eth0", 78, 1)?;
                network.address(&router, "eth1", 78, 254)?;
                network.neighbours(&client, "eth0", &router, "eth1", 78, 1, 254)?;
                router.set_sysctls(&[("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1")])?;
                network.default_route(&client, 78)?;
                network.default_route(&source, 77)?;
                if options.shape == Shape::AsymmetricReturn {
                    network.cable(&target, "eth1", &router, "eth2")?;
                    network.address(&target, "eth1", 79, 3)?;
                    network.address(&router, "eth2", 79, 254)?;
                    network.neighbours(&target, "eth1", &router, "eth2", 79, 3, 254)?;
                    network.default_route(&target, 79)?;
                } else {
                    network.default_route(&target, 77)?;
                }
                others.push(router);
                client
            }
        };
        if options.shape == Shape::TwoSources {
            let source2 = network.host("source2", "eth0", 77, 4)?;
            let client2 = network.host("client2", "eth0", 77, 1)?;
            network.plug(&source2)?;
            network.acquaint(&[&source2, &target])?;
            network.cable(&client2, "eth0", &source2, "eth1")?;
            network.on_link(&client2, "eth0", &source2, "eth1")?;
            network.on_link(&source2, "eth1", &client2, "eth0")?;
            others.extend([source2, client2]);
        }
        if options.shape == Shape::TwoTargets {
            let target2 = network.host("target2", "eth0", 77, 5)?;
            network.plug(&target2)?;
            network.acquaint(&[&client, &source, &target2])?;
            others.push(target2);
        }
        if options.shape == Shape::Stranger {
            let stranger = network.host("stranger", "eth0", 77, 6)?;
            network.plug(&stranger)?;
            network.acquaint(&[&client, &source, &target, &stranger])?;
            for host in [&source, &target] {
                host.ip(&[
                    format!("route add 198.18.0.0/15 via {}", stranger.v4),
                    format!("route add fd66::/16 via {}", stranger.v6),
                ])?;
            }
            others.push(stranger);
        }
        for host in [&client].into_iter().chain(others.iter().filter(|h| h.role == "client2")) {
            // One connection per request must not run out of ports during a test.
            host.set_sysctls(&[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_tw_reuse", "1")])?;
        }
        Ok(Self { client, source, target, others, switch: Arc::new(network.switch) })
    }

    /// Returns a host that only some shapes have.
    ///
    /// # Panics
    /// When this shape has none of that role.
    pub fn other(&self, role: &str) -> &Host {
        self.others.iter().find(|host| host.role == role).unwrap_or_else(|| panic!("no {role} in this laboratory"))
    }

    /// Returns all hosts.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        [&self.client, &self.source, &self.target].into_iter().chain(&self.others)
    }
}

/// The steps of building.
struct Network {
    prefix: String,
    options: Options,
    switch: Namespace,
}

impl Network {
    fn new(options: Options) -> anyhow::Result<Self> {
        let prefix = namespace::unique_prefix();
        let switch = Namespace::create(format!("{prefix}-switch"))?;
        switch.ip(&[
            "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0".into(),
            format!("link set br0{} up", mtu(options)),
        ])?;
        Ok(Self { prefix, options, switch })
    }

    /// Returns a host without interfaces yet, whose address is number `number` of `network` on `interface`.
    fn host(&self, role: &'static str, interface: &str, network: u8, number: u8) -> anyhow::Result<Host> {
        let namespace = Namespace::create(format!("{}-{role}", self.prefix))?;
        let interface = match self.options.vlan {
            Some(vlan) if network == 77 => format!("{interface}.{vlan}"),
            _ => interface.to_owned(),
        };
        let host = Host::new(namespace, role, &interface, v4(network, number), v6(network, number));
        host.set_sysctls(&[
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv6/conf/default/accept_ra", "0"),
            ("ipv6/conf/default/router_solicitations", "0"),
        ])?;
        Ok(host)
    }

    /// Connects a host's `eth0` to the switch and gives it its addresses.
    fn plug(&self, host: &Host) -> anyhow::Result<()> {
        let mtu = mtu(self.options);
        host.ip(&[
            format!(
                "link add eth0 address {} type veth peer {} netns {}",
                mac(host, "eth0"),
                host.role,
                self.switch.name()
            ),
            format!("link set eth0{mtu} up"),
        ])?;
        self.switch.ip(&[format!("link set {}{mtu} master br0 up", host.role)])?;
        if let Some(vlan) = self.options.vlan {
            host.ip(&[
                format!("link add link eth0 name {} type vlan id {vlan}", host.interface),
                format!("link set {} up", host.interface),
            ])?;
        }
        let number = host.v4.octets()[3];
        self.address(host, &host.interface, 77, number)
    }

    /// Connects two hosts directly.
    fn cable(&self, a: &Host, interface_a: &str, b: &Host, interface_b: &str) -> anyhow::Result<()> {
        a.ip(&[
            format!(
                "link add {interface_a} address {} type veth peer {interface_b} address {} netns {}",
                mac(a, interface_a),
                mac(b, interface_b),
                b.namespace().name()
            ),
            format!("link set {interface_a}{} up", mtu(self.options)),
        ])?;
        b.ip(&[format!("link set {interface_b}{} up", mtu(self.options))])
    }

    fn address(&self, host: &Host, interface: &str, network: u8, number: u8) -> anyhow::Result<()> {
        host.ip(&[
            format!("address add {}/24 dev {interface}", v4(network, number)),
            format!("address add {}/64 dev {interface} nodad", v6(network, number)),
        ])
    }

    /// Makes `b`'s only addresses reachable for `a` through a cable; and gives `a` its own address there if it has none
    /// on another interface.
    fn on_link(&self, a: &Host, interface: &str, b: &Host, interface_b: &str) -> anyhow::Result<()> {
        let mac = mac(b, interface_b);
        if a.role.starts_with("client") {
            a.ip(&[
                format!("address add {}/32 dev {interface}", a.v4),
                format!("address add {}/128 dev {interface} nodad", a.v6),
            ])?;
        }
        a.ip(&[
            format!("route add {}/32 dev {interface} src {}", b.v4, a.v4),
            format!("route add {}/128 dev {interface} src {}", b.v6, a.v6),
            format!("neighbour add {} dev {interface} lladdr {mac} nud permanent", b.v4),
            format!("neighbour add {} dev {interface} lladdr {mac} nud permanent", b.v6),
        ])
    }

    /// Adds permanent neighbour entries between hosts on the switch.
    fn acquaint(&self, hosts: &[&Host]) -> anyhow::Result<()> {
        for a in hosts {
            let others = hosts.iter().filter(|b| b.role != a.role);
            let lines = others.flat_map(|b| {
                [b.v4.to_string(), b.v6.to_string()].map(|address| {
                    format!("neighbour replace {address} dev {} lladdr {} nud permanent", a.interface, mac(b, "eth0"))
                })
            });
            a.ip(&lines.collect::<Vec<_>>())?;
        }
        Ok(())
    }

    /// Adds permanent neighbour entries at both ends of a cable that is a network of its own.
    #[expect(clippy::too_many_arguments, reason = "two ends, each of three parts, and their network")]
    fn neighbours(&self, a: &Host, ia: &str, b: &Host, ib: &str, net: u8, na: u8, nb: u8) -> anyhow::Result<()> {
        for (host, interface, number, mac) in [(a, ia, nb, mac(b, ib)), (b, ib, na, mac(a, ia))] {
            host.ip(&[
                format!("neighbour add {} dev {interface} lladdr {mac} nud permanent", v4(net, number)),
                format!("neighbour add {} dev {interface} lladdr {mac} nud permanent", v6(net, number)),
            ])?;
        }
        Ok(())
    }

    fn default_route(&self, host: &Host, network: u8) -> anyhow::Result<()> {
        host.ip(&[
            format!("route add default via {}", v4(network, 254)),
            format!("route add default via {}", v6(network, 254)),
        ])
    }
}

fn mtu(options: Options) -> String {
    options.mtu.map_or_else(String::new, |mtu| format!(" mtu {mtu}"))
}

fn v4(network: u8, number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, network, 0, number)
}

fn v6(network: u8, number: u8) -> Ipv6Addr {
    // The digits of the decimal number, so that fd77::254 goes with 10.77.0.254.
    let digits = |n: u8| u16::from_str_radix(&n.to_string(), 16).unwrap_or_default();
    Ipv6Addr::new(0xfd00 | digits(network), 0, 0, 0, 0, 0, 0, digits(number))
}

/// Returns a locally administered address that tells host and interface.
pub(crate) fn mac(host: &Host, interface: &str) -> String {
    let roles = ["client", "source", "target", "router", "client2", "source2", "target2", "stranger"];
    let role = roles.iter().position(|r| *r == host.role);
    let interface = interface.bytes().find(u8::is_ascii_digit).map_or(0, |digit| digit - b'0');
    format!("02:7c:00:00:{:02x}:{:02x}", role.unwrap_or(0xff), interface)
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::{SocketAddr, TcpListener, TcpStream},
        time::Duration,
    };

    use super::*;
    use crate::{Family, eventually, laboratory, namespace};

    fn round_trip(client: &Host, server: &Host, family: Family) {
        let address = server.socket(family, 7);
        let listener = server.run(|| TcpListener::bind(address)).unwrap().unwrap();
        let answer = server.spawn("echo", move || {
            let (mut stream, peer) = listener.accept()?;
            let mut buffer = [0; 5];
            stream.read_exact(&mut buffer)?;
            stream.write_all(&buffer)?;
            Ok(peer)
        });
        let mut buffer = [0; 5];
        client
            .run(|| -> std::io::Result<()> {
                let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
                stream.set_read_timeout(Some(Duration::from_secs(5)))?;
                stream.write_all(b"hello")?;
                stream.read_exact(&mut buffer)
            })
            .unwrap()
            .unwrap_or_else(|e| panic!("{} to {} over {family:?}: {e}", client.role, server.role));
        assert_eq!(&buffer, b"hello");
        let peer: SocketAddr = answer.unwrap().join().unwrap().unwrap();
        assert_eq!(peer.ip(), client.address(family));
    }

    #[test]
    fn clients_reach_their_source_in_every_shape() {
        let _guard = laboratory!();
        for shape in
            [Shape::Bridge, Shape::RoutedClient, Shape::AbsentClient, Shape::AsymmetricReturn, Shape::TwoSources]
        {
            let lab = Lab::shaped(shape).unwrap();
            for family in Family::BOTH {
                round_trip(&lab.client, &lab.source, family);
                round_trip(&lab.source, &lab.target, family);
                if shape == Shape::TwoSources {
                    round_trip(lab.other("client2"), lab.other("source2"), family);
                    round_trip(lab.other("source2"), &lab.target, family);
                }
                if shape != Shape::AbsentClient {
                    round_trip(&lab.client, &lab.target, family);
                }
            }
        }
    }

    #[test]
    fn hosts_in_a_vlan_and_with_another_mtu_reach_each_other() {
        let _guard = laboratory!();
        let lab = match Lab::new(Options { vlan: Some(7), mtu: Some(9000), ..Options::default() }) {
            Err(error) if format!("{error:#}").contains("Unknown device type") => {
                return crate::skip("a VLAN", "this kernel was built without 802.1Q");
            }
            lab => lab.unwrap(),
        };
        assert_eq!(lab.source.interface, "eth0.7");
        for family in Family::BOTH {
            round_trip(&lab.client, &lab.source, family);
            round_trip(&lab.client, &lab.target, family);
        }
    }

    #[test]
    fn nothing_is_left_of_a_dropped_laboratory() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let names: Vec<String> = lab.hosts().map(|h| h.namespace().name().to_owned()).collect();
        let mut sleeper = lab.client.command("sleep").arg("1000").spawn().unwrap();
        let is_inside = || lab.client.namespace().processes().contains(&(sleeper.id() as i32));
        assert!(eventually(Duration::from_secs(5), is_inside));
        drop(lab);
        assert!(!sleeper.wait().unwrap().success(), "the process in the namespace was killed");
        for name in names {
            assert!(!std::path::Path::new("/run/netns").join(&name).exists(), "{name} is left");
        }
        namespace::remove_stale();
    }
}
