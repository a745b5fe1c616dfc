//! Which live connections are copied: by client, and by lot.

use std::time::Duration;

use clap::Args;

use super::UsageError;
use crate::{
    bpf::{ClientFilter, Network},
    source::Selection,
};

/// The arguments of the selection, as typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
pub struct SelectionArgs {
    /// Percentage of the connections that is copied, each of them whole or not at all: 1 to 100
    #[arg(
        short = 'r', long, value_name = "PERCENT", default_value_t = 100,
        value_parser = clap::value_parser!(u8).range(1..=100),
    )]
    percentage: u8,
    /// Let the percentage grow evenly from 0 to that of -r in so many seconds. Connections that are not admitted when
    /// they begin, and those that are open before, stay out. Without a number 100, like in tcpcopy 1.0
    #[arg(
        short = 'g', long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "100",
        value_parser = clap::value_parser!(u64).range(1..=86_400),
    )]
    ramp: Option<u64>,
    /// Copy only clients with these addresses; may be repeated [default: all]
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    clients: Vec<Network>,
    /// Do not copy clients with these addresses; the longest prefix in --clients and --exclude decides
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    exclude: Vec<Network>,
}

impl SelectionArgs {
    pub(super) fn validate(&self) -> Result<Selection, UsageError> {
        let clients = ClientFilter::new(&self.clients, &self.exclude).map_err(UsageError::SelectedAndExcluded)?;
        Ok(Selection { percentage: self.percentage, ramp: self.ramp.map(Duration::from_secs), clients })
    }
}
