//! The pre-shared key and its file.
//!
//! The file holds a key in each line, mostly one: its 32 octets as 64 hexadecimal digits. White space around them and
//! empty lines are ignored. More than one there is while keys are rotated: see [`Keyring`](super::Keyring).
//!
//! The file belongs to root, or to the user whose process reads it, and nobody else may be able to read or write it: but
//! for a process that is not root, the group of root's file may read it, which is how such a process can be given a key
//! that it cannot change.

use std::{
    fmt,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::process::{Uid, geteuid};
use zeroize::Zeroizing;

use super::{
    locked::Locked,
    random::{RandomError, random_bytes},
};

/// Octets of a key.
const LENGTH: usize = 32;
/// The most keys in a file. Each is tried when a peer proves its own.
const MAX_KEYS: usize = 4;
/// The longest file that is looked at: anything longer than the keys with some white space is something else.
const MAX_FILE: usize = 512;

/// A pre-shared key. Kept out of swap, erased from memory when dropped, and never printed.
pub struct Psk(Locked<LENGTH>);

/// Why a key file cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum PskError {
    /// There is no such file.
    #[error(
        "there is no key file {path:?}: make one with `tcpcopy keygen` and copy it to the other host, or name another"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Users other than the owner have access.
    #[error(
        "key file {path:?} is open to other users (mode {mode:04o}): run `chmod 600 {}`, and make a new key if \
         somebody may have read it",
        path.display()
    )]
    Exposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// Another user has made it, or can.
    #[error(
        "key file {path:?} belongs to user {owner}, who can read and change it: give it to the user of this program \
         (`chown {ours} {}`), and make a new key if somebody may have read it",
        path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The user of this process.
        ours: u32,
    },
    /// A directory, device or pipe.
    #[error("{path:?} is not a regular file: name one made by `tcpcopy keygen`")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// No line with a key.
    #[error(
        "key file {path:?} is empty, and should hold the 64 hexadecimal digits of a key: copy it again from the other \
         host, or make a new one with `tcpcopy keygen`"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// More keys than it takes to go from one to another.
    #[error(
        "key file {path:?} holds {found} keys, of which at most {MAX_KEYS} can be in use at a time: leave old ones out"
    )]
    TooMany {
        /// The file.
        path: PathBuf,
        /// How many there are.
        found: usize,
    },
    /// Too few or too many digits.
    #[error(
        "key file {path:?} holds {found} characters in line {line}, not the 64 hexadecimal digits of a key: copy it \
         again from the other host, or make a new one with `tcpcopy keygen`"
    )]
    Length {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// How many characters there are, at least.
        found: usize,
    },
    /// Something other than a hexadecimal digit. The offending character is not shown: it is part of a secret.
    #[error(
        "key file {path:?} has a character that is no hexadecimal digit in line {line} at position {position}: copy it \
         again from the other host, or make a new one with `tcpcopy keygen`"
    )]
    Digit {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        position: usize,
    },
    /// [`Psk::write_new`] found a file.
    #[error(
        "{path:?} exists already and is not overwritten: remove it first if no host uses that key any more, or choose \
         another file"
    )]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// The directory is missing.
    #[error("the directory of {path:?} does not exist: make it first with `mkdir -p`")]
    NoDirectory {
        /// The file.
        path: PathBuf,
    },
    /// Anything else that the operating system refuses.
    #[error("cannot {action} key file {path:?}: check the path and that you may access it (root?)")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

/// Why there is no new key.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The kernel gives no random octets.
    #[error(transparent)]
    Random(#[from] RandomError),
    /// There is no memory for it.
    #[error("there is no memory for a key: {0}")]
    Memory(#[from] io::Error),
}

impl Psk {
    /// A new random key.
    ///
    /// # Errors
    /// When the kernel gives no random octets, or no memory.
    pub fn generate() -> Result<Self, GenerateError> {
        let octets = Zeroizing::new(random_bytes()?);
        Ok(Self::of(&octets)?)
    }

    fn of(octets: &[u8; LENGTH]) -> io::Result<Self> {
        let mut key = Locked::new()?;
        key.copy_from_slice(octets);
        Ok(Self(key))
    }

    /// Reads a key file: at least one key.
    ///
    /// # Errors
    /// [`PskError`] when it is missing, of or open to other users, or something else than 64 hexadecimal digits a
    /// line.
    pub fn read(path: &Path) -> Result<Vec<Self>, PskError> {
        Self::read_for(path, geteuid())
    }

    /// Reads a key file for a process of `user`, which this one becomes later.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_for(path: &Path, user: Uid) -> Result<Vec<Self>, PskError> {
        let io_error = |source| PskError::Io { action: "read", path: path.into(), source };
        // O_NONBLOCK: a FIFO at this path must be refused below, not waited for here.
        let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file = file.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => PskError::Missing { path: path.into() },
            _ => io_error(error),
        })?;
        // Of the open file, not of the path, which may name another file by now.
        let metadata = file.metadata().map_err(io_error)?;
        if !metadata.is_file() {
            return Err(PskError::NotAFile { path: path.into() });
        }
        let owner = Uid::from_raw(metadata.uid());
        if owner != user && !owner.is_root() {
            return Err(PskError::Foreign { path: path.into(), owner: owner.as_raw(), ours: user.as_raw() });
        }
        let mode = metadata.mode() & 0o7777;
        if mode & others(owner, user) != 0 {
            return Err(PskError::Exposed { path: path.into(), mode });
        }
        let mut text = Locked::<MAX_FILE>::new().map_err(io_error)?;
        let length = read_all(&file, &mut *text).map_err(io_error)?;
        let lines = text[..length].split(|&octet| octet == b'\n').map(<[u8]>::trim_ascii).zip(1..);
        let keys = lines.filter(|(digits, _)| !digits.is_empty()).map(|(digits, line)| Self::parse(digits, line, path));
        let keys = keys.collect::<Result<Vec<_>, _>>()?;
        match keys.len() {
            0 => Err(PskError::Empty { path: path.into() }),
            1..=MAX_KEYS => Ok(keys),
            found => Err(PskError::TooMany { path: path.into(), found }),
        }
    }

    /// Writes the key into a new file that only its owner can access.
    ///
    /// # Errors
    /// [`PskError::Exists`] when there is a file already, [`PskError::NoDirectory`], or what the system says.
    pub fn write_new(&self, path: &Path) -> Result<(), PskError> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
            match source.kind() {
                io::ErrorKind::AlreadyExists => PskError::Exists { path: path.into() },
                io::ErrorKind::NotFound => PskError::NoDirectory { path: path.into() },
                _ => PskError::Io { action: "create", path: path.into(), source },
            }
        })?;
        self.write_to(&mut file).map_err(|source| {
            // Half a key is worse than none, and would be in the way of the next try. Failing to remove it adds nothing
            // to the error that is reported.
            let _ = fs::remove_file(path);
            PskError::Io { action: "write", path: path.into(), source }
        })
    }

    fn write_to(&self, file: &mut File) -> io::Result<()> {
        const DIGITS: &[u8; 16] = b"0123456789abcdef";
        let mut line = Zeroizing::new([b'\n'; 2 * LENGTH + 1]);
        for (pair, octet) in line.chunks_exact_mut(2).zip(self.0.iter()) {
            pair[0] = DIGITS[usize::from(octet >> 4)];
            pair[1] = DIGITS[usize::from(octet & 0xf)];
        }
        file.write_all(&*line)?;
        file.sync_all()
    }

    fn parse(digits: &[u8], line: usize, path: &Path) -> Result<Self, PskError> {
        if digits.len() != 2 * LENGTH {
            return Err(PskError::Length { path: path.into(), line, found: digits.len() });
        }
        let out_of_memory = |source| PskError::Io { action: "read", path: path.into(), source };
        let mut key = Locked::<LENGTH>::new().map_err(out_of_memory)?;
        for (i, &digit) in digits.iter().enumerate() {
            let value = char::from(digit).to_digit(16);
            let value = value.ok_or_else(|| PskError::Digit { path: path.into(), line, position: i + 1 })?;
            key[i / 2] = key[i / 2] << 4 | value as u8;
        }
        Ok(Self(key))
    }

    /// A key that somebody else has thought of.
    #[cfg(feature = "fuzzing")]
    pub(super) fn from_octets(octets: [u8; LENGTH]) -> Self {
        Self::of(&octets).expect("there is memory")
    }

    pub(super) fn octets(&self) -> &[u8; LENGTH] {
        &self.0
    }
}

/// Reads until the end of the file, or until there is no more room; returns how many octets there were.
fn read_all(mut file: &File, room: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match file.read(&mut room[length..]) {
            Ok(0) => return Ok(length),
            Ok(n) => length += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// Returns the permissions that nobody may have on a file of `owner` which a process of `user` reads.
fn others(owner: Uid, user: Uid) -> u32 {
    if owner.is_root() && !user.is_root() { 0o037 } else { 0o077 }
}

impl fmt::Debug for Psk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Psk(..)")
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn file(content: &str, mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("psk");
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn a_written_key_is_private_and_reads_back() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("psk");
        let key = Psk::generate().unwrap();
        key.write_new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read(&path).unwrap().len(), 65);
        assert_eq!(Psk::read(&path).unwrap()[0].octets(), key.octets());
    }

    #[test]
    fn the_file_is_hexadecimal_in_order() {
        let text: String = (0..32).map(|i| format!("{i:02X}")).collect();
        let (_directory, path) = file(&format!("  {text}\n\n"), 0o400);
        assert_eq!(Psk::read(&path).unwrap()[0].octets(), &std::array::from_fn(|i| i as u8));
    }

    #[test]
    fn keys_are_in_the_order_of_their_lines() {
        let lines = |count| (1..=count).map(|n| format!("{n:02x}").repeat(32) + "\r\n\n").collect::<String>();
        let (_directory, path) = file(&lines(MAX_KEYS), 0o600);
        let keys = Psk::read(&path).unwrap();
        assert_eq!(keys.iter().map(|key| usize::from(key.octets()[0])).collect::<Vec<_>>(), [1, 2, 3, 4]);
        let (_directory, path) = file(&lines(MAX_KEYS + 1), 0o600);
        let error = Psk::read(&path).unwrap_err();
        assert!(matches!(error, PskError::TooMany { found: 5, .. }), "{error}");
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let (_directory, path) = file("precious", 0o600);
        let error = Psk::generate().unwrap().write_new(&path).unwrap_err();
        assert!(matches!(error, PskError::Exists { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_missing_directory_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let error = Psk::generate().unwrap().write_new(&directory.path().join("no/psk")).unwrap_err();
        assert!(matches!(error, PskError::NoDirectory { .. }), "{error}");
    }

    #[test]
    fn a_file_that_others_can_access_is_refused_with_the_remedy() {
        for mode in [0o640, 0o604, 0o620, 0o601, 0o666] {
            let (_directory, path) = file(&"ab".repeat(32), mode);
            let error = Psk::read(&path).unwrap_err();
            assert!(matches!(error, PskError::Exposed { mode: m, .. } if m == mode), "{error}");
            assert!(error.to_string().contains(&format!("chmod 600 {}", path.display())), "{error}");
        }
    }

    #[test]
    fn only_root_and_the_user_of_the_program_may_own_the_file() {
        if !geteuid().is_root() {
            return crate::net::testing::skip("giving files away needs root");
        }
        let [root, user, other] = [0, 1234, 1235].map(Uid::from_raw);
        for (owner, mode, reader, read) in [
            (root, 0o600, root, true),
            (user, 0o600, root, false),
            (user, 0o400, user, true),
            (root, 0o400, user, true),
            (other, 0o600, user, false),
            // As Kubernetes mounts secrets, and packages install keys: root:GROUP.
            (root, 0o440, user, true),
            (root, 0o640, user, true),
            (root, 0o640, root, false),
            (root, 0o660, user, false),
            (root, 0o644, user, false),
            (user, 0o640, user, false),
        ] {
            let (_directory, path) = file(&"ab".repeat(32), mode);
            std::os::unix::fs::chown(&path, Some(owner.as_raw()), None).unwrap();
            let outcome = Psk::read_for(&path, reader);
            let case = format!("{owner:?} {mode:o} read by {reader:?}: {outcome:?}");
            match outcome {
                Ok(_) => assert!(read, "{case}"),
                Err(PskError::Foreign { owner: o, .. }) => {
                    assert!(!read && owner != reader && !owner.is_root() && o == owner.as_raw(), "{case}");
                }
                Err(PskError::Exposed { .. }) => assert!(!read && (owner == reader || owner.is_root()), "{case}"),
                Err(_) => panic!("{case}"),
            }
        }
    }

    #[test]
    fn a_missing_file_points_to_keygen() {
        let error = Psk::read(Path::new("/nonexistent/psk")).unwrap_err();
        assert!(matches!(error, PskError::Missing { .. }), "{error}");
        assert!(error.to_string().contains("tcpcopy keygen"), "{error}");
    }

    #[test]
    fn what_is_not_a_key_is_refused() {
        for (content, found) in [("abc\n", 3), (&*"0".repeat(66), 66), (&*"0".repeat(1 << 20), MAX_FILE)] {
            let (_directory, path) = file(content, 0o600);
            let error = Psk::read(&path).unwrap_err();
            assert!(matches!(error, PskError::Length { found: n, .. } if n == found), "{error}");
        }
        for content in ["", " \n\t\n"] {
            let (_directory, path) = file(content, 0o600);
            let error = Psk::read(&path).unwrap_err();
            assert!(matches!(error, PskError::Empty { .. }), "{error}");
        }
        let good = "0".repeat(64);
        let (_directory, path) = file(&format!("{good}\n{}g{}", "0".repeat(40), "0".repeat(23)), 0o600);
        let error = Psk::read(&path).unwrap_err();
        assert!(matches!(error, PskError::Digit { line: 2, position: 41, .. }), "{error}");
        let (_directory, path) = file(&format!("{good}\n{}", &good[1..]), 0o600);
        let error = Psk::read(&path).unwrap_err();
        assert!(matches!(error, PskError::Length { line: 2, found: 63, .. }), "{error}");
    }

    #[test]
    fn what_is_not_a_file_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let fifo = directory.path().join("fifo");
        rustix::fs::mknodat(
            rustix::fs::CWD,
            &fifo,
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
            0,
        )
        .unwrap();
        for path in [directory.path(), &fifo] {
            let error = Psk::read(path).unwrap_err();
            assert!(matches!(error, PskError::NotAFile { .. }), "{error}");
        }
    }

    #[test]
    fn debug_output_hides_the_key() {
        let text = "5a".repeat(32);
        let (_directory, path) = file(&text, 0o600);
        assert_eq!(format!("{:?}", Psk::read(&path).unwrap()), "[Psk(..)]");
    }
}
