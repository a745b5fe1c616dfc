//! The programs on real interfaces, in network namespaces of their own.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsFd as _,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use aya::programs::{SchedClassifier, TcAttachType};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    thread::{UnshareFlags, unshare_unsafe},
};
use tcpcopy_common::{
    counters::{CaptureCounter, TargetCounter},
    response::Response,
    tcp_flags::{ACK, SYN},
};
use tcpcopy_replay::{Checksums, LiveRecord};

use super::{learn, packets::packet, privileged};
use crate::{
    bpf::{
        Attachment, BpfError, Capture, CaptureRule, CaptureSetup, Hook, Intercept, InterceptSetup, Interceptor,
        RingReader, TcAttach,
    },
    net::NetError,
};

const DEADLINE: Duration = Duration::from_secs(60);

/// Runs `test` in a thread with a network namespace of its own, in which loopback is up.
fn in_namespace(test: impl FnOnce() + Send + 'static) {
    if !privileged() {
        return;
    }
    let thread = std::thread::spawn(|| {
        // SAFETY: the thread shares nothing of its network namespace that the rest of the process relies on.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        ip("link set lo up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("`ip` of iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn capture(interfaces: &[&str], hook: Hook) -> Result<(Capture, Vec<RingReader>, Vec<Attachment>), BpfError> {
    let interfaces: Vec<_> = interfaces.iter().map(|&name| name.to_owned()).collect();
    let (mut capture, readers) = Capture::load(&CaptureSetup {
        rules: &[CaptureRule { id: 0, address: None, port: 80 }],
        exclude: &[],
        clients: None,
        sampling: None,
        handshakes: false,
        promiscuous: false,
        workers: 1,
        ring_bytes: 64 << 20,
        interfaces: &interfaces,
        hook,
        debug: true,
    })?;
    let attachments = capture.attach()?;
    Ok((capture, readers, attachments))
}

/// Hands records to `f` until that returns true, and sleeps in between as a worker does.
fn read_until(reader: &mut RingReader, mut f: impl FnMut(&[u8]) -> bool) {
    let start = Instant::now();
    let mut done = false;
    while !done {
        assert!(start.elapsed() < DEADLINE, "the records did not come");
        let records = reader.drain(64, |record| done |= f(record));
        if records == 0 && reader.prepare_sleep() {
            // Longer than a worker would: a wake-up that gets lost is to be seen.
            let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
            let woken = poll(&mut [PollFd::new(&reader.as_fd(), PollFlags::IN)], Some(&timeout)).unwrap();
            reader.awake();
            assert_eq!(woken, 1, "the reader was not woken");
        }
    }
}

/// Puts the captured payload together, and returns how long the longest piece was.
fn read_stream(reader: &mut RingReader, length: usize) -> usize {
    let mut first = None;
    let mut seen = vec![false; length];
    let mut missing = length;
    let mut longest = 0;
    read_until(reader, |record| {
        // The listener's SYN-ACK is told of, too.
        let LiveRecord::Segment(segment) = LiveRecord::parse(record, Checksums::Partial).unwrap() else { return false };
        assert!(segment.intact, "{segment:?}");
        if segment.flags.contains(SYN) {
            first = Some(segment.seq.wrapping_add(1));
        }
        let at = segment.seq.wrapping_sub(first.expect("the SYN comes first")) as usize;
        for (i, octet) in segment.payload.iter().enumerate() {
            assert_eq!(*octet, pattern(at + i), "octet {}", at + i);
            missing -= usize::from(!std::mem::replace(&mut seen[at + i], true));
        }
        longest = longest.max(segment.payload.len());
        missing == 0
    });
    longest
}

fn pattern(at: usize) -> u8 {
    (at / 7) as u8
}

/// Accepts one connection and reads it to its end.
fn serve(address: &str) -> std::thread::JoinHandle<u64> {
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        std::io::copy(&mut stream.take(u64::MAX), &mut std::io::sink()).unwrap()
    })
}

#[test]
fn super_packets_are_captured_whole_on_loopback() {
    in_namespace(|| {
        let (capture, mut readers, attachments) = capture(&["lo"], Hook::Auto).unwrap();
        assert_eq!(attachments, [Attachment { interface: "lo".to_owned(), hook: "tc ingress" }]);
        const LENGTH: usize = 4 << 20;
        let server = serve("127.0.0.1:80");
        let mut stream = TcpStream::connect("127.0.0.1:80").unwrap();
        let octets: Vec<_> = (0..LENGTH).map(pattern).collect();
        let writer = std::thread::spawn(move || stream.write_all(&octets).unwrap());
        let longest = read_stream(&mut readers[0], LENGTH);
        // Longer than any Ethernet frame. How much longer depends on the receiver's window: Linux sends no more at once
        // than half of it.
        assert!(longest > 16_384, "the longest record had only {longest} octets");
        writer.join().unwrap();
        assert_eq!(server.join().unwrap(), LENGTH as u64);
        let counters = capture.counters().unwrap();
        assert_eq!(counters.get(CaptureCounter::RingFull), 0);
        assert!(counters.get(CaptureCounter::PureAck) > 0);
    });
}

/// A namespace with a name, for the other end of a veth.
struct Named(String);

impl Drop for Named {
    fn drop(&mut self) {
        ip(&format!("netns del {}", self.0));
    }
}

#[test]
fn super_packets_are_captured_whole_on_veth() {
    for (hook, name) in [(Hook::Tc, "tc"), (Hook::Xdp, "xdp"), (Hook::XdpGeneric, "gen")] {
        in_namespace(move || {
            let peer = Named(format!("bpf-test-{}-{name}", std::process::id()));
            ip(&format!("netns add {}", peer.0));
            ip(&format!("link add v0 type veth peer name v1 netns {}", peer.0));
            for (prefix, dev, host) in [(String::new(), "v0", 1), (format!("-n {} ", peer.0), "v1", 2)] {
                ip(&format!("{prefix}addr add 192.0.2.{host}/24 dev {dev}"));
                ip(&format!("{prefix}link set {dev} up"));
            }
            let (capture, mut readers, attachments) = capture(&["v0"], hook).unwrap();
            assert!(attachments[0].hook.starts_with(&name[..1]) || hook == Hook::XdpGeneric);
            let server = serve("192.0.2.1:80");
            const LENGTH: usize = 4 << 20;
            let mut client = Command::new("ip")
                .args(["netns", "exec", &peer.0, "bash", "-c", "cat > /dev/tcp/192.0.2.1/80"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            let octets: Vec<_> = (0..LENGTH).map(pattern).collect();
            let mut stdin = client.stdin.take().unwrap();
            let writer = std::thread::spawn(move || stdin.write_all(&octets).unwrap());
            let longest = read_stream(&mut readers[0], LENGTH);
            if hook == Hook::Tc {
                // Longer than any Ethernet frame. How much longer depends on the receiver's window: Linux sends no more
                // at once than half of it.
                assert!(longest > 16_384, "the longest record had only {longest} octets");
            }
            writer.join().unwrap();
            assert!(client.wait().unwrap().success());
            assert_eq!(server.join().unwrap(), LENGTH as u64);
            assert_eq!(capture.counters().unwrap().get(CaptureCounter::RingFull), 0);
        });
    }
}

#[test]
fn a_swallowed_syn_ack_does_not_reach_the_client() {
    for attach in [TcAttach::Tcx, TcAttach::Clsact] {
        in_namespace(move || {
            let setup = InterceptSetup { attach, max_sessions: 16, ring_bytes: 1 << 16, reflect: false, debug: true };
            let Intercept { programs: mut interceptor, mut instances, counters, reports: mut reader, mut sessions } =
                Interceptor::load(&setup).unwrap();
            interceptor.attach_swallow("lo").unwrap();
            interceptor.attach_swallow("lo").unwrap();
            assert!(matches!(interceptor.attach_learn("nonesuch0"), Err(BpfError::Net(NetError::NoInterface { .. }))));
            // The session is opened by hand: `learn` is not attached, so that the ordinary SYN below does not end it.
            let listener = TcpListener::bind("127.0.0.1:80").unwrap();
            let client: SocketAddr = "127.0.0.1:40000".parse().unwrap();
            instances.add(1, &learn::KEY).unwrap();
            let syn = learn::marked_syn_to("127.0.0.1:40000", "127.0.0.1:80", 1, 7);
            super::run_tc(interceptor.object(), "learn", &syn.bytes());
            learn::answered(&mut sessions, &syn.flow());

            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.bind(&client.into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&listener.local_addr().unwrap().into());
            // The first SYN+ACK, and its retransmission after a second: so the client has not acknowledged the first.
            let mut syn_acks = 0;
            read_until(&mut reader, |record| {
                let report = *Response::from_record(record).unwrap().header();
                assert_eq!(report.flow, packet("127.0.0.1:40000", "127.0.0.1:80").flow());
                assert_eq!(report.flags & (SYN | ACK), SYN | ACK);
                assert_ne!((report.mss, report.options), ([0; 2], 0));
                syn_acks += 1;
                syn_acks == 2
            });
            assert!(socket.peer_addr().is_err(), "the connection must not be established");
            assert!(counters.read().unwrap().get(TargetCounter::Swallowed) >= 2);
            let mut logger = interceptor.logger().expect("debug is on");
            assert!(interceptor.logger().is_none());
            let timeout = Timespec { tv_sec: 60, tv_nsec: 0 };
            let lines = poll(&mut [PollFd::new(&logger, PollFlags::IN)], Some(&timeout)).unwrap();
            assert_eq!(lines, 1, "the program has said that it swallowed the SYN+ACK");
            logger.flush();

            interceptor.attach_learn("lo").unwrap();
            interceptor.detach(crate::net::interface::by_name("lo").unwrap().index);
            assert_eq!(attached("lo"), "");
            // Now it leaves, and the client gets its connection.
            let start = Instant::now();
            while socket.peer_addr().is_err() {
                assert!(start.elapsed() < DEADLINE, "the connection was not established");
                let timeout = Timespec { tv_sec: 1, tv_nsec: 0 };
                let _ = poll(&mut [PollFd::new(&socket, PollFlags::OUT)], Some(&timeout));
            }
        });
    }
}

/// What is attached to an interface, in words; empty if nothing is.
/// The name of an interface passes to another one when the first is renamed, or removed and made again.
#[test]
fn an_interface_that_takes_another_ones_name_is_hooked_too() {
    for attach in [TcAttach::Tcx, TcAttach::Clsact] {
        in_namespace(move || {
            let setup = InterceptSetup { attach, max_sessions: 16, ring_bytes: 1 << 16, reflect: false, debug: false };
            let mut interceptor = Interceptor::load(&setup).unwrap().programs;
            ip("link add v0 type veth peer name p0");
            interceptor.attach_swallow("v0").unwrap();
            ip("link set v0 name v1");
            ip("link add v0 type veth peer name p1");
            interceptor.attach_swallow("v0").unwrap();
            assert_ne!(attached("v0"), "", "the new one");
            assert_ne!(attached("v1"), "", "the renamed one");
            assert_eq!(interceptor.attached().count(), 2);
        });
    }
}

fn attached(interface: &str) -> String {
    let mut found = String::new();
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        let (_, programs) = SchedClassifier::query_tcx(interface, direction).unwrap();
        for program in programs {
            found.push_str(&format!("{direction:?} {}\n", program.name_as_str().unwrap_or_default()));
        }
    }
    if ip(&format!("link show {interface}")).contains("xdp") {
        found.push_str("xdp\n");
    }
    let qdiscs = Command::new("tc").args(["qdisc", "show", "dev", interface]).output().unwrap().stdout;
    if String::from_utf8_lossy(&qdiscs).contains("clsact") {
        found.push_str("clsact\n");
    }
    found
}

/// Names of the hooks that [`child_holds_programs_attached`] understands.
const HOLD: &str = "BPF_TEST_HOLD";

/// Not a test: the process that the next test kills.
#[test]
#[ignore = "only run by another test"]
fn child_holds_programs_attached() {
    let held = std::env::var(HOLD).expect("run by the other test");
    let intercept = |attach| {
        let setup = InterceptSetup { attach, max_sessions: 16, ring_bytes: 4096, reflect: false, debug: false };
        let mut interceptor = Interceptor::load(&setup).unwrap().programs;
        interceptor.attach_learn("lo").unwrap();
        interceptor.attach_swallow("lo").unwrap();
        interceptor
    };
    let (_capture, _interceptor) = match held.as_str() {
        "tc" => (Some(capture(&["lo"], Hook::Tc).unwrap()), None),
        "xdp" => (Some(capture(&["lo"], Hook::XdpGeneric).unwrap()), None),
        "tcx" => (None, Some(intercept(TcAttach::Tcx))),
        "clsact" => (None, Some(intercept(TcAttach::Clsact))),
        _ => panic!("unknown {held}"),
    };
    println!("\nattached");
    std::io::stdin().read_exact(&mut [0]).unwrap();
}

#[test]
fn nothing_outlives_a_killed_process() {
    in_namespace(|| {
        for held in ["tc", "xdp", "tcx", "clsact"] {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture", "bpf::tests::attach::child_holds_programs_attached"])
                .env(HOLD, held)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let lines = BufReader::new(child.stdout.take().unwrap()).lines();
            assert!(lines.map_while(Result::ok).any(|line| line == "attached"), "{held}");
            assert_ne!(attached("lo"), "", "{held}");
            child.kill().unwrap();
            child.wait().unwrap();
            if held == "clsact" {
                // What netlink attached stays, until the next start removes it.
                assert_eq!(attached("lo"), "clsact\n");
                let filters = || ip_tc("filter show dev lo ingress") + &ip_tc("filter show dev lo egress");
                assert_eq!(filters().matches("direct-action").count(), 2, "{}", filters());
                let setup = InterceptSetup {
                    attach: TcAttach::Clsact,
                    max_sessions: 1,
                    ring_bytes: 1,
                    reflect: false,
                    debug: false,
                };
                let mut interceptor = Interceptor::load(&setup).unwrap().programs;
                interceptor.attach_swallow("lo").unwrap();
                assert_eq!(filters().matches("direct-action").count(), 1, "{}", filters());
            }
            assert_eq!(attached("lo"), "", "{held}");
        }
    });
}

fn ip_tc(arguments: &str) -> String {
    String::from_utf8(Command::new("tc").args(arguments.split(' ')).output().unwrap().stdout).unwrap()
}

#[test]
fn interfaces_that_cannot_be_captured_on_are_refused_with_the_reason() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("link add v0 type veth peer name v1");
        ip("link set v0 master br0");
        ip("tuntap add dev tun0 mode tun");
        ip("link set v1 mtu 9000");
        ip("link set v1 up");
        let refused = |interfaces: &[&str], hook| capture(interfaces, hook).err().expect("refused").to_string();
        assert!(refused(&["v0", "br0"], Hook::Auto).contains("`br0` is stacked on `v0`"));
        assert!(refused(&["v2"], Hook::Auto).contains("no interface v2"));
        assert!(refused(&["tun0"], Hook::Xdp).contains("no Ethernet header"));
        assert!(refused(&["lo"], Hook::Xdp).contains("refused XDP in native mode"));
        let first = capture(&["v1"], Hook::XdpGeneric).unwrap();
        assert!(refused(&["v1"], Hook::XdpGeneric).contains("another XDP program"));
        drop(first);
        // A veth and its peer, and a port and another device, are no stacks. A device without a link header is fine.
        capture(&["v0", "v1", "tun0"], Hook::Tc).unwrap();
    });
}
