//! What one live client makes the engine hold costs no other client its replay.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use tcpcopy_common::{
    flow::IpAddress,
    tcp_flags::{ACK, PSH},
};

use super::{
    harness::{Client, Lab, TARGET, config},
    target::{lines, silent},
};
use crate::{
    config::{Config, RuleTarget},
    segment::LiveSegment,
    stats::Reason,
};

const MEMORY: usize = 4 << 20;

/// How a greedy client has octets held.
#[derive(Clone, Copy, Debug)]
enum Greed {
    /// Uploads that the target does not take.
    Uploads,
    /// A small request on each of very many connections, which the target does not take.
    Requests,
    /// Segments behind a gap.
    Pieces,
    /// Single octets behind as many gaps, far apart.
    Scattered,
}

/// One client address, or one IPv6 network of clients.
#[derive(Clone, Copy, Debug)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn client(self, greedy: bool, number: u16) -> Client {
        let mut client = Client::new(10_000 + number);
        match self {
            Self::V4 => client.flow.client = IpAddress::from_v4([10, 1, 0, if greedy { 66 } else { 1 }]),
            Self::V6 => {
                let network = if greedy { 66 } else { 1 };
                let address = Ipv6Addr::new(0x2001, 0xdb8, 0, network, 0, 0, 0, if greedy { number } else { 1 });
                client.flow.client = IpAddr::from(address).into();
                client.flow.server = IpAddr::from(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)).into();
                client.rule = 1;
            }
        }
        client
    }
}

fn lab(memory: usize) -> Lab {
    let rule = |address: &str| RuleTarget { target: TARGET, address: address.parse::<SocketAddr>().unwrap() };
    let rules = vec![rule("10.0.0.3:8080"), rule("[2001:db8::3]:8080")];
    let mut lab = Lab::with(Config { rules, max_memory: memory, ..config() });
    lab.target.new_app = Box::new(|_| lines(50));
    // Greedy clients have hundreds of connections, and the honest ones thousands of segments.
    lab.audits = false;
    lab
}

/// Sends at a distance from what comes next.
fn send_ahead(lab: &mut Lab, client: &Client, distance: u32, payload: &[u8]) {
    let segment = client.segment(lab, ACK | PSH, payload);
    lab.live(&LiveSegment { seq: segment.seq.wrapping_add(distance), ..segment });
}

impl Greed {
    /// Connections that it takes to fill [`MEMORY`] several times.
    fn connections(self) -> u16 {
        match self {
            Self::Uploads | Self::Pieces => 100,
            Self::Requests => 6_000,
            Self::Scattered => 40,
        }
    }

    /// What a connection sends in a turn.
    fn turn(self, lab: &mut Lab, client: &mut Client, turn: u32) {
        match self {
            Self::Uploads => client.send(lab, 0, &[1; 30_000]),
            Self::Requests if turn == 0 => client.send(lab, 0, b"a request that nobody takes\n"),
            Self::Requests => {}
            Self::Pieces => send_ahead(lab, client, 1 + turn * 30_000, &[1; 30_000]),
            Self::Scattered => {
                for n in 0..200 {
                    send_ahead(lab, client, 2 + 2 * (turn * 200 + n), b"x");
                }
            }
        }
    }
}

/// A client that sends one request after the other, each after having read the answer to the one before.
struct Honest {
    client: Client,
    requests: Vec<u8>,
}

impl Honest {
    fn new(lab: &mut Lab, family: Family, number: u16) -> Self {
        let mut client = family.client(false, number);
        client.syn(lab);
        Self { client, requests: Vec::new() }
    }

    fn request(&mut self, lab: &mut Lab, octets: usize) {
        let mut request = vec![b'a' + (self.requests.len() % 23) as u8; octets];
        request[octets - 1] = b'\n';
        let read = if self.requests.is_empty() { 0 } else { 50 };
        // In two segments that overtake each other.
        let (first, second) = request.split_at(octets / 2);
        self.client.ack = self.client.ack.wrapping_add(read);
        send_ahead(lab, &self.client, first.len() as u32, second);
        send_ahead(lab, &self.client, 0, first);
        self.client.seq = self.client.seq.wrapping_add(octets as u32);
        self.requests.extend(request);
    }

    fn assert_mirrored(&self, lab: &Lab, what: &str) {
        let conns = lab.target.conns.iter().chain(lab.target.past.iter().map(|(flow, conn)| (flow, conn)));
        let mut mine = conns.filter(|(flow, _)| {
            (flow.client, flow.client_port) == (self.client.flow.client, self.client.flow.client_port)
        });
        let (_, conn) = mine.next().expect("an honest client's connection");
        assert!(conn.received == self.requests, "{what}: {} of {}", conn.received.len(), self.requests.len());
        assert!(mine.next().is_none(), "{what}: more than one connection");
    }
}

fn greedy_beside_honest(greed: Greed, family: Family) {
    let what = format!("{greed:?} {family:?}");
    let mut lab = lab(MEMORY);
    let mut early = Honest::new(&mut lab, family, 1);
    early.request(&mut lab, 1_000);
    let mut greedy: Vec<Client> = (0..greed.connections()).map(|number| family.client(true, number)).collect();
    for client in &mut greedy {
        lab.target.shut.insert(client.flow.client);
        client.syn(&mut lab);
    }
    lab.run_ms(5);
    let mut others = Vec::new();
    for turn in 0..20 {
        for (number, client) in greedy.iter_mut().enumerate() {
            greed.turn(&mut lab, client, turn);
            if number % 50 == 0 {
                early.request(&mut lab, 3_000);
                lab.run_ms(1);
            }
        }
        let mut another = Honest::new(&mut lab, family, 100 + turn as u16);
        another.request(&mut lab, 60_000);
        others.push(another);
        lab.audit();
    }
    let stats = lab.engine.stats();
    let held = stats.bytes.pending;
    assert!(lab.engine.pool.allocated() > MEMORY / 2, "{what}: the test is too tame: {held} octets");
    for other in &mut others {
        other.request(&mut lab, 20_000);
    }
    lab.run_ms(500);
    early.assert_mirrored(&lab, &what);
    others.iter().for_each(|other| other.assert_mirrored(&lab, &what));
    let aborted = &lab.engine.stats().sessions.aborted;
    let reasons = [Reason::ClientMemory, Reason::TotalMemory].map(|reason| aborted.get(reason));
    assert!(reasons[0] > 0, "{what}: {reasons:?}: nobody had to give way");
    lab.audit();
}

#[test]
fn uploads_that_the_target_does_not_take_cost_no_other_client() {
    greedy_beside_honest(Greed::Uploads, Family::V4);
    greedy_beside_honest(Greed::Uploads, Family::V6);
}

#[test]
fn requests_that_the_target_does_not_take_cost_no_other_client() {
    greedy_beside_honest(Greed::Requests, Family::V4);
    greedy_beside_honest(Greed::Requests, Family::V6);
}

#[test]
fn segments_behind_gaps_cost_no_other_client() {
    for greed in [Greed::Pieces, Greed::Scattered] {
        greedy_beside_honest(greed, Family::V4);
        greedy_beside_honest(greed, Family::V6);
    }
}

/// The report: 32 packets made 564 MB resident.
#[test]
fn an_octet_far_ahead_costs_what_it_holds() {
    for distance in [1_000, 1_000_000, 33_000_000] {
        let mut lab = lab(512 << 20);
        let before = lab.engine.pool.allocated();
        for number in 0..16 {
            let mut client = Client::new(40_000 + number);
            client.syn(&mut lab);
            send_ahead(&mut lab, &client, distance, b"x");
        }
        let held = lab.engine.pool.allocated() - before;
        assert!(held <= 16 * 512, "{held} bytes for 16 octets that are {distance} octets ahead");
        assert_eq!(lab.engine.stats().bytes.pending, 16);
        lab.audit();
    }
}

/// Who shares with nobody has everything: a balancer is one address.
#[test]
fn a_client_that_is_alone_may_take_nearly_all() {
    let mut lab = lab(MEMORY);
    let mut clients: Vec<Client> = (0..100).map(|number| Family::V4.client(true, number)).collect();
    for client in &mut clients {
        lab.target.shut.insert(client.flow.client);
        client.syn(&mut lab);
        // A power of two, as memory grows.
        client.send(&mut lab, 0, &[1; 32_768]);
    }
    let share = lab.engine.stats().bytes.pending as usize * 100 / MEMORY;
    assert!(share > 75, "{share} % of the memory");
    assert_eq!(lab.engine.stats().sessions.aborted.get(Reason::ClientMemory), 0);
}

/// What two clients want more of than there is, they share.
#[test]
fn a_second_greedy_client_gets_as_much_as_the_first() {
    let mut lab = lab(MEMORY);
    let held = |lab: &Lab, first: u8| -> u64 {
        let of = |id| lab.engine.connections.get(id).filter(|c| c.live.client.0[15] == first);
        let connections = lab.engine.connections.ids().into_iter().filter_map(of);
        connections.map(|connection| connection.stream.held_from(connection.stream.start())).sum()
    };
    for address in [66, 67] {
        for number in 0..150 {
            let mut client = Family::V4.client(true, number);
            client.flow.client = IpAddress::from_v4([10, 1, 0, address]);
            lab.target.shut.insert(client.flow.client);
            client.syn(&mut lab);
            client.send(&mut lab, 0, &[1; 32_768]);
        }
    }
    let (first, second) = (held(&lab, 66), held(&lab, 67));
    assert!(first.abs_diff(second) <= 3 * 32_768, "{first} and {second} octets");
    assert!(first + second > MEMORY as u64 * 3 / 4, "{first} and {second} octets");
    lab.run_ms(5);
    lab.audit();
}

/// Its connections that are given up begin again with a later request, as after any loss.
#[test]
fn a_connection_that_gave_way_goes_on_with_a_later_request() {
    let mut lab = lab(MEMORY);
    lab.target.new_app = Box::new(|_| silent());
    let mut greedy: Vec<Client> = (0..100).map(|number| Family::V4.client(true, number)).collect();
    for client in &mut greedy {
        lab.target.shut.insert(client.flow.client);
        client.syn(&mut lab);
        client.send(&mut lab, 0, &[1; 32_768]);
    }
    let mut honest = Honest::new(&mut lab, Family::V4, 1);
    honest.request(&mut lab, 500_000);
    let stats = lab.engine.stats();
    let gave_way = stats.sessions.aborted.get(Reason::ClientMemory);
    assert!(gave_way > 0 && stats.bytes.discarded.get(Reason::ClientMemory) == gave_way * 32_768);
    lab.target.shut.clear();
    let joined = lab.engine.stats().joined;
    for client in &mut greedy {
        client.send(&mut lab, 0, b"the end of a request\n");
        client.send(&mut lab, 50, b"a request\n");
        lab.run_ms(1);
    }
    assert!(lab.engine.stats().joined >= joined + gave_way);
    lab.audit();
}
