//! The map of replayed sessions: walking through it, and removing what is over.

use std::os::fd::AsFd as _;

use aya::maps::{HashMap, IterableMap as _, MapData, MapError};
use bytemuck::Zeroable as _;
use tcpcopy_common::{flow::Flow, response::Session};

use super::{
    error::{BpfError, absent_is_fine, patiently},
    names::map,
    object::Object,
    sys,
};

/// Sessions read by one system call at first. Few enough to take no memory worth mentioning, and enough that the call
/// does not count.
const BATCH: usize = 512;

/// The session map, for reading all of it, be it long or short, in a small buffer. It takes no lock: the programs go
/// on.
pub struct Sessions {
    map: HashMap<MapData, Flow, Session>,
    flows: Vec<Flow>,
    sessions: Vec<Session>,
}

/// One pass through the map.
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
    /// Takes the map out of an object whose programs are loaded.
    pub(super) fn take(object: &mut Object) -> Result<Self, BpfError> {
        let map = object.take_map(map::SESSIONS)?.try_into().map_err(BpfError::read(map::SESSIONS))?;
        let mut sessions = Self { map, flows: Vec::new(), sessions: Vec::new() };
        sessions.set_room(BATCH);
        Ok(sessions)
    }

    /// Makes room for that many sessions in the buffer.
    pub(super) fn set_room(&mut self, room: usize) {
        self.flows.resize(room, Flow::zeroed());
        self.sessions.resize(room, Session::zeroed());
    }

    /// Begins at the start.
    pub const fn walk(&mut self) -> Walk<'_> {
        Walk { of: self, at: At::Start }
    }

    /// Returns the session on `flow`, if there is one.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn get(&self, flow: &Flow) -> Result<Option<Session>, BpfError> {
        match patiently(|| self.map.get(flow, 0)) {
            Ok(session) => Ok(Some(session)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(BpfError::read(map::SESSIONS)(error)),
        }
    }

    /// Whether the session on `flow` is the one that was `seen`, perhaps with news of it: no connection of the
    /// target's own has taken the four-tuple since, nor another session.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn lasts(&self, flow: &Flow, seen: &Session) -> Result<bool, BpfError> {
        let same = |now: Session| (now.opened_ns, now.instance, now.isn) == (seen.opened_ns, seen.instance, seen.isn);
        Ok(self.get(flow)?.is_some_and(same))
    }

    /// Removes the session on `flow`: responses on its four-tuple leave again. One that is not there is no error.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn remove(&mut self, flow: &Flow) -> Result<(), BpfError> {
        absent_is_fine(patiently(|| self.map.remove(flow))).map_err(BpfError::write(map::SESSIONS))
    }

    /// Enters a session that no SYN has opened.
    #[cfg(test)]
    pub(crate) fn add(&mut self, flow: &Flow, session: &Session) -> Result<(), BpfError> {
        self.map.insert(flow, session, 0).map_err(BpfError::write(map::SESSIONS))
    }
}

impl Walk<'_> {
    /// Returns some more sessions, in no order; `None` after the last. One that opens or ends meanwhile may be missing.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn batch(&mut self) -> Result<Option<impl Iterator<Item = (&Flow, &Session)>>, BpfError> {
        let from = match self.at {
            At::Start => None,
            At::Bucket(bucket) => Some(bucket),
            At::End => return Ok(None),
        };
        let (count, next) = loop {
            let of = &mut *self.of;
            // The descriptor is borrowed of one field, the buffers are others.
            let fd = of.map.map().fd().as_fd();
            match patiently(|| sys::lookup_batch(fd, from, &mut of.flows, &mut of.sessions)) {
                Ok(read) => break read,
                // A bucket is read as a whole.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => of.set_room(2 * of.flows.len()),
                Err(error) => return Err(BpfError::read(map::SESSIONS)(MapError::IoError(error))),
            }
        };
        self.at = next.map_or(At::End, At::Bucket);
        Ok(Some(self.of.flows[..count].iter().zip(&self.of.sessions[..count])))
    }

    /// Returns the map that is walked through.
    pub const fn sessions(&self) -> &Sessions {
        self.of
    }

    /// Removes a session that is as it was `seen`; returns whether it was. Its owner may have taken the four-tuple for
    /// a new one, or may have been heard of.
    ///
    /// # Errors
    /// [`BpfError::Map`].
    pub fn forget(&mut self, flow: &Flow, seen: &Session) -> Result<bool, BpfError> {
        let same = self.of.get(flow)?.is_some_and(|current| current == *seen);
        if same {
            self.of.remove(flow)?;
        }
        Ok(same)
    }
}
