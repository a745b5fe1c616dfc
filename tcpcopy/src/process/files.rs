//! Files that the operator has named for a program to write: its log, its process id, its summary.
//!
//! Whoever may write to a directory on the way can put something else at such a path: a link to a file that the program,
//! which is root as a rule, must not touch, a pipe on which it would wait, a file whose owner reads along. So each is
//! opened at the start, by a descriptor of its directory, without following a link, and is used only if it is a regular
//! file of one name that belongs to root or to the user of the program.

use std::{
    ffi::OsString,
    fs::File,
    io,
    os::fd::OwnedFd,
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        Access as FsAccess, AtFlags, CWD, FileType, Mode, OFlags, Stat, accessat, fchown, fstat, openat, statat,
        unlinkat,
    },
    io::{Errno, retry_on_intr},
    process::{Uid, geteuid},
};

use super::user::User;

/// The permissions of a file that is made: the group of the user reads, and nobody else does.
const MODE: Mode = Mode::RUSR.union(Mode::WUSR).union(Mode::RGRP);
/// How often a file is asked for that somebody else makes and removes meanwhile.
const TRIES: u32 = 8;

/// Why a file is not written.
#[derive(Debug, thiserror::Error)]
pub enum FileFault {
    /// A link, a directory, a device, a pipe.
    #[error("it is {0}, not a regular file: name another")]
    NotRegular(&'static str),
    /// Somebody else may read what is written there, or does not expect it.
    #[error("it belongs to user {owner}, not to user {ours} or root: remove it, or name another file")]
    Foreign {
        /// Its owner.
        owner: u32,
        /// The user of this process.
        ours: u32,
    },
    /// It may be a file of ours that has another purpose.
    #[error("it has other names too (hard links), so that it may be somebody else's: remove it, or name another file")]
    Linked,
    /// It is in use for something else, by this process.
    #[error("it is the same file as another one that this program writes: name another")]
    Taken,
    /// It has a content that would be lost.
    #[error("it holds something other than {0}, which would be lost: remove it, or name another file")]
    Precious(&'static str),
    /// The system's answer.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for FileFault {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

/// How a file is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// What is there stays, and lines are added.
    Append,
    /// It is read, and overwritten.
    Replace,
}

/// A file that is open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: File,
    /// Whether there was none.
    pub(super) made: bool,
}

/// The files that this process writes.
#[derive(Debug, Default)]
pub struct Files {
    /// Each by its device and its number there.
    taken: Vec<(u64, u64)>,
    heir: Option<User>,
}

impl Files {
    /// Begins with none. They are for `heir`, if the process becomes another user: what that owns is as good as ours.
    #[must_use]
    pub const fn new(heir: Option<User>) -> Self {
        Self { taken: Vec::new(), heir }
    }

    /// Finds the directory of `path`.
    ///
    /// # Errors
    /// When there is none, or the path names a directory itself.
    pub(super) fn find(&self, path: &Path) -> Result<Place, FileFault> {
        Place::find(path, self.heir.as_ref().map(User::uid))
    }

    /// Adds a file, before anything is written to it; one that was made is given to the heir.
    ///
    /// # Errors
    /// [`FileFault::Taken`] when it is there already.
    pub(super) fn add(&mut self, opened: &Opened) -> Result<(), FileFault> {
        let identity = identity(&fstat(&opened.file)?);
        if self.taken.contains(&identity) {
            return Err(FileFault::Taken);
        }
        self.taken.push(identity);
        match &self.heir {
            Some(heir) if opened.made && heir.uid() != geteuid() => {
                Ok(fchown(&opened.file, Some(heir.uid()), Some(heir.gid()))?)
            }
            _ => Ok(()),
        }
    }
}

/// Where a file is: a name in a directory that is held open, so that nobody can put another in its place.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    directory: OwnedFd,
    name: OsString,
    /// Who may own the file beside root and the present user.
    heir: Option<Uid>,
}

impl Place {
    /// Finds the directory of `path`.
    ///
    /// # Errors
    /// When there is none, or the path names a directory itself.
    fn find(path: &Path, heir: Option<Uid>) -> Result<Self, FileFault> {
        let name = match path.components().next_back() {
            Some(Component::Normal(name)) if !path.as_os_str().as_encoded_bytes().ends_with(b"/") => name,
            _ => return Err(FileFault::NotRegular("a directory")),
        };
        let parent = path.parent().filter(|parent| *parent != "").unwrap_or(Path::new("."));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = retry_on_intr(|| openat(CWD, parent, flags, Mode::empty()))?;
        Ok(Self { path: path.to_owned(), directory, name: name.to_owned(), heir })
    }

    /// Returns the path, for messages.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Opens the file, or makes it, readable by its user and group only.
    ///
    /// # Errors
    /// When what is there is not ours, or the system refuses.
    pub(super) fn open(&self, access: Access) -> Result<Opened, FileFault> {
        let how = match access {
            Access::Append => OFlags::WRONLY | OFlags::APPEND,
            Access::Replace => OFlags::RDWR,
        };
        // O_NONBLOCK: a pipe must be refused, not waited for.
        let flags = how | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        for _ in 0..TRIES {
            match retry_on_intr(|| openat(&self.directory, &self.name, flags, Mode::empty())) {
                Ok(file) => {
                    self.judge(&fstat(&file)?)?;
                    return Ok(Opened { file: file.into(), made: false });
                }
                Err(Errno::NOENT) => {}
                // What it is says more than why it cannot be opened.
                Err(error) => return Err(self.stat().and_then(|stat| self.judge(&stat)).err().unwrap_or(error.into())),
            }
            let make = flags | OFlags::CREATE | OFlags::EXCL;
            match retry_on_intr(|| openat(&self.directory, &self.name, make, MODE)) {
                Ok(file) => return Ok(Opened { file: file.into(), made: true }),
                Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(Errno::BUSY.into())
    }

    /// Returns whether the file that is there is this one.
    pub(super) fn holds(&self, file: &File) -> Result<bool, FileFault> {
        match self.stat() {
            Ok(stat) => Ok(identity(&stat) == identity(&fstat(file)?)),
            Err(FileFault::Io(error)) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes the file, if it is still this one.
    ///
    /// # Errors
    /// When the system refuses.
    pub(super) fn remove(&self, file: &File) -> Result<(), FileFault> {
        if self.holds(file)? {
            unlinkat(&self.directory, &self.name, AtFlags::empty())?;
        }
        Ok(())
    }

    /// Returns whether this process may make files in the directory.
    pub(super) fn may_make(&self) -> bool {
        accessat(&self.directory, ".", FsAccess::WRITE_OK | FsAccess::EXEC_OK, AtFlags::EACCESS).is_ok()
    }

    /// Looks at what is there, not at what a link there points to.
    fn stat(&self) -> Result<Stat, FileFault> {
        Ok(statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// Refuses what is not ours to write.
    fn judge(&self, stat: &Stat) -> Result<(), FileFault> {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => None,
            FileType::Symlink => Some("a symbolic link, which is not followed"),
            FileType::Directory => Some("a directory"),
            FileType::Fifo => Some("a pipe"),
            FileType::Socket => Some("a socket"),
            _ => Some("a device"),
        };
        if let Some(kind) = kind {
            return Err(FileFault::NotRegular(kind));
        }
        let (owner, ours) = (Uid::from_raw(stat.st_uid), geteuid());
        if owner != ours && !owner.is_root() && Some(owner) != self.heir {
            return Err(FileFault::Foreign { owner: owner.as_raw(), ours: ours.as_raw() });
        }
        if stat.st_nlink > 1 { Err(FileFault::Linked) } else { Ok(()) }
    }
}

fn identity(stat: &Stat) -> (u64, u64) {
    (stat.st_dev, stat.st_ino)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::{
            fs::{MetadataExt as _, PermissionsExt as _},
            net::UnixListener,
        },
    };

    use super::*;

    fn open(path: &Path, access: Access) -> Result<Opened, FileFault> {
        Files::default().find(path)?.open(access)
    }

    fn refusal(path: &Path) -> String {
        let [append, replace] = [Access::Append, Access::Replace].map(|how| open(path, how).unwrap_err().to_string());
        assert_eq!(append, replace);
        append
    }

    #[test]
    fn only_a_regular_file_is_written() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("victim"), "precious").unwrap();
        std::os::unix::fs::symlink(at("victim"), at("link")).unwrap();
        std::os::unix::fs::symlink(at("nothing"), at("dangling")).unwrap();
        fs::create_dir(at("directory")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        rustix::fs::mknodat(CWD, at("pipe"), FileType::Fifo, MODE, 0).unwrap();
        for (path, what) in [
            (at("link"), "a symbolic link"),
            (at("dangling"), "a symbolic link"),
            (at("directory"), "a directory"),
            (at("socket"), "a socket"),
            (at("pipe"), "a pipe"),
            (at("new/"), "a directory"),
            ("/".into(), "a directory"),
            (at(".."), "a directory"),
            ("/dev/null".into(), "a device"),
        ] {
            let said = refusal(&path);
            assert!(said.contains(&format!("it is {what}")), "{}: {said}", path.display());
        }
        assert_eq!(fs::read_to_string(at("victim")).unwrap(), "precious");
        assert!(!at("nothing").exists() && !at("new").exists());
    }

    #[test]
    fn a_file_with_several_names_is_refused_and_stays_as_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| directory.path().join(name));
        fs::write(&first, "precious").unwrap();
        fs::hard_link(&first, &second).unwrap();
        assert!(refusal(&second).contains("hard links"), "{}", refusal(&second));
        assert_eq!(fs::read_to_string(&first).unwrap(), "precious");
    }

    #[test]
    fn a_file_of_another_user_is_refused_and_one_of_root_is_not() {
        if !geteuid().is_root() {
            return crate::net::testing::skip("giving files away needs root");
        }
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        fs::write(&path, "").unwrap();
        assert!(!open(&path, Access::Append).unwrap().made);
        std::os::unix::fs::chown(&path, Some(1234), None).unwrap();
        assert!(refusal(&path).contains("belongs to user 1234, not to user 0"), "{}", refusal(&path));
        // Unless that is whom this process becomes, and then new files are that user's.
        let mut files = Files::new(Some(User::find("1234:5").unwrap()));
        files.find(&path).unwrap().open(Access::Append).unwrap();
        fs::remove_file(&path).unwrap();
        files.add(&files.find(&path).unwrap().open(Access::Append).unwrap()).unwrap();
        let owners = fs::metadata(&path).unwrap();
        assert_eq!((owners.uid(), owners.gid()), (1234, 5));
    }

    #[test]
    fn a_new_file_is_readable_by_user_and_group_only_and_an_old_one_keeps_its_mode() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert!(open(&path, Access::Replace).unwrap().made);
        // What the process's umask takes away is the operator's wish.
        assert_eq!(mode() & !0o640, 0);
        assert_eq!(mode() & 0o600, 0o600);
        fs::set_permissions(&path, fs::Permissions::from_mode(0o604)).unwrap();
        assert!(!open(&path, Access::Append).unwrap().made);
        assert_eq!(mode(), 0o604);
    }

    #[test]
    fn what_has_come_in_the_place_of_our_file_is_not_removed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let place = Files::default().find(&path).unwrap();
        let ours = place.open(Access::Replace).unwrap().file;
        fs::remove_file(&path).unwrap();
        place.remove(&ours).unwrap();
        fs::write(&path, "another").unwrap();
        place.remove(&ours).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "another");
        let theirs = place.open(Access::Append).unwrap().file;
        place.remove(&theirs).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn a_directory_that_is_exchanged_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let [logs, moved, elsewhere] = ["logs", "moved", "elsewhere"].map(|name| directory.path().join(name));
        fs::create_dir(&logs).unwrap();
        fs::create_dir(&elsewhere).unwrap();
        let place = Files::default().find(&logs.join("log")).unwrap();
        fs::rename(&logs, &moved).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &logs).unwrap();
        place.open(Access::Append).unwrap();
        assert!(moved.join("log").exists() && !elsewhere.join("log").exists());
    }

    #[test]
    fn a_file_serves_one_purpose() {
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| open(&directory.path().join(name), Access::Append).unwrap());
        let mut files = Files::default();
        files.add(&one).unwrap();
        files.add(&two).unwrap();
        let again = open(&directory.path().join("one"), Access::Replace).unwrap();
        assert!(matches!(files.add(&again), Err(FileFault::Taken)));
    }
}
