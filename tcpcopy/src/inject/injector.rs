//! The injector: builds packets, chooses the path and the socket, and sends them in batches.

use std::{net::IpAddr, sync::Arc};

use tcpcopy_common::flow::IpAddress;
use tcpcopy_replay::{Transmit, worker::Sink};
use tcpcopy_wire::{Form, Packets};

use super::{
    batch::Batch,
    error::{Backend, InjectError},
    path::{Path, Paths, Way},
    socket,
    stats::InjectStats,
};

/// From this payload on, a super-packet is sent at once, with what waits before it, rather than copied into the batch:
/// a system call costs about as much as copying so much (measured).
const SEND_AT_ONCE: usize = 16 << 10;

/// How an injector sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sending {
    /// How many packets are collected for one system call: 1 to 64, others are brought into that range.
    pub batch: usize,
    /// Hand packets to the interface past its queueing discipline (`PACKET_QDISC_BYPASS`). Where the interface is busy
    /// they are lost at once. Nor is there anybody to cut super-packets up, so none are made. Raw sockets do not know
    /// this.
    pub bypass_qdisc: bool,
}

/// Sends replayed segments. One per worker thread; it never blocks.
pub struct Injector {
    paths: Arc<Paths>,
    /// The paths as of `generation`.
    current: Arc<[Path]>,
    generation: u64,
    frame: Option<Batch>,
    packet: Option<Batch>,
    raw_v4: Option<Batch>,
    raw_v6: Option<Batch>,
    /// Index of the last used path.
    recent: usize,
    /// Identification of the next IPv4 packet. (For 0 the kernel would choose one, on a raw socket.)
    id: u16,
    stats: InjectStats,
}

impl Injector {
    /// Opens the sockets.
    ///
    /// # Errors
    /// When a socket cannot be opened.
    pub fn open(paths: Arc<Paths>, sending: Sending) -> Result<Self, InjectError> {
        let Sending { batch, bypass_qdisc } = sending;
        let generation = paths.generation();
        let current = paths.current();
        let backend = paths.backend();
        // What a later change of paths may need is opened now, while an error still finds somebody to act on it.
        let packets = backend != Backend::Raw;
        let frame = packets.then(|| socket::frame(bypass_qdisc)).transpose()?.map(|socket| Batch::new(socket, batch));
        let packet = packets.then(|| socket::packet(bypass_qdisc)).transpose()?;
        let raw = |v6: bool| {
            let wanted = backend != Backend::Packet && current.iter().any(|path| path.target.is_v4() != v6);
            wanted.then(|| socket::raw(v6)).transpose()
        };
        Ok(Self {
            frame: if bypass_qdisc { frame.map(Batch::without_super_packets) } else { frame },
            packet: packet.map(|socket| Batch::new(socket, batch)),
            raw_v4: raw(false)?.map(|socket| Batch::new(socket, batch)),
            raw_v6: raw(true)?.map(|socket| Batch::new(socket, batch)),
            recent: 0,
            id: 1,
            stats: InjectStats::default(),
            paths,
            current,
            generation,
        })
    }

    /// Builds the packets of `transmit` and puts them into the batch, which is sent when it is full. Packets that
    /// cannot be sent are discarded and counted: as on any network, what was lost is sent again.
    pub fn push(&mut self, transmit: &Transmit<'_>) {
        self.refresh();
        let target = &transmit.flow.server;
        let found = self.path(target).map(|path| (path.mtu, path.way));
        let (mtu, batch, to, link) = match found {
            Some((mtu, Way::Frame(to, link))) => (mtu, self.frame.as_mut(), to, Some(link)),
            Some((mtu, Way::Packet(to))) => (mtu, self.packet.as_mut(), to, None),
            Some((mtu, Way::Raw(to))) if target.is_v4() => (mtu, self.raw_v4.as_mut(), to, None),
            Some((mtu, Way::Raw(to))) => (mtu, self.raw_v6.as_mut(), to, None),
            Some((mtu, Way::Blocked)) => {
                self.stats.unresolved += Packets::new(transmit, mtu, Form::Packets).remaining();
                return;
            }
            None => {
                self.stats.unresolved += Packets::new(transmit, u16::MAX, Form::Packets).remaining();
                return;
            }
        };
        let form = match (link, &batch) {
            (None, _) => Form::Packets,
            (Some(link), Some(batch)) if batch.takes_super_packets() => Form::SuperFrames(link),
            (Some(link), _) => Form::Frames(link),
        };
        let mut packets = Packets::new(transmit, mtu, form);
        let Some(batch) = batch else {
            self.stats.unresolved += packets.remaining();
            return;
        };
        while let Some((payload, before)) = packets.peek() {
            let at_once = link.is_some() && payload.len() >= SEND_AT_ONCE;
            let length = if at_once { before } else { before + payload.len() };
            if !batch.has_room(length) {
                batch.flush(&mut self.stats);
                if !batch.has_room(length) {
                    self.stats.would_block += packets.remaining();
                    return;
                }
            }
            let written = if at_once {
                batch.send_with(to, payload, &mut self.stats, |buffer| packets.write_front(self.id, buffer))
            } else {
                batch.add(to, |buffer| packets.write(self.id, buffer))
            };
            // The kernel numbers the segments of a super-packet from that on.
            self.id = self.id.wrapping_add(written.segments);
        }
    }

    /// Sends what has been collected, as far as the sockets take it without blocking; see [`pending`](Self::pending).
    pub fn flush(&mut self) {
        for batch in [&mut self.frame, &mut self.packet, &mut self.raw_v4, &mut self.raw_v6].into_iter().flatten() {
            if batch.pending() > 0 {
                batch.flush(&mut self.stats);
            }
        }
    }

    /// Returns how many packets wait: after a [`flush`](Self::flush), those for which the interface's queue had no
    /// room. Flush again soon.
    #[must_use]
    pub fn pending(&self) -> usize {
        [&self.frame, &self.packet, &self.raw_v4, &self.raw_v6].into_iter().flatten().map(Batch::pending).sum()
    }

    /// Adopts changed routes and next hops: one atomic load when there are none. [`push`](Self::push) does this by
    /// itself; it is needed only before [`path_mtu`](Self::path_mtu) without a push.
    pub fn refresh(&mut self) {
        let generation = self.paths.generation();
        if generation == self.generation {
            return;
        }
        // What was built for the old paths goes there or nowhere.
        self.flush();
        for batch in [&mut self.frame, &mut self.packet, &mut self.raw_v4, &mut self.raw_v6].into_iter().flatten() {
            batch.discard(&mut self.stats);
        }
        self.generation = generation;
        self.current = self.paths.current();
    }

    /// Returns the largest IP packet on the way to `target`, in octets: headers included. Beyond the first hop only
    /// what path MTU discovery of this host's own connections has learned is known. For an address that is no target,
    /// what every path must carry (RFC 791: 576, RFC 8200: 1280).
    #[must_use]
    pub fn path_mtu(&self, target: IpAddr) -> u16 {
        let key = IpAddress::from(target);
        let known = self.current.iter().find(|path| path.target == key).map(|path| path.mtu);
        known.unwrap_or(if key.is_v4() { 576 } else { 1280 })
    }

    /// Returns what has become of the packets so far.
    #[must_use]
    pub fn stats(&self) -> &InjectStats {
        &self.stats
    }

    /// Returns the path to `target`. Targets are few and come in runs.
    fn path(&mut self, target: &IpAddress) -> Option<&Path> {
        if self.current.get(self.recent).is_none_or(|path| path.target != *target) {
            self.recent = self.current.iter().position(|path| path.target == *target)?;
        }
        self.current.get(self.recent)
    }
}

impl Sink for Injector {
    type Figures = InjectStats;

    fn push(&mut self, transmit: &Transmit<'_>) {
        Self::push(self, transmit);
    }

    fn flush(&mut self) {
        // What waits for a path that has changed must not go there.
        self.refresh();
        Self::flush(self);
    }

    fn pending(&self) -> usize {
        Self::pending(self)
    }

    fn figures(&self) -> InjectStats {
        *self.stats()
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.flush();
    }
}

#[cfg(test)]
mod tests;
