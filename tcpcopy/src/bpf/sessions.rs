//! Walking through the map of replayed sessions.

use std::os::fd::{AsFd as _, OwnedFd};

use aya::maps::MapError;
use bytemuck::Zeroable as _;
use tcpcopy_common::{flow::Flow, response::Session};

use super::{BpfError, object::map, sys};

/// Sessions read by one system call at first. Few enough to take no memory worth mentioning, and enough that the call does not count.
const BATCH: usize = 512;

/// The session map, for reading all of it, be it long or short, in a small buffer. It takes no lock of ours: the programs, and whoever
/// removes sessions, go on.
#[derive(Debug)]
pub struct Sessions {
    map: OwnedFd,
    flows: Vec<Flow>,
    sessions: Vec<Session>,
}

/// One pass through the map.
#[derive(Debug)]
pub struct Walk<'a> {
    of: &'a mut Sessions,
    at: At,
}

/// How far a walk has come.
#[derive(Clone, Copy, Debug)]
enum At {
    Start,
    /// At the bucket that the kernel calls so.
    Bucket(u32),
    End,
}

impl Sessions {
    pub(super) fn new(map: OwnedFd) -> Self {
        Self { map, flows: Vec::new(), sessions: Vec::new() }.with_room(BATCH)
    }

    /// The same with a buffer for so many sessions.
    pub(super) fn with_room(mut self, room: usize) -> Self {
        self.flows.resize(room, Flow::zeroed());
        self.sessions.resize(room, Session::zeroed());
        self
    }

    /// Begins at the start.
    pub const fn walk(&mut self) -> Walk<'_> {
        Walk { of: self, at: At::Start }
    }
}

impl Walk<'_> {
    /// Some more sessions, in no order; `None` after the last. One that opens or ends meanwhile may be missing.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn batch(&mut self) -> Result<Option<impl Iterator<Item = (&Flow, &Session)>>, BpfError> {
        let from = match self.at {
            At::Start => None,
            At::Bucket(bucket) => Some(bucket),
            At::End => return Ok(None),
        };
        let Sessions { map, flows, sessions } = &mut *self.of;
        let (count, next) = loop {
            match sys::lookup_batch(map.as_fd(), from, flows, sessions) {
                Ok(read) => break read,
                // A bucket is read as a whole.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    let room = 2 * flows.len();
                    flows.resize(room, Flow::zeroed());
                    sessions.resize(room, Session::zeroed());
                }
                Err(error) => return Err(BpfError::read(map::SESSIONS)(MapError::IoError(error))),
            }
        };
        self.at = next.map_or(At::End, At::Bucket);
        Ok(Some(flows[..count].iter().zip(&sessions[..count])))
    }
}
