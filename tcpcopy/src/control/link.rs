//! An established channel, driven by the thread that owns the sessions.
//!
//! Nothing here blocks. The owner polls the [`Link`]'s descriptor (level-triggered) for reading, and for writing while
//! [`wants_write`](Link::wants_write); queues any number of frames with [`send`](Link::send) and writes them with one
//! [`flush`](Link::flush). A peer that reads too slowly makes `send` drop frames, never wait.

use std::{
    fmt,
    io::{self, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, BorrowedFd},
};

use super::{
    frame::{Frame, FrameError},
    record::{Cipher, HEADER, MAX_BODY, OpenError},
};
use crate::poll::Interest;

/// How many octets wait for a slow peer at most; what is sent beyond is dropped.
pub const OUTPUT_LIMIT: usize = 1 << 20;
/// Octets of one read from the socket: at least one whole record.
const INPUT: usize = 2 * (HEADER + MAX_BODY);
/// Reads in one call of [`Link::receive`], so that a fast peer cannot keep its owner from other work.
const READS: usize = 4;

/// Which end of the channel this is: decides which frames may arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

impl Role {
    /// Whether `frame` may arrive here once the channel is established.
    const fn receives(self, frame: &Frame<'_>) -> bool {
        match frame {
            Frame::Bye => true,
            Frame::Responses(_) | Frame::Stats(_) | Frame::Epoch(_) => matches!(self, Self::Client),
            Frame::Hurry => matches!(self, Self::Server),
            Frame::Hello { .. } | Frame::Welcome(_) | Frame::Refused { .. } => false,
        }
    }
}

/// What became of a frame given to [`Link::send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a dropped frame must be counted"]
pub enum Sent {
    /// It waits for the next [`Link::flush`].
    Queued,
    /// It is lost: the peer reads too slowly and [`OUTPUT_LIMIT`] is reached.
    Dropped,
}

/// Why a channel is over. No error is transient: drop the link.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer closed or reset the connection.
    #[error("the other side closed the control connection: see its log")]
    Closed,
    /// A record was changed, lost or repeated on the way.
    #[error(
        "a record of the control connection does not decrypt: something between the hosts changes it; \
         look for proxies and middleboxes"
    )]
    Decrypt,
    /// The peer sent something that is no frame, or we were asked to send one that does not fit.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("the control connection broke: {0}; check the network between the hosts")]
    Io(io::Error),
}

impl From<io::Error> for LinkError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted | io::ErrorKind::BrokenPipe => {
                Self::Closed
            }
            _ => Self::Io(error),
        }
    }
}

impl From<OpenError> for LinkError {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Decrypt => Self::Decrypt,
            OpenError::Frame(error) => Self::Frame(error),
        }
    }
}

/// An established channel. Only a fuzzer has other sockets than TCP's.
pub struct Link<S = TcpStream> {
    socket: S,
    peer: SocketAddr,
    role: Role,
    cipher: Cipher,
    input: Input,
    output: Output,
}

impl Link {
    /// Takes over a socket whose handshake is done.
    pub(super) fn new(socket: TcpStream, cipher: Cipher, role: Role) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        let peer = socket.peer_addr()?;
        Ok(Self::over(socket, peer, cipher, role))
    }

    /// Ends our direction: the peer reads the end of the connection behind what was flushed, and
    /// [`receive`](Self::receive) reports [`LinkError::Closed`] once it has let go as well.
    ///
    /// # Errors
    /// [`LinkError::Closed`] or [`LinkError::Io`].
    pub fn finish(&self) -> Result<(), LinkError> {
        Ok(self.socket.shutdown(Shutdown::Write)?)
    }
}

impl<S> Link<S>
where
    for<'a> &'a S: Read + Write,
{
    /// Takes over a socket that does not block.
    pub(super) fn over(socket: S, peer: SocketAddr, cipher: Cipher, role: Role) -> Self {
        Self { socket, peer, role, cipher, input: Input::new(), output: Output::default() }
    }

    /// Queues a frame; [`flush`](Self::flush) writes it.
    ///
    /// # Errors
    /// [`LinkError::Frame`] for a frame that breaks the limits of its kind; the link stays usable.
    pub fn send(&mut self, frame: &Frame<'_>) -> Result<Sent, LinkError> {
        Ok(self.output.queue(&mut self.cipher, frame)?)
    }

    /// Writes as much as the socket takes now. True when nothing is left.
    ///
    /// # Errors
    /// [`LinkError::Closed`] or [`LinkError::Io`].
    pub fn flush(&mut self) -> Result<bool, LinkError> {
        self.output.write(&self.socket)
    }

    /// Whether frames wait for the socket to become writable.
    #[must_use]
    pub fn wants_write(&self) -> bool {
        self.output.waiting() > 0
    }

    /// Reads what has come and hands every whole frame to `f`, in order. Returns how many there were: 0 when nothing
    /// came. Reads a bounded amount, so more may wait: a level-triggered poll will say so.
    ///
    /// # Errors
    /// [`LinkError`]; frames that came before the error have been handed over.
    pub fn receive(&mut self, mut f: impl FnMut(Frame<'_>)) -> Result<usize, LinkError> {
        let mut frames = 0;
        for _ in 0..READS {
            match self.input.fill(&self.socket)? {
                Fill::Nothing => break,
                // What came before the end counts; the next call reports the end.
                Fill::End if frames > 0 => break,
                Fill::End => return Err(LinkError::Closed),
                Fill::Octets { drained } => {
                    frames += self.deliver(&mut f)?;
                    if drained {
                        break;
                    }
                }
            }
        }
        Ok(frames)
    }

    fn deliver(&mut self, f: &mut impl FnMut(Frame<'_>)) -> Result<usize, LinkError> {
        let mut frames = 0;
        while let Some(body) = self.input.next_body() {
            let frame = self.cipher.open(body)?;
            if !self.role.receives(&frame) {
                return Err(FrameError::OutOfPlace(frame.kind()).into());
            }
            f(frame);
            frames += 1;
        }
        Ok(frames)
    }

    #[cfg(feature = "fuzzing")]
    pub(super) fn into_socket(self) -> S {
        self.socket
    }

    /// The other end.
    #[must_use]
    pub const fn peer(&self) -> SocketAddr {
        self.peer
    }
}

impl Link {
    /// Returns what ends a sleep on this channel: input, and room for output while some waits.
    #[must_use]
    pub fn interest(&self) -> Interest<'_> {
        if self.wants_write() { Interest::read_or_write(self.as_fd()) } else { Interest::read(self.as_fd()) }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("peer", &self.peer).field("role", &self.role).finish_non_exhaustive()
    }
}

/// Octets that came and are not yet whole records.
struct Input {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
}

enum Fill {
    Nothing,
    Octets {
        /// The socket had less than we would have taken, so it is empty for now.
        drained: bool,
    },
    End,
}

impl Input {
    fn new() -> Self {
        Self { buffer: vec![0; INPUT].into_boxed_slice(), start: 0, end: 0 }
    }

    fn fill(&mut self, mut socket: impl Read) -> Result<Fill, LinkError> {
        // At most a part of one record is left over, so this leaves room for more than another whole one.
        self.buffer.copy_within(self.start..self.end, 0);
        self.end -= self.start;
        self.start = 0;
        loop {
            let room = &mut self.buffer[self.end..];
            return match socket.read(room) {
                Ok(0) => Ok(Fill::End),
                Ok(n) => {
                    let drained = n < room.len();
                    self.end += n;
                    Ok(Fill::Octets { drained })
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(Fill::Nothing),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => Err(error.into()),
            };
        }
    }

    /// The body of the next record, if all of it is here.
    fn next_body(&mut self) -> Option<&[u8]> {
        let (header, rest) = self.buffer[self.start..self.end].split_first_chunk::<HEADER>()?;
        let body = rest.get(..usize::from(u16::from_le_bytes(*header)))?;
        self.start += HEADER + body.len();
        Some(body)
    }
}

/// Records that wait for the socket.
#[derive(Default)]
struct Output {
    buffer: Vec<u8>,
    /// How much of the buffer is written already.
    written: usize,
}

impl Output {
    fn waiting(&self) -> usize {
        self.buffer.len() - self.written
    }

    fn queue(&mut self, cipher: &mut Cipher, frame: &Frame<'_>) -> Result<Sent, FrameError> {
        // Decided before sealing: a sealed record must be sent, or the peer cannot decrypt what follows.
        if self.waiting() + cipher.sealed_len(frame) > OUTPUT_LIMIT {
            return Ok(Sent::Dropped);
        }
        cipher.seal(frame, &mut self.buffer)?;
        Ok(Sent::Queued)
    }

    fn write(&mut self, mut socket: impl Write) -> Result<bool, LinkError> {
        while self.waiting() > 0 {
            match socket.write(&self.buffer[self.written..]) {
                Ok(0) => return Err(LinkError::Closed),
                Ok(n) => self.written += n,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        // Move what is left only when it is the smaller half: each octet is then moved less than once on average.
        if self.written >= self.waiting() {
            self.buffer.drain(..self.written);
            self.written = 0;
        }
        Ok(self.waiting() == 0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use bytemuck::Zeroable;
    use tcpcopy_common::response::ResponseHeader;

    use super::*;
    use crate::control::{
        frame::Stats,
        responses::{Batch, MAX_RESPONSES},
        testing::{ciphers, links, sockets, wait_readable, wait_writable},
    };

    fn records(from: u32, n: usize) -> Batch {
        let mut batch = Batch::new();
        for payload_len in (from..).take(n) {
            assert!(batch.push(&ResponseHeader { payload_len, ..Zeroable::zeroed() }.into()));
        }
        batch
    }

    /// Receives until `done` says so.
    fn receive_until(link: &mut Link, mut f: impl FnMut(Frame<'_>), mut done: impl FnMut() -> bool) {
        while !done() {
            wait_readable(link);
            link.receive(&mut f).unwrap();
        }
    }

    #[test]
    fn frames_arrive_whole_and_in_order_both_ways() {
        for encrypted in [true, false] {
            let (mut client, mut server) = links(encrypted);
            assert_eq!(client.receive(|_| panic!("nothing was sent")).unwrap(), 0);
            let (batch, short) = (records(0, MAX_RESPONSES), records(0, 1));
            let sent = [
                Frame::Responses(batch.responses()),
                Frame::Stats(Stats { responses_dropped: 3, ..Stats::default() }),
                Frame::Responses(short.responses()),
                Frame::Bye,
            ];
            for frame in &sent {
                assert_eq!(server.send(frame).unwrap(), Sent::Queued);
            }
            assert!(server.wants_write());
            assert!(server.flush().unwrap() && !server.wants_write());
            let mut expected = VecDeque::from(sent);
            let left = std::cell::Cell::new(sent.len());
            receive_until(
                &mut client,
                |frame| {
                    assert_eq!(Some(frame), expected.pop_front());
                    left.set(expected.len());
                },
                || left.get() == 0,
            );

            for frame in [Frame::Hurry, Frame::Bye] {
                assert_eq!(client.send(&frame).unwrap(), Sent::Queued);
                assert!(client.flush().unwrap());
                wait_readable(&server);
                assert_eq!(server.receive(|received| assert_eq!(received, frame)).unwrap(), 1);
            }
        }
    }

    #[test]
    fn a_finished_link_delivers_what_was_flushed_and_tells_when_the_other_side_has_closed() {
        let (mut client, mut server) = links(true);
        assert_eq!(server.send(&Frame::Bye).unwrap(), Sent::Queued);
        assert!(server.flush().unwrap());
        server.finish().unwrap();
        assert_eq!(server.receive(|frame| panic!("{frame:?}")).unwrap(), 0, "the other side is still there");
        let said = std::cell::Cell::new(false);
        receive_until(&mut client, |frame| said.set(frame == Frame::Bye), || said.get());
        wait_readable(&client);
        assert!(matches!(client.receive(|frame| panic!("{frame:?}")), Err(LinkError::Closed)));
        drop(client);
        wait_readable(&server);
        assert!(matches!(server.receive(|frame| panic!("{frame:?}")), Err(LinkError::Closed)));
    }

    #[test]
    fn a_record_that_trickles_in_is_delivered_once_and_only_when_whole() {
        let (mut raw, socket) = sockets();
        raw.set_nodelay(true).unwrap();
        let (mut sealer, opener) = ciphers(true);
        let mut link = Link::new(socket, opener, Role::Server).unwrap();
        let mut octets = Vec::new();
        sealer.seal(&Frame::Hurry, &mut octets).unwrap();
        let first = octets.len();
        sealer.seal(&Frame::Bye, &mut octets).unwrap();
        let mut kinds = Vec::new();
        for (i, octet) in octets.iter().enumerate() {
            raw.write_all(&[*octet]).unwrap();
            wait_readable(&link);
            let n = link.receive(|frame| kinds.push(frame.kind()));
            assert_eq!(n.unwrap(), usize::from(i + 1 == first || i + 1 == octets.len()), "octet {i}");
        }
        assert_eq!(kinds, [Frame::Hurry.kind(), Frame::Bye.kind()]);
    }

    #[test]
    fn a_slow_peer_costs_frames_but_never_blocks_and_what_was_queued_arrives_in_order() {
        for encrypted in [true, false] {
            let (mut client, mut server) = links(encrypted);
            let mut next = 0;
            let mut queued = 0;
            // Kernel buffers, ours, and then some: the peer reads nothing.
            let dropped = loop {
                let batch = records(next, MAX_RESPONSES);
                next += MAX_RESPONSES as u32;
                match server.send(&Frame::Responses(batch.responses())).unwrap() {
                    Sent::Queued => queued = next,
                    Sent::Dropped => break batch,
                }
                server.flush().unwrap();
                assert!(next < 1_000_000, "memory is not bounded");
            };
            assert!(server.wants_write());
            assert!(server.output.waiting() <= OUTPUT_LIMIT && server.output.buffer.len() <= 2 * OUTPUT_LIMIT);

            // The peer wakes up: all that was queued, and then new frames, but not the dropped batch.
            let mut seen = 0;
            let mut ended = false;
            while !ended {
                if server.flush().unwrap() && seen == queued {
                    assert_eq!(server.send(&Frame::Bye).unwrap(), Sent::Queued);
                    server.flush().unwrap();
                }
                wait_readable(&client);
                client
                    .receive(|frame| match frame {
                        Frame::Responses(responses) => {
                            for record in responses.iter() {
                                assert_eq!(record.header().payload_len, seen);
                                seen += 1;
                            }
                        }
                        Frame::Bye => ended = true,
                        other => panic!("{other:?}"),
                    })
                    .unwrap();
            }
            assert_eq!(Some(seen), dropped.responses().iter().next().map(|record| record.header().payload_len));
            wait_writable(&server);
        }
    }

    #[test]
    fn one_call_reads_a_bounded_amount() {
        let (mut raw, socket) = sockets();
        let mut link = Link::new(socket, Cipher::plain(), Role::Server).unwrap();
        let writer = std::thread::spawn(move || {
            let mut record = Vec::new();
            Cipher::plain().seal(&Frame::Hurry, &mut record).unwrap();
            raw.write_all(&record.repeat(200_000)).unwrap();
        });
        let mut total = 0;
        while total < 200_000 {
            wait_readable(&link);
            let n = link.receive(|_| {}).unwrap();
            assert!(n <= (READS * INPUT).div_ceil(HEADER + 1), "{n} frames at once");
            total += n;
        }
        writer.join().unwrap();
    }

    #[test]
    fn a_changed_record_ends_the_link_after_the_good_ones() {
        let (mut raw, socket) = sockets();
        let (mut sealer, opener) = ciphers(true);
        let mut link = Link::new(socket, opener, Role::Server).unwrap();
        let mut octets = Vec::new();
        sealer.seal(&Frame::Hurry, &mut octets).unwrap();
        sealer.seal(&Frame::Hurry, &mut octets).unwrap();
        *octets.last_mut().unwrap() ^= 1;
        raw.write_all(&octets).unwrap();
        let mut good = 0;
        wait_readable(&link);
        let error = link.receive(|_| good += 1).unwrap_err();
        assert!(matches!(error, LinkError::Decrypt), "{error}");
        assert_eq!(good, 1);
    }

    #[test]
    fn frames_out_of_place_and_octets_that_are_no_frame_end_the_link() {
        let hello = Frame::Hello { worker: 0, resume: None, name: "", prefixes: &[] };
        let stats = Frame::Stats(Stats::default());
        let misplaced = [
            (Role::Server, stats, 5),
            (Role::Client, hello, 1),
            (Role::Server, hello, 1),
            (Role::Client, Frame::Hurry, 7),
        ];
        for (role, frame, kind) in misplaced {
            let (mut raw, socket) = sockets();
            let mut link = Link::new(socket, Cipher::plain(), role).unwrap();
            let mut octets = Vec::new();
            Cipher::plain().seal(&frame, &mut octets).unwrap();
            raw.write_all(&octets).unwrap();
            wait_readable(&link);
            let error = link.receive(|frame| panic!("{frame:?}")).unwrap_err();
            assert!(matches!(error, LinkError::Frame(FrameError::OutOfPlace(k)) if k == kind), "{error}");
        }
        let (mut raw, socket) = sockets();
        let mut link = Link::new(socket, Cipher::plain(), Role::Server).unwrap();
        raw.write_all(&[0, 0]).unwrap();
        wait_readable(&link);
        assert!(matches!(link.receive(|_| {}), Err(LinkError::Frame(FrameError::Empty))));
    }

    #[test]
    fn the_peer_s_end_is_reported_after_its_last_frames() {
        let (mut client, mut server) = links(true);
        assert_eq!(server.send(&Frame::Bye).unwrap(), Sent::Queued);
        server.flush().unwrap();
        server.socket.shutdown(Shutdown::Write).unwrap();
        wait_readable(&client);
        assert_eq!(client.receive(|frame| assert_eq!(frame, Frame::Bye)).unwrap(), 1);
        wait_readable(&client);
        assert!(matches!(client.receive(|_| {}), Err(LinkError::Closed)));
    }

    #[test]
    fn a_reset_is_a_closed_link() {
        let (client, mut server) = links(false);
        socket2::SockRef::from(&client.socket).set_linger(Some(std::time::Duration::ZERO)).unwrap();
        drop(client);
        wait_readable(&server);
        assert!(matches!(server.receive(|_| {}), Err(LinkError::Closed)));
        assert_eq!(server.send(&Frame::Bye).unwrap(), Sent::Queued);
        assert!(matches!(server.flush(), Err(LinkError::Closed)));
    }
}
