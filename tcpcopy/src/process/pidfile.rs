//! The process id file.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
};

use super::files::{Access, FileFault, Files, Place};

/// Octets of the longest content that is taken for a process id.
const LONGEST: u64 = 32;
/// How often the file is opened again when whoever had it has removed it meanwhile.
const TRIES: u32 = 8;

/// A file that holds our process id, locked while we run and removed in `Drop`.
///
/// The lock, not the file's existence, tells whether another process runs: a file left by a SIGKILL does no harm.
#[derive(Debug)]
pub struct PidFile {
    place: Place,
    locked: File,
}

/// Why the process id file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PidFileError {
    /// Another process holds the lock.
    #[error("{} is locked by a running process: stop it first, or name another file", .0.display())]
    Running(PathBuf),
    /// It cannot be written.
    #[error("cannot write the process id file {}: {fault}", .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        fault: FileFault,
    },
}

impl PidFile {
    /// Creates, locks and writes the file. One that exists must be empty or hold a process id.
    ///
    /// # Errors
    /// When a running process holds it, or it cannot be written.
    pub fn create(path: &Path, files: &mut Files) -> Result<Self, PidFileError> {
        let refuse = |fault| PidFileError::File { path: path.to_owned(), fault };
        let place = files.find(path).map_err(refuse)?;
        for _ in 0..TRIES {
            let mut opened = place.open(Access::Replace).map_err(refuse)?;
            match flock(&opened.file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Err(PidFileError::Running(path.to_owned())),
                Err(error) => return Err(refuse(error.into())),
            }
            // Whoever held it before us has removed it as it ended: nobody would find ours.
            if !place.holds(&opened.file).map_err(refuse)? {
                continue;
            }
            if !is_process_id(&opened.file).map_err(|e| refuse(e.into()))? {
                return Err(refuse(FileFault::Precious("a process id")));
            }
            files.add(&opened).map_err(refuse)?;
            write(&mut opened.file).map_err(|e| refuse(e.into()))?;
            return Ok(Self { place, locked: opened.file });
        }
        Err(refuse(Errno::BUSY.into()))
    }
}

/// Returns whether a file is empty or holds a number, which may be followed by another line.
fn is_process_id(file: &File) -> io::Result<bool> {
    let mut content = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut content)?;
    let fits = content.len() as u64 <= LONGEST;
    Ok(fits && content.iter().all(|octet| octet.is_ascii_digit() || octet.is_ascii_whitespace()))
}

fn write(file: &mut File) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

impl Drop for PidFile {
    fn drop(&mut self) {
        if let Err(error) = self.place.remove(&self.locked) {
            // A user without a right to the directory leaves an empty file, which names no process.
            let emptied = self.locked.set_len(0).is_ok();
            let left = if emptied { "is left, empty" } else { "is left" };
            log::info!("the process id file {} {left}: {error}", self.place.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn create(path: &Path) -> Result<PidFile, PidFileError> {
        PidFile::create(path, &mut Files::default())
    }

    #[test]
    fn a_second_process_is_refused_while_the_first_runs_and_a_stale_file_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        fs::write(&path, "999999999\n").unwrap();
        let first = create(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        assert!(matches!(create(&path), Err(PidFileError::Running(_))));
        drop(first);
        assert!(!path.exists());
        // As one is left by a user who may not remove it.
        fs::write(&path, "").unwrap();
        create(&path).unwrap();
    }

    #[test]
    fn a_file_that_holds_anything_else_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        for content in ["[Service]\n".to_owned(), "7".repeat(33)] {
            fs::write(&path, &content).unwrap();
            let error = create(&path).unwrap_err();
            assert!(error.to_string().contains("other than a process id"), "{error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
    }

    #[test]
    fn the_file_of_a_successor_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pid");
        let first = create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let second = create(&path).unwrap();
        drop(first);
        assert!(path.exists());
        drop(second);
        assert!(!path.exists());
    }
}
