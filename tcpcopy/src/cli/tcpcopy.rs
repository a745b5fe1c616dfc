//! The command line of `tcpcopy`.

use std::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use tcpcopy_common::capture::MAX_WORKERS;

use super::{
    AFTER_HELP, DEFAULT_PSK_FILE, ProcessArgs, SecurityArgs, UsageError,
    address::{AddressError, PortError, parse_address, parse_port},
    clients::ClientArgs,
    named_once,
    replay::ReplayArgs,
    retired::RetiredArgs,
    rules::parse_rules,
    selection::SelectionArgs,
    size::parse_ring_size,
};
use crate::{
    affinity::CpuList,
    bpf::Hook,
    control::DEFAULT_PORT,
    inject::Backend,
    source::{Rule, Settings, most_targets},
};

/// Copies the requests of live clients, as packets, and replays them to a test host in real time.
#[derive(Debug, Parser)]
#[command(
    name = "tcpcopy",
    version,
    after_help = AFTER_HELP,
    args_conflicts_with_subcommands = true,
    disable_version_flag = true
)]
pub struct Cli {
    #[command(subcommand)]
    command: Option<CommandArgs>,
    #[command(flatten)]
    copy: CopyArgs,
}

/// What `tcpcopy` is asked to do.
#[derive(Debug)]
pub enum Command {
    /// Copy live traffic.
    Copy(Box<CopyArgs>),
    /// Make a pre-shared key.
    Keygen(PathBuf),
}

impl Cli {
    /// Returns the command, copying unless another is named.
    #[must_use]
    pub fn command(self) -> Command {
        match self.command {
            None => Command::Copy(Box::new(self.copy)),
            Some(CommandArgs::Keygen { file }) => Command::Keygen(file),
        }
    }
}

#[derive(Debug, Subcommand)]
enum CommandArgs {
    /// Make a pre-shared key for the control channel; copy the file to the target host
    Keygen {
        /// Where to write it; an existing file is not overwritten
        #[arg(default_value = DEFAULT_PSK_FILE)]
        file: PathBuf,
    },
}

/// The arguments of copying, as typed.
#[derive(Debug, Args)]
pub struct CopyArgs {
    /// Which service is copied where: [SRCIP:]PORT-TARGETIP:PORT[,…]; IPv6 addresses in brackets; may be repeated. A
    /// service that is there with several targets is copied to each of them
    #[arg(short = 'x', long = "rules", value_name = "RULES", required = true)]
    rules: Vec<String>,
    /// Where intercept listens, one per target host: ADDRESS[:PORT][,…]; may be repeated
    #[arg(short = 's', long = "intercept", value_name = "SERVERS", required = true)]
    servers: Vec<String>,
    /// End with exit code 3 when an intercept is not there at the start [default: wait until one is, and dial the others
    /// on]
    #[arg(long)]
    require_intercept: bool,
    /// Port of intercept where -s names none
    #[arg(
        short = 'p', long, value_name = "PORT", default_value_t = DEFAULT_PORT,
        value_parser = clap::value_parser!(u16).range(1..),
    )]
    port: u16,
    /// Interface on which live packets arrive; may be repeated [default: those of the default routes]
    #[arg(short = 'i', long = "interface", value_name = "NAME")]
    interfaces: Vec<String>,
    /// Where in the kernel live packets are copied
    #[arg(long, value_enum, default_value_t = HookArg::Auto)]
    hook: HookArg,
    /// Copy frames for other hosts too, as on a mirror port. The interface itself must let them in
    #[arg(long)]
    promiscuous: bool,
    /// How replayed packets are sent
    #[arg(long, value_enum, default_value_t = InjectArg::Auto)]
    inject: InjectArg,
    /// Hand replayed packets to the interface past its queueing discipline: a little cheaper, but they are not shaped,
    /// and lost at once where the interface is busy. Only with packet sockets
    #[arg(long)]
    bypass_qdisc: bool,
    /// Client address that stands in for 127.0.0.1 or ::1 at the target; needed to copy from lo
    #[arg(short = 'H', long, value_name = "ADDRESS")]
    loopback_client: Option<String>,
    /// Worker threads; each has a ring, a share of the connections, and a connection to each intercept for each copy.
    /// -C, which in tcpcopy 1.0 was the number of connections to intercept, is the same
    #[arg(
        short = 'w', short_alias = 'C', long, value_name = "N", default_value_t = 1,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_WORKERS)),
    )]
    workers: u32,
    /// Processors to keep the workers on, one for each, in their order: a list such as 2,4-7 [default: wherever the
    /// kernel puts them]
    #[arg(long, value_name = "CPUS")]
    pin: Option<CpuList>,
    /// Octets of the ring of each worker, rounded up to a power of two: suffix K, M or G
    #[arg(long, value_name = "BYTES", default_value = "16M", value_parser = parse_ring_size)]
    ring_size: u32,
    #[command(flatten)]
    selection: SelectionArgs,
    #[command(flatten)]
    clients: ClientArgs,
    #[command(flatten)]
    replay: ReplayArgs,
    #[command(flatten)]
    retired: RetiredArgs,
    /// How the control channel is protected.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// How the program runs as a process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `--hook`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum HookArg {
    /// The one that disturbs no live traffic: TC ingress
    Auto,
    /// TC ingress, at the head of the chain
    Tc,
    /// XDP in the driver
    Xdp,
    /// XDP in the network stack
    XdpGeneric,
}

/// `--inject`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum InjectArg {
    /// Packet sockets where the way to the target allows, else raw sockets
    Auto,
    /// AF_PACKET: fast, passes no netfilter
    Packet,
    /// IPPROTO_RAW: works everywhere, but passes netfilter and its connection tracking
    Raw,
}

impl CopyArgs {
    /// Checks everything that can be checked without touching the system.
    ///
    /// # Errors
    /// [`UsageError`] names the option and what is wrong with it.
    pub fn validate(&self) -> Result<Settings, UsageError> {
        self.retired.validate()?;
        let rules = parse_rules(&self.rules.join(","))?;
        let intercepts = parse_servers(&self.servers.join(","), self.port)?;
        let intercept_of = rules
            .iter()
            .map(|rule| {
                intercepts
                    .iter()
                    .position(|s| s.ip() == rule.target.ip())
                    .or((intercepts.len() == 1).then_some(0))
                    .ok_or(UsageError::NoServerFor(rule.target.ip()))
            })
            .collect::<Result<_, _>>()?;
        let loopback_client = self.loopback_client.as_deref().map(|text| stand_in(text, &rules)).transpose()?;
        named_once(&self.interfaces)?;
        let rewritten = loopback_client.is_some() || self.clients.rewrites();
        if self.interfaces.iter().any(|i| i == "lo") && !rewritten {
            return Err(UsageError::LoopbackWithoutStandIn);
        }
        if let Some(pin) = self.pin.as_ref().filter(|pin| pin.count() != self.workers as usize) {
            return Err(UsageError::Pin { pin: pin.clone(), workers: self.workers });
        }
        if self.bypass_qdisc && self.inject == InjectArg::Raw {
            return Err(UsageError::BypassOfRaw);
        }
        let targets: Vec<SocketAddr> = rules.iter().map(|rule| rule.target).collect();
        let copies = self.clients.copies() * most_targets(&rules);
        let clients = self.clients.validate(self.workers * copies, &targets)?;
        if clients.addresses.is_some() && loopback_client.is_some() {
            return Err(UsageError::TwoStandIns);
        }
        Ok(Settings {
            rules,
            intercepts,
            require_intercept: self.require_intercept,
            intercept_of,
            interfaces: self.interfaces.clone(),
            hook: match self.hook {
                HookArg::Auto => Hook::Auto,
                HookArg::Tc => Hook::Tc,
                HookArg::Xdp => Hook::Xdp,
                HookArg::XdpGeneric => Hook::XdpGeneric,
            },
            inject: match self.inject {
                InjectArg::Auto => Backend::Auto,
                InjectArg::Packet => Backend::Packet,
                InjectArg::Raw => Backend::Raw,
            },
            promiscuous: self.promiscuous,
            bypass_qdisc: self.bypass_qdisc,
            loopback_client,
            workers: self.workers,
            pin: self.pin.clone(),
            ring_bytes: self.ring_size,
            selection: self.selection.validate()?,
            clients,
            replay: self.replay.validate(self.workers, copies)?,
        })
    }
}

/// A loopback client's stand-in that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StandInError {
    /// No address at all.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Not an address that a packet may come from.
    #[error("the target would drop packets from this address; name one that it can route to")]
    NotAHost,
    /// Nothing is replayed with this IP version.
    #[error("no target of -x is of this IP version")]
    NoTarget,
}

/// Parses the address of `-H`: IPv6 with brackets or without.
fn stand_in(text: &str, rules: &[Rule]) -> Result<IpAddr, UsageError> {
    let fail = |fault| UsageError::StandIn { text: text.to_owned(), fault };
    let bracketed = text.parse::<Ipv6Addr>().map_or_else(|_| text.to_owned(), |v6| format!("[{v6}]"));
    let address = parse_address(&bracketed).map_err(|fault| fail(fault.into()))?;
    if address.is_loopback() || address.is_unspecified() || address.is_multicast() {
        return Err(fail(StandInError::NotAHost));
    }
    if !rules.iter().any(|r| r.target.is_ipv4() == address.is_ipv4()) {
        return Err(fail(StandInError::NoTarget));
    }
    Ok(address)
}

/// An entry of `-s` that cannot be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerFault {
    /// Its address.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// Its port.
    #[error(transparent)]
    Port(#[from] PortError),
    /// The list has it already.
    #[error("the server is there twice")]
    Twice,
}

/// Parses `ADDRESS[:PORT][,…]`.
fn parse_servers(list: &str, default_port: u16) -> Result<Vec<SocketAddr>, UsageError> {
    let mut servers = Vec::new();
    for entry in list.split(',') {
        let fail = |fault| UsageError::Server { entry: entry.to_owned(), fault };
        let server = parse_server(entry, default_port).map_err(fail)?;
        if servers.contains(&server) {
            return Err(fail(ServerFault::Twice));
        }
        servers.push(server);
    }
    Ok(servers)
}

/// Parses `ADDRESS[:PORT]`.
fn parse_server(entry: &str, default_port: u16) -> Result<SocketAddr, ServerFault> {
    if entry.starts_with('[') && entry.ends_with(']') || !entry.contains(':') {
        return Ok(SocketAddr::new(parse_address(entry)?, default_port));
    }
    if entry.parse::<Ipv6Addr>().is_ok() {
        return Err(AddressError::NoBrackets(entry.to_owned()).into());
    }
    let (address, port) = entry.rsplit_once(':').unwrap_or((entry, ""));
    Ok(SocketAddr::new(parse_address(address)?, parse_port(port)?))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tcpcopy_replay::RoundTrip;

    use super::*;
    use crate::source::Replay;

    fn settings(args: &str) -> Result<Settings, String> {
        let cli = Cli::try_parse_from(std::iter::once("tcpcopy").chain(args.split(' '))).map_err(|e| e.to_string())?;
        let Command::Copy(copy) = cli.command() else { panic!("not a copy") };
        copy.validate().map_err(|e| e.to_string())
    }

    #[test]
    fn the_server_of_a_target_is_the_one_on_its_host() {
        let s = settings("-x 80-10.0.0.3:80,81-10.0.0.4:81 -s 10.0.0.4,10.0.0.3:99").unwrap();
        assert_eq!(s.intercepts, ["10.0.0.4:36524".parse().unwrap(), "10.0.0.3:99".parse().unwrap()]);
        assert_eq!(s.intercept_of, [1, 0]);
        assert_eq!(settings("-x 80-10.0.0.3:80 -s [fd00::3]:9").unwrap().intercept_of, [0]);
    }

    #[test]
    fn a_ramp_takes_as_long_as_in_tcpcopy_1_0_unless_it_is_told_otherwise() {
        for (args, percentage, ramp) in
            [("-r 20", 20, None), ("-g", 100, Some(100)), ("-g -r 20", 20, Some(100)), ("-r 20 -g 7", 20, Some(7))]
        {
            let selection = settings(&format!("-x 80-10.0.0.3:80 -s 10.0.0.3 {args}")).unwrap().selection;
            assert_eq!((selection.percentage, selection.ramp), (percentage, ramp.map(Duration::from_secs)), "{args}");
        }
    }

    #[test]
    fn retired_letters_are_refused_with_their_replacement() {
        for (args, part) in [
            ("-o eth1", "--inject"),
            ("-F port", "--clients"),
            ("-B 64", "--ring-size"),
            ("-S 1500", "copied whole"),
            ("-U 16", "-m"),
            ("-U", "-m"),
        ] {
            let error = settings(&format!("-x 80-10.0.0.3:80 -s 10.0.0.3 {args}")).unwrap_err();
            assert!(error.starts_with(&args[..2]) && error.contains(part), "{args:?}: {error}");
        }
    }

    #[test]
    fn the_letters_of_the_replay_have_the_defaults_that_the_help_names() {
        let replay = settings("-x 80-10.0.0.3:80 -s 10.0.0.3").unwrap().replay;
        assert_eq!(
            replay,
            Replay {
                complete_only: false,
                wait: true,
                round_trip: RoundTrip::Near,
                session_timeout: Duration::from_secs(120),
                keepalive_timeout: None,
                memory: 512 << 20,
                mtu: None,
                mss: None,
            }
        );
        let given = "-x 80-10.0.0.3:80 -s 10.0.0.3 -O -W -L -R 30 -t 7 -k 9 -m 64 -w 4 -M 1400 -D 1000";
        assert_eq!(
            settings(given).unwrap().replay,
            Replay {
                complete_only: true,
                wait: false,
                round_trip: RoundTrip::Same(Duration::from_millis(30)),
                session_timeout: Duration::from_secs(7),
                keepalive_timeout: Some(Duration::from_secs(9)),
                memory: 64 << 20,
                mtu: Some(1400),
                mss: Some(1000),
            }
        );
        let live = settings("-x 80-10.0.0.3:80 -s 10.0.0.3 -R live").unwrap().replay.round_trip;
        assert_eq!(live, RoundTrip::Live);
        let patient = settings(&format!("{given} -t 600").replace("-t 7 -k 9 ", "")).unwrap().replay;
        assert_eq!((patient.session_timeout.as_secs(), patient.keepalive_timeout), (600, None));
    }

    #[test]
    fn contradictions_are_refused_with_their_reason() {
        for (args, part) in [
            ("-x 80-10.0.0.3:80", "--intercept"),
            ("-s 10.0.0.3", "--rules"),
            ("-x 80-10.0.0.3:80 -s fd00::3", "needs brackets"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3:0", "not a port"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3,10.0.0.3", "twice"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.4,10.0.0.5", "same addresses as -x"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -i lo", "-H ADDRESS"),
            ("-x 80-[fd00::3]:80 -s 10.0.0.3 -H ::ffff:10.8.0.1", "IPv4 address in IPv6 form"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -i lo -H 127.0.0.2", "would drop"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -i lo -H fd00::9", "of this IP version"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -i a -i a", "there twice"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -w 0", "0"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -w 65", "65"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --ring-size 1K", "256K to 512M"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --hook netfilter", "xdp-generic"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --psk-file f --insecure", "cannot be used with"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -d", "--log-file"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -r 0", "1..=100"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -r 101", "1..=100"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -g 0", "0"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --clients 10.0.0.1/8", "10.0.0.0/8"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --exclude 10.0.0.0/8,", "not an IP address"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --clients ::1,10.0.0.1 --exclude 10.0.0.1", "both in --clients"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -m 2 -w 3", "fewer workers"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -M 575", "575"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -D 87", "87"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -k 0", "0"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -R 10001", "neither live nor a number"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 -R -1", "-1"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --pin 1 -w 3", "1 processor for 3 workers"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --pin 1-3", "3 processors for 1 worker"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --pin 1,x", "\"x\" is not the number"),
            ("-x 80-10.0.0.3:80 -s 10.0.0.3 --bypass-qdisc --inject raw", "leave --inject raw"),
        ] {
            let error = settings(args).unwrap_err();
            assert!(error.contains(part), "{args:?}: {error}");
        }
    }
}
