//! What the programs cost per packet beyond a program that does nothing: a measurement, by `BPF_PROG_TEST_RUN`.
//!
//! `cargo test --release -p tcpcopy --lib cost_of_the_programs -- --ignored --nocapture`

use std::{
    io,
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
    time::Duration,
};

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use bytemuck::{Pod, Zeroable};
use tcpcopy_common::{
    counters::{CaptureCounter, TargetCounter},
    prefix::Prefix,
    tcp_flags::{ACK, SYN},
};

use super::{
    capture::{self, CLIENT4},
    learn::{self, marked_syn},
    packets::{Packet, packet},
};
use crate::{
    bpf::{Hook, object::Object},
    net::testing::{isolated, veth},
};

/// Runs of one measurement: as many as a ring holds that stays in the caches.
const RUNS: u32 = 150;
/// Measurements, of which the least counts: what disturbs only ever adds.
const ROUNDS: usize = 200;
const RING: u32 = 1 << 18;

/// The nanoseconds of the quickest of [`ROUNDS`] measurements.
fn least(mut measure: impl FnMut() -> Duration) -> u128 {
    (0..ROUNDS).map(|_| measure().as_nanos()).min().unwrap_or_default()
}

fn cost(object: &mut Object, program: &'static str, packet: &[u8]) -> Duration {
    let options = TestRunOptions { data_in: Some(packet), repeat: RUNS, ..TestRunOptions::new() };
    let result = match program {
        "capture_xdp" => object.program::<Xdp>(program).unwrap().test_run(options),
        _ => object.program::<SchedClassifier>(program).unwrap().test_run(options),
    };
    result.unwrap().duration
}

/// A program that returns at once.
struct Empty(OwnedFd);

/// The heads of `union bpf_attr` for `BPF_PROG_LOAD` and `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ProgTestRun {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

impl Empty {
    const TC: u32 = 3;
    const XDP: u32 = 6;

    fn load(prog_type: u32) -> Self {
        // r0 = 2 (XDP_PASS), exit.
        let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let mut load = ProgLoad {
            prog_type,
            insn_cnt: instructions.len() as u32,
            insns: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
        };
        let fd = bpf(5, &mut load);
        // SAFETY: BPF_PROG_LOAD returns a descriptor that is new and ours.
        Self(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn cost(&self, packet: &[u8]) -> Duration {
        let mut run = ProgTestRun {
            prog_fd: self.0.as_raw_fd() as u32,
            data_size_in: packet.len() as u32,
            data_in: packet.as_ptr() as u64,
            repeat: RUNS,
            ..ProgTestRun::zeroed()
        };
        bpf(10, &mut run);
        Duration::from_nanos(run.duration.into())
    }
}

fn bpf<A: Pod>(command: libc::c_int, attr: &mut A) -> i32 {
    let size = size_of::<A>() as libc::c_uint;
    // SAFETY: `attr` is the head of `union bpf_attr` for the command, and its pointers are to memory that outlives the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size) };
    assert!(result >= 0, "{}", io::Error::last_os_error());
    result as i32
}

fn report(program: &str, what: &str, cost: u128, empty: u128) {
    eprintln!("| `{program}` | {what} | {} |", cost.saturating_sub(empty));
}

const TIMESTAMPS: [u8; 12] = [1, 1, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0];

#[test]
#[ignore = "a measurement"]
fn cost_of_the_programs() {
    isolated(|peer| {
        veth(peer);
        let (tc, xdp) = (Empty::load(Empty::TC), Empty::load(Empty::XDP));
        let baseline = |empty: &Empty, packet: &[u8]| least(|| empty.cost(packet));
        eprintln!("empty: TC {} ns, XDP {} ns", baseline(&tc, &[0; 64]), baseline(&xdp, &[0; 64]));
        for (hook, program, empty) in [(Hook::Tc, "capture_tc", &tc), (Hook::Xdp, "capture_xdp", &xdp)] {
            capturing(hook, program, |packet| baseline(empty, packet));
        }
        watching(|packet| baseline(&tc, packet));
        answering(|packet| baseline(&tc, packet));
    });
}

/// The source's programs.
fn capturing(hook: Hook, program: &'static str, baseline: impl Fn(&[u8]) -> u128) {
    let segment = |payload: usize, port: u16| Packet {
        payload: vec![0; payload],
        options: TIMESTAMPS.to_vec(),
        ..packet(CLIENT4, &format!("10.0.0.3:{port}"))
    };
    let table = [
        ("not IP", vec![0; 64]),
        ("no rule, 512 octets", segment(512, 81).bytes()),
        ("pure ACK", Packet { flags: ACK, ..segment(0, 80) }.bytes()),
        ("SYN", Packet { flags: SYN, ..segment(0, 80) }.bytes()),
        ("copied, 64 octets", segment(64, 80).bytes()),
        ("copied, 512 octets", segment(512, 80).bytes()),
        ("copied, 1448 octets", segment(1448, 80).bytes()),
    ];
    let settings = [(false, ""), (true, ", handshakes measured")];
    for ((handshakes, setting), (what, packet)) in
        settings.iter().flat_map(|setting| table.iter().map(move |row| (setting, row)))
    {
        let mut fixture = capture::Fixture::on("v0", hook, 1, RING, (None, None), *handshakes);
        // For an XDP program that is attached nowhere, each call would wait until the kernel has rewritten its
        // dispatcher: long enough for the ring to fall out of the caches.
        fixture.capture.attach().unwrap();
        let cost = least(|| {
            let cost = cost(fixture.capture.object(), program, packet);
            fixture.readers[0].drain(usize::MAX, |_| {});
            cost
        });
        assert_eq!(fixture.count(CaptureCounter::RingFull), 0);
        report(program, &format!("{what}{setting}"), cost, baseline(packet));
    }
}

/// The source's program that waits for SYN-ACKs in what the host sends.
fn watching(baseline: impl Fn(&[u8]) -> u128) {
    let segment = |service: &str, flags, payload: usize| Packet {
        flags,
        payload: vec![0; payload],
        options: TIMESTAMPS.to_vec(),
        ..packet(service, CLIENT4)
    };
    let table = [
        ("not IP", vec![0; 64]),
        ("of no service that is copied, 1448 octets", segment("10.0.0.3:81", ACK, 1448).bytes()),
        ("SYN-ACK of such a service", segment("10.0.0.3:81", SYN | ACK, 0).bytes()),
        ("of a service that is copied, 1448 octets", segment("10.0.0.3:80", ACK, 1448).bytes()),
        ("SYN-ACK of a service that is copied", segment("10.0.0.3:80", SYN | ACK, 0).bytes()),
    ];
    for (what, packet) in table {
        let mut fixture = capture::Fixture::on("v0", Hook::Tc, 1, RING, (None, None), false);
        let cost = least(|| {
            let cost = cost(fixture.capture.object(), "answer_tc", &packet);
            fixture.readers[0].drain(usize::MAX, |_| {});
            cost
        });
        assert_eq!(fixture.count(CaptureCounter::RingFull), 0);
        report("answer_tc", what, cost, baseline(&packet));
    }
}

/// The target's programs.
fn answering(baseline: impl Fn(&[u8]) -> u128) {
    let request = |client: &str| Packet { options: TIMESTAMPS.to_vec(), ..packet(client, "10.0.0.3:80") };
    let response = |client: &str, payload| Packet {
        options: TIMESTAMPS.to_vec(),
        payload: vec![0; payload],
        ..packet("10.0.0.3:80", client)
    };
    let table = [
        ("learn", "not IP", vec![0; 64]),
        ("learn", "of the target's own", request("192.0.2.8:40000").bytes()),
        ("learn", "of a session", request(CLIENT4).bytes()),
        ("learn", "SYN of the target's own", Packet { flags: SYN, ..request("192.0.2.8:40000") }.bytes()),
        ("learn", "SYN with the mark of a session", marked_syn(CLIENT4, 1, 7).bytes()),
        ("swallow_tcx", "not IP", vec![0; 64]),
        ("swallow_tcx", "of the target's own", response("192.0.2.8:40000", 512).bytes()),
        ("swallow_tcx", "of a session, no payload", response(CLIENT4, 0).bytes()),
        ("swallow_tcx", "of a session, 1448 octets", response(CLIENT4, 1448).bytes()),
    ];
    let without = table.iter().map(|(program, what, packet)| (*program, (*what).to_owned(), packet.clone(), 0));
    // As much as the ring holds of as many runs.
    let with = [16, 256, 1024].map(|octets| {
        let what = format!("of a session, 1448 octets, the first {octets} reported");
        ("swallow_tcx", what, response(CLIENT4, 1448).bytes(), octets)
    });
    for (program, what, packet, octets) in without.chain(with) {
        let mut fixture = learn::Fixture::new(1024, RING);
        let prefix = Prefix::new(octets).unwrap();
        fixture.instances.set_prefixes(1, &[("10.0.0.3:80".parse().unwrap(), prefix)]).unwrap();
        fixture.open("learn", &marked_syn(CLIENT4, 1, 7));
        let cost = least(|| {
            let cost = cost(fixture.interceptor.object(), program, &packet);
            fixture.reports();
            cost
        });
        assert_eq!((fixture.count(TargetCounter::ReportLost), fixture.count(TargetCounter::PrefixLost)), (0, 0));
        report(program, &what, cost, baseline(&packet));
    }
}
