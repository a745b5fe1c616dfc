use tcpcopy_common::{
    counters::CaptureCounter::{self, *},
    flow::Flow,
    tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags},
};
use tcpcopy_replay::{Checksums, LiveRecord};

use super::{
    TCX_NEXT,
    packets::{Packet, packet},
    privileged, run_tc, run_xdp,
};
use crate::bpf::{Capture, CaptureRule, CaptureSetup, ClientFilter, Hook, Network, RingReader, Sampling, Share};

const XDP_PASS: u32 = 2;
pub(super) const CLIENT4: &str = "192.0.2.7:40000";
pub(super) const CLIENT6: &str = "[2001:db8::7]:40000";

pub(super) struct Fixture {
    pub(super) capture: Capture,
    pub(super) readers: Vec<RingReader>,
    hook: Hook,
}

impl Fixture {
    fn new(hook: Hook, workers: u32) -> Self {
        Self::with_ring(hook, workers, 1 << 20)
    }

    fn with_ring(hook: Hook, workers: u32, ring_bytes: u32) -> Self {
        Self::with(hook, workers, ring_bytes, None, None)
    }

    fn with_selection(hook: Hook, clients: Option<&ClientFilter>, sampling: Option<Sampling>) -> Self {
        Self::with(hook, 1, 1 << 20, clients, sampling)
    }

    fn with(
        hook: Hook,
        workers: u32,
        ring_bytes: u32,
        clients: Option<&ClientFilter>,
        sampling: Option<Sampling>,
    ) -> Self {
        Self::on("lo", hook, workers, ring_bytes, (clients, sampling), false)
    }

    fn with_handshakes(hook: Hook) -> Self {
        Self::on("lo", hook, 1, 1 << 20, (None, None), true)
    }

    /// For an interface, to which the programs are not attached.
    pub(super) fn on(
        interface: &str,
        hook: Hook,
        workers: u32,
        ring_bytes: u32,
        (clients, sampling): (Option<&ClientFilter>, Option<Sampling>),
        handshakes: bool,
    ) -> Self {
        Self::load(interface, hook, workers, ring_bytes, (clients, sampling), (handshakes, false))
    }

    fn promiscuous() -> Self {
        Self::load("lo", Hook::Tc, 1, 1 << 20, (None, None), (false, true))
    }

    fn load(
        interface: &str,
        hook: Hook,
        workers: u32,
        ring_bytes: u32,
        (clients, sampling): (Option<&ClientFilter>, Option<Sampling>),
        (handshakes, promiscuous): (bool, bool),
    ) -> Self {
        let rule =
            |id, address: Option<&str>, port| CaptureRule { id, address: address.map(|a| a.parse().unwrap()), port };
        let (capture, readers) = Capture::load(&CaptureSetup {
            rules: &[
                rule(1, None, 80),
                rule(2, Some("10.0.0.3"), 443),
                rule(3, Some("2001:db8::3"), 443),
                rule(4, Some("10.0.0.4"), 80),
            ],
            exclude: &["10.0.0.9:80".parse().unwrap()],
            clients,
            sampling,
            handshakes,
            promiscuous,
            workers,
            ring_bytes,
            interfaces: &[interface.to_owned()],
            hook,
            debug: false,
        })
        .unwrap();
        Self { capture, readers, hook }
    }

    fn run(&mut self, packet: &[u8]) {
        match self.hook {
            Hook::Tc => assert_eq!(run_tc(self.capture.object(), "capture_tc", packet), TCX_NEXT),
            _ => assert_eq!(run_xdp(self.capture.object(), "capture_xdp", packet), XDP_PASS),
        }
    }

    pub(super) fn count(&self, counter: CaptureCounter) -> u64 {
        self.capture.counters().unwrap().get(counter)
    }

    /// Runs the program on the packet; it must copy it whole, under that rule.
    fn expect_copy(&mut self, what: &str, packet: &Packet, rule: u16) {
        let (count, bytes) = (self.count(Captured), self.count(CapturedBytes));
        self.run(&packet.bytes());
        let mut records = 0;
        self.readers[0].drain(10, |record| {
            records += 1;
            let parsed = LiveRecord::parse(record, Checksums::Complete).unwrap();
            let LiveRecord::Segment(segment) = parsed else { panic!("{what}: {parsed:?}") };
            assert_eq!(segment.flow, packet.flow(), "{what}");
            assert_eq!((segment.rule, segment.seq, segment.ack), (rule, packet.seq, packet.ack), "{what}");
            assert_eq!(segment.flags, packet.flags, "{what}");
            assert!(segment.payload == packet.payload, "{what}: payload differs");
            assert!(segment.time > tcpcopy_replay::Nanos(0) && segment.time <= crate::clock::now(), "{what}");
        });
        assert_eq!(records, 1, "{what}");
        assert_eq!(self.count(Captured), count + 1, "{what}");
        assert_eq!(self.count(CapturedBytes), bytes + packet.payload.len() as u64, "{what}");
    }

    /// Runs the program on the packet; it must not copy it, and count only that reason, if any.
    fn expect_none(&mut self, what: &str, packet: &Packet, reason: Option<CaptureCounter>) {
        let before = self.capture.counters().unwrap();
        self.run(&packet.bytes());
        assert_eq!(self.readers[0].drain(10, |_| {}), 0, "{what}");
        for (counter, value) in self.capture.counters().unwrap().iter() {
            // Its octets are counted too, as those of a full ring are.
            let more = match counter {
                OtherBytes if reason == Some(TooLarge) => packet.payload.len() as u64,
                _ => u64::from(Some(counter) == reason),
            };
            assert_eq!(value, before.get(counter) + more, "{what}: {}", counter.family().name);
        }
    }
}

#[test]
fn segments_of_matching_flows_are_copied_whole() {
    if !privileged() {
        return;
    }
    let v4 = || packet(CLIENT4, "10.0.0.3:80");
    let v6 = || packet(CLIENT6, "[2001:db8::3]:443");
    let hop_by_hop = (0, vec![0, 0, 1, 4, 0, 0, 0, 0]);
    let destination_options = (60, [vec![0, 1], vec![0; 14]].concat());
    let authentication = (51, [vec![0, 4], vec![0; 22]].concat());
    let atomic_fragment = (44, vec![0, 0, 0, 0, 1, 2, 3, 4]);
    let table = [
        ("IPv4", 1, v4()),
        ("IPv4 with options", 1, Packet { ip_options: vec![1; 40], ..v4() }),
        ("Ethernet padding", 1, Packet { payload: b"x".to_vec(), padding: 5, ..v4() }),
        ("VLAN", 1, Packet { vlan_ethertypes: vec![0x8100], ..v4() }),
        ("QinQ", 1, Packet { vlan_ethertypes: vec![0x88a8, 0x8100], ..v4() }),
        ("do not fragment", 1, Packet { fragment_flags_offset: 0x4000, ..v4() }),
        ("rule with IPv4 address", 2, packet(CLIENT4, "10.0.0.3:443")),
        ("rule with address before one without", 4, packet(CLIENT4, "10.0.0.4:80")),
        ("IPv6", 3, v6()),
        ("IPv6 on a VLAN", 3, Packet { vlan_ethertypes: vec![0x8100], ..v6() }),
        (
            "IPv6 with extension headers",
            3,
            Packet { extensions: vec![hop_by_hop, destination_options, authentication, atomic_fragment], ..v6() },
        ),
        ("SYN with options", 1, Packet { flags: SYN, options: (0..40).collect(), payload: vec![], ..v4() }),
        ("SYN with payload", 1, Packet { flags: SYN, ..v4() }),
        ("FIN", 1, Packet { flags: FIN | ACK, payload: vec![], ..v4() }),
        ("RST", 1, Packet { flags: RST, payload: vec![], ..v4() }),
        ("options and payload", 1, Packet { options: vec![1; 12], ..v4() }),
    ];
    for hook in [Hook::Tc, Hook::Xdp] {
        let mut fixture = Fixture::new(hook, 1);
        for (what, rule, packet) in &table {
            fixture.expect_copy(&format!("{what}, {hook:?}"), packet, *rule);
        }
        // On both sides of every bucket's edge that a linear packet can have.
        for len in [31, 32, 33, 159, 160, 161, 415, 416, 417, 927, 928, 929, 1447, 1448, 1460] {
            let packet = Packet { payload: (0..len).map(|i| i as u8).collect(), options: vec![1; 12], ..v4() };
            fixture.expect_copy(&format!("{len} octets, {hook:?}"), &packet, 1);
        }
    }
}

#[test]
fn super_packets_in_fragments_are_copied_whole() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(Hook::Xdp, 1);
    for len in [1965, 4012, 4013, 9132, 16_300, 20_000, 32_684, 49_068, 65_000] {
        let payload = (0..len).map(|i| (i * 7) as u8).collect();
        fixture.expect_copy(&format!("{len} octets"), &Packet { payload, ..packet(CLIENT4, "10.0.0.3:80") }, 1);
    }
}

#[test]
fn what_is_not_copied_has_a_reason() {
    if !privileged() {
        return;
    }
    let v4 = || packet(CLIENT4, "10.0.0.3:80");
    let v6 = || packet(CLIENT6, "[2001:db8::3]:443");
    let fragment6 = |offset: u8, more: u8| vec![(44, vec![0, 0, offset, more, 1, 2, 3, 4])];
    let table = [
        ("another port", None, packet(CLIENT4, "10.0.0.3:81")),
        ("another address", None, packet(CLIENT4, "10.0.0.8:443")),
        ("excluded", None, packet(CLIENT4, "10.0.0.9:80")),
        ("response", None, packet("10.0.0.3:80", "192.0.2.7:40000")),
        ("three VLAN tags", None, Packet { vlan_ethertypes: vec![0x8100; 3], ..v4() }),
        ("ESP", None, Packet { extensions: vec![(50, vec![0; 16])], ..v6() }),
        ("pure ACK", Some(PureAck), Packet { flags: ACK, payload: vec![], ..v4() }),
        ("padded pure ACK", Some(PureAck), Packet { flags: ACK, payload: vec![], padding: 6, ..v4() }),
        ("first fragment", Some(Fragment), Packet { fragment_flags_offset: 0x2000, ..v4() }),
        ("later fragment", Some(Fragment), Packet { fragment_flags_offset: 3, ..v4() }),
        (
            "first fragment of another port",
            None,
            Packet { fragment_flags_offset: 0x2000, ..packet(CLIENT4, "10.0.0.3:81") },
        ),
        ("first IPv6 fragment", Some(Fragment), Packet { extensions: fragment6(0, 1), ..v6() }),
        ("later IPv6 fragment", Some(Fragment), Packet { extensions: fragment6(8, 0), ..v6() }),
        ("data offset too small", Some(Malformed), Packet { data_offset: Some(4), ..v4() }),
        ("data offset too large", Some(Malformed), Packet { data_offset: Some(15), ..v4() }),
        ("IP length too large", Some(Malformed), Packet { ip_length_error: 1, ..v4() }),
        ("IP length too small", Some(Malformed), Packet { ip_length_error: -30, ..v4() }),
        ("IPv6 length too large", Some(Malformed), Packet { ip_length_error: 1, ..v6() }),
        ("cut in the TCP header", Some(Malformed), Packet { cut: Some(14 + 20 + 18), ..v4() }),
        ("cut in the payload", Some(Malformed), Packet { cut: Some(14 + 20 + 20 + 5), ..v4() }),
        ("frame for a group", Some(OtherHost), Packet { mac: [1, 0, 0x5e, 0, 0, 1], ..v4() }),
        ("IPv6 jumbogram", Some(TooLarge), Packet { ip_length_error: -38, ..v6() }),
    ];
    for hook in [Hook::Tc, Hook::Xdp] {
        let mut fixture = Fixture::new(hook, 1);
        for (what, reason, packet) in &table {
            fixture.expect_none(&format!("{what}, {hook:?}"), packet, *reason);
        }
    }
}

#[test]
fn a_reader_is_woken_only_when_it_sleeps() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(Hook::Tc, 1);
    let segment = packet(CLIENT4, "10.0.0.3:80");
    let readable = |reader: &RingReader| {
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [rustix::event::PollFd::new(reader, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
    };
    fixture.run(&segment.bytes());
    assert!(!fixture.readers[0].prepare_sleep(), "there is a record");
    assert_eq!(fixture.readers[0].drain(10, |_| {}), 1);
    assert_eq!(fixture.count(Wakeups), 0);

    assert!(fixture.readers[0].prepare_sleep());
    assert!(!readable(&fixture.readers[0]));
    fixture.run(&segment.bytes());
    assert!(readable(&fixture.readers[0]));
    assert_eq!(fixture.count(Wakeups), 1);
    fixture.run(&segment.bytes());
    assert_eq!(fixture.count(Wakeups), 1, "the flag is the program's to clear");

    fixture.readers[0].awake();
    assert_eq!(fixture.readers[0].drain(1, |_| {}), 1, "the budget");
    assert_eq!(fixture.readers[0].drain(10, |_| {}), 1, "the discarded record of the wake-up does not count");
    fixture.expect_none("unmatched", &packet(CLIENT4, "10.0.0.3:81"), None);
    assert!(fixture.readers[0].prepare_sleep());
    fixture.readers[0].awake();
    fixture.run(&segment.bytes());
    assert_eq!(fixture.count(Wakeups), 1);
}

#[test]
fn a_reader_that_has_taken_what_woke_it_can_sleep_again() {
    if !privileged() {
        return;
    }
    for hook in [Hook::Tc, Hook::Xdp] {
        let mut fixture = Fixture::new(hook, 1);
        let segment = packet(CLIENT4, "10.0.0.3:80").bytes();
        // What is behind the wake-up, and the budgets by which a worker, which counts the records first, takes all of
        // it.
        for (behind, budgets) in [(0, [1, 0]), (1, [1, 1]), (1, [2, 0])] {
            let what = format!("{behind} records behind the wake-up, budgets {budgets:?}, {hook:?}");
            assert!(fixture.readers[0].prepare_sleep(), "{what}: nothing is there");
            let wakeups = fixture.count(Wakeups);
            for _ in 0..=behind {
                fixture.run(&segment);
            }
            let reader = &mut fixture.readers[0];
            reader.awake();
            assert_eq!(reader.upcoming().count(), 1 + behind, "{what}");
            assert_eq!(budgets.map(|budget| reader.drain(budget, |_| {})), budgets, "{what}");
            assert_eq!(reader.used(), 0, "{what}: the wake-up was left in the ring");
            assert!(reader.prepare_sleep(), "{what}: the reader would spin");
            reader.awake();
            assert_eq!(fixture.count(Wakeups), wakeups + 1, "{what}");
        }
        // Records are not taken for discarded ones.
        fixture.run(&segment);
        assert_eq!(fixture.readers[0].drain(0, |_| {}), 0);
        assert!(!fixture.readers[0].prepare_sleep(), "{hook:?}: there is a record");
        assert_eq!(fixture.readers[0].drain(1, |_| {}), 1);
    }
}

#[test]
fn a_small_ring_goes_round_and_a_full_one_loses_copies_with_a_count() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::with_ring(Hook::Tc, 1, 4096);
    let segment = |seq, flags| Packet { seq, flags, payload: vec![seq as u8; 1000], ..packet(CLIENT4, "10.0.0.3:80") };
    for seq in 0..50 {
        fixture.expect_copy("round", &segment(seq, ACK | PSH), 1);
    }
    assert!(!fixture.readers[0].has_lost());
    // Three records of 1600 octets do not fit.
    for seq in 0..3 {
        fixture.run(&segment(seq, SYN | ACK | FIN).bytes());
    }
    assert_eq!((fixture.count(RingFull), fixture.count(RingFullBytes), fixture.count(RingFullControl)), (1, 1000, 2));
    assert!(fixture.readers[0].has_lost() && !fixture.readers[0].has_lost(), "told once");
    assert_eq!(fixture.readers[0].drain(10, |_| {}), 2);
    fixture.expect_copy("room again", &segment(9, ACK | PSH), 1);
}

#[test]
fn each_flow_has_its_worker() {
    if !privileged() {
        return;
    }
    let mut fixture = Fixture::new(Hook::Tc, 3);
    let mut used = [0; 3];
    for port in 40_000..40_050 {
        let packet = packet(&format!("192.0.2.7:{port}"), "10.0.0.3:80");
        fixture.run(&packet.bytes());
        let worker = packet.flow().worker(3) as usize;
        assert_eq!(fixture.readers[worker].drain(10, |_| {}), 1, "port {port}");
        used[worker] += 1;
    }
    assert!(used.iter().all(|&n| n > 0), "{used:?}");
    assert_eq!(fixture.count(NoRing), 0);
}

#[test]
fn a_sample_takes_connections_whole_and_a_growing_one_keeps_those_it_has() {
    if !privileged() {
        return;
    }
    for hook in [Hook::Tc, Hook::Xdp] {
        let sampling = Sampling { seed: 7, share: Share::NONE };
        let mut fixture = Fixture::with_selection(hook, None, Some(sampling));
        let mut sampled = 0;
        for percent in [0, 10, 60, 100] {
            let share = Share::percent(percent);
            fixture.capture.set_share(share).unwrap();
            let mut now = 0;
            for port in 40_000..40_200 {
                let syn = Packet { flags: SYN, payload: vec![], ..packet(&format!("192.0.2.7:{port}"), "10.0.0.3:80") };
                let data = Packet { flags: ACK | PSH, payload: b"x".to_vec(), ..syn.clone() };
                let what = format!("{percent} %, port {port}, {hook:?}");
                if share.includes(syn.flow().draw(7)) {
                    now += 1;
                    fixture.expect_copy(&what, &syn, 1);
                    fixture.expect_copy(&what, &data, 1);
                } else {
                    fixture.expect_none(&what, &syn, Some(NotSampled));
                    fixture.expect_none(&what, &data, Some(NotSampled));
                }
            }
            assert!((percent == 0) == (now == 0) && (percent == 100) == (now == 200) && now >= sampled, "{now}");
            sampled = now;
        }
        // What no rule names is none of the sample's business.
        fixture.capture.set_share(Share::NONE).unwrap();
        fixture.expect_none("unmatched", &packet(CLIENT4, "10.0.0.3:81"), None);
    }
}

#[test]
fn the_smallest_range_decides_whether_a_client_is_copied() {
    if !privileged() {
        return;
    }
    let ranges = |list: &str| list.split_whitespace().map(|range| range.parse().unwrap()).collect::<Vec<Network>>();
    // What is asked for, what is excluded, who is copied, who is not.
    let table = [
        (
            "10.0.0.0/8 fd00::/8",
            "10.1.0.0/16 fd00:1::/32",
            "10.2.0.1 fd00:2::1",
            "10.1.0.1 11.0.0.1 fd00:1::1 2001:db8::1",
        ),
        ("10.1.2.0/24", "10.0.0.0/8", "10.1.2.9", "10.1.3.9 192.0.2.1 fd00::1"),
        ("", "10.0.0.0/8 2001:db8::7", "11.0.0.1 2001:db8::8", "10.9.9.9 2001:db8::7"),
        ("::/0", "", "::1 2001:db8::7", "10.0.0.1"),
        ("0.0.0.0/0", "", "10.0.0.1", "::1 2001:db8::7"),
        ("", "::/0", "10.0.0.1", "::1 2001:db8::7"),
    ];
    for (row, (only, except, copied, not_copied)) in table.into_iter().enumerate() {
        let filter = ClientFilter::new(&ranges(only), &ranges(except)).unwrap().unwrap();
        let hook = if row % 2 == 0 { Hook::Tc } else { Hook::Xdp };
        let mut fixture = Fixture::with_selection(hook, Some(&filter), None);
        let from = |client: &str| match client.contains(':') {
            true => (packet(&format!("[{client}]:40000"), "[2001:db8::3]:443"), 3),
            false => (packet(&format!("{client}:40000"), "10.0.0.3:80"), 1),
        };
        for client in copied.split(' ') {
            let (packet, rule) = from(client);
            fixture.expect_copy(&format!("{client}, --clients {only} --exclude {except}"), &packet, rule);
        }
        for client in not_copied.split(' ') {
            let what = format!("{client}, --clients {only} --exclude {except}");
            fixture.expect_none(&what, &from(client).0, Some(Filtered));
        }
    }
}

#[test]
fn the_acknowledgement_that_ends_a_handshake_is_copied_once_and_no_other() {
    if !privileged() {
        return;
    }
    for hook in [Hook::Tc, Hook::Xdp] {
        let mut fixture = Fixture::with_handshakes(hook);
        for (server, rule, client) in
            [("10.0.0.3:80", 1, CLIENT4), ("10.0.0.3:80", 1, "192.0.2.8:40000"), ("[2001:db8::3]:443", 3, CLIENT6)]
        {
            // The last ISN wraps to the number that an empty slot holds.
            for isn in [7, u32::MAX - 1, u32::MAX] {
                let what = |what| format!("{what}, {client}, ISN {isn}, {hook:?}");
                let syn = Packet { flags: SYN, payload: vec![], seq: isn, ack: 0, ..packet(client, server) };
                let ack = Packet { flags: ACK, seq: isn.wrapping_add(1), ack: 9, ..syn.clone() };
                fixture.expect_copy(&what("SYN"), &syn, rule);
                // Keep-alive probe, somebody else's, after data: pure acknowledgements too.
                for seq in [isn, isn.wrapping_add(2)] {
                    fixture.expect_none(&what("another number"), &Packet { seq, ..ack.clone() }, Some(PureAck));
                }
                fixture.expect_copy(&what("the end"), &ack, rule);
                for again in [&ack, &Packet { seq: isn, ..ack.clone() }, &Packet { ack: 10, ..ack.clone() }] {
                    fixture.expect_none(&what("afterwards"), again, Some(PureAck));
                }
                // Not if another SYN of the same connection was answered.
                fixture.expect_copy(&what("SYN again"), &syn, rule);
                fixture.expect_copy(&what("the end again"), &ack, rule);
            }
        }
        // Data in the SYN is acknowledged with it (RFC 7413).
        let syn = Packet { flags: SYN, payload: b"early".to_vec(), seq: 7, ack: 0, ..packet(CLIENT4, "10.0.0.3:80") };
        fixture.expect_copy("SYN with data", &syn, 1);
        let ack = Packet { flags: ACK, payload: vec![], seq: 13, ack: 9, ..syn };
        fixture.expect_copy("the end after data", &ack, 1);
        fixture.expect_none("no rule", &Packet { ..packet(CLIENT4, "10.0.0.3:81") }, None);
    }
}

#[test]
fn without_being_asked_for_no_acknowledgement_is_copied() {
    if !privileged() {
        return;
    }
    for hook in [Hook::Tc, Hook::Xdp] {
        let mut fixture = Fixture::new(hook, 1);
        let syn = Packet { flags: SYN, payload: vec![], ..packet(CLIENT4, "10.0.0.3:80") };
        fixture.expect_copy("SYN", &syn, 1);
        let ack = Packet { flags: ACK, seq: syn.seq + 1, ..syn };
        fixture.expect_none("the end", &ack, Some(PureAck));
    }
}

/// XDP knows nothing of the interface's address, which may change.
#[test]
fn frames_for_other_hosts_are_copied_only_if_they_are_asked_for() {
    if !privileged() {
        return;
    }
    let stranger = Packet { mac: [2, 0, 0, 0, 0, 9], ..packet(CLIENT4, "10.0.0.3:80") };
    Fixture::new(Hook::Tc, 1).expect_none("as the stack", &stranger, Some(OtherHost));
    Fixture::promiscuous().expect_copy("promiscuous", &stranger, 1);
}

#[test]
fn the_syn_ack_of_a_matching_service_is_told_of_and_nothing_else_that_leaves() {
    if !privileged() {
        return;
    }
    let answer = |server: &str, client: &str| Packet {
        flags: SYN | ACK,
        options: vec![2, 4, 5, 180, 1, 3, 3, 9],
        payload: vec![],
        ..packet(server, client)
    };
    let v4 = || answer("10.0.0.3:80", CLIENT4);
    let v6 = || answer("[2001:db8::3]:443", CLIENT6);
    let table = [
        ("IPv4", Some(1), v4()),
        ("IPv4 on two VLANs", Some(1), Packet { vlan_ethertypes: vec![0x88a8, 0x8100], ..v4() }),
        ("with ECN", Some(1), Packet { flags: SYN | ACK | TcpFlags::from_octet(0x40), ..v4() }),
        ("with as many options as there can be", Some(1), Packet { options: vec![1; 40], ..v4() }),
        ("rule with address", Some(4), answer("10.0.0.4:80", CLIENT4)),
        ("IPv6", Some(3), v6()),
        ("another port", None, answer("10.0.0.3:81", CLIENT4)),
        ("another address", None, answer("10.0.0.8:443", CLIENT4)),
        ("excluded", None, answer("10.0.0.9:80", CLIENT4)),
        ("SYN", None, Packet { flags: SYN, ..v4() }),
        ("ACK", None, Packet { flags: ACK, ..v4() }),
        ("RST", None, Packet { flags: RST | ACK, ..v4() }),
        ("nonsense", None, Packet { flags: SYN | ACK | RST, ..v4() }),
        ("data", None, Packet { flags: ACK | PSH, payload: vec![0; 1000], ..v4() }),
        ("fragment", None, Packet { fragment_flags_offset: 0x2000, ..v4() }),
        ("cut", None, Packet { cut: Some(14 + 20 + 18), ..v4() }),
        ("of the client", None, Packet { flags: SYN | ACK, ..packet(CLIENT4, "10.0.0.3:80") }),
    ];
    let mut fixture = Fixture::new(Hook::Tc, 1);
    for (what, rule, packet) in &table {
        let count = fixture.count(Answers);
        assert_eq!(run_tc(fixture.capture.object(), "answer_tc", &packet.bytes()), TCX_NEXT);
        let mut rules = Vec::new();
        fixture.readers[0].drain(10, |record| {
            let parsed = LiveRecord::parse(record, Checksums::Complete).unwrap();
            let LiveRecord::Answer(answer) = parsed else { panic!("{what}: {parsed:?}") };
            let Flow { client, client_port, server, server_port, .. } = packet.flow();
            assert_eq!(answer.flow, Flow::tcp((server, server_port), (client, client_port)), "{what}");
            assert_eq!((answer.seq, answer.ack), (packet.seq, packet.ack), "{what}");
            let scale = (packet.options.len() == 8).then_some(9);
            assert_eq!(answer.options.window_scale, scale, "{what}");
            rules.push(answer.rule);
        });
        assert_eq!(rules, Vec::from_iter(*rule), "{what}");
        assert_eq!(fixture.count(Answers), count + u64::from(rule.is_some()), "{what}");
    }
}
