//! Which requests a host received, and when.

use std::{cell::RefCell, collections::HashMap};

use lab::{
    Host,
    capture::{End, Packet, Sniffer},
    http::{Server, request_id},
    servers::RealServer,
};

/// When each request was seen first (ns of `CLOCK_MONOTONIC`), by its identifier.
pub type Arrivals = HashMap<u64, u64>;

/// Sees the requests that a host's service receives.
pub enum Witness {
    /// The embedded server, which remembers.
    Embedded(Server),
    /// A server of the user's, and a sniffer that looks for the requests in its packets.
    Foreign {
        /// Kept running.
        _server: RealServer,
        /// What arrives at the host.
        sniffer: Sniffer,
        /// The port of the service.
        port: u16,
        /// What was found so far.
        arrivals: RefCell<Arrivals>,
    },
}

impl Witness {
    /// Starts the service: the embedded one, or what the command runs.
    pub fn start(host: &Host, port: u16, command: Option<&str>) -> anyhow::Result<Self> {
        Ok(match command {
            None => Self::Embedded(Server::start(host, port)?),
            Some(command) => Self::Foreign {
                _server: RealServer::custom(host, port, command)?,
                sniffer: Sniffer::start(host, host, End::Destination)?,
                port,
                arrivals: RefCell::default(),
            },
        })
    }

    /// Returns how many requests arrived until now.
    pub fn seen(&self) -> usize {
        match self {
            Self::Embedded(server) => server.count(),
            Self::Foreign { sniffer, port, arrivals, .. } => {
                let mut arrivals = arrivals.borrow_mut();
                find_requests(&sniffer.take(), *port, &mut arrivals);
                arrivals.len()
            }
        }
    }

    /// Stops the service.
    pub fn stop(self) -> anyhow::Result<Arrivals> {
        let mut found = Arrivals::new();
        match self {
            Self::Embedded(server) => server.arrivals().iter().for_each(|a| add(&mut found, a.id, a.time_ns)),
            Self::Foreign { sniffer, port, arrivals, .. } => {
                found = arrivals.into_inner();
                find_requests(&sniffer.stop()?, port, &mut found);
            }
        }
        Ok(found)
    }
}

fn find_requests(packets: &[Packet], port: u16, arrivals: &mut Arrivals) {
    for packet in packets.iter().filter(|packet| packet.destination_port == port) {
        let text = String::from_utf8_lossy(&packet.payload);
        // Pipelined requests share a packet.
        for id in text.lines().filter(|line| line.ends_with(" HTTP/1.1")).filter_map(request_id) {
            add(arrivals, id, packet.time_ns);
        }
    }
}

/// Adds a request, which may be there twice, when it was retransmitted: the first time counts.
fn add(arrivals: &mut Arrivals, id: u64, time_ns: u64) {
    let first = arrivals.entry(id).or_insert(time_ns);
    *first = time_ns.min(*first);
}
