//! One synchronous exchange with the kernel over netlink.

use std::{io, os::fd::BorrowedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

use super::NetError;

/// Large enough for every message: dumps come in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// How often a dump that the kernel calls inconsistent, because something changed under it, is begun again.
const DUMP_RETRIES: usize = 5;

/// A netlink socket for requests.
pub(crate) struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// Why an exchange ended early.
enum Failure {
    Io(io::Error),
    Interrupted,
}

impl Netlink {
    pub(crate) fn open(protocol: isize) -> Result<Self, NetError> {
        let mut socket = Socket::new(protocol).map_err(NetError::Open)?;
        socket.bind_auto().map_err(NetError::Open)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(NetError::Open)?;
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER), sequence: 0 })
    }

    /// Opens a socket for questions about links, addresses, routes and neighbours.
    pub(crate) fn route() -> Result<Self, NetError> {
        Self::open(NETLINK_ROUTE)
    }

    /// Asks for one thing. `None` when the kernel answers with `absent`, an errno.
    pub(crate) fn get<Q, A>(&mut self, query: Q, absent: &[i32], action: &str) -> Result<Option<A>, NetError>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        let mut answer = None;
        match self.exchange(query, 0, |message| answer = Some(message)) {
            Ok(()) => {
                answer.map_or_else(|| Err(NetError::Unexpected { action: action.into() }), |answer| Ok(Some(answer)))
            }
            Err(Failure::Io(e)) if e.raw_os_error().is_some_and(|code| absent.contains(&code)) => Ok(None),
            Err(failure) => Err(failure.into_error(action)),
        }
    }

    /// Asks for all there is. Messages that cannot be read are left out.
    pub(crate) fn dump<Q, A>(&mut self, query: Q, action: &str) -> Result<Vec<A>, NetError>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        let mut all = Vec::new();
        for _ in 0..DUMP_RETRIES {
            all.clear();
            match self.exchange(query.clone(), NLM_F_DUMP, |message| all.push(message)) {
                Ok(()) => return Ok(all),
                Err(Failure::Interrupted) => {}
                Err(failure) => return Err(failure.into_error(action)),
            }
        }
        // Each pass was nearly right; the last is as good as one can get on a host that changes all the time.
        Ok(all)
    }

    /// Asks for all there is, and keeps nothing of it. What the kernel calls inconsistent is not asked for again.
    pub(crate) fn dump_each<Q, A>(&mut self, query: Q, action: &str, each: impl FnMut(A)) -> Result<(), NetError>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        match self.exchange(query, NLM_F_DUMP, each) {
            Ok(()) | Err(Failure::Interrupted) => Ok(()),
            Err(failure) => Err(failure.into_error(action)),
        }
    }

    /// Asks for a change, with `flags` of `NLM_F_*`, and waits for the acknowledgement.
    ///
    /// # Errors
    /// The kernel's own, for the caller to tell apart.
    pub(crate) fn change<Q>(&mut self, query: Q, flags: u16) -> io::Result<()>
    where
        Q: NetlinkSerializable + Clone,
    {
        self.exchange::<Q, RouteNetlinkMessage>(query, flags | NLM_F_ACK, |_| {}).map_err(|failure| match failure {
            Failure::Io(e) => e,
            Failure::Interrupted => io::ErrorKind::Interrupted.into(),
        })
    }

    fn exchange<Q, A>(&mut self, query: Q, flags: u16, mut each: impl FnMut(A)) -> Result<(), Failure>
    where
        Q: NetlinkSerializable,
        A: NetlinkDeserializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(query));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        self.socket.send(&bytes, 0).map_err(Failure::Io)?;

        let single = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer, 0).map_err(Failure::Io)?;
            for message in Messages(&self.buffer) {
                let Ok(message) = NetlinkMessage::<A>::deserialize(message) else {
                    log::debug!("a netlink message of {} octets cannot be read and is left out", message.len());
                    if single {
                        return Ok(());
                    }
                    continue;
                };
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                interrupted |= message.header.flags & NLM_F_DUMP_INTR != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(inner) => {
                        each(inner);
                        if single {
                            return Ok(());
                        }
                    }
                    NetlinkPayload::Error(e) if e.code.is_some() => return Err(Failure::Io(e.to_io())),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(Failure::Io(io::Error::from_raw_os_error(done.code.wrapping_neg())));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return if interrupted { Err(Failure::Interrupted) } else { Ok(()) };
                    }
                    _ => {}
                }
            }
        }
    }
}

impl Failure {
    fn into_error(self, action: &str) -> NetError {
        let source = match self {
            Self::Io(e) => e,
            Self::Interrupted => io::ErrorKind::Interrupted.into(),
        };
        NetError::Refused { action: action.into(), source }
    }
}

/// A netlink socket that only listens to what the kernel announces; non-blocking.
#[derive(Debug)]
pub(crate) struct Announcements {
    socket: Socket,
    buffer: Vec<u8>,
}

/// What [`Announcements::drain`] came across.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Drained {
    /// Everything that was announced.
    All,
    /// The socket's buffer overflowed: announcements are missing, so ask for the present state.
    Gap,
}

impl Announcements {
    /// Listens to `groups` of `RTNLGRP_*`.
    pub(crate) fn subscribe(groups: &[u32]) -> Result<Self, NetError> {
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(NetError::Open)?;
        socket.bind_auto().map_err(NetError::Open)?;
        socket.set_non_blocking(true).map_err(NetError::Open)?;
        for &group in groups {
            socket.add_membership(group).map_err(NetError::Open)?;
        }
        Ok(Self { socket, buffer: Vec::with_capacity(BUFFER) })
    }

    /// Hands over what has been announced so far, without waiting.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(RouteNetlinkMessage)) -> io::Result<Drained> {
        let mut drained = Drained::All;
        loop {
            match receive(&self.socket, &mut self.buffer, 0) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(drained),
                Err(e) if e.raw_os_error() == Some(libc::ENOBUFS) => {
                    drained = Drained::Gap;
                    continue;
                }
                Err(e) => return Err(e),
            }
            for message in Messages(&self.buffer) {
                match NetlinkMessage::<RouteNetlinkMessage>::deserialize(message).map(|m| m.payload) {
                    Ok(NetlinkPayload::InnerMessage(inner)) => each(inner),
                    Ok(_) => {}
                    Err(e) => {
                        log::debug!("an announcement of the kernel cannot be read: {e}");
                        drained = Drained::Gap;
                    }
                }
            }
        }
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.socket)
    }
}

/// Receives one datagram into `buffer`; interrupted calls are repeated.
fn receive(socket: &Socket, buffer: &mut Vec<u8>, flags: i32) -> io::Result<()> {
    loop {
        buffer.clear();
        match socket.recv(buffer, flags | libc::MSG_TRUNC) {
            Ok(length) if length > buffer.len() => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "netlink message too large"));
            }
            Ok(_) => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}

/// The messages of a datagram, each with its header: a length in host order comes first, and they are aligned to four
/// octets.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let length = u32::from_ne_bytes(self.0.get(..4)?.try_into().ok()?) as usize;
        if length < 16 {
            return None;
        }
        let message = self.0.get(..length)?;
        self.0 = self.0.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_split_at_their_lengths() {
        let mut datagram = vec![0; 17 + 3 + 16];
        datagram[..4].copy_from_slice(&17u32.to_ne_bytes());
        datagram[20..24].copy_from_slice(&16u32.to_ne_bytes());
        assert_eq!(Messages(&datagram).map(<[u8]>::len).collect::<Vec<_>>(), [17, 16]);
        datagram[20..24].copy_from_slice(&17u32.to_ne_bytes());
        assert_eq!(Messages(&datagram).count(), 1, "a message longer than the datagram");
        datagram[..4].fill(0);
        assert_eq!(Messages(&datagram).count(), 0, "a length of zero must not loop");
    }
}
