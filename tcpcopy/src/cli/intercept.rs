//! The command line of `intercept`.

use std::net::{IpAddr, SocketAddr};

use clap::{Parser, ValueEnum};

use super::{
    AFTER_HELP, ProcessArgs, SecurityArgs, UsageError, address::parse_address, named_once, size::parse_ring_size,
};
use crate::{
    affinity::{CpuList, CpuListError},
    bpf::TcAttach,
    control::DEFAULT_PORT,
    intercept::{Ack, Settings},
};

/// Runs on the test host: swallows the responses of replayed connections and reports them to tcpcopy.
#[derive(Debug, Parser)]
#[command(name = "intercept", version, after_help = AFTER_HELP, disable_version_flag = true)]
pub struct Cli {
    /// Interface on which replayed packets arrive; may be repeated. Responses are swallowed on every interface but
    /// loopback
    #[arg(short = 'i', long = "interface", value_name = "NAME", required = true)]
    interfaces: Vec<String>,
    /// Address to listen on for tcpcopy; may be repeated [default: all]
    #[arg(short = 'b', long, value_name = "ADDRESS")]
    bind: Vec<String>,
    /// Port to listen on for tcpcopy
    #[arg(
        short = 'p', long, value_name = "PORT", default_value_t = DEFAULT_PORT,
        value_parser = clap::value_parser!(u16).range(1..),
    )]
    port: u16,
    /// How programs are attached to the interfaces
    #[arg(long, value_enum, default_value_t = AttachArg::Auto)]
    attach: AttachArg,
    /// Who acknowledges answers of more than a few segments, on behalf of the replayed clients
    #[arg(long, value_enum, default_value_t = AckArg::Relay)]
    ack: AckArg,
    /// The most replayed connections known at a time
    #[arg(
        long, value_name = "N", default_value_t = 524_288,
        value_parser = clap::value_parser!(u32).range(1..=16_777_216),
    )]
    max_sessions: u32,
    /// Processor to keep the thread on that reports responses [default: wherever the kernel puts it]
    #[arg(long, value_name = "CPU", value_parser = parse_cpu)]
    pin: Option<CpuList>,
    /// Octets of the ring for reports, rounded up to a power of two: suffix K, M or G
    #[arg(long, value_name = "BYTES", default_value = "8M", value_parser = parse_ring_size)]
    ring_size: u32,
    /// How the control channel is protected.
    #[command(flatten)]
    pub security: SecurityArgs,
    /// How the program runs as a process.
    #[command(flatten)]
    pub process: ProcessArgs,
}

/// `--attach`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AttachArg {
    /// TCX where the kernel has it (6.6), else clsact
    Auto,
    /// TCX links, which vanish with the process
    Tcx,
    /// Filters of a clsact qdisc, which stay after SIGKILL until the next start
    Clsact,
}

/// `--ack`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum AckArg {
    /// This program, on the spot: large answers cost the source no packets, and come as fast as the target can send
    Reflect,
    /// tcpcopy: the target sees the network between the two, or with `tcpcopy -R` clients far away
    Relay,
}

impl Cli {
    /// Checks everything that can be checked without touching the system.
    ///
    /// # Errors
    /// [`UsageError`] names the option and what is wrong with it.
    pub fn validate(&self) -> Result<Settings, UsageError> {
        named_once(&self.interfaces)?;
        let listen = if self.bind.is_empty() {
            let any: [IpAddr; 2] = [std::net::Ipv4Addr::UNSPECIFIED.into(), std::net::Ipv6Addr::UNSPECIFIED.into()];
            any.map(|address| SocketAddr::new(address, self.port)).to_vec()
        } else {
            self.bind
                .iter()
                .map(|text| {
                    let address: IpAddr = text
                        .parse()
                        .or_else(|_| parse_address(text))
                        .map_err(|fault| UsageError::Bind { text: text.clone(), fault })?;
                    Ok(SocketAddr::new(address, self.port))
                })
                .collect::<Result<_, UsageError>>()?
        };
        Ok(Settings {
            interfaces: self.interfaces.clone(),
            listen,
            attach: match self.attach {
                AttachArg::Auto => TcAttach::Auto,
                AttachArg::Tcx => TcAttach::Tcx,
                AttachArg::Clsact => TcAttach::Clsact,
            },
            ack: match self.ack {
                AckArg::Reflect => Ack::Reflect,
                AckArg::Relay => Ack::Relay,
            },
            max_sessions: self.max_sessions,
            pin: self.pin.clone(),
            ring_bytes: self.ring_size,
        })
    }
}

/// A text that is not one processor.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
enum CpuError {
    #[error(transparent)]
    List(#[from] CpuListError),
    #[error("one processor is enough: there is one thread that reports")]
    Several,
}

/// Parses one processor.
fn parse_cpu(text: &str) -> Result<CpuList, CpuError> {
    match text.parse::<CpuList>()? {
        one if one.count() == 1 => Ok(one),
        _ => Err(CpuError::Several),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reporter_takes_one_processor() {
        let pin = |cpus: &str| {
            let cli = Cli::try_parse_from(["intercept", "-i", "eth0", "--pin", cpus]).map_err(|e| e.to_string())?;
            Ok::<_, String>(cli.validate().unwrap().pin.map(|pin| pin.to_string()))
        };
        assert_eq!(pin("7").unwrap().as_deref(), Some("7"));
        assert!(pin("7,8").unwrap_err().contains("one thread"));
    }
}
