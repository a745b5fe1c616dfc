//! The command line of `tcpcopy`: whatever is typed is refused with a reason, or means what it says.

use std::{
    net::{IpAddr, SocketAddr},
    str::FromStr as _,
};

use clap::Parser as _;
use tcpcopy::{
    bpf::Network,
    cli::{
        rules::parse_rules,
        tcpcopy::{Cli, Command},
    },
    source::{Rule, Settings},
};
use tcpcopy_common::{flow::IpAddress, prefix::Prefix};

/// The target: the first octet says what the text behind it is.
pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    let Ok(text) = str::from_utf8(data) else { return };
    match kind % 3 {
        0 => rules(text),
        1 => network(text),
        _ => line(text),
    }
}

/// `-x`
fn rules(list: &str) {
    let rules = match parse_rules(list) {
        Ok(rules) => rules,
        Err(error) => {
            assert!(error.to_string().starts_with("-x "), "{error}");
            return;
        }
    };
    if crate::tells() {
        eprintln!("{rules:?}");
    }
    assert_eq!(rules.len(), list.split(',').count());
    let again: Vec<String> = rules.iter().map(written).collect();
    assert_eq!(parse_rules(&again.join(",")), Ok(rules.clone()), "{again:?}");
    check_rules(&rules);
}

/// A rule as one would type it.
fn written(rule: &Rule) -> String {
    let Rule { address, port, target, prefix } = rule;
    assert_eq!(*prefix, Prefix::NONE, "no argument asks for a prefix");
    match address {
        None => format!("{port}-{target}"),
        Some(address) => format!("{}-{target}", SocketAddr::new(*address, *port)),
    }
}

/// What the rest of the program relies on.
fn check_rules(rules: &[Rule]) {
    assert!(!rules.is_empty());
    for (nth, rule) in rules.iter().enumerate() {
        let target = rule.target.ip();
        assert!(rule.port > 0 && rule.target.port() > 0);
        assert!(!target.is_unspecified() && !target.is_multicast() && !target.is_loopback());
        // Which version of IP it is must not depend on who asks.
        for address in std::iter::once(target).chain(rule.address) {
            assert_eq!(IpAddress::from(address).is_v4(), address.is_ipv4(), "{address}");
        }
        assert!(rule.address.is_none_or(|address| address.is_ipv4() == target.is_ipv4()));
        assert!(!rules[..nth].contains(rule), "a rule is there twice");
        let is_captured = |r: &Rule| r.address == Some(target) && r.port == rule.target.port();
        assert!(!rules.iter().any(is_captured), "the replay would be copied again");
    }
}

/// `-c`, `--clients`, `--exclude`
fn network(text: &str) {
    let (text, address) = text.split_once(' ').unwrap_or((text, ""));
    let Ok(network) = Network::from_str(text) else { return };
    assert_eq!(Network::from_str(&network.to_string()), Ok(network));
    let bits: u32 = if network.address().is_ipv4() { 32 } else { 128 };
    let prefix = u32::from(network.prefix());
    assert!(prefix <= bits && network.contains(network.address()));
    let number = |address: IpAddr| match address {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    };
    let first = number(network.address());
    let size = 1u128.checked_shl(bits - prefix);
    assert!(size.is_none_or(|size| first.is_multiple_of(size)), "bits behind the prefix");
    if let Ok(address) = address.parse::<IpAddr>() {
        let inside = address.is_ipv4() == network.address().is_ipv4()
            && size.is_none_or(|size| (first..=first + (size - 1)).contains(&number(address)));
        assert_eq!(network.contains(address), inside, "{address} in {network}");
    }
}

/// A whole line, as a shell would split it.
fn line(text: &str) {
    let words = std::iter::once("tcpcopy").chain(text.split_ascii_whitespace());
    let Ok(cli) = Cli::try_parse_from(words) else { return };
    let Command::Copy(copy) = cli.command() else { return };
    let settings = match copy.validate() {
        Ok(settings) => settings,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    if crate::tells() {
        eprintln!("{settings:#?}");
    }
    check_settings(&settings);
}

fn check_settings(settings: &Settings) {
    let Settings { rules, intercepts, intercept_of, workers, ring_bytes, clients, selection, replay, .. } = settings;
    check_rules(rules);
    assert!(!intercepts.is_empty() && intercept_of.len() == rules.len());
    assert!(intercept_of.iter().all(|&intercept| intercept < intercepts.len()));
    assert!((1..=64).contains(workers) && ring_bytes.is_power_of_two() && (256 << 10..=512 << 20).contains(ring_bytes));
    assert!((1..=100).contains(&selection.percentage));
    assert!((1..=64).contains(&clients.copies) && clients.region.is_none_or(|region| (1..1024).contains(&region)));
    // A megabyte for each worker of each copy, at least.
    assert!(replay.memory >= (*workers as usize * clients.copies as usize) << 20);
    assert!(settings.loopback_client.is_none_or(|address| IpAddress::from(address).is_v4() == address.is_ipv4()));
    if let Some(pool) = &clients.addresses {
        for rule in rules {
            assert!(!pool.contains(rule.target.ip()) && pool.has(rule.target.is_ipv4()));
        }
        assert!(settings.loopback_client.is_none());
        for refused in ["127.0.0.1", "::1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "ff02::1"] {
            assert!(!pool.contains(refused.parse().expect("an address")), "{refused} as a client address");
        }
    }
}
