//! Packets on their way to one socket, sent many per system call.

use std::{
    io, mem,
    os::fd::{AsRawFd, OwnedFd},
};

use super::{
    address::SocketAddress,
    stats::{InjectStats, Refusal},
};

/// The most packets of one `sendmmsg`. Beyond 64 nothing is gained (measured).
pub(super) const MAX_BATCH: usize = 64;
/// Octets of packets that a batch holds; one that is larger by itself is sent alone.
const CAPACITY: usize = MAX_BATCH * 1600;

/// A socket and the packets that wait for it, in one contiguous buffer.
pub(super) struct Batch {
    socket: OwnedFd,
    buffer: Vec<u8>,
    packets: Vec<Packet>,
    /// How many of [`packets`](Self::packets), from the first, have been sent already.
    sent: usize,
    limit: usize,
}

#[derive(Clone, Copy)]
struct Packet {
    start: usize,
    length: usize,
    to: SocketAddress,
}

impl Batch {
    /// `limit` packets, of 1 to [`MAX_BATCH`], are collected before they are sent.
    pub(super) fn new(socket: OwnedFd, limit: usize) -> Self {
        let limit = limit.clamp(1, MAX_BATCH);
        Self { socket, buffer: Vec::with_capacity(CAPACITY), packets: Vec::with_capacity(limit), sent: 0, limit }
    }

    /// How many packets wait.
    pub(super) fn pending(&self) -> usize {
        self.packets.len() - self.sent
    }

    /// Whether a packet of `length` octets can be added.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.packets.is_empty() || self.packets.len() < self.limit && self.buffer.len() + length <= CAPACITY
    }

    /// Adds the packet that `write` appends to the buffer.
    pub(super) fn add(&mut self, to: SocketAddress, write: impl FnOnce(&mut Vec<u8>)) {
        let start = self.buffer.len();
        write(&mut self.buffer);
        self.packets.push(Packet { start, length: self.buffer.len() - start, to });
    }

    /// Sends what the socket takes without blocking; the rest stays. A packet that the kernel refuses for good is counted
    /// and left out.
    pub(super) fn flush(&mut self, stats: &mut InjectStats) {
        while self.sent < self.packets.len() {
            match send(&self.socket, &self.buffer, &self.packets[self.sent..]) {
                Ok(count) => {
                    for packet in &self.packets[self.sent..self.sent + count] {
                        stats.packets += 1;
                        stats.bytes += packet.length as u64;
                    }
                    self.sent += count;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => match Refusal::of(&e) {
                    Refusal::WouldBlock => return self.compact(),
                    refusal => {
                        if *stats.refused(refusal) == 0 {
                            log::warn!("the kernel refuses an injected packet: {e}; from now on this is only counted");
                        }
                        *stats.refused(refusal) += 1;
                        self.sent += 1;
                    }
                },
            }
        }
        self.clear();
    }

    /// Discards what waits.
    pub(super) fn discard(&mut self, stats: &mut InjectStats) {
        stats.would_block += self.pending() as u64;
        self.clear();
    }

    fn clear(&mut self) {
        self.buffer.clear();
        self.packets.clear();
        self.sent = 0;
    }

    /// Makes the room of sent packets usable again.
    fn compact(&mut self) {
        let Some(first) = self.packets.get(self.sent).map(|packet| packet.start).filter(|&start| start > 0) else {
            return;
        };
        self.buffer.drain(..first);
        self.packets.drain(..self.sent);
        self.packets.iter_mut().for_each(|packet| packet.start -= first);
        self.sent = 0;
    }
}

/// Hands `packets`, at most [`MAX_BATCH`] of them, to the kernel. Returns how many it took: fewer when one was refused, an
/// error when that was the first.
fn send(socket: &OwnedFd, buffer: &[u8], packets: &[Packet]) -> io::Result<usize> {
    // SAFETY: these are C structures for which all zeros are a valid value: null pointers and lengths of zero.
    let (mut pieces, mut messages): ([libc::iovec; MAX_BATCH], [libc::mmsghdr; MAX_BATCH]) = unsafe { mem::zeroed() };
    let count = packets.len().min(MAX_BATCH);
    for ((packet, piece), message) in packets.iter().zip(&mut pieces).zip(&mut messages) {
        let bytes = &buffer[packet.start..packet.start + packet.length];
        piece.iov_base = bytes.as_ptr().cast_mut().cast();
        piece.iov_len = bytes.len();
        message.msg_hdr.msg_iov = piece;
        message.msg_hdr.msg_iovlen = 1;
        message.msg_hdr.msg_name = packet.to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = packet.to.len();
    }
    // SAFETY: `count` messages are filled in; each points to a piece, the piece into `buffer`, and the name into `packets`,
    // all of which outlive the call. The kernel reads them and writes only `msg_len`.
    let sent =
        unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), count as libc::c_uint, libc::MSG_DONTWAIT) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// A batch to a socket that is already connected, and its other end.
    fn pair(limit: usize) -> (Batch, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        (Batch::new(near.into(), limit), far)
    }

    fn receive(far: &UnixDatagram) -> Vec<u8> {
        let mut buffer = [0; 70_000];
        let length = far.recv(&mut buffer).unwrap();
        buffer[..length].to_vec()
    }

    #[test]
    fn packets_leave_in_order_and_are_counted() {
        let (mut batch, far) = pair(3);
        let mut stats = InjectStats::default();
        for n in 1..=3u8 {
            assert!(batch.has_room(10));
            batch.add(SocketAddress::NONE, |b| b.extend_from_slice(&[n; 10]));
        }
        assert!(!batch.has_room(10), "the limit");
        batch.flush(&mut stats);
        assert_eq!((batch.pending(), stats.packets, stats.bytes), (0, 3, 30));
        assert_eq!([receive(&far), receive(&far), receive(&far)], [[1; 10], [2; 10], [3; 10]]);
    }

    #[test]
    fn a_packet_larger_than_the_buffer_is_sent_alone() {
        let (mut batch, _far) = pair(64);
        assert!(batch.has_room(CAPACITY + 1));
        batch.add(SocketAddress::NONE, |b| b.push(1));
        assert!(batch.has_room(CAPACITY - 1));
        assert!(!batch.has_room(CAPACITY));
    }

    #[test]
    fn what_a_full_socket_does_not_take_stays_and_goes_later() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        let mut built = 0u64;
        while batch.pending() == 0 {
            for _ in 0..MAX_BATCH {
                batch.add(SocketAddress::NONE, |b| b.extend_from_slice(&built.to_ne_bytes()));
                built += 1;
            }
            batch.flush(&mut stats);
        }
        assert_eq!(stats.packets + batch.pending() as u64, built);
        assert!(batch.has_room(8), "sent packets make room");
        for n in 0..built {
            batch.flush(&mut stats);
            assert_eq!(receive(&far), n.to_ne_bytes());
        }
        assert_eq!((stats.packets, batch.pending(), stats.discarded()), (built, 0, 0));
    }

    #[test]
    fn discarded_packets_are_counted() {
        let (mut batch, _far) = pair(64);
        let mut stats = InjectStats::default();
        batch.add(SocketAddress::NONE, |b| b.push(1));
        batch.discard(&mut stats);
        assert_eq!((stats.would_block, batch.pending()), (1, 0));
    }

    #[test]
    fn a_packet_refused_for_good_does_not_hold_up_the_next() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        batch.add(SocketAddress::NONE, |b| b.resize(10_000_000, 0));
        batch.add(SocketAddress::NONE, |b| b.push(2));
        batch.flush(&mut stats);
        assert_eq!((stats.emsgsize, stats.packets, batch.pending()), (1, 1, 0));
        assert_eq!(receive(&far), [2]);
    }
}
