//! Letters of tcpcopy 1.0 that mean nothing here: whoever uses one is told why, and what to use instead.

use clap::{Arg, ArgMatches, Args, Command, Error, FromArgMatches};

use super::UsageError;

/// Each with what to tell.
const LETTERS: [(&str, &str); 5] = [
    ("o", "replayed packets leave by the interface that the route to the target names; --inject says how"),
    ("F", "there is no pcap filter; choose services with -x, and clients with --clients and --exclude"),
    ("B", "there is no pcap buffer; the size of the workers' rings is set by --ring-size"),
    ("S", "segments are always copied whole, because one that was cut could not be replayed; leave it away"),
    ("U", "a session takes the memory that it needs; the sum is limited by -m"),
];

/// Those of them that were used.
#[derive(Debug, Default)]
pub struct RetiredArgs {
    used: Option<(&'static str, &'static str)>,
}

impl RetiredArgs {
    /// Refuses the letters that mean nothing here.
    ///
    /// # Errors
    /// When one was used.
    pub(super) fn validate(&self) -> Result<(), UsageError> {
        match self.used {
            None => Ok(()),
            Some((letter, reason)) => Err(UsageError::Retired { letter, reason }),
        }
    }
}

impl Args for RetiredArgs {
    fn augment_args(command: Command) -> Command {
        // With a value or without, so that the explanation comes before any complaint about the value.
        let arg = |(letter, _)| Arg::new(letter).short(char::from(str::as_bytes(letter)[0])).num_args(0..=1).hide(true);
        command.args(LETTERS.map(arg))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for RetiredArgs {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        Ok(Self { used: LETTERS.into_iter().find(|&(letter, _)| matches.contains_id(letter)) })
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}
