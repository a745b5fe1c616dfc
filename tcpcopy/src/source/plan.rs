//! The settings, completed with what the host says: what the kernel captures, and how often it is replayed, where and by
//! which control channel.
//!
//! A *copy* is one replay of every connection. A service that has two targets is copied twice, and with `-n 2` four times.
//! Each worker has an engine for each copy, so a copy that is slow keeps its own octets until it is done, and neither holds
//! up the others nor takes their room. Each copy has control channels of its own: what a target reports about one never
//! reaches another.

use std::net::SocketAddr;

use tcpcopy_common::prefix::Prefix;
use tcpcopy_replay::{Ports, RuleTarget, Slot, TargetId, worker::RuleTable};

use super::{
    channels::Dial,
    settings::{Rule, Settings},
};
use crate::{bpf::CaptureRule, control::MAX_TARGETS, net};

/// See the [module](self).
pub(super) struct Plan {
    pub interfaces: Vec<String>,
    /// Rules for the kernel: one per service, however many targets it has.
    pub capture: Vec<CaptureRule>,
    pub targets: Vec<SocketAddr>,
    pub copies: Vec<CopyPlan>,
    /// By [`TargetId`].
    pub channels: Vec<ChannelPlan>,
}

/// One replay of every connection.
#[derive(Debug, Default, PartialEq)]
pub(super) struct CopyPlan {
    /// From the kernel's rule ids to [`rules`](Self::rules).
    pub table: RuleTable,
    pub rules: Vec<RuleTarget>,
}

/// A control channel that each worker has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ChannelPlan {
    /// Whose engine it belongs to.
    pub copy: usize,
    /// Index into the list of `-s`.
    pub intercept: usize,
    /// Its targets whose responses are reported with their first octets, and how many.
    pub prefixes: Vec<(SocketAddr, Prefix)>,
}

impl ChannelPlan {
    /// Asks for a prefix of what `target` answers, or for the longer one if another was asked for before.
    fn ask(&mut self, target: SocketAddr, prefix: Prefix) {
        match self.prefixes.iter_mut().find(|(known, _)| *known == target) {
            Some((_, longest)) => *longest = prefix.max(*longest),
            None if prefix == Prefix::NONE => {}
            None => self.prefixes.push((target, prefix)),
        }
    }
}

impl Plan {
    /// Asks the host only for interfaces, and only where none is named.
    pub(super) fn new(settings: &Settings) -> anyhow::Result<Self> {
        let interfaces = if settings.interfaces.is_empty() {
            net::route::default_interfaces()?
        } else {
            settings.interfaces.clone()
        };
        let (capture, services) = services(settings);
        let targets = settings.rules.iter().map(|r| r.target).collect();
        let most = services.iter().flatten().map(Vec::len).max().unwrap_or(0);
        let mut plan = Self { interfaces, capture, targets, copies: Vec::new(), channels: Vec::new() };
        for _ in 0..settings.clients.copies {
            for nth in 0..most {
                plan.add_copy(settings, &services, nth);
            }
        }
        if let Some(channel) = plan.channels.iter().find(|channel| channel.prefixes.len() > MAX_TARGETS) {
            anyhow::bail!(
                "the first octets of the responses of {} targets are wanted of the intercept at {}, which reports those \
                 of at most {MAX_TARGETS}: want them of fewer targets, or run a second tcpcopy for some of the rules",
                channel.prefixes.len(),
                settings.intercepts[channel.intercept]
            );
        }
        Ok(plan)
    }

    /// Adds a copy that sends each service to its `nth` target.
    fn add_copy(&mut self, settings: &Settings, services: &[[Vec<usize>; 2]], nth: usize) {
        let copy = self.copies.len();
        let mut planned = CopyPlan::default();
        for service in services {
            planned.table.push(service.each_ref().map(|rules| {
                let rule = *rules.get(nth)?;
                let target = self.channel(copy, settings.intercept_of[rule]);
                let Rule { target: address, prefix, .. } = settings.rules[rule];
                self.channels[usize::from(target.0)].ask(address, prefix);
                planned.rules.push(RuleTarget { target, address });
                Some((planned.rules.len() - 1) as u16)
            }));
        }
        self.copies.push(planned);
    }

    /// The channel of a copy to an intercept.
    fn channel(&mut self, copy: usize, intercept: usize) -> TargetId {
        let known = self.channels.iter().position(|channel| channel.copy == copy && channel.intercept == intercept);
        let index = known.unwrap_or_else(|| {
            self.channels.push(ChannelPlan { copy, intercept, prefixes: Vec::new() });
            self.channels.len() - 1
        });
        TargetId(index as u16)
    }

    /// Whom each channel dials, and what it asks of it.
    pub(super) fn dials(&self, intercepts: &[SocketAddr]) -> Vec<Dial> {
        let dial = |channel: &ChannelPlan| Dial {
            intercept: intercepts[channel.intercept],
            prefixes: channel.prefixes.clone(),
        };
        self.channels.iter().map(dial).collect()
    }

    /// Client ports of the engine of a copy in a worker. They are dealt out where two engines could want the same four-tuple.
    pub(super) fn ports(&self, settings: &Settings, worker: u32, copy: usize) -> Ports {
        let clients = &settings.clients;
        if clients.copies == 1 && clients.addresses.is_none() && clients.region.is_none() {
            return Ports::Own;
        }
        let copies = self.copies.len();
        let (number, of) = (worker as usize * copies + copy, settings.workers as usize * copies);
        let slot = Slot::new(number as u16, of as u16);
        Ports::Dealt {
            slot: slot.expect("no more engines than slots, checked with the arguments"),
            region: clients.region,
        }
    }
}

/// The services as the kernel knows them, and for each its rules, of IPv4 and of IPv6.
fn services(settings: &Settings) -> (Vec<CaptureRule>, Vec<[Vec<usize>; 2]>) {
    let mut capture: Vec<CaptureRule> = Vec::new();
    let mut services: Vec<[Vec<usize>; 2]> = Vec::new();
    for (index, rule) in settings.rules.iter().enumerate() {
        let known = capture.iter().position(|r| r.port == rule.port && r.address == rule.address);
        let id = known.unwrap_or_else(|| {
            capture.push(CaptureRule { id: services.len() as u16, address: rule.address, port: rule.port });
            services.push(Default::default());
            services.len() - 1
        });
        services[id][usize::from(rule.target.is_ipv6())].push(index);
    }
    (capture, services)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::settings::testing::{rule, settings};

    #[test]
    fn one_target_is_one_copy_with_the_clients_ports() {
        let rules = vec![rule(80, "10.0.0.3:80"), rule(80, "[fd00::3]:80"), rule(81, "10.0.0.3:81")];
        let settings = settings(rules, &["10.0.0.3:36524"], &[0, 0, 0]);
        let plan = Plan::new(&settings).unwrap();
        assert_eq!((plan.capture.len(), plan.copies.len(), plan.channels.len()), (2, 1, 1));
        assert_eq!(plan.copies[0].table, [[Some(0), Some(1)], [Some(2), None]]);
        assert_eq!(plan.ports(&settings, 0, 0), Ports::Own);
    }

    #[test]
    fn each_target_of_a_service_has_a_copy_and_each_copy_its_channels() {
        let rules = vec![rule(80, "10.0.0.3:80"), rule(80, "10.0.0.4:80"), rule(81, "10.0.0.4:81")];
        let mut settings = settings(rules, &["10.0.0.3:36524", "10.0.0.4:36524"], &[0, 1, 1]);
        (settings.clients.copies, settings.workers) = (2, 3);
        let plan = Plan::new(&settings).unwrap();
        assert_eq!((plan.capture.len(), plan.copies.len()), (2, 4));
        let targets = |copy: usize| {
            let addresses = plan.copies[copy].rules.iter().map(|rule| rule.address.to_string());
            addresses.collect::<Vec<_>>()
        };
        assert_eq!(targets(0), ["10.0.0.3:80", "10.0.0.4:81"]);
        assert_eq!(targets(1), ["10.0.0.4:80"]);
        assert_eq!((targets(2), targets(3)), (targets(0), targets(1)));
        assert_eq!(plan.copies[1].table, [[Some(0), None], [None, None]]);
        let channels: Vec<_> = plan.channels.iter().map(|channel| (channel.copy, channel.intercept)).collect();
        assert_eq!(channels, [(0, 0), (0, 1), (1, 1), (2, 0), (2, 1), (3, 1)]);
        let mut slots = Vec::new();
        for worker in 0..3 {
            for copy in 0..4 {
                let Ports::Dealt { slot, region: None } = plan.ports(&settings, worker, copy) else {
                    panic!("worker {worker}, copy {copy}");
                };
                slots.push(slot);
            }
        }
        assert_eq!(slots, (0..12).map(|number| Slot::new(number, 12).unwrap()).collect::<Vec<_>>());
    }

    fn prefix(octets: u16) -> Prefix {
        Prefix::new(octets).unwrap()
    }

    #[test]
    fn each_channel_asks_for_the_longest_prefix_that_a_rule_wants_of_each_of_its_targets() {
        let with = |octets, rule| Rule { prefix: prefix(octets), ..rule };
        let rules = vec![
            with(16, rule(80, "10.0.0.3:80")),
            with(64, rule(81, "10.0.0.3:80")),
            with(32, rule(82, "10.0.0.3:80")),
            rule(83, "10.0.0.3:83"),
            with(128, rule(80, "10.0.0.4:80")),
            with(2048, rule(84, "[fd00::4]:84")),
        ];
        let mut settings = settings(rules, &["10.0.0.3:36524", "10.0.0.4:36524"], &[0, 0, 0, 0, 1, 1]);
        settings.clients.copies = 2;
        let plan = Plan::new(&settings).unwrap();
        let asked = |address: &str, octets| (address.parse::<SocketAddr>().unwrap(), prefix(octets));
        let expected = [
            (0, 0, vec![asked("10.0.0.3:80", 64)]),
            (0, 1, vec![asked("[fd00::4]:84", 2048)]),
            (1, 1, vec![asked("10.0.0.4:80", 128)]),
            (2, 0, vec![asked("10.0.0.3:80", 64)]),
            (2, 1, vec![asked("[fd00::4]:84", 2048)]),
            (3, 1, vec![asked("10.0.0.4:80", 128)]),
        ];
        let channels: Vec<_> = plan.channels.iter().map(|c| (c.copy, c.intercept, c.prefixes.clone())).collect();
        assert_eq!(channels, expected);
        let dials = plan.dials(&settings.intercepts);
        let expected = expected.map(|(_, intercept, prefixes)| (settings.intercepts[intercept], prefixes));
        assert_eq!(dials.into_iter().map(|dial| (dial.intercept, dial.prefixes)).collect::<Vec<_>>(), expected);
    }

    #[test]
    fn more_targets_than_a_channel_can_ask_for_are_refused_by_name() {
        let rule = |i: usize| Rule { prefix: prefix(16), ..rule(1000 + i as u16, &format!("10.0.0.3:{}", 1000 + i)) };
        let settings = |n: usize| settings((0..n).map(rule).collect(), &["10.0.0.3:36524"], &vec![0; n]);
        assert_eq!(Plan::new(&settings(MAX_TARGETS)).unwrap().channels[0].prefixes.len(), MAX_TARGETS);
        let error = Plan::new(&settings(MAX_TARGETS + 1)).err().expect("too many").to_string();
        assert!(error.contains("65 targets") && error.contains("10.0.0.3:36524"), "{error}");
        // Those of which none are wanted do not count.
        let mut many = settings(2 * MAX_TARGETS);
        many.rules.iter_mut().skip(MAX_TARGETS).for_each(|rule| rule.prefix = Prefix::NONE);
        assert_eq!(Plan::new(&many).unwrap().channels[0].prefixes.len(), MAX_TARGETS);
    }
}
