//! The log: stderr, or a file.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// The log file cannot be opened for appending.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the log file {}: {cause}", path.display())]
pub struct LogFileError {
    path: PathBuf,
    cause: io::Error,
}

/// Starts logging at the level of `RUST_LOG`, `info` without it, to stderr, or to the file at `path`, which is
/// returned. Colour only on a terminal.
///
/// # Errors
/// When the log file cannot be opened for appending.
pub fn init(path: Option<&Path>) -> Result<Option<LogFile>, LogFileError> {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,aya=warn"));
    builder.format_timestamp_millis().format_target(false);
    let file = path.map(LogFile::open).transpose()?;
    if let Some(file) = &file {
        builder.target(env_logger::Target::Pipe(Box::new(file.clone())));
    }
    builder.init();
    Ok(file)
}

/// The log file, to which every line is appended: the present one at its path can be opened in the place of a renamed
/// one.
#[derive(Clone, Debug)]
pub struct LogFile(Arc<Opened>);

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens, or creates, the file.
    ///
    /// # Errors
    /// When it cannot be opened for appending.
    fn open(path: &Path) -> Result<Self, LogFileError> {
        Ok(Self(Arc::new(Opened { path: path.to_owned(), file: Mutex::new(append(path)?) })))
    }

    /// Opens, or creates, the file that is at the path by now; the lines to come go there.
    ///
    /// # Errors
    /// When it cannot be opened for appending: then the file that is open stays.
    pub fn reopen(&self) -> Result<(), LogFileError> {
        let file = append(&self.0.path)?;
        *self.file() = file;
        Ok(())
    }

    /// Locks the file. A thread that panicked while it wrote has left a file like any other.
    fn file(&self) -> MutexGuard<'_, File> {
        self.0.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LogFile {
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.file().write(octets)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file().flush()
    }
}

fn append(path: &Path) -> Result<File, LogFileError> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .map_err(|cause| LogFileError { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_renamed_log_file_is_left_when_the_log_is_opened_again_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let (path, renamed) = (directory.path().join("log"), directory.path().join("log.1"));
        fs::write(&path, "before\n").unwrap();
        let log = LogFile::open(&path).unwrap();
        // The logger has a clone of its own.
        let mut logger = log.clone();
        writeln!(logger, "one").unwrap();
        fs::rename(&path, &renamed).unwrap();
        writeln!(logger, "two").unwrap();
        log.reopen().unwrap();
        writeln!(logger, "three").unwrap();
        log.reopen().unwrap();
        writeln!(logger, "four").unwrap();
        assert_eq!(fs::read_to_string(&renamed).unwrap(), "before\none\ntwo\n");
        assert_eq!(fs::read_to_string(&path).unwrap(), "three\nfour\n");

        // A path at which there can be no file any more: what is open stays open.
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(log.reopen().unwrap_err().to_string().contains("cannot write the log file"));
        writeln!(logger, "five").unwrap();
    }
}
