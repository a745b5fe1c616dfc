//! One synchronous exchange with the kernel over netlink.

use std::{io, os::fd::BorrowedFd, time::Duration};

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
/// How often an exchange is begun again for which the kernel had no memory, or no room in our socket.
const TRIES: u32 = 3;
/// Between two of these.
const PAUSE: Duration = Duration::from_millis(1);
/// How many gaps are met in one call of [`Announcements::drain`]: behind more, announcements come faster than they are
/// read.
const MOST_GAPS: usize = 8;

/// A netlink socket for requests.
pub(crate) struct Netlink {
    protocol: isize,
    socket: Socket,
    /// Whether an exchange on it has ended before its last message: a dump may still be under way, and then the kernel
    /// begins no other (EBUSY).
    spoilt: bool,
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
        let socket = connected(protocol).map_err(NetError::Open)?;
        Ok(Self { protocol, socket, spoilt: false, buffer: Vec::with_capacity(BUFFER), sequence: 0 })
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
        match self.exchange(&query, 0, &mut |message| answer = Some(message)) {
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
        let mut failed = None;
        for _ in 0..DUMP_RETRIES {
            all.clear();
            failed = match self.exchange_once(&query, NLM_F_DUMP, &mut |message| all.push(message)) {
                Ok(()) => return Ok(all),
                // Nearly right; the last is as good as one can get on a host that changes all the time.
                Err(Failure::Interrupted) => None,
                Err(Failure::Io(e)) if is_passing(&e) => {
                    std::thread::sleep(PAUSE);
                    Some(Failure::Io(e))
                }
                Err(failure) => return Err(failure.into_error(action)),
            };
        }
        failed.map_or(Ok(all), |failure| Err(failure.into_error(action)))
    }

    /// Asks for all there is, and keeps nothing of it. What the kernel calls inconsistent is not asked for again. What
    /// had come before a fault may come twice.
    pub(crate) fn dump_each<Q, A>(&mut self, query: Q, action: &str, mut each: impl FnMut(A)) -> Result<(), NetError>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        match self.exchange(&query, NLM_F_DUMP, &mut each) {
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
        self.exchange::<Q, RouteNetlinkMessage>(&query, flags | NLM_F_ACK, &mut |_| {}).map_err(|failure| match failure
        {
            Failure::Io(e) => e,
            Failure::Interrupted => io::ErrorKind::Interrupted.into(),
        })
    }

    /// Asks, and hears the whole answer; again when it came short for want of memory. Every request means the same
    /// when it is made twice.
    fn exchange<Q, A>(&mut self, query: &Q, flags: u16, each: &mut impl FnMut(A)) -> Result<(), Failure>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        let mut tries = 1;
        loop {
            match self.exchange_once(query, flags, each) {
                Err(Failure::Io(e)) if is_passing(&e) && tries < TRIES => {
                    log::debug!("a netlink exchange is begun again: {e}");
                    std::thread::sleep(PAUSE);
                    tries += 1;
                }
                ended => return ended,
            }
        }
    }

    fn exchange_once<Q, A>(&mut self, query: &Q, flags: u16, each: &mut impl FnMut(A)) -> Result<(), Failure>
    where
        Q: NetlinkSerializable + Clone,
        A: NetlinkDeserializable,
    {
        if self.spoilt {
            self.socket = connected(self.protocol).map_err(Failure::Io)?;
        }
        self.spoilt = true;
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut request = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(query.clone()));
        request.finalize();
        let mut bytes = vec![0; request.buffer_len()];
        request.serialize(&mut bytes);
        loop {
            match self.socket.send(&bytes, 0) {
                Ok(_) => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(Failure::Io(e)),
            }
        }
        let ended = self.hear(flags, each)?;
        self.spoilt = false;
        ended
    }

    /// Hears the answer to the last request; an error when it does not come to its end.
    fn hear<A>(&mut self, flags: u16, each: &mut impl FnMut(A)) -> Result<Result<(), Failure>, Failure>
    where
        A: NetlinkDeserializable,
    {
        let single = flags & (NLM_F_DUMP | NLM_F_ACK) == 0;
        let mut interrupted = false;
        loop {
            receive(&self.socket, &mut self.buffer, 0).map_err(Failure::Io)?;
            for message in Messages(&self.buffer) {
                let Ok(message) = NetlinkMessage::<A>::deserialize(message) else {
                    log::debug!("a netlink message of {} octets cannot be read and is left out", message.len());
                    if single {
                        return Ok(Ok(()));
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
                            return Ok(Ok(()));
                        }
                    }
                    NetlinkPayload::Error(e) if e.code.is_some() => return Ok(Err(Failure::Io(e.to_io()))),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Ok(Err(Failure::Io(io::Error::from_raw_os_error(done.code.wrapping_neg()))));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => {
                        return Ok(if interrupted { Err(Failure::Interrupted) } else { Ok(()) });
                    }
                    _ => {}
                }
            }
        }
    }
}

/// Opens a socket to the kernel.
fn connected(protocol: isize) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Returns whether an error says that something was short for a moment, and nothing about what was asked.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM))
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
    /// Announcements are missing, because the socket's buffer overflowed or the kernel had no memory: ask for the
    /// present state. More may wait.
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
        let mut gaps = 0;
        loop {
            match receive(&self.socket, &mut self.buffer, 0) {
                Ok(()) => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(drained),
                Err(e) if is_passing(&e) || e.kind() == io::ErrorKind::InvalidData => {
                    drained = Drained::Gap;
                    gaps += 1;
                    if gaps == MOST_GAPS {
                        return Ok(drained);
                    }
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
