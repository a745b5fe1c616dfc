//! The end of replayed connections whose sockets cannot be destroyed: the service is told that its client has reset them.
//!
//! A RST counts only at exactly the number that the service waits for (RFC 5961, section 3.2), which is not known here.
//! But TCP says it to whoever asks: a segment outside the window is answered with an acknowledgement (RFC 9293, section
//! 3.10.7.4), and one to a connection that is gone with a RST. All of these answers are swallowed and reported as
//! others are. So each connection is probed; an acknowledgement is answered with a RST at its number and another probe;
//! a RST ends the care for it. The packets go through a raw socket to this host's own address, so they come in by the
//! loopback interface, where no reverse-path filter looks at them, and connection tracking takes them to services in
//! other network namespaces.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use log::Level;
use socket2::Socket;
use tcpcopy_common::{
    flow::Flow,
    response::{Response, kind},
    tcp_flags::{ACK, RST, TcpFlags},
};
use tcpcopy_replay::{Nanos, Transmit, TransmitOptions};
use tcpcopy_wire::{Form, Packets};

use crate::{
    bpf::{BpfError, RingReader, Sessions},
    clock::now,
    inject::{InjectError, raw_socket},
    log_limit::limited,
};

/// How long an answer is waited for before a connection is probed again. Linux answers a connection's segments outside
/// its window every half second at most (`net.ipv4.tcp_invalid_ratelimit`).
const PROBE_INTERVAL: Duration = Duration::from_millis(600);
/// How often a connection is probed that does not answer at all: what has become of it nobody can tell.
const PROBES: u32 = 4;
/// How long all of it may take.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks into the ring.
const PAUSE: Duration = Duration::from_millis(2);
/// Probes between two looks, so that their answers find room in the ring.
const BURST: usize = 1024;
/// Records of the ring in one look.
const RECORDS: usize = 4096;
/// A packet without payload fits any path.
const MTU: u16 = 1280;

/// The raw sockets by which clients' segments come to services of this host.
#[derive(Debug)]
pub(super) struct Resets {
    v4: Socket,
    /// `None` on a kernel without IPv6.
    v6: Option<Socket>,
    packet: Vec<u8>,
}

/// A connection that may still be there.
#[derive(Clone, Copy, Debug, Default)]
struct Probed {
    at: Nanos,
    times: u32,
}

impl Resets {
    /// Opens the sockets: while this process may.
    ///
    /// # Errors
    /// Without CAP_NET_RAW.
    pub(super) fn open() -> Result<Self, InjectError> {
        let v4 = raw_socket(false)?.into();
        // Without IPv6 there are no sessions of it.
        let v6 = raw_socket(true).ok().map(Socket::from);
        Ok(Self { v4, v6, packet: Vec::new() })
    }

    /// Resets the connections of all sessions; returns of how many the end was not seen.
    ///
    /// # Errors
    /// When the session map cannot be read.
    pub(super) fn reset_all(&mut self, sessions: &mut Sessions, ring: &mut RingReader) -> Result<usize, BpfError> {
        let mut left = HashMap::<Flow, Probed>::new();
        let mut walk = sessions.walk();
        while let Some(batch) = walk.batch()? {
            left.extend(batch.map(|(flow, _)| (*flow, Probed::default())));
        }
        let began = now();
        let mut unanswered = 0;
        while !left.is_empty() && now().since(began) < DEADLINE {
            let mut burst = BURST;
            left.retain(|flow, probed| {
                let now = now();
                let due = probed.times == 0 || now.since(probed.at) >= PROBE_INTERVAL;
                if !due || burst == 0 {
                    return true;
                }
                if probed.times == PROBES {
                    unanswered += 1;
                    return false;
                }
                burst -= 1;
                *probed = Probed { at: now, times: probed.times + 1 };
                self.send(flow, ACK, 0);
                true
            });
            std::thread::sleep(PAUSE);
            while ring.drain(RECORDS, |record| self.hear(record, &mut left)) == RECORDS {}
        }
        Ok(left.len() + unanswered)
    }

    /// Handles a report of an answer.
    fn hear(&mut self, record: &[u8], left: &mut HashMap<Flow, Probed>) {
        let Some(response) = Response::from_record(record) else { return };
        let header = response.header();
        if header.kind != kind::SEGMENT || !left.contains_key(&header.flow) {
            return;
        }
        if header.flags.contains(RST) {
            left.remove(&header.flow);
        } else if header.flags.contains(ACK) {
            self.send(&header.flow, RST, u32::from_be_bytes(header.ack));
            self.send(&header.flow, ACK, 0);
        }
    }

    /// Sends a segment of a client to its service. One that is lost is sent again with the next probe.
    fn send(&mut self, flow: &Flow, flags: TcpFlags, seq: u32) {
        let transmit = Transmit {
            flow: *flow,
            seq,
            ack: 0,
            window: 0,
            flags,
            options: TransmitOptions::default(),
            segment_size: 1,
            payload: &[],
        };
        self.packet.clear();
        Packets::new(&transmit, MTU, Form::Packets).write(0, &mut self.packet);
        let server = IpAddr::from(flow.server);
        let socket = if server.is_ipv4() { Some(&self.v4) } else { self.v6.as_ref() };
        let sent = socket
            .ok_or_else(|| io::Error::from_raw_os_error(libc::EAFNOSUPPORT))
            .and_then(|socket| socket.send_to(&self.packet, &SocketAddr::new(server, 0).into()));
        if let Err(e) = sent {
            limited!("connections that are not reset", Level::Warn, "cannot reset a replayed connection: {e}");
        }
    }
}
