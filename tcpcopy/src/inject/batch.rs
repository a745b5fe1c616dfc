//! Packets on their way to one socket, sent many per system call.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, OwnedFd},
    ptr,
};

use tcpcopy_wire::Written;

use super::{
    address::SocketAddress,
    checks,
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
    /// Whether super-packets are of use here: until one is refused.
    takes_super_packets: bool,
}

#[derive(Clone, Copy)]
struct Packet {
    start: usize,
    length: usize,
    wire: Written,
    to: SocketAddress,
}

impl Batch {
    /// Creates a batch in which `limit` packets, 1 to [`MAX_BATCH`], are collected before they are sent.
    pub(super) fn new(socket: OwnedFd, limit: usize) -> Self {
        let limit = limit.clamp(1, MAX_BATCH);
        Self {
            socket,
            buffer: Vec::with_capacity(CAPACITY),
            packets: Vec::with_capacity(limit),
            sent: 0,
            limit,
            takes_super_packets: true,
        }
    }

    /// Cuts into segments here from now on.
    pub(super) fn without_super_packets(mut self) -> Self {
        self.takes_super_packets = false;
        self
    }

    pub(super) fn takes_super_packets(&self) -> bool {
        self.takes_super_packets
    }

    /// Returns how many packets wait.
    pub(super) fn pending(&self) -> usize {
        self.packets.len() - self.sent
    }

    /// Returns whether a packet of `length` octets can be added.
    pub(super) fn has_room(&self, length: usize) -> bool {
        self.packets.is_empty() || self.packets.len() < self.limit && self.buffer.len() + length <= CAPACITY
    }

    /// Adds the packet that `write` appends to the buffer, and returns what that says of it.
    pub(super) fn add(&mut self, to: SocketAddress, write: impl FnOnce(&mut Vec<u8>) -> Written) -> Written {
        let start = self.buffer.len();
        let wire = write(&mut self.buffer);
        self.packets.push(Packet { start, length: self.buffer.len() - start, wire, to });
        wire
    }

    /// Adds the packet whose start `write` appends to the buffer, and whose rest is `payload`, and sends what waits
    /// with it: so a large payload is not copied, unless the socket does not take it.
    pub(super) fn send_with(
        &mut self,
        to: SocketAddress,
        payload: &[u8],
        stats: &mut InjectStats,
        write: impl FnOnce(&mut Vec<u8>) -> Written,
    ) -> Written {
        let wire = self.add(to, write);
        self.flush_with(payload, stats);
        wire
    }

    /// Sends what the socket takes without blocking; the rest stays. A packet that the kernel refuses for good is
    /// counted and left out.
    pub(super) fn flush(&mut self, stats: &mut InjectStats) {
        self.flush_with(&[], stats);
    }

    /// Does what [`flush`](Self::flush) does, while the last packet still lacks `tail`.
    fn flush_with(&mut self, tail: &[u8], stats: &mut InjectStats) {
        while self.sent < self.packets.len() {
            match send(&self.socket, &self.buffer, &self.packets[self.sent..], tail) {
                Ok(count) => {
                    for packet in &self.packets[self.sent..self.sent + count] {
                        stats.packets += u64::from(packet.wire.segments);
                        stats.bytes += u64::from(packet.wire.octets);
                    }
                    self.sent += count;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => match Refusal::of(&e) {
                    Refusal::WouldBlock => {
                        self.keep(tail);
                        return self.compact();
                    }
                    refusal => self.leave_out(&e, refusal, stats),
                },
            }
        }
        self.clear();
    }

    /// Copies what the last packet lacks.
    fn keep(&mut self, tail: &[u8]) {
        if let Some(last) = self.packets.last_mut() {
            self.buffer.extend_from_slice(tail);
            last.length += tail.len();
        }
    }

    /// Counts the next packet, which the kernel refuses for good.
    fn leave_out(&mut self, error: &io::Error, refusal: Refusal, stats: &mut InjectStats) {
        let segments = self.packets[self.sent].wire.segments;
        self.sent += 1;
        // What is short for a moment, or forbidden, says nothing about packets of many segments.
        if segments > 1 && matches!(refusal, Refusal::TooLarge | Refusal::Other) && self.takes_super_packets {
            self.takes_super_packets = false;
            log::info!("the kernel refuses packets of many segments ({error}); they are cut up before it gets them");
        } else if *stats.refused(refusal) == 0 {
            checks::refused(error).log();
        }
        *stats.refused(refusal) += u64::from(segments);
    }

    /// Discards what waits.
    pub(super) fn discard(&mut self, stats: &mut InjectStats) {
        stats.would_block +=
            self.packets[self.sent..].iter().map(|packet| u64::from(packet.wire.segments)).sum::<u64>();
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

/// Hands `packets`, the last of which ends with `tail`, to the kernel: at most [`MAX_BATCH`] of them. Returns how many
/// it took: fewer when one was refused, an error when that was the first.
fn send(socket: &OwnedFd, buffer: &[u8], packets: &[Packet], tail: &[u8]) -> io::Result<usize> {
    // Filled in only as far as they are needed: zeros for a whole batch would cost as much as a packet.
    let mut pieces = [const { MaybeUninit::<[libc::iovec; 2]>::uninit() }; MAX_BATCH];
    let mut messages = [const { MaybeUninit::<libc::mmsghdr>::uninit() }; MAX_BATCH];
    let count = packets.len().min(MAX_BATCH);
    for (i, packet) in packets.iter().take(MAX_BATCH).enumerate() {
        let tail = if i + 1 == packets.len() { tail } else { &[] };
        let piece = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let pieces = pieces[i].write([piece(&buffer[packet.start..packet.start + packet.length]), piece(tail)]);
        // SAFETY: a C structure for which all zeros are a valid value: null pointers and lengths of zero.
        let message = messages[i].write(unsafe { MaybeUninit::zeroed().assume_init() });
        message.msg_hdr.msg_iov = pieces.as_mut_ptr();
        message.msg_hdr.msg_iovlen = if tail.is_empty() { 1 } else { 2 };
        message.msg_hdr.msg_name = packet.to.as_ptr().cast_mut().cast();
        message.msg_hdr.msg_namelen = packet.to.len();
    }
    let messages = ptr::from_mut(&mut messages).cast::<libc::mmsghdr>();
    // SAFETY: `count` messages are filled in; each points to its pieces, these into `buffer` and `tail`, and the name
    // into `packets`, all of which outlive the call. The kernel reads them and writes only `msg_len`. (The type of the
    // flags is another one in musl.)
    let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages, count as libc::c_uint, libc::MSG_DONTWAIT as _) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    /// Returns a batch to a socket that is already connected, and its other end.
    fn pair(limit: usize) -> (Batch, UnixDatagram) {
        let (near, far) = UnixDatagram::pair().unwrap();
        (Batch::new(near.into(), limit), far)
    }

    /// Appends a packet that goes on the wire as it is.
    fn whole(bytes: &[u8]) -> impl FnOnce(&mut Vec<u8>) -> Written {
        parts(bytes, 1)
    }

    /// Appends a packet that the kernel cuts into `segments`.
    fn parts(bytes: &[u8], segments: u16) -> impl FnOnce(&mut Vec<u8>) -> Written {
        move |buffer| {
            buffer.extend_from_slice(bytes);
            Written { segments, octets: bytes.len() as u32 }
        }
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
            batch.add(SocketAddress::NONE, whole(&[n; 10]));
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
        batch.add(SocketAddress::NONE, whole(&[1]));
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
                batch.add(SocketAddress::NONE, whole(&built.to_ne_bytes()));
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
        batch.add(SocketAddress::NONE, whole(&[1]));
        batch.discard(&mut stats);
        assert_eq!((stats.would_block, batch.pending()), (1, 0));
    }

    #[test]
    fn a_packet_refused_for_good_does_not_hold_up_the_next() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        batch.add(SocketAddress::NONE, whole(&vec![0; 10_000_000]));
        batch.add(SocketAddress::NONE, whole(&[2]));
        batch.flush(&mut stats);
        assert_eq!((stats.emsgsize, stats.packets, batch.pending()), (1, 1, 0));
        assert_eq!(receive(&far), [2]);
    }

    /// ENOMEM and EPERM pass; to cut packets up before the kernel gets them costs three times the time for ever.
    #[test]
    fn what_is_short_or_forbidden_for_a_moment_does_not_end_packets_of_many_segments() {
        for (errno, takes) in [
            (libc::ENOMEM, true),
            (libc::ENOBUFS, true),
            (libc::EPERM, true),
            (libc::ENETDOWN, true),
            (libc::EINVAL, false),
            (libc::EMSGSIZE, false),
        ] {
            let (mut batch, _far) = pair(64);
            let mut stats = InjectStats::default();
            batch.add(SocketAddress::NONE, parts(b"payload", 3));
            let error = io::Error::from_raw_os_error(errno);
            batch.leave_out(&error, Refusal::of(&error), &mut stats);
            assert_eq!((batch.takes_super_packets(), stats.discarded()), (takes, 3), "{error}");
        }
    }

    #[test]
    fn a_payload_that_is_not_copied_follows_what_waits() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        batch.add(SocketAddress::NONE, whole(b"first"));
        batch.send_with(SocketAddress::NONE, b"payload", &mut stats, parts(b"header ", 3));
        assert_eq!((batch.pending(), stats.packets), (0, 4));
        assert_eq!([receive(&far), receive(&far)], [&b"first"[..], b"header payload"]);
    }

    #[test]
    fn a_payload_that_a_full_socket_does_not_take_is_kept() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        let mut built = 0u64;
        while batch.pending() == 0 {
            batch.send_with(SocketAddress::NONE, b"payload", &mut stats, parts(&built.to_ne_bytes(), 2));
            built += 1;
        }
        batch.send_with(SocketAddress::NONE, b"another", &mut stats, parts(&built.to_ne_bytes(), 2));
        assert_eq!((batch.pending(), stats.packets), (2, 2 * (built - 1)));
        for n in 0..=built {
            let payload = if n < built { b"payload" } else { b"another" };
            assert_eq!(receive(&far), [&n.to_ne_bytes()[..], payload].concat());
            batch.flush(&mut stats);
        }
        assert_eq!((batch.pending(), stats.packets, stats.discarded()), (0, 2 * (built + 1), 0));
    }

    #[test]
    fn super_packets_are_given_up_when_one_is_refused_and_count_as_their_segments() {
        let (mut batch, far) = pair(64);
        let mut stats = InjectStats::default();
        batch.add(SocketAddress::NONE, whole(&vec![0; 10_000_000]));
        batch.flush(&mut stats);
        assert!(batch.takes_super_packets(), "a single packet says nothing about them");
        batch.add(SocketAddress::NONE, parts(&vec![0; 10_000_000], 7));
        batch.add(SocketAddress::NONE, parts(&[3], 2));
        batch.flush(&mut stats);
        assert_eq!((stats.emsgsize, stats.packets), (8, 2));
        assert!(!batch.takes_super_packets());
        assert_eq!(receive(&far), [3]);
    }
}
