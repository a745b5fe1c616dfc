//! The target: smoltcp's TCP, and a service that answers each request.

use std::{cell::Cell, collections::VecDeque, net::IpAddr, time::Duration};

use smoltcp::{
    iface::{Config, Interface, SocketHandle, SocketSet},
    phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken},
    socket::tcp::{Socket, SocketBuffer, State},
    time::Instant,
    wire::{HardwareAddress, IpCidr, IpEndpoint},
};
use tcpcopy_common::{flow::Flow, response::ResponseHeader, tcp_flags::SYN};
use tcpcopy_replay::{Nanos, ProxyVersion};

use crate::{
    live::HEADER,
    proxy_protocol,
    scenario::{EarlyClose, Reply, Scenario, TargetSettings},
    wire,
};

pub const INSTANCE: u32 = 7;
/// The host number of the only target, or of the first.
pub const HOST: u8 = 3;
/// Both services, for IPv4 and IPv6.
pub const PORTS: [u16; 2] = [8080, 2525];
/// A connection on which nothing happens for so long is reset by the service.
const IDLE: Duration = Duration::from_secs(400);
/// No packet is on its way for longer than that.
const MAX_TRAVEL: Duration = Duration::from_secs(30);
/// How long the service reads on after it has closed.
const LINGER: Duration = Duration::from_secs(5);

thread_local! {
    /// What smoltcp's timestamps are made of: its generator is a plain function.
    static CLOCK: Cell<u64> = const { Cell::new(0) };
}

/// Names a request: the connection's number and its own.
pub type RequestId = (u8, u8);

/// A report, and the requests whose answers the segment carries octets of.
pub struct Response {
    pub report: ResponseHeader,
    /// TSval and TSecr.
    pub timestamps: Option<(u32, u32)>,
    pub answers: Vec<RequestId>,
}

/// What a connection at the target got.
#[derive(Debug)]
pub struct Received {
    /// The header of the PROXY protocol, where there is to be one.
    pub header: Vec<u8>,
    /// What came after it.
    pub octets: Vec<u8>,
    /// Requests answered, in order.
    pub answered: Vec<RequestId>,
}

pub struct Target {
    interface: Interface,
    wire: Wire,
    sockets: SocketSet<'static>,
    conns: Vec<Conn>,
    pub past: Vec<Received>,
    settings: TargetSettings,
    header: Option<ProxyVersion>,
    services: [Behaviour; 2],
    /// By connection and request.
    replies: Vec<(u8, Vec<Reply>)>,
}

#[derive(Clone, Copy, Debug)]
struct Behaviour {
    greeting: usize,
    limit: Option<(u32, EarlyClose)>,
}

/// An answer on its way out.
struct Answer {
    due: Nanos,
    left: usize,
    id: Option<RequestId>,
    last: bool,
}

/// How far a connection of the service is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// RST when everything written has been acknowledged.
    Resetting,
    /// It has closed, at this time.
    Closed(Nanos),
}

struct Conn {
    handle: SocketHandle,
    service: usize,
    peer: Option<Flow>,
    /// The client's initial sequence number, and when its SYN came.
    opened: Option<(u32, Nanos)>,
    /// The service's initial sequence number.
    iss: Option<u32>,
    greeted: bool,
    received: Vec<u8>,
    /// Which header is to come before all else.
    version: Option<ProxyVersion>,
    /// Octets of the header; `None` until it has been read.
    header: Option<usize>,
    parsed: usize,
    taken: u32,
    answered: Vec<RequestId>,
    outbox: VecDeque<Answer>,
    written: u64,
    /// Where in the output which request's answer lies.
    spans: Vec<(u64, u64, RequestId)>,
    phase: Phase,
    /// When more may be read.
    read_at: Nanos,
    active: Nanos,
}

impl Target {
    /// A target with the addresses 10.0.0.`host` and fd00::`host`.
    pub fn new(scenario: &Scenario, host: u8, now: Nanos) -> Self {
        let mut wire = Wire { mtu: scenario.target.mtu, incoming: None, outgoing: VecDeque::new() };
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = scenario.seed;
        let mut interface = Interface::new(config, &mut wire, instant(now));
        interface.update_ip_addrs(|addresses| {
            for address in addresses_of(host) {
                addresses.push(IpCidr::new(address.into(), 8)).expect("room for two addresses");
            }
        });
        let services = [0, 1].map(|n| {
            let service = &scenario.services[n];
            Behaviour { greeting: service.greeting as usize, limit: service.limit }
        });
        let replies = scenario
            .connections
            .iter()
            .map(|c| (c.id, c.writes.iter().flat_map(|w| &w.requests).map(|r| r.reply).collect()));
        let mut target = Self {
            interface,
            wire,
            sockets: SocketSet::new(Vec::new()),
            conns: Vec::new(),
            past: Vec::new(),
            settings: scenario.target.clone(),
            header: scenario.header,
            services,
            replies: replies.collect(),
        };
        target.listen(now);
        target
    }

    /// Takes a packet in; what the target sends because of that.
    pub fn handle(&mut self, now: Nanos, packet: Vec<u8>) -> Vec<Response> {
        let syn = wire::syn(&packet);
        if let Some((flow, isn)) = syn {
            self.make_way(now, &flow, isn);
            if self.conns.iter().any(|conn| conn.peer == Some(flow)) {
                // A repetition. The socket would ignore it, but smoltcp might ask a listening one before that.
                return self.poll(now);
            }
        }
        self.wire.incoming = Some(packet);
        let responses = self.poll(now);
        if let Some((flow, isn)) = syn
            && let Some(conn) = self.conns.iter_mut().find(|conn| conn.peer == Some(flow))
        {
            conn.opened.get_or_insert((isn, now));
        }
        responses
    }

    /// A later SYN ends an old connection of the same four-tuple, in TIME-WAIT (RFC 6191) or half open. smoltcp would
    /// be silent instead of sending the challenge that RFC 9293, section 3.10.7.4, asks for.
    fn make_way(&mut self, now: Nanos, flow: &Flow, isn: u32) {
        // After some time it cannot be a late copy, whatever its number.
        let later = |conn: &Conn| {
            conn.opened
                .is_some_and(|(old, at)| isn.wrapping_sub(old) as i32 > 0 || isn != old && now.since(at) > MAX_TRAVEL)
        };
        if let Some(index) = self.conns.iter().position(|conn| conn.peer == Some(*flow) && later(conn)) {
            let mut conn = self.conns.remove(index);
            conn.drain(self.sockets.get_mut(conn.handle));
            self.sockets.remove(conn.handle);
            self.past.extend(conn.received());
        }
    }

    /// Does what is due.
    pub fn poll(&mut self, now: Nanos) -> Vec<Response> {
        CLOCK.set(now.0 / 1_000_000);
        let mut responses = Vec::new();
        // A round of the application may give TCP something to send, and the reverse. Each round makes progress or is
        // the last, but an error should not become an endless loop.
        for _ in 0..100 {
            self.interface.poll(instant(now), &mut self.wire, &mut self.sockets);
            self.collect(&mut responses);
            let worked = self.serve(now);
            self.retire();
            self.listen(now);
            if !worked {
                return responses;
            }
        }
        panic!("the service at the target does not come to rest");
    }

    /// When [`poll`](Self::poll) has something to do.
    pub fn due(&mut self, now: Nanos) -> Option<Nanos> {
        let tcp = self.interface.poll_at(instant(now), &self.sockets).map(|at| Nanos(at.total_micros() as u64 * 1000));
        let service = self.conns.iter().filter_map(|conn| conn.due(&self.sockets)).min();
        // Earlier than the next microsecond makes no difference to smoltcp.
        [tcp, service].into_iter().flatten().min().map(|at| at.max(now.after(Duration::from_micros(1))))
    }

    /// Connections that both sides keep open.
    pub fn established(&self) -> Vec<Flow> {
        let is_established = |conn: &&Conn| {
            let socket: &Socket<'_> = self.sockets.get(conn.handle);
            socket.state() == State::Established
        };
        self.conns.iter().filter(is_established).filter_map(|conn| conn.peer).collect()
    }

    /// Everything that connections got, past and present.
    pub fn received(self) -> Vec<Received> {
        let mut all = self.past;
        all.extend(self.conns.into_iter().filter_map(Conn::received));
        all
    }

    fn listen(&mut self, now: Nanos) {
        for (service, port) in PORTS.into_iter().enumerate() {
            let free = |conn: &Conn| conn.service == service && conn.peer.is_none();
            if self.conns.iter().any(free) {
                continue;
            }
            let buffer = |size: usize| SocketBuffer::new(vec![0; size]);
            let mut socket = Socket::new(buffer(self.settings.receive_buffer), buffer(self.settings.send_buffer));
            socket.set_nagle_enabled(self.settings.nagle);
            socket.set_ack_delay(self.settings.delayed_ack.then(|| smoltcp::time::Duration::from_millis(10)));
            if self.settings.timestamps {
                socket.set_tsval_generator(Some(|| CLOCK.get() as u32));
            }
            socket.listen(port).expect("a new socket can listen");
            self.conns.push(Conn::new(self.sockets.add(socket), service, self.header, now));
        }
    }

    /// What was sent, as reports.
    fn collect(&mut self, responses: &mut Vec<Response>) {
        for conn in &mut self.conns {
            let socket: &Socket<'_> = self.sockets.get(conn.handle);
            conn.note_peer(socket);
        }
        while let Some(packet) = self.wire.outgoing.pop_front() {
            let (report, timestamps) = wire::report(&packet, INSTANCE);
            let mut answers = Vec::new();
            // The newest first: an old connection of the same four-tuple may still be in TIME-WAIT.
            if let Some(conn) = self.conns.iter_mut().rev().find(|c| c.peer == Some(report.flow)) {
                let seq = u32::from_be_bytes(report.seq);
                if report.flags.contains(SYN) {
                    conn.iss = Some(seq);
                }
                answers = conn.answers_in(seq, report.payload_len);
            }
            responses.push(Response { report, timestamps, answers });
        }
    }

    /// A round of the application; whether it did anything.
    fn serve(&mut self, now: Nanos) -> bool {
        let mut worked = false;
        for conn in &mut self.conns {
            let socket: &mut Socket<'_> = self.sockets.get_mut(conn.handle);
            conn.note_peer(socket);
            worked |= conn.serve(now, socket, &self.services, &self.settings, &self.replies);
        }
        worked
    }

    fn retire(&mut self) {
        let mut index = 0;
        while index < self.conns.len() {
            let socket: &mut Socket<'_> = self.sockets.get_mut(self.conns[index].handle);
            if socket.state() == State::Closed {
                let mut conn = self.conns.remove(index);
                conn.drain(socket);
                self.sockets.remove(conn.handle);
                self.past.extend(conn.received());
            } else {
                index += 1;
            }
        }
    }
}

impl Conn {
    fn new(handle: SocketHandle, service: usize, version: Option<ProxyVersion>, now: Nanos) -> Self {
        Self {
            handle,
            service,
            peer: None,
            opened: None,
            iss: None,
            greeted: false,
            received: Vec::new(),
            version,
            header: None,
            parsed: 0,
            taken: 0,
            answered: Vec::new(),
            outbox: VecDeque::new(),
            written: 0,
            spans: Vec::new(),
            phase: Phase::Serving,
            read_at: now,
            active: now,
        }
    }

    /// What it got; of a header that is not whole, nothing comes after it.
    fn received(mut self) -> Option<Received> {
        self.peer?;
        self.read_header();
        let octets = self.header.map_or(Vec::new(), |end| self.received.split_off(end));
        Some(Received { header: self.received, octets, answered: self.answered })
    }

    fn note_peer(&mut self, socket: &Socket<'_>) {
        match (socket.state(), socket.local_endpoint(), socket.remote_endpoint()) {
            // Back to LISTEN after a RST.
            (State::Listen, ..) => (self.peer, self.opened) = (None, None),
            (_, Some(local), Some(remote)) => self.peer = Some(flow(local, remote)),
            _ => {}
        }
    }

    /// The requests whose answers lie in these octets of the output.
    fn answers_in(&self, seq: u32, length: u32) -> Vec<RequestId> {
        let Some(iss) = self.iss.filter(|_| length > 0) else { return Vec::new() };
        let from = u64::from(seq.wrapping_sub(iss).wrapping_sub(1));
        let to = from + u64::from(length);
        self.spans.iter().filter(|&&(begin, end, _)| begin < to && from < end).map(|&(.., id)| id).collect()
    }

    fn due(&self, sockets: &SocketSet<'_>) -> Option<Nanos> {
        let socket: &Socket<'_> = sockets.get(self.handle);
        self.peer?;
        let answer = self.outbox.front().filter(|_| socket.can_send()).map(|answer| answer.due);
        let read = socket.can_recv().then_some(self.read_at);
        let end = match (self.phase, socket.is_open()) {
            (_, false) => None,
            (Phase::Closed(at), _) => Some(at.after(LINGER)),
            _ => Some(self.active.after(IDLE)),
        };
        [answer, read, end].into_iter().flatten().min()
    }

    fn serve(
        &mut self,
        now: Nanos,
        socket: &mut Socket<'_>,
        services: &[Behaviour; 2],
        settings: &TargetSettings,
        replies: &[(u8, Vec<Reply>)],
    ) -> bool {
        let behaviour = services[self.service];
        let mut worked = self.read(now, socket, settings);
        self.read_header();
        if !self.greeted && self.header.is_some() && socket.may_send() {
            self.greeted = true;
            self.active = now;
            if behaviour.greeting > 0 {
                self.outbox.push_back(Answer { due: now, left: behaviour.greeting, id: None, last: true });
            }
        }
        while let Some(id) = self.next_request() {
            worked = true;
            if behaviour.limit.is_some_and(|(most, _)| self.taken >= most) {
                if behaviour.limit.is_some_and(|(_, how)| how == EarlyClose::Unanswered) && self.outbox.is_empty() {
                    self.close(now, socket);
                }
                break;
            }
            self.taken += 1;
            let reply = replies.iter().find(|(c, _)| *c == id.0).and_then(|(_, r)| r.get(usize::from(id.1)));
            self.queue(now, id, *reply.expect("clients send what is in the scenario"));
        }
        worked |= self.write(now, socket);
        if self.phase == Phase::Serving && self.outbox.is_empty() {
            match behaviour.limit {
                Some((most, EarlyClose::Fin)) if self.taken >= most => {
                    self.close(now, socket);
                    worked = true;
                }
                Some((most, EarlyClose::Reset)) if self.taken >= most => self.phase = Phase::Resetting,
                _ => {}
            }
        }
        let over = match self.phase {
            // The peer has closed, and got all answers.
            Phase::Serving if socket.state() == State::CloseWait && !socket.can_recv() && self.outbox.is_empty() => {
                self.close(now, socket);
                return true;
            }
            Phase::Resetting => socket.send_queue() == 0,
            Phase::Closed(at) => at.after(LINGER) <= now && socket.is_open(),
            Phase::Serving => self.active.after(IDLE) <= now && socket.is_open() && self.peer.is_some(),
        };
        if over && socket.state() != State::Closed {
            socket.abort();
            self.phase = Phase::Closed(now);
            worked = true;
        }
        worked
    }

    fn close(&mut self, now: Nanos, socket: &mut Socket<'_>) {
        socket.close();
        self.phase = Phase::Closed(now);
    }

    fn read(&mut self, now: Nanos, socket: &mut Socket<'_>, settings: &TargetSettings) -> bool {
        if !socket.can_recv() || now < self.read_at {
            return false;
        }
        self.active = now;
        let most = match settings.slow_reading {
            Some((octets, pause)) => {
                self.read_at = now.after(pause);
                octets
            }
            None => usize::MAX,
        };
        let read = socket.recv(|octets| {
            let length = octets.len().min(most);
            self.received.extend_from_slice(&octets[..length]);
            (length, length)
        });
        read.is_ok_and(|n| n > 0)
    }

    /// Reads what a slow reader had not read before the connection was reset: TCP has delivered it.
    fn drain(&mut self, socket: &mut Socket<'_>) {
        while socket.can_recv() {
            let received = &mut self.received;
            let read = socket.recv(|octets| {
                received.extend_from_slice(octets);
                (octets.len(), octets.len())
            });
            if read.is_err() {
                break;
            }
        }
    }

    /// Reads the header, if there is to be one, as far as it is there.
    fn read_header(&mut self) {
        if self.header.is_none() {
            self.header = self.version.map_or(Some(0), |version| proxy_protocol::end(version, &self.received));
            self.parsed = self.header.unwrap_or(0);
        }
    }

    /// Takes the next request, if it is complete.
    fn next_request(&mut self) -> Option<RequestId> {
        self.header?;
        let rest = &self.received[self.parsed..];
        let header: [u8; 5] = *rest.get(..HEADER)?.last_chunk()?;
        let length = u32::from_be_bytes([0, header[2], header[3], header[4]]) as usize;
        if self.phase != Phase::Serving || rest.len() < length {
            return None;
        }
        self.parsed += length;
        Some((header[0], header[1]))
    }

    fn queue(&mut self, now: Nanos, id: RequestId, reply: Reply) {
        let begin = self.outbox.back().map_or(now, |answer| answer.due.max(now));
        for piece in 0..reply.pieces {
            let size = reply.size.div_ceil(reply.pieces);
            // Closer together than the quiet after which an answer counts as complete.
            let due = begin.after(reply.delay).after(Duration::from_micros(50 * piece as u64));
            self.outbox.push_back(Answer { due, left: size, id: Some(id), last: piece + 1 == reply.pieces });
        }
    }

    fn write(&mut self, now: Nanos, socket: &mut Socket<'_>) -> bool {
        const ZEROS: [u8; 4096] = [0; 4096];
        let mut worked = false;
        while let Some(answer) = self.outbox.front_mut() {
            if answer.due > now || !socket.can_send() {
                break;
            }
            let octets = &ZEROS[..answer.left.min(ZEROS.len())];
            let Ok(written) = socket.send_slice(octets) else { break };
            let begin = self.written;
            self.written += written as u64;
            answer.left -= written;
            worked |= written > 0;
            if let Some(id) = answer.id {
                self.spans.push((begin, self.written, id));
            }
            if answer.left == 0 {
                self.active = now;
                if answer.last {
                    self.answered.extend(answer.id);
                }
                self.outbox.pop_front();
            } else if written == 0 {
                break;
            }
        }
        worked
    }
}

/// The addresses of a target.
pub fn addresses_of(host: u8) -> [IpAddr; 2] {
    [[10, 0, 0, host].into(), [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into()]
}

fn flow(local: IpEndpoint, remote: IpEndpoint) -> Flow {
    let end = |end: IpEndpoint| (IpAddr::from(end.addr).into(), end.port.to_be_bytes());
    Flow::tcp(end(remote), end(local))
}

const fn instant(now: Nanos) -> Instant {
    Instant::from_micros_const((now.0 / 1000) as i64)
}

/// The target's interface: one packet in, any number out.
struct Wire {
    mtu: usize,
    incoming: Option<Vec<u8>>,
    outgoing: VecDeque<Vec<u8>>,
}

struct Incoming(Vec<u8>);
struct Outgoing<'a>(&'a mut VecDeque<Vec<u8>>);

impl Device for Wire {
    type RxToken<'a> = Incoming;
    type TxToken<'a> = Outgoing<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Incoming, Outgoing<'_>)> {
        let packet = self.incoming.take()?;
        Some((Incoming(packet), Outgoing(&mut self.outgoing)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Outgoing<'_>> {
        Some(Outgoing(&mut self.outgoing))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = self.mtu;
        capabilities.checksum = smoltcp::phy::ChecksumCapabilities::ignored();
        capabilities
    }
}

impl RxToken for Incoming {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

impl TxToken for Outgoing<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut packet = vec![0; len];
        let result = f(&mut packet);
        self.0.push_back(packet);
        result
    }
}
