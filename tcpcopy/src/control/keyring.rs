//! The pre-shared keys in use: read from the key file again while channels are up, so that keys can be rotated.
//!
//! The first key is the one that this side connects with; as the accepting side it takes any. A channel that is up has
//! keys of its own, and goes on.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::process::Uid;

use super::psk::{Psk, PskError};

/// The keys of a file.
#[derive(Debug)]
pub(super) struct Keys {
    connecting: Psk,
    others: Vec<Psk>,
}

impl Keys {
    fn read(path: &Path, user: Uid) -> Result<Self, PskError> {
        let mut keys = Psk::read_for(path, user)?.into_iter();
        let connecting = keys.next().ok_or_else(|| PskError::Empty { path: path.into() })?;
        Ok(Self { connecting, others: keys.collect() })
    }

    /// Returns the key to connect with.
    pub(super) const fn connecting(&self) -> &Psk {
        &self.connecting
    }

    /// Returns the keys that are accepted, that to connect with first.
    pub(super) fn accepted(&self) -> impl Iterator<Item = &Psk> {
        std::iter::once(&self.connecting).chain(&self.others)
    }
}

/// The keys in use, and the file that they come from.
pub struct Keyring {
    /// The file, and the user whose process reads it; `None` of a key that never was in a file.
    source: Option<(PathBuf, Uid)>,
    keys: Mutex<Arc<Keys>>,
}

impl Keyring {
    /// Reads the keys of a file, for a process of `user`, which this one may become later: it must be able to read the file
    /// [again](Self::reload) then.
    ///
    /// # Errors
    /// [`PskError`].
    pub fn read(path: PathBuf, user: Uid) -> Result<Self, PskError> {
        let keys = Mutex::new(Arc::new(Keys::read(&path, user)?));
        Ok(Self { source: Some((path, user)), keys })
    }

    /// Reads the file again; returns how many keys it holds. Those that were read before are accepted no longer, unless
    /// they are still in it.
    ///
    /// # Errors
    /// [`PskError`]: then the keys that were read before stay in use.
    pub fn reload(&self) -> Result<usize, PskError> {
        let Some((path, user)) = &self.source else { return Ok(self.keys().accepted().count()) };
        let keys = Keys::read(path, *user)?;
        let count = keys.accepted().count();
        *self.keys.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(count)
    }

    /// Returns the keys that are in use now.
    pub(super) fn keys(&self) -> Arc<Keys> {
        Arc::clone(&self.keys.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A key that is in no file.
impl From<Psk> for Keyring {
    fn from(connecting: Psk) -> Self {
        Self { source: None, keys: Mutex::new(Arc::new(Keys { connecting, others: Vec::new() })) }
    }
}

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({:?})", self.source.as_ref().map(|(path, _)| path))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt as _};

    use super::*;

    fn octets(keyring: &Keyring) -> Vec<u8> {
        keyring.keys().accepted().map(|key| key.octets()[0]).collect()
    }

    fn write(path: &Path, keys: &[&str]) {
        fs::write(path, keys.iter().map(|digits| digits.repeat(32) + "\n").collect::<String>()).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
    }

    #[test]
    fn keys_come_and_go_with_the_file_and_a_bad_one_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("psk");
        write(&path, &["0a"]);
        let keyring = Keyring::read(path.clone(), rustix::process::geteuid()).unwrap();
        assert_eq!(octets(&keyring), [0x0a]);
        write(&path, &["0b", "0a"]);
        assert_eq!(octets(&keyring), [0x0a], "not before it is asked for");
        assert_eq!(keyring.reload().unwrap(), 2);
        assert_eq!((octets(&keyring), keyring.keys().connecting().octets()[0]), (vec![0x0b, 0x0a], 0x0b));

        fs::write(&path, "0b\n").unwrap();
        assert!(keyring.reload().is_err());
        fs::write(&path, "\n").unwrap();
        assert!(keyring.reload().is_err());
        fs::remove_file(&path).unwrap();
        assert!(keyring.reload().is_err());
        assert_eq!(octets(&keyring), [0x0b, 0x0a]);
        write(&path, &["0b"]);
        assert_eq!(keyring.reload().unwrap(), 1);
        assert_eq!(octets(&keyring), [0x0b]);
    }

    #[test]
    fn debug_output_shows_the_file_and_no_key() {
        let keyring = Keyring::from(Psk::generate().unwrap());
        assert_eq!(format!("{keyring:?} {:?}", keyring.keys().connecting()), "Keyring(None) Psk(..)");
    }
}
