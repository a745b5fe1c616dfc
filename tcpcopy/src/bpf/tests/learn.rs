use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use bytemuck::bytes_of;
use tcpcopy_common::{
    counters::TargetCounter::{self, *},
    flow::Flow,
    mark::{Epoch, MEETS, Mark, MarkKey, PROBES, Stamp},
    response::{Response, ResponseHeader, Session, WireStats, kind, state},
    tcp_flags::{ACK, FIN, PSH, SYN},
};

use super::{
    TC_ACT_SHOT, TCX_NEXT,
    packets::{Packet, packet},
    privileged, run_tc,
};
use crate::bpf::{
    InstanceMaps, Intercept, InterceptSetup, Interceptor, RingReader, Sessions, TargetCounters, TcAttach,
};

pub(super) const KEY: MarkKey = MarkKey { k0: 0x0123_4567_89ab_cdef, k1: 0xfedc_ba98_7654_3210 };
const ISN: u32 = 0xdead_beef;

/// The programs of the target with two instances, 1 and 2, of the same key.
pub(super) struct Fixture {
    pub(super) interceptor: Interceptor,
    pub(super) instances: InstanceMaps,
    pub(super) sessions: Sessions,
    pub(super) counters: TargetCounters,
    reader: RingReader,
}

impl Fixture {
    pub(super) fn new(max_sessions: u32, ring_bytes: u32) -> Self {
        Self::with_attach(max_sessions, ring_bytes, TcAttach::Auto)
    }

    pub(super) fn with_attach(max_sessions: u32, ring_bytes: u32, attach: TcAttach) -> Self {
        let setup = InterceptSetup { attach, max_sessions, ring_bytes, reflect: false, debug: false };
        Self::with_setup(&setup)
    }

    pub(super) fn with_setup(setup: &InterceptSetup) -> Self {
        let Intercept { programs, mut instances, sessions, counters, reports } = Interceptor::load(setup).unwrap();
        for instance in [1, 2] {
            instances.add(instance, &KEY).unwrap();
        }
        Self { interceptor: programs, instances, sessions, counters, reader: reports }
    }

    pub(super) fn run(&mut self, program: &'static str, packet: &Packet) -> u32 {
        run_tc(self.interceptor.object(), program, &packet.bytes())
    }

    pub(super) fn count(&self, counter: TargetCounter) -> u64 {
        self.counters.read().unwrap().get(counter)
    }

    /// The headers of all reports that wait.
    pub(super) fn reports(&mut self) -> Vec<ResponseHeader> {
        self.responses().into_iter().map(|(header, _)| header).collect()
    }

    /// The reports that wait, with the octets of payload that they carry.
    pub(super) fn responses(&mut self) -> Vec<(ResponseHeader, Vec<u8>)> {
        let mut responses = Vec::new();
        self.reader.drain(usize::MAX, |record| {
            let response = Response::from_record(record).expect("a record whose lengths agree");
            responses.push((*response.header(), response.prefix().to_vec()));
        });
        responses
    }

    /// How many octets of the ring the reports take that wait.
    pub(super) fn used(&self) -> usize {
        self.reader.used()
    }

    /// Runs `learn`, and checks its verdict and that it counts `reason` alone.
    pub(super) fn expect(&mut self, what: &str, packet: &Packet, verdict: u32, reason: Option<TargetCounter>) {
        let before = self.counters.read().unwrap();
        assert_eq!(self.run("learn", packet), verdict, "{what}");
        for (counter, value) in self.counters.read().unwrap().iter() {
            let more = u64::from(Some(counter) == reason);
            assert_eq!(value, before.get(counter) + more, "{what}: {}", counter.family().name);
        }
    }

    /// Opens a session by a SYN, as if the target had answered it.
    pub(super) fn open(&mut self, program: &'static str, syn: &Packet) {
        assert_eq!(self.run(program, syn), TCX_NEXT);
        answered(&mut self.sessions, &syn.flow());
    }

    fn entries(&mut self) -> Vec<(Flow, Session)> {
        let mut walk = self.sessions.walk();
        let mut entries = Vec::new();
        while let Some(batch) = walk.batch().unwrap() {
            entries.extend(batch.map(|(flow, session)| (*flow, *session)));
        }
        entries.sort_unstable_by_key(|(flow, _)| *flow);
        entries
    }

    fn sessions(&mut self) -> Vec<(u32, u32)> {
        let mut sessions: Vec<_> =
            self.entries().iter().map(|(_, s)| (s.instance, u32::from_be_bytes(s.isn))).collect();
        sessions.sort_unstable();
        sessions
    }
}

/// Notes that the target has answered the SYN of a session.
pub(super) fn answered(sessions: &mut Sessions, flow: &Flow) {
    let session = sessions.get(flow).unwrap().expect("the session is there");
    sessions.add(flow, &Session { state: state::OPEN, ..session }).unwrap();
}

#[test]
fn every_session_is_met_once_however_small_the_buffer() {
    if !privileged() {
        return;
    }
    const SESSIONS: u32 = 1500;
    let mut fixture = Fixture::new(2048, 1 << 16);
    for isn in 0..SESSIONS {
        let syn = marked_syn(&format!("192.0.2.{}:{}", isn % 7, 40_000 + isn), 1, isn);
        assert_eq!(fixture.run("learn", &syn), TCX_NEXT);
    }
    for room in [1, 100, 512, 4096] {
        fixture.sessions.set_room(room);
        let mut walk = fixture.sessions.walk();
        let mut met = Vec::new();
        while let Some(batch) = walk.batch().unwrap() {
            for (flow, session) in batch {
                let isn = u32::from_be_bytes(session.isn);
                assert_eq!(u16::from_be_bytes(flow.client_port), 40_000 + isn as u16);
                met.push(isn);
            }
        }
        met.sort_unstable();
        assert_eq!(met, (0..SESSIONS).collect::<Vec<_>>(), "room for {room}");
    }
}

/// A SYN with a valid mark.
pub(super) fn marked_syn(client: &str, instance: u32, isn: u32) -> Packet {
    let server = if client.starts_with('[') { "[2001:db8::3]:80" } else { "10.0.0.3:80" };
    marked_syn_to(client, server, instance, isn)
}

pub(super) fn marked_syn_to(client: &str, server: &str, instance: u32, isn: u32) -> Packet {
    let packet = packet(client, server);
    stamped_syn(packet, instance, fresh(), isn)
}

/// The stamp of a mark that is made now.
pub(super) fn fresh() -> Stamp {
    Stamp { epoch: Epoch::at(crate::clock::now().0), ..Stamp::default() }
}

pub(super) fn stamped_syn(packet: Packet, instance: u32, stamp: Stamp, isn: u32) -> Packet {
    let mark = Mark::new(&KEY, instance, stamp, &packet.flow(), isn.to_be_bytes());
    let options = [&[2, 4, 5, 0xb4, 1, 1][..], bytes_of(&mark), &[3, 3, 7, 0, 0, 0]].concat();
    Packet { flags: SYN, seq: isn, ack: 0, options, payload: vec![], ..packet }
}

/// Where the mark starts in the options of [`marked_syn`].
const MARK: usize = 6;

#[test]
fn a_valid_mark_opens_a_session_and_the_same_syn_is_only_counted() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    for (client, what) in [("192.0.2.7:40000", "IPv4"), ("[2001:db8::7]:40000", "IPv6")] {
        let syn = marked_syn(client, 1, ISN);
        fixture.expect(what, &syn, TCX_NEXT, Some(Learned));
        answered(&mut fixture.sessions, &syn.flow());
        fixture.expect(what, &syn, TCX_NEXT, Some(SynRepeated));
        let data = Packet { flags: ACK | PSH | FIN, payload: vec![0; 100], options: vec![1; 12], ..syn.clone() };
        fixture.expect(what, &data, TCX_NEXT, None);
        let session = fixture.entries().into_iter().find(|(flow, _)| *flow == syn.flow());
        let (_, session) = session.expect("the session is there");
        assert_eq!((session.instance, session.isn), (1, ISN.to_be_bytes()), "{what}");
        fixture.sessions.remove(&syn.flow()).unwrap();
        fixture.sessions.remove(&syn.flow()).unwrap();
    }
    assert_eq!(fixture.sessions(), []);
    assert_eq!(fixture.reports(), []);
    let stats = fixture.instances.wire_stats(1).unwrap();
    assert_eq!(stats, WireStats { segments: 6, payload_bytes: 200, syns: 4, fins: 2, ..WireStats::default() });
    assert_eq!(fixture.instances.wire_stats(2).unwrap(), WireStats::default());
}

/// A probe tells that it was seen, and nothing else comes of it: neither a session nor an answer.
#[test]
fn a_probe_is_reported_and_dropped() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    for (client, what) in [("192.0.2.7:40000", "IPv4"), ("[2001:db8::7]:40000", "IPv6")] {
        let syn = marked_syn(client, 1, ISN);
        let probe = stamped_syn(syn.clone(), 1, Stamp { probes: true, ..fresh() }, 77);
        // Also one of a session's own four-tuple, which it leaves alone.
        for open in [false, true] {
            if open {
                fixture.expect(what, &syn, TCX_NEXT, Some(Learned));
            }
            let entries = fixture.entries();
            fixture.expect(what, &probe, TC_ACT_SHOT, Some(Probed));
            let expected = ResponseHeader {
                flow: syn.flow(),
                seq: [0, 0, 0, 77],
                kind: kind::PROBED,
                instance: 1,
                ..bytemuck::Zeroable::zeroed()
            };
            assert_eq!(fixture.reports(), [expected], "{what}");
            assert_eq!(fixture.entries(), entries, "{what}");
        }
    }
    assert_eq!(fixture.instances.wire_stats(1).unwrap().syns, 2, "those of the sessions");
}

/// What the programs have let in and not seen answered, their owner should know.
#[test]
fn a_syn_that_comes_again_without_an_answer_is_reported_and_passes() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    for (client, what) in [("192.0.2.7:40000", "IPv4"), ("[2001:db8::7]:40000", "IPv6")] {
        for (port, meets) in [(40_000, false), (40_001, true)] {
            let mut syn = marked_syn(client, 1, ISN);
            syn.source.set_port(port);
            let syn = stamped_syn(syn, 1, Stamp { meets, ..fresh() }, ISN);
            fixture.expect(what, &syn, TCX_NEXT, Some(Learned));
            assert_eq!(fixture.reports(), [], "{what}");
            fixture.expect(what, &syn, TCX_NEXT, Some(SynRepeated));
            let reports = fixture.reports().into_iter().map(|r| (r.flow, r.kind, r.seq, r.instance));
            let expected = (syn.flow(), kind::UNANSWERED, ISN.to_be_bytes(), 1);
            assert_eq!(reports.collect::<Vec<_>>(), [expected], "{what}");
            answered(&mut fixture.sessions, &syn.flow());
            fixture.expect(what, &syn, TCX_NEXT, Some(SynRepeated));
            assert_eq!(fixture.reports(), [], "{what}");
        }
    }
    assert_eq!(fixture.instances.wire_stats(1).unwrap().syns, 12);
}

#[test]
fn a_mark_that_is_not_valid_is_dropped() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    let syn = marked_syn("192.0.2.7:40000", 1, ISN);
    let with = |change: &dyn Fn(&mut Packet)| {
        let mut packet = syn.clone();
        change(&mut packet);
        packet
    };
    let table = [
        ("tag", BadTag, with(&|p| p.options[MARK + 9] ^= 1)),
        ("stamp", BadTag, with(&|p| p.options[MARK + 8] ^= MEETS)),
        ("a probe", BadTag, with(&|p| p.options[MARK + 8] ^= PROBES)),
        ("another ISN", BadTag, with(&|p| p.seq += 1)),
        ("another port", BadTag, with(&|p| p.source.set_port(40_001))),
        ("another address", BadTag, with(&|p| p.destination = "10.0.0.4:80".parse().unwrap())),
        ("another instance", BadTag, with(&|p| p.options[MARK + 7] = 2)),
        ("unknown instance", UnknownInstance, marked_syn("192.0.2.7:40000", 3, ISN)),
        ("length", Malformed, with(&|p| p.options[MARK + 1] = 12)),
    ];
    for (what, reason, packet) in &table {
        fixture.expect(what, packet, TC_ACT_SHOT, Some(*reason));
    }
    fixture.instances.remove(1).unwrap();
    fixture.instances.remove(1).unwrap();
    fixture.expect("removed instance", &syn, TC_ACT_SHOT, Some(UnknownInstance));
    assert_eq!(fixture.sessions(), []);
    assert_eq!(fixture.reports(), []);
}

/// What was recorded on the wire is worth nothing seconds later.
#[test]
fn a_mark_that_was_made_seconds_ago_is_dropped() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    for client in ["192.0.2.7:40000", "[2001:db8::7]:40000"] {
        let of_age = |epochs: u32, isn| {
            let Epoch(now) = Epoch::at(crate::clock::now().0);
            let stamp = Stamp { epoch: Epoch(now.wrapping_sub(epochs)), ..Stamp::default() };
            stamped_syn(marked_syn(client, 1, isn), 1, stamp, isn)
        };
        // Another epoch may begin at any moment: what was too old is so all the more, until the number comes round.
        for age in [4, 5, 30, 60] {
            fixture.expect("old", &of_age(age, ISN), TC_ACT_SHOT, Some(Stale));
        }
        fixture.expect("very old", &of_age(1000, ISN), TC_ACT_SHOT, Some(BadTag));
        fixture.expect("new", &of_age(0, ISN), TCX_NEXT, Some(Learned));
        answered(&mut fixture.sessions, &of_age(0, ISN).flow());
        fixture.expect("a little old", &of_age(2, ISN), TCX_NEXT, Some(SynRepeated));
        fixture.expect("of a session that is known, but old", &of_age(4, ISN), TC_ACT_SHOT, Some(Stale));
        // A newer session has the four-tuple, and the SYN of the one before it comes again.
        fixture.expect("the next session", &of_age(0, ISN + 1), TCX_NEXT, Some(Learned));
        fixture.expect("of the session before", &of_age(1, ISN), TC_ACT_SHOT, Some(Stale));
    }
    assert_eq!(fixture.sessions(), [(1, ISN + 1); 2]);
    assert_eq!(fixture.reports(), []);
}

#[test]
fn what_bears_no_mark_passes() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    let syn = marked_syn("192.0.2.7:40000", 1, ISN);
    let table = [
        ("no options", Packet { options: vec![], ..syn.clone() }),
        ("another experiment", {
            let mut packet = syn.clone();
            packet.options[MARK + 2] ^= 1;
            packet
        }),
        ("kind alone at the end", Packet { options: vec![1, 1, 1, 253], ..syn.clone() }),
        ("length beyond the end", Packet { options: vec![253, 16, b't', b'c'], ..syn.clone() }),
        ("length zero", Packet { options: vec![253, 0, b't', b'c'], ..syn.clone() }),
        ("forty times nothing", Packet { options: vec![1; 40], ..syn.clone() }),
        ("mark behind the end of options", Packet { options: [&[0; 6], &syn.options[6..]].concat(), ..syn.clone() }),
        ("mark in a SYN+ACK", Packet { flags: SYN | ACK, ..syn.clone() }),
        ("mark in data", Packet { flags: ACK | PSH, payload: vec![1; 10], ..syn.clone() }),
    ];
    for (what, packet) in &table {
        fixture.expect(what, packet, TCX_NEXT, None);
    }
    assert_eq!(fixture.sessions(), []);
}

#[test]
fn the_owner_reuses_its_port_but_another_instance_collides() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    let client = "192.0.2.7:40000";
    fixture.expect("first", &marked_syn(client, 1, ISN), TCX_NEXT, Some(Learned));
    fixture.expect("reuse", &marked_syn(client, 1, 5), TCX_NEXT, Some(Learned));
    assert_eq!(fixture.sessions(), [(1, 5)]);
    let other = marked_syn(client, 2, 5);
    fixture.expect("collision", &other, TC_ACT_SHOT, Some(Collision));
    assert_eq!(fixture.sessions(), [(1, 5)]);
    let [report] = fixture.reports()[..] else { panic!("one report") };
    assert_eq!((report.kind, report.instance, report.seq), (kind::COLLISION, 2, 5u32.to_be_bytes()));
    assert_eq!(report.flow, other.flow());
}

#[test]
fn the_target_s_own_traffic_takes_its_four_tuple_back() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    let syn = marked_syn("192.0.2.7:40000", 2, ISN);
    fixture.expect("marked", &syn, TCX_NEXT, Some(Learned));
    let unmarked = Packet { options: vec![2, 4, 5, 0xb4], ..syn.clone() };
    fixture.expect("unmarked", &unmarked, TCX_NEXT, Some(Reclaimed));
    assert_eq!(fixture.sessions(), []);
    let [report] = fixture.reports()[..] else { panic!("one report") };
    assert_eq!((report.kind, report.instance, report.flow), (kind::RECLAIMED, 2, syn.flow()));
    fixture.expect("unmarked again", &unmarked, TCX_NEXT, None);
}

#[test]
fn coalesced_segments_are_counted_as_they_were_on_the_wire() {
    /// Of `struct __sk_buff`: its size, and where `gso_segs` is.
    const CONTEXT: (usize, usize) = (192, 164);
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(16, 1 << 16);
    let syn = marked_syn("192.0.2.7:40000", 1, ISN);
    fixture.expect("marked", &syn, TCX_NEXT, Some(Learned));
    let data = Packet { flags: ACK | PSH, options: vec![], payload: vec![7; 900], ..syn }.bytes();
    let mut context = [0; CONTEXT.0];
    context[CONTEXT.1..][..4].copy_from_slice(&45u32.to_ne_bytes());
    let learn = fixture.interceptor.object().program::<SchedClassifier>("learn").unwrap();
    let options = TestRunOptions { data_in: Some(&data), ctx_in: Some(&context), ..TestRunOptions::new() };
    assert_eq!(learn.test_run(options).unwrap().return_value, TCX_NEXT);
    let stats = fixture.instances.wire_stats(1).unwrap();
    assert_eq!((stats.segments, stats.payload_bytes), (1 + 45, 900));
}

#[test]
fn a_full_map_refuses_new_sessions_but_not_known_ones() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(2, 1 << 16);
    for port in [1, 2] {
        let syn = marked_syn(&format!("192.0.2.7:{port}"), 1, ISN);
        fixture.expect("room", &syn, TCX_NEXT, Some(Learned));
    }
    fixture.expect("no room", &marked_syn("192.0.2.7:3", 1, 77), TC_ACT_SHOT, Some(MapFull));
    fixture.expect("repeated", &marked_syn("192.0.2.7:2", 1, ISN), TCX_NEXT, Some(SynRepeated));
    fixture.expect("reused", &marked_syn("192.0.2.7:2", 1, 78), TCX_NEXT, Some(Learned));
    let reports: Vec<_> = fixture.reports().iter().map(|r| (r.kind, r.instance, u32::from_be_bytes(r.seq))).collect();
    assert_eq!(reports, [(kind::MAP_FULL, 1, 77), (kind::UNANSWERED, 1, ISN)]);
}
