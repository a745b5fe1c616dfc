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
    lines: Mutex<Lines<File>>,
}

/// Where lines are written, and which of them have found no room: a disk that is full for a while loses lines, and says
/// so.
#[derive(Debug)]
struct Lines<W> {
    to: W,
    /// Lines that were not written, or only in part, since one was.
    lost: u64,
    /// Whether the last line that is there has no end.
    torn: bool,
}

impl<W: Write> Lines<W> {
    const fn new(to: W) -> Self {
        Self { to, lost: 0, torn: false }
    }

    /// Writes a line, and before it how many were lost.
    fn add(&mut self, line: &[u8]) -> io::Result<()> {
        let written = if self.lost == 0 {
            self.put(line)
        } else {
            let (torn, lost) = (if self.torn { "\n" } else { "" }, self.lost);
            let lines = if lost == 1 { "line" } else { "lines" };
            let notice = format!("{torn}{lost} {lines} of the log could not be written before this one\n");
            self.put(&[notice.as_bytes(), line].concat())
        };
        self.lost = if written.is_ok() { 0 } else { self.lost.saturating_add(1) };
        written
    }

    fn put(&mut self, mut octets: &[u8]) -> io::Result<()> {
        while let Some(last) = octets.last() {
            match self.to.write(octets) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    self.torn = written < octets.len() || *last != b'\n';
                    octets = octets.get(written..).unwrap_or_default();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
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
        Ok(Self(Arc::new(Log { place, lines: Mutex::new(Lines::new(opened.file)) })))
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
        // What the old file lacks is told in the new one.
        let lines = &mut *self.lines();
        (lines.to, lines.torn) = (opened.file, false);
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
    fn lines(&self) -> MutexGuard<'_, Lines<File>> {
        self.0.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LogFile {
    /// Writes a whole line: the logger hands it over in one piece, and has nobody to tell of an error.
    fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
        self.lines().add(octets).map(|()| octets.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lines().to.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::io::Errno;

    use super::*;

    /// A disk with room for so many octets, and a signal at every other call.
    #[derive(Default)]
    struct Disk {
        content: Vec<u8>,
        room: usize,
        calls: usize,
    }

    impl Write for Disk {
        fn write(&mut self, octets: &[u8]) -> io::Result<usize> {
            self.calls += 1;
            if self.calls % 2 == 1 {
                return Err(Errno::INTR.into());
            }
            let fits = octets.len().min(self.room);
            if fits == 0 {
                return Err(Errno::NOSPC.into());
            }
            self.room -= fits;
            self.content.extend(&octets[..fits]);
            Ok(fits)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_that_a_full_disk_has_lost_are_told_with_the_next_and_none_is_glued_to_half_of_another() {
        let mut lines = Lines::new(Disk { room: 7, ..Disk::default() });
        lines.add(b"one\n").unwrap();
        for lost in ["second\n", "third\n"] {
            let error = lines.add(lost.as_bytes()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(Errno::NOSPC.raw_os_error()));
        }
        lines.to.room = 1000;
        lines.add(b"four\n").unwrap();
        lines.add(b"five\n").unwrap();
        let text = String::from_utf8(lines.to.content).unwrap();
        assert_eq!(text, "one\nsec\n2 lines of the log could not be written before this one\nfour\nfive\n");
    }

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
