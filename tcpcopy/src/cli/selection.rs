//! Which live connections are copied: by client, and by lot.

use clap::Args;

/// The arguments of the selection, as typed.
#[derive(Debug, Args)]
#[command(next_help_heading = "Selection")]
pub struct SelectionArgs {
    /// Percentage of the connections that is copied, each of them whole or not at all: 1 to 100
    #[arg(short = 'r', long, value_name = "PERCENT", default_value_t = 100, value_parser = clap::value_parser!(u8).range(1..=100))]
    percentage: u8,
}

/// The arguments of the selection, validated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// 1 to 100.
    pub percentage: u8,
}

impl SelectionArgs {
    pub(super) fn validate(&self) -> Selection {
        Selection { percentage: self.percentage }
    }
}
