//! The log: stderr, or the file of `-l`.

use std::{fs::OpenOptions, path::Path};

use anyhow::Context as _;

/// Starts logging at the level of `RUST_LOG`, `info` without it. Colour only on a terminal.
///
/// # Errors
/// When the log file cannot be opened for appending.
pub fn init(file: Option<&Path>) -> anyhow::Result<()> {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,aya=warn"));
    builder.format_timestamp_millis().format_target(false);
    if let Some(path) = file {
        let file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write the log file {} (-l)", path.display()))?;
        builder.target(env_logger::Target::Pipe(Box::new(file)));
    }
    builder.init();
    Ok(())
}
