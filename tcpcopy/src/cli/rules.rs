//! `-x`: which live service is copied to which targets.

use std::net::{IpAddr, SocketAddr};

use tcpcopy_common::prefix::Prefix;

use super::address::{AddressError, PortError, parse_address, parse_port};
use crate::source::Rule;

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("-x {entry:?}: {fault} (the form is [SRCIP:]PORT-TARGETIP:PORT, IPv6 addresses in brackets)")]
pub struct RuleError {
    entry: String,
    fault: RuleFault,
}

/// What is wrong with a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleFault {
    /// There is only one side.
    #[error("a '-' between service and target is missing")]
    NoDash,
    /// The target is an address only.
    #[error("the target's port is missing")]
    NoTargetPort,
    /// An address of the rule.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// A port of the rule.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The target's address is no host's.
    #[error("the target is not the address of a host")]
    NotAHost,
    /// The target's address means this host, on every host.
    #[error("the target is a loopback address, which no other host has")]
    Loopback,
    /// The target's address means another host on each link.
    #[error("the target is a link-local address, which does not tell the link")]
    LinkLocal,
    /// One side is IPv4, the other IPv6.
    #[error("service and target must be of one IP version, because the target sees the client's own address")]
    MixedVersions,
    /// The replay would meet the live service.
    #[error("service and target are the same")]
    Same,
    /// The list has it already.
    #[error("the rule is there twice; -n replays connections several times to one target")]
    Twice,
    /// Another rule copies what this one sends.
    #[error("the target {0} is itself captured, so the replay would be copied again")]
    Captured(SocketAddr),
}

/// Parses a comma-separated list of rules.
///
/// # Errors
/// When an entry is malformed, or two entries contradict each other.
pub fn parse_rules(list: &str) -> Result<Vec<Rule>, RuleError> {
    let mut rules: Vec<Rule> = Vec::new();
    for entry in list.split(',') {
        let fail = |fault| RuleError { entry: entry.to_owned(), fault };
        let rule = parse_rule(entry).map_err(fail)?;
        if rules.contains(&rule) {
            return Err(fail(RuleFault::Twice));
        }
        rules.push(rule);
    }
    if let Some(rule) = rules.iter().find(|r| rules.iter().any(|s| captures(s, r.target))) {
        return Err(RuleError { entry: list.to_owned(), fault: RuleFault::Captured(rule.target) });
    }
    Ok(rules)
}

/// Returns whether a connection to `server` falls under the rule, but for the exclusion of targets.
fn captures(rule: &Rule, server: SocketAddr) -> bool {
    rule.address == Some(server.ip()) && rule.port == server.port()
}

/// Parses `[SRCIP:]PORT-TARGETIP:PORT`.
fn parse_rule(entry: &str) -> Result<Rule, RuleFault> {
    let (service, target) = entry.split_once('-').ok_or(RuleFault::NoDash)?;
    let (address, port) = match service.rsplit_once(':') {
        None => (None, service),
        Some((address, port)) => (Some(parse_address(address)?), port),
    };
    let port = parse_port(port)?;
    let (target_address, target_port) = target.rsplit_once(':').ok_or(RuleFault::NoTargetPort)?;
    let target_address = parse_address(target_address)?;
    let target = SocketAddr::new(target_address, parse_port(target_port)?);
    if target_address.is_unspecified() || target_address.is_multicast() {
        return Err(RuleFault::NotAHost);
    }
    if target_address.is_loopback() {
        return Err(RuleFault::Loopback);
    }
    if matches!(target_address, IpAddr::V6(a) if a.is_unicast_link_local()) {
        return Err(RuleFault::LinkLocal);
    }
    if address.is_some_and(|a| a.is_ipv4() != target_address.is_ipv4()) {
        return Err(RuleFault::MixedVersions);
    }
    if address == Some(target.ip()) && port == target.port() {
        return Err(RuleFault::Same);
    }
    Ok(Rule { address, port, target, prefix: Prefix::NONE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_both_families_and_with_and_without_address_are_read() {
        let rules = parse_rules("80-10.0.0.3:8080,[fd00::2]:443-[fd00::3]:443,10.0.0.2:80-10.0.0.3:81,80-[fd00::3]:80")
            .unwrap();
        assert_eq!(
            rules[0],
            Rule { address: None, port: 80, target: "10.0.0.3:8080".parse().unwrap(), prefix: Prefix::NONE }
        );
        assert_eq!(
            rules[1],
            Rule {
                address: Some("fd00::2".parse().unwrap()),
                port: 443,
                target: "[fd00::3]:443".parse().unwrap(),
                prefix: Prefix::NONE
            }
        );
        assert_eq!(rules.len(), 4);
    }

    #[test]
    fn a_service_may_have_several_targets() {
        let rules = parse_rules("80-10.0.0.3:80,80-10.0.0.4:80,80-10.0.0.3:81").unwrap();
        assert!(rules.len() == 3 && rules.iter().all(|rule| rule.port == 80));
    }

    #[test]
    fn wrong_rules_are_refused_with_their_reason() {
        for (rule, part) in [
            ("", "'-'"),
            ("80", "'-'"),
            ("80-10.0.0.3", "port is missing"),
            ("0-10.0.0.3:80", "not a port"),
            ("65536-10.0.0.3:80", "not a port"),
            ("80-10.0.0.3:http", "not a port"),
            ("80-10.0.0.300:80", "not an IP address"),
            ("80-example.org:80", "not looked up"),
            ("80-fd00::3:80", "needs brackets"),
            ("80-[10.0.0.3]:80", "not an IPv6 address"),
            ("10.0.0.2:80-[fd00::3]:80", "one IP version"),
            ("80-0.0.0.0:80", "not the address of a host"),
            ("80-224.0.0.1:80", "not the address of a host"),
            ("10.0.0.2:80-10.0.0.2:80", "are the same"),
            ("80-10.0.0.3:80,80-10.0.0.3:80", "twice"),
            ("10.0.0.2:80-10.0.0.3:80,10.0.0.3:80-10.0.0.2:80", "copied again"),
            ("80-10.0.0.2:80,10.0.0.2:80-10.0.0.3:80", "copied again"),
            ("80-127.0.0.1:8080", "loopback"),
            ("80-[fe80::1]:80", "link-local"),
            ("80-[::ffff:10.0.0.3]:80", "IPv4 address in IPv6 form"),
            ("[::ffff:10.0.0.2]:80-[fd00::3]:80", "IPv4 address in IPv6 form"),
        ] {
            let error = parse_rules(rule).unwrap_err().to_string();
            assert!(error.contains(part), "{rule:?}: {error}");
        }
    }
}
