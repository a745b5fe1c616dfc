//! The process id file.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, flock};

/// A file that holds our process id, locked while we run and removed in `Drop`.
///
/// The lock, not the file's existence, tells whether another process runs: a file left by a SIGKILL does no harm.
#[derive(Debug)]
pub struct PidFile {
    path: PathBuf,
    _locked: File,
}

/// Why the process id file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process holds the lock.
    #[error("{} is locked by a running process: stop it first, or name another file", .0.display())]
    Running(PathBuf),
    /// It cannot be written.
    #[error("cannot write the process id file {}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
}

impl PidFile {
    /// Creates, locks and writes the file.
    ///
    /// # Errors
    /// When a running process holds it, or it cannot be written.
    pub fn create(path: &Path) -> Result<Self, PidFileError> {
        let io = |source| PidFileError::Io { path: path.to_owned(), source };
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path).map_err(io)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|_| PidFileError::Running(path.to_owned()))?;
        file.set_len(0).map_err(io)?;
        writeln!(file, "{}", std::process::id()).map_err(io)?;
        Ok(Self { path: path.to_owned(), _locked: file })
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(e) = std::fs::remove_file(&self.path) {
            log::warn!("cannot remove the process id file {}: {e}", self.path.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_process_is_refused_while_the_first_runs_and_a_stale_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        std::fs::write(&path, "999999999\nstale\n").unwrap();
        let first = PidFile::create(&path).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert!(matches!(PidFile::create(&path), Err(PidFileError::Running(_))));
        drop(first);
        assert!(!path.exists());
    }
}
