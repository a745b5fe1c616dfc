//! The user that the process becomes, once the files that the operator has named are open.

use std::{
    ffi::{CStr, CString},
    io,
    mem::MaybeUninit,
    ptr::null_mut,
};

use rustix::{
    process::{Gid, Uid, getuid},
    thread::set_keep_capabilities,
};

use crate::privileges;

/// Octets for the strings of an entry of the user database, at first and at most.
const ENTRY: usize = 1 << 10;
const LONGEST_ENTRY: usize = 1 << 20;

/// A user to become.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct User {
    uid: Uid,
    gid: Gid,
    /// The name in the user database, if there is an entry: it leads to further groups.
    name: Option<CString>,
}

/// The process cannot become a user.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The user database has no such entry.
    #[error("there is no user {0:?}: name one of the user database, or give the numbers UID:GID")]
    Unknown(String),
    /// The user database cannot be read.
    #[error("cannot look up the user {name:?}: {source}")]
    Database {
        /// As typed.
        name: String,
        /// The cause.
        source: io::Error,
    },
    /// The system refuses.
    #[error("cannot become the user {uid} ({source}): start as root, or with CAP_SETUID and CAP_SETGID")]
    Refused {
        /// The user's number.
        uid: u32,
        /// The cause.
        source: io::Error,
    },
}

impl User {
    /// Finds a user by name, by number, or by the numbers of user and group (`UID:GID`), which need no entry in the user
    /// database.
    ///
    /// # Errors
    /// When there is none, or the user database cannot be read.
    pub fn find(text: &str) -> Result<Self, UserError> {
        let unknown = || UserError::Unknown(text.to_owned());
        if let Some((uid, gid)) = text.split_once(':') {
            let number = |text: &str| text.parse().ok().filter(|number| *number != u32::MAX).ok_or_else(unknown);
            return Ok(Self { uid: Uid::from_raw(number(uid)?), gid: Gid::from_raw(number(gid)?), name: None });
        }
        let name = CString::new(text).map_err(|_| unknown())?;
        let found = entry(|entry, strings, length, found| {
            // SAFETY: all pointers are to memory of the caller, of the given length.
            unsafe { libc::getpwnam_r(name.as_ptr(), entry, strings, length, found) }
        });
        let found = match (found, text.parse()) {
            (Ok(None), Ok(uid)) => entry(|entry, strings, length, found| {
                // SAFETY: as above.
                unsafe { libc::getpwuid_r(uid, entry, strings, length, found) }
            }),
            (found, _) => found,
        };
        found.map_err(|source| UserError::Database { name: text.to_owned(), source })?.ok_or_else(unknown)
    }

    /// Returns the number of the user.
    #[must_use]
    pub const fn uid(&self) -> Uid {
        self.uid
    }

    /// Returns the number of the user's first group.
    #[must_use]
    pub const fn gid(&self) -> Gid {
        self.gid
    }

    /// Makes this the user of the process, with the groups of that user, and keeps the capabilities by which the
    /// programs start. For the main thread before it makes others. Nothing happens if it is the user already.
    ///
    /// # Errors
    /// When the system refuses.
    pub fn become_it(&self) -> Result<(), UserError> {
        if getuid() == self.uid {
            return Ok(());
        }
        self.change().map_err(|source| UserError::Refused { uid: self.uid.as_raw(), source })
    }

    fn change(&self) -> io::Result<()> {
        let (uid, gid) = (self.uid.as_raw(), self.gid.as_raw());
        set_keep_capabilities(true)?;
        done(match &self.name {
            // SAFETY: the name is a C string, which outlives the call.
            Some(name) => unsafe { libc::initgroups(name.as_ptr(), gid) },
            // SAFETY: the list is one number long, and outlives the call.
            None => unsafe { libc::setgroups(1, &raw const gid) },
        })?;
        // SAFETY: these take numbers only.
        done(unsafe { libc::setresgid(gid, gid, gid) })?;
        // SAFETY: likewise.
        done(unsafe { libc::setresuid(uid, uid, uid) })?;
        set_keep_capabilities(false)?;
        privileges::keep_for_the_start()?;
        Ok(privileges::no_dumps()?)
    }
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Returns the entry that `look_up` finds (getpwnam_r(3)), if there is one. It is called with the places for the entry,
/// for its strings with their length, and for the pointer that says whether there is one.
fn entry(
    look_up: impl Fn(*mut libc::passwd, *mut libc::c_char, usize, *mut *mut libc::passwd) -> libc::c_int,
) -> io::Result<Option<User>> {
    let mut strings: Vec<libc::c_char> = vec![0; ENTRY];
    loop {
        let (mut entry, mut found) = (MaybeUninit::<libc::passwd>::uninit(), null_mut());
        match look_up(entry.as_mut_ptr(), strings.as_mut_ptr(), strings.len(), &raw mut found) {
            libc::ERANGE if strings.len() < LONGEST_ENTRY => strings.resize(strings.len() * 2, 0),
            libc::EINTR => {}
            // What is said where there is no database, or nothing in it (getpwnam_r(3), under "Errors").
            0 | libc::ENOENT | libc::ESRCH if found.is_null() => return Ok(None),
            0 => {
                // SAFETY: the call has found an entry and filled it in.
                let entry = unsafe { entry.assume_init_ref() };
                // SAFETY: the name is a C string within `strings`.
                let name = unsafe { CStr::from_ptr(entry.pw_name) }.to_owned();
                let (uid, gid) = (Uid::from_raw(entry.pw_uid), Gid::from_raw(entry.pw_gid));
                return Ok(Some(User { uid, gid, name: Some(name) }));
            }
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_found_by_name_and_by_number() {
        let root = User::find("root").unwrap();
        assert_eq!((root.uid, root.gid), (Uid::ROOT, Gid::ROOT));
        assert_eq!(User::find("0").unwrap(), root);
        let numbers = User::find("4000000000:7").unwrap();
        assert_eq!((numbers.uid.as_raw(), numbers.gid.as_raw(), numbers.name), (4_000_000_000, 7, None));
        for unknown in ["", "no such user", "4000000000", "7:", ":7", "7:users", "-1", "4294967295:0", "a\0b"] {
            let error = User::find(unknown).unwrap_err();
            assert!(matches!(error, UserError::Unknown(_)), "{unknown:?}: {error}");
        }
    }
}
