//! The file of the summary, as JSON.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    path::{Path, PathBuf},
};

use super::files::{Access, FileFault, Files, Place};
use crate::summary::Report;

/// The file for the figures at the end, open from the start on: after a run of a week it is too late to learn that it
/// cannot be written. One that was made, and has got no figures, is removed in `Drop`.
#[derive(Debug)]
pub struct SummaryFile {
    place: Place,
    file: File,
    /// Whether there would be no file without us, and nothing is in it.
    removable: bool,
}

/// The summary cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the summary to {}: {fault}", path.display())]
pub struct SummaryFileError {
    path: PathBuf,
    fault: FileFault,
}

impl SummaryFile {
    /// Opens, or creates, the file. What an earlier run has left there stays until the figures are known; anything but
    /// JSON is not overwritten.
    ///
    /// # Errors
    /// When it cannot be written, or holds something else.
    pub fn open(path: &Path, files: &mut Files) -> Result<Self, SummaryFileError> {
        let refuse = |fault| SummaryFileError { path: path.to_owned(), fault };
        let place = files.find(path).map_err(refuse)?;
        let mut opened = place.open(Access::Replace).map_err(refuse)?;
        files.add(&opened).map_err(refuse)?;
        if !begins_as_json(&mut opened.file).map_err(|e| refuse(e.into()))? {
            return Err(refuse(FileFault::Precious("a summary")));
        }
        Ok(Self { place, file: opened.file, removable: opened.made })
    }

    /// Writes the figures, in the place of what is there.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn write(mut self, figures: &Report) -> Result<(), SummaryFileError> {
        self.removable = false;
        let text = format!("{:#}\n", figures.to_json());
        let written = replace(&mut self.file, text.as_bytes());
        written.map_err(|error| SummaryFileError { path: self.place.path().to_owned(), fault: error.into() })
    }
}

/// Returns whether a file is empty, or begins with the object that a summary is.
fn begins_as_json(file: &mut File) -> io::Result<bool> {
    let mut first = Vec::new();
    // To the end: a call that a signal interrupts is repeated by it.
    file.take(1).read_to_end(&mut first)?;
    Ok(first.is_empty() || first == *b"{")
}

/// Half a summary is worse than none: where there is no room, the file is left empty.
fn replace(file: &mut File, text: &[u8]) -> io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    file.write_all(text).and_then(|()| file.sync_all()).inspect_err(|_| {
        // What is wrong is in the error already.
        let _ = file.set_len(0);
    })
}

impl Drop for SummaryFile {
    fn drop(&mut self) {
        if self.removable
            && let Err(error) = self.place.remove(&self.file)
        {
            log::info!("the empty file {} is left: {error}", self.place.path().display());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn open(path: &Path) -> Result<SummaryFile, SummaryFileError> {
        SummaryFile::open(path, &mut Files::default())
    }

    #[test]
    fn the_figures_replace_those_of_an_earlier_run_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("summary.json");
        let figures = Report::of("tcpcopy", |_| {});
        let text = format!("{:#}\n", figures.to_json());
        open(&path).unwrap().write(&figures).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        // Longer than what comes.
        let earlier = format!("{{{}", "x".repeat(1 << 16));
        fs::write(&path, &earlier).unwrap();
        let second = open(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), earlier);
        second.write(&figures).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
        fs::write(&path, "root:x:0:0").unwrap();
        let error = open(&path).unwrap_err().to_string();
        assert!(error.contains("other than a summary"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "root:x:0:0");
    }

    #[test]
    fn a_run_that_fails_leaves_no_empty_file_and_keeps_an_old_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("summary.json");
        drop(open(&path).unwrap());
        assert!(!path.exists());
        fs::write(&path, "{}").unwrap();
        drop(open(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "{}");
    }
}
