//! `-x`: which live service is copied to which targets.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

/// One entry of `-x`: `[SRCIP:]PORT-TARGETIP:PORT`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// The live service's address; any address of the target's family when absent.
    pub address: Option<IpAddr>,
    /// The live service's port.
    pub port: u16,
    /// The service under test.
    pub target: SocketAddr,
}

/// A rule that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("-x {entry:?}: {reason} (the form is [SRCIP:]PORT-TARGETIP:PORT, IPv6 addresses in brackets)")]
pub struct RuleError {
    entry: String,
    reason: String,
}

/// Parses a comma-separated list of rules.
///
/// # Errors
/// When an entry is malformed, or two entries contradict each other.
pub fn parse_rules(list: &str) -> Result<Vec<Rule>, RuleError> {
    let mut rules: Vec<Rule> = Vec::new();
    for entry in list.split(',') {
        let rule: Rule = entry.parse()?;
        if rules.contains(&rule) {
            let reason = "the rule is there twice; -n replays connections several times to one target".to_owned();
            return Err(RuleError { entry: entry.to_owned(), reason });
        }
        rules.push(rule);
    }
    if let Some(rule) = rules.iter().find(|r| rules.iter().any(|s| s.captures(r.target))) {
        return Err(RuleError {
            entry: list.to_owned(),
            reason: format!("the target {} is itself captured, so the replay would be copied again", rule.target),
        });
    }
    Ok(rules)
}

impl Rule {
    /// Whether a connection to `server` falls under this rule, but for the exclusion of targets.
    fn captures(&self, server: SocketAddr) -> bool {
        self.address == Some(server.ip()) && self.port == server.port()
    }
}

impl FromStr for Rule {
    type Err = RuleError;

    fn from_str(entry: &str) -> Result<Self, RuleError> {
        let fail = |reason: &str| RuleError { entry: entry.to_owned(), reason: reason.to_owned() };
        let (source, target) =
            entry.split_once('-').ok_or_else(|| fail("a '-' between service and target is missing"))?;
        let (address, port) = match source.rsplit_once(':') {
            None => (None, source),
            Some((address, port)) => (Some(parse_address(address).map_err(|e| fail(&e))?), port),
        };
        let port = parse_port(port).map_err(|e| fail(&e))?;
        let (target_address, target_port) =
            target.rsplit_once(':').ok_or_else(|| fail("the target's port is missing"))?;
        let target_address = parse_address(target_address).map_err(|e| fail(&e))?;
        let target = SocketAddr::new(target_address, parse_port(target_port).map_err(|e| fail(&e))?);
        if target_address.is_unspecified() || target_address.is_multicast() {
            return Err(fail("the target is not the address of a host"));
        }
        if target_address.is_loopback() {
            return Err(fail("the target is a loopback address, which no other host has"));
        }
        if matches!(target_address, IpAddr::V6(a) if a.is_unicast_link_local()) {
            return Err(fail("the target is a link-local address, which does not tell the link"));
        }
        if address.is_some_and(|a| a.is_ipv4() != target_address.is_ipv4()) {
            return Err(fail(
                "service and target must be of one IP version, because the target sees the client's own address",
            ));
        }
        if address == Some(target.ip()) && port == target.port() {
            return Err(fail("service and target are the same"));
        }
        Ok(Self { address, port, target })
    }
}

/// Parses an address; an IPv6 address must stand in brackets.
pub(super) fn parse_address(text: &str) -> Result<IpAddr, String> {
    match text.strip_prefix('[').and_then(|t| t.strip_suffix(']')) {
        Some(v6) => match v6.parse::<Ipv6Addr>() {
            Ok(address) if address.to_ipv4_mapped().is_some() => {
                Err(format!("{v6:?} is an IPv4 address in IPv6 form, which no packet carries: write it as IPv4"))
            }
            Ok(address) => Ok(IpAddr::V6(address)),
            Err(_) => Err(format!("{v6:?} is not an IPv6 address")),
        },
        None if text.contains(':') => Err(format!("IPv6 address {text:?} needs brackets: [{text}]")),
        None if text.is_empty() => Err("an address is missing".into()),
        None => text.parse().map(IpAddr::V4).map_err(|_| {
            format!(
                "{text:?} is not an IP address (host names are not looked up: the address that is meant matters here)"
            )
        }),
    }
}

/// Parses a port, 1 to 65535.
pub(super) fn parse_port(text: &str) -> Result<u16, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{text:?} is not a port (1 to 65535)")),
        Ok(port) => Ok(port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_of_both_families_and_with_and_without_address_are_read() {
        let rules = parse_rules("80-10.0.0.3:8080,[fd00::2]:443-[fd00::3]:443,10.0.0.2:80-10.0.0.3:81,80-[fd00::3]:80")
            .unwrap();
        assert_eq!(rules[0], Rule { address: None, port: 80, target: "10.0.0.3:8080".parse().unwrap() });
        assert_eq!(
            rules[1],
            Rule { address: Some("fd00::2".parse().unwrap()), port: 443, target: "[fd00::3]:443".parse().unwrap() }
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
