//! Changes to the network of a laboratory that is in use.

use crate::{Family, Host, Lab, topology::mac};

impl Lab {
    /// Connects a host on the switch to it once more, by an interface without an address: what comes in there for an
    /// address of another interface is accepted all the same, as Linux does.
    pub fn add_link(&self, host: &Host, interface: &str) -> anyhow::Result<()> {
        host.ip(&[
            format!(
                "link add {interface} address {} type veth peer {}-{interface} netns {}",
                mac(host, interface),
                host.role,
                self.switch.name()
            ),
            format!("link set {interface} up"),
        ])?;
        self.switch.ip(&[format!("link set {}-{interface} master br0 up", host.role)])
    }

    /// Lets a host on the switch send to the addresses of another by that one's interface.
    pub fn send_by(&self, from: &Host, to: &Host, interface: &str) -> anyhow::Result<()> {
        let line = |family| {
            let (address, device, mac) = (to.address(family), &from.interface, mac(to, interface));
            format!("neighbour replace {address} dev {device} lladdr {mac} nud permanent")
        };
        from.ip(&Family::BOTH.map(line))
    }

    /// Deletes the interface by which a host is connected to the switch, and makes it anew with the same name: down, and
    /// without addresses, as a driver does.
    pub fn remake_link(&self, host: &Host) -> anyhow::Result<()> {
        host.ip(&["link delete eth0"])?;
        let (role, mac, namespace) = (host.role, mac(host, "eth0"), host.namespace().name());
        self.switch.ip(&[
            format!("link add {role} type veth peer eth0 address {mac} netns {namespace}"),
            format!("link set {role} master br0 up"),
        ])
    }

    /// Brings the interface up that [`remake_link`](Self::remake_link) has made, with addresses and neighbours.
    pub fn bring_up(&self, host: &Host) -> anyhow::Result<()> {
        let others = self.hosts().filter(|other| other.role != host.role);
        let neighbours = others.flat_map(|other| {
            Family::BOTH.map(|family| {
                let (address, mac) = (other.address(family), mac(other, "eth0"));
                format!("neighbour replace {address} dev eth0 lladdr {mac} nud permanent")
            })
        });
        let mut lines = vec![
            "link set eth0 up".to_owned(),
            format!("address add {}/24 dev eth0", host.v4),
            format!("address add {}/64 dev eth0 nodad", host.v6),
        ];
        lines.extend(neighbours);
        host.ip(&lines)
    }
}
