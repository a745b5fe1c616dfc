//! The log: stderr, or a file.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::files::{Access, FileFault, Files, Place};
use crate::finding::Finding;

/// The log file cannot be opened for appending.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the log file {}: {fault}", path.display())]
pub struct LogFileError {
    path: PathBuf,
    fault: FileFault,
}

/// Starts logging at the level of `RUST_LOG`, `info` without it, to stderr, or to the file at `path`, which is
/// returned. Colour only on a terminal.
///
/// # Errors
/// When the log file cannot be opened for appending.
pub fn init(path: Option<&Path>, files: &mut Files) -> Result<Option<LogFile>, LogFileError> {
    let mut builder = env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info,aya=warn"));
    builder.format_timestamp_millis().format_target(false);
    let file = path.map(|path| LogFile::open(path, files)).transpose()?;
    if let Some(file) = &file {
        builder.target(env_logger::Target::Pipe(Box::new(file.clone())));
    }
    builder.init();
    Ok(file)
}

/// The log file, to which every line is appended: the present one at its path can be opened in the place of a renamed
/// one.
#[derive(Clone, Debug)]
pub struct LogFile(Arc<Log>);

#[derive(Debug)]
struct Log {
    place: Place,
    file: Mutex<File>,
}

impl LogFile {
    /// Opens, or creates, the file.
    ///
    /// # Errors
    /// When it cannot be opened for appending.
    fn open(path: &Path, files: &mut Files) -> Result<Self, LogFileError> {
        let refuse = |fault| LogFileError { path: path.to_owned(), fault };
        let place = files.find(path).map_err(refuse)?;
        let opened = place.open(Access::Append).map_err(refuse)?;
        files.add(&opened).map_err(refuse)?;
        Ok(Self(Arc::new(Log { place, file: Mutex::new(opened.file) })))
    }

    /// Opens, or creates, the file that has the name by now, in the directory in which the log began; the lines to come
    /// go there.
    ///
    /// # Errors
    /// When it cannot be opened for appending: then the file that is open stays.
    pub fn reopen(&self) -> Result<(), LogFileError> {
        let place = &self.0.place;
        let opened = place.open(Access::Append);
        let opened = opened.map_err(|fault| LogFileError { path: place.path().to_owned(), fault })?;
        *self.file() = opened.file;
        Ok(())
    }

    /// Looks whether the log can be opened again when it was moved away, by the privileges that this thread has by now.
    #[must_use]
    pub fn check_rotation(&self) -> Option<Finding> {
        let place = &self.0.place;
        (!place.may_make()).then(|| {
            Finding::info(format!("this user may not write to the directory of {}", place.path().display()))
                .because("at SIGHUP the log goes on in the old file, unless a new one is there that the user may write")
                .remedy("let what rotates it make that file (logrotate: `create 0640 USER GROUP`)")
        })
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

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_renamed_log_file_is_left_when_the_log_is_opened_again_and_not_before() {
        let directory = tempfile::tempdir().unwrap();
        let (path, renamed) = (directory.path().join("log"), directory.path().join("log.1"));
        fs::write(&path, "before\n").unwrap();
        let log = LogFile::open(&path, &mut Files::default()).unwrap();
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
