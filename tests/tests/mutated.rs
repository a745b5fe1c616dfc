//! Frames that no stack has sent, past the programs while they mirror: at the source all of them pass, in both
//! directions; at the target only marked SYNs are dropped, and only what belongs to sessions is swallowed. The live
//! connections go on, and so do sessions of which nothing was forged that the target itself would take.
//!
//! Tens of thousands, always the same; a million: `MUTATED_PACKETS=1000000 cargo test --release -p lab --test mutated`.

use std::{
    collections::HashSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Instant,
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Shape,
    cable::{Cable, Port},
    frames::{self, Ends, Reading, read},
    http::{Client, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

/// The number of a request that nobody has sent.
const FORGED: u64 = 666_666;
/// Frames in a row of which the shapes have the same numbers.
const ROUND: usize = 1_000;
/// Live connections of each family that are open all the time.
const VISITORS: usize = 3;

/// How many frames go each way, and what chooses them: without `MUTATED_PACKETS` always the same.
fn number_and_dice() -> (usize, fastrand::Rng) {
    /// Of all tests here.
    const WAYS: usize = 6;
    match std::env::var("MUTATED_PACKETS") {
        Ok(text) => {
            let dice = fastrand::Rng::new();
            println!("seed {}", dice.get_seed());
            (text.parse::<usize>().expect("MUTATED_PACKETS is a number") / WAYS, dice)
        }
        Err(_) => (20_000, fastrand::Rng::with_seed(1)),
    }
}

/// An address that nobody has, on a way that all hosts know.
fn stranger(family: Family) -> SocketAddr {
    match family {
        Family::V4 => (Ipv4Addr::new(198, 18, 0, 7), 40_001).into(),
        Family::V6 => (Ipv6Addr::new(0xfd66, 0, 0, 0, 0, 0, 0, 7), 40_001).into(),
    }
}

fn family(address: SocketAddr) -> Family {
    if address.is_ipv4() { Family::V4 } else { Family::V6 }
}

fn request() -> Vec<u8> {
    format!("GET /size/1?id={FORGED} HTTP/1.1\r\nHost: lab\r\n\r\n").into_bytes()
}

/// Sends frames through a cable; returns those that do not come through.
type Crossing = fn(&Cable, &[Vec<u8>]) -> HashSet<Vec<u8>>;

/// The hosts with a mirror at work, cables to put frames into, and clients who stay.
struct Stage {
    lab: Lab,
    live: Server,
    target: Server,
    mirror: Mirror,
    source_cable: Cable,
    target_cable: Cable,
    /// Another cable, with no programs of ours.
    control: Cable,
    visitors: Vec<Client>,
    dice: fastrand::Rng,
}

impl Stage {
    fn set(hook: &'static str, dice: fastrand::Rng) -> Self {
        let lab = Lab::shaped(Shape::Stranger).unwrap();
        let live = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut source_cable = Cable::new(&lab.source, "eth1").unwrap();
        let mut target_cable = Cable::new(&lab.target, "eth1").unwrap();
        let mut control = Cable::new(&lab.client, "eth1").unwrap();
        let options = MirrorOptions::arguments("-O", "-i eth1");
        let options = MirrorOptions { hook: Some(hook), interfaces: vec!["eth0", "eth1"], ..options };
        let mirror = Mirror::start(&lab, options).unwrap();
        for cable in [&mut source_cable, &mut target_cable, &mut control] {
            cable.watch().unwrap();
        }
        let visitors = connect(&lab);
        let mut stage = Self { lab, live, target, mirror, source_cable, target_cable, control, visitors, dice };
        stage.visit();
        stage
    }

    /// Each visitor asks; returns from where their requests came to the target.
    fn visit(&mut self) -> Vec<SocketAddr> {
        let before = self.target.count();
        self.visitors.iter_mut().for_each(|visitor| visitor.ask().unwrap());
        let expected = before + self.visitors.len();
        assert_eq!(self.target.wait_for_requests(expected, PATIENCE), expected, "{}", self.logs());
        let mut clients: Vec<_> = self.target.arrivals()[before..].iter().map(|arrival| arrival.client).collect();
        clients.sort_unstable();
        clients
    }

    fn logs(&self) -> String {
        format!("{}\n{}", self.mirror.tcpcopy().log(), self.mirror.intercept().log())
    }

    /// Takes frames of these shapes, most of them changed.
    fn draw(&mut self, shapes: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let draw = |number| {
            let mut frame = self.dice.choice(shapes).expect("there are shapes").clone();
            if number % 8 != 0 {
                frames::mutate(&mut self.dice, &mut frame);
            }
            frame
        };
        (0..ROUND).map(draw).collect()
    }

    /// Of frames that have not come through, those that do where no programs of ours are: the others, as one that ends
    /// within a VLAN tag, the kernel has dropped.
    fn taken(&self, missing: &[&[u8]], cross: Crossing) -> Vec<Vec<u8>> {
        let missing: Vec<Vec<u8>> = missing.iter().map(|frame| frame.to_vec()).collect();
        let dropped = cross(&self.control, &missing);
        missing.into_iter().filter(|frame| !dropped.contains(frame)).collect()
    }

    fn taken_inwards(&self, missing: &[&[u8]]) -> Vec<Vec<u8>> {
        self.taken(missing, |control, frames| owned(&control.inwards(frames).unwrap()))
    }

    fn taken_outwards(&self, missing: &[&[u8]]) -> Vec<Vec<u8>> {
        self.taken(missing, |control, frames| owned(&control.outwards(frames).unwrap()))
    }

    /// Ends everything: nothing forged was executed, who connects is mirrored, and the clients who have stayed got
    /// nothing of the target.
    fn end(mut self) {
        let staying = std::mem::replace(&mut self.visitors, connect(&self.lab));
        self.visit();
        self.visitors.extend(staying);
        for server in [&self.live, &self.target] {
            assert!(server.arrivals().iter().all(|arrival| arrival.id != FORGED), "a forged request was executed");
        }
        let outcome = self.mirror.stop().unwrap();
        let visitors: HashSet<SocketAddr> = self.visitors.iter().map(Client::address).collect();
        // Closed ports answer for themselves.
        let is_leak = |packet: &&lab::capture::Packet| {
            packet.source_port == TARGET_PORT
                && visitors.contains(&SocketAddr::new(packet.destination, packet.destination_port))
        };
        let leaked: Vec<String> = outcome.leaked.iter().filter(is_leak).map(|packet| packet.describe()).collect();
        assert_eq!(leaked, Vec::<String>::new(), "{}", outcome.logs);
    }
}

/// Clients of both families.
fn connect(lab: &Lab) -> Vec<Client> {
    let families = Family::BOTH.into_iter().flat_map(|family| std::iter::repeat_n(family, VISITORS));
    families.map(|family| Client::connect(&lab.client, lab.source.socket(family, LIVE_PORT)).unwrap()).collect()
}

fn owned(frames: &[&[u8]]) -> HashSet<Vec<u8>> {
    frames.iter().map(|frame| frame.to_vec()).collect()
}

/// Segments and ICMP errors that come in, from each of `clients` to `server`.
fn inward(dice: &mut fastrand::Rng, clients: &[SocketAddr], server: impl Fn(Family) -> SocketAddr) -> Vec<Vec<u8>> {
    let mut shapes = Vec::new();
    for &client in clients {
        let server = server(family(client));
        let segments = frames::segments(dice, client, server, &request());
        let answer = frames::segments(dice, server, client, &request()).swap_remove(0);
        shapes.extend(frames::icmp_errors(stranger(family(client)).ip(), server.ip(), &answer[14..]));
        shapes.extend(segments);
    }
    shapes
}

/// Segments and ICMP errors that go out, from `server` to each of `clients`.
fn outward(dice: &mut fastrand::Rng, clients: &[SocketAddr], server: impl Fn(Family) -> SocketAddr) -> Vec<Vec<u8>> {
    let mut shapes = Vec::new();
    for &client in clients {
        let server = server(family(client));
        let asked = frames::segments(dice, client, server, &request()).swap_remove(0);
        shapes.extend(frames::icmp_errors(server.ip(), client.ip(), &asked[14..]));
        shapes.extend(frames::segments(dice, server, client, &request()));
    }
    shapes
}

fn the_source_passes_all(hook: &'static str) {
    let (number, dice) = number_and_dice();
    let mut stage = Stage::set(hook, dice);
    let mut clients: Vec<SocketAddr> = stage.visitors.iter().map(Client::address).collect();
    clients.extend(Family::BOTH.map(stranger));
    let (source, port) = (stage.lab.source.clone(), [LIVE_PORT, LIVE_PORT + 1]);
    let began = Instant::now();
    for _ in 0..number.div_ceil(ROUND) {
        let server = |family| source.socket(family, port[0]);
        let mut shapes = inward(&mut stage.dice, &clients, server);
        for &client in &clients {
            shapes.extend(frames::syns(&mut stage.dice, client, server(family(client))));
        }
        shapes.extend(inward(&mut stage.dice, &Family::BOTH.map(stranger), |family| source.socket(family, port[1])));
        let frames = stage.draw(&shapes);
        let missing = stage.source_cable.inwards(&frames).unwrap();
        let taken = stage.taken_inwards(&missing);
        assert!(taken.is_empty(), "{} frames have not passed, as {:02x?}", taken.len(), taken[0]);

        let shapes = outward(&mut stage.dice, &clients, server);
        let frames = stage.draw(&shapes);
        let missing = stage.source_cable.outwards(&frames).unwrap();
        let taken = stage.taken_outwards(&missing);
        assert!(taken.is_empty(), "{} frames have not left, as {:02x?}", taken.len(), taken[0]);
    }
    println!("{hook}: {number} frames each way in {:?}", began.elapsed());
    // The live connections have not noticed. (Of their sessions some may have, see the limitations.)
    stage.visitors.iter_mut().for_each(|visitor| visitor.ask().unwrap());
    stage.end();
}

#[test]
fn the_source_passes_every_frame_by_tc() {
    let _guard = laboratory!();
    the_source_passes_all("tc");
}

#[test]
fn the_source_passes_every_frame_by_xdp() {
    let _guard = laboratory!();
    the_source_passes_all("xdp");
}

/// A connection whose session may come to harm, and the frame of its marked SYN.
struct Victim {
    _client: Client,
    /// As the target sees the client.
    address: SocketAddr,
    syn: Vec<u8>,
}

impl Victim {
    fn connect(stage: &Stage, tap: &Port, family: Family) -> Self {
        let before = stage.target.count();
        let mut client = Client::connect(&stage.lab.client, stage.lab.source.socket(family, LIVE_PORT)).unwrap();
        client.ask().unwrap();
        assert_eq!(stage.target.wait_for_requests(before + 1, PATIENCE), before + 1, "{}", stage.logs());
        let arrival = stage.target.arrivals().into_iter().nth(before).unwrap();
        assert_eq!(arrival.id, u64::from(client.port()));
        let address = SocketAddr::new(arrival.client.ip().to_canonical(), arrival.client.port());
        let server = stage.lab.target.socket(family, TARGET_PORT);
        let deadline = Instant::now() + PATIENCE;
        let mut syn = loop {
            let frame = tap.receive().unwrap().unwrap_or_default();
            let reading = read(&frame);
            if reading.is_marked_syn() && reading.ends() == Some((address, server)) {
                break frame;
            }
            assert!(Instant::now() < deadline, "the marked SYN of {address} has not been seen");
        };
        syn[..6].copy_from_slice(&frames::INNER);
        syn[6..12].copy_from_slice(&frames::OUTER);
        frames::repair(&mut syn);
        Self { _client: client, address, syn }
    }
}

/// What the target has taken.
#[derive(Default)]
struct Taken {
    sessions: HashSet<Ends>,
    /// Datagrams of which the first fragment was swallowed.
    fragmented: HashSet<(IpAddr, IpAddr, u32)>,
    dropped: usize,
    swallowed: usize,
}

impl Taken {
    /// Whether a frame that goes out belongs to a session.
    fn is_of_a_session(&self, reading: &Reading) -> bool {
        match *reading {
            Reading::Segment { ends: (server, client), .. } => self.sessions.contains(&(client, server)),
            Reading::Fragment { source, destination, id } => self.fragmented.contains(&(source, destination, id)),
            Reading::Error(ends) => self.sessions.contains(&ends),
            Reading::Other => false,
        }
    }

    /// Checks what did not go out, in the order in which it was sent.
    fn swallow(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            let reading = read(frame);
            if let Reading::Segment { ends: (server, client), id: Some(id), .. } = reading {
                self.fragmented.insert((server.ip(), client.ip(), id));
            }
            assert!(self.is_of_a_session(&reading), "of no session, and swallowed: {reading:?} {frame:02x?}");
        }
        self.swallowed += frames.len();
    }

    /// Checks what did not come in.
    fn drop(&mut self, frames: &[Vec<u8>]) {
        for frame in frames {
            assert!(read(frame).is_marked_syn(), "no marked SYN, and dropped: {:?} {frame:02x?}", read(frame));
        }
        self.dropped += frames.len();
    }
}

#[test]
fn the_target_takes_marked_syns_and_what_belongs_to_sessions() {
    let _guard = laboratory!();
    let (number, dice) = number_and_dice();
    let mut stage = Stage::set("tc", dice);
    let visitors = stage.visit();
    let canonical = |client: &SocketAddr| SocketAddr::new(client.ip().to_canonical(), client.port());
    let kept: Vec<SocketAddr> = visitors.iter().map(canonical).collect();
    let target = stage.lab.target.clone();
    let server = |family| target.socket(family, TARGET_PORT);
    let is_kept = |ends: &Ends| kept.contains(&ends.0) || kept.contains(&ends.1);
    let tap = target.run(|| Port::open("eth0")).unwrap().unwrap();
    let strangers = Family::BOTH.map(stranger);
    let mut taken = Taken::default();
    taken.sessions.extend(kept.iter().map(|&client| (client, server(family(client)))));
    let began = Instant::now();
    for _ in 0..number.div_ceil(ROUND) {
        tap.discard().unwrap();
        let victims = Family::BOTH.map(|family| Victim::connect(&stage, &tap, family));
        let clients = victims.each_ref().map(|victim| victim.address);
        taken.sessions.extend(clients.map(|client| (client, server(family(client)))));

        // Of their sessions nothing goes out.
        let own = outward(&mut stage.dice, &clients, server);
        let missing = stage.target_cable.outwards(&own).unwrap();
        let gone = stage.taken_outwards(&missing);
        taken.swallow(&gone);
        let gone: HashSet<Vec<u8>> = gone.into_iter().collect();
        for frame in own.iter().filter(|frame| !gone.contains(*frame)) {
            let reading = read(frame);
            assert!(!taken.is_of_a_session(&reading), "of a session, and sent: {reading:?} {frame:02x?}");
        }
        // Of others and of frames that look a little like theirs all else goes out. A connection that the target opens
        // itself would end a session, and what it reports may do so: those of the visitors are spared.
        let mut shapes = own;
        shapes.extend(outward(&mut stage.dice, &strangers, server));
        let mut frames = stage.draw(&shapes);
        frames.retain(|frame| match read(frame) {
            Reading::Segment { ends, .. } | Reading::Error(ends) => !is_kept(&ends),
            Reading::Fragment { .. } | Reading::Other => true,
        });
        let missing = stage.target_cable.outwards(&frames).unwrap();
        taken.swallow(&stage.taken_outwards(&missing));

        // What bears a mark comes in only as it was made.
        for victim in &victims {
            let forged = frames::sealed_bits(&victim.syn);
            assert!(forged.len() >= 8 * 28, "the mark of {:?} has been found", read(&victim.syn));
            let missing = stage.target_cable.inwards(&forged).unwrap();
            assert_eq!(missing.len(), forged.len(), "a SYN with a mark of which one bit is wrong has come in");
            taken.drop(&owned(&missing).into_iter().collect::<Vec<_>>());
        }
        // All else comes in. A client of the target's own would end a session: those of the visitors are spared.
        let mut shapes = inward(&mut stage.dice, &[&kept[..], &clients, &strangers].concat(), server);
        for client in clients.into_iter().chain(strangers) {
            shapes.extend(frames::syns(&mut stage.dice, client, server(family(client))));
        }
        // As many as all others together.
        let marked = victims.iter().map(|victim| victim.syn.clone()).cycle().take(shapes.len());
        shapes = marked.chain(shapes).collect();
        let mut frames = stage.draw(&shapes);
        frames.retain(|frame| {
            let reading = read(frame);
            !(reading.is_syn() && reading.ends().is_some_and(|ends| is_kept(&ends)))
        });
        let missing = stage.target_cable.inwards(&frames).unwrap();
        taken.drop(&stage.taken_inwards(&missing));
    }
    println!(
        "{number} frames each way in {:?}, {} dropped, {} swallowed",
        began.elapsed(),
        taken.dropped,
        taken.swallowed
    );
    assert!(taken.dropped > 0 && taken.swallowed > 0);
    assert_eq!(stage.visit(), visitors, "the sessions are those from before\n{}", stage.logs());
    stage.end();
}
