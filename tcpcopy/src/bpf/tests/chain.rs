//! Programs of other agents in the chains that ours are in.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd},
};

use bytemuck::{Pod, Zeroable};
use tcpcopy_common::{
    response::Response,
    tcp_flags::{ACK, SYN},
};

use super::{
    attach::{attached, in_namespace, ip, read_until},
    learn,
};
use crate::{
    bpf::{Intercept, InterceptSetup, Interceptor, Mended, TcAttach},
    net::interface,
};

const INGRESS: u32 = 46;
const EGRESS: u32 = 47;
/// Before or behind all others (`BPF_F_BEFORE`, `BPF_F_AFTER`).
const FIRST: u32 = 1 << 3;
const LAST: u32 = 1 << 4;

/// An instruction: see Documentation/bpf/standardization/instruction-set.rst.
fn instruction(opcode: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> [u8; 8] {
    let (offset, [a, b, c, d]) = (offset.to_le_bytes(), immediate.to_le_bytes());
    [opcode, source << 4 | destination, offset[0], offset[1], a, b, c, d]
}

const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const JUMP_UNLESS_EQUAL: u8 = 0x55;
const LOAD_HALF: u8 = 0x69;
const STORE_HALF: u8 = 0x6a;

/// Returns a verdict, whatever the packet.
fn verdict(verdict: i32) -> Vec<[u8; 8]> {
    vec![instruction(MOVE, 0, 0, 0, verdict), instruction(EXIT, 0, 0, 0, 0)]
}

/// Changes the source port `from`, at `offset` of a packet, into `to`, and leaves the packet to the next program.
fn changes_port(offset: i32, from: u16, to: u16) -> Vec<[u8; 8]> {
    let cell = |length| {
        vec![
            instruction(MOVE_REGISTER, 1, 6, 0, 0),
            instruction(MOVE, 2, 0, 0, offset),
            instruction(MOVE_REGISTER, 3, 10, 0, 0),
            instruction(ADD, 3, 0, 0, -8),
            instruction(MOVE, 4, 0, 0, length),
        ]
    };
    [
        vec![instruction(MOVE_REGISTER, 6, 1, 0, 0)],
        cell(2),
        // bpf_skb_load_bytes
        vec![instruction(CALL, 0, 0, 0, 26), instruction(JUMP_UNLESS_EQUAL, 0, 0, 10, 0)],
        vec![
            instruction(LOAD_HALF, 1, 10, -8, 0),
            instruction(JUMP_UNLESS_EQUAL, 1, 0, 8, i32::from(from.to_be())),
            instruction(STORE_HALF, 10, 0, -8, i32::from(to.to_be() as i16)),
        ],
        cell(2),
        // bpf_skb_store_bytes
        vec![instruction(MOVE, 5, 0, 0, 0), instruction(CALL, 0, 0, 0, 9)],
        verdict(-1),
    ]
    .concat()
}

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
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<A: Pod>(command: libc::c_int, mut attr: A) -> OwnedFd {
    let size = size_of::<A>() as libc::c_uint;
    // SAFETY: `attr` is the head of `union bpf_attr` for the command, and its pointers are to memory that outlives the
    // call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(&mut attr), size) };
    assert!(result >= 0, "{}", io::Error::last_os_error());
    // SAFETY: both commands that are used return a descriptor that is new and ours.
    unsafe { OwnedFd::from_raw_fd(result as libc::c_int) }
}

/// Another agent's program on an interface, as long as this lives.
fn another(instructions: &[[u8; 8]], interface: &str, attach_type: u32, flags: u32) -> OwnedFd {
    const SCHED_CLS: u32 = 3;
    let load = ProgLoad {
        prog_type: SCHED_CLS,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let program = bpf(5, load);
    let target_ifindex = interface::by_name(interface).unwrap().index;
    bpf(28, LinkCreate { prog_fd: program.as_raw_fd() as u32, target_ifindex, attach_type, flags })
}

fn intercept() -> Option<Intercept> {
    let setup = |attach| InterceptSetup { attach, max_sessions: 16, ring_bytes: 1 << 16, reflect: false, debug: false };
    let loaded = Interceptor::load(&setup(TcAttach::Tcx));
    if loaded.is_err() {
        crate::net::testing::skip("TCX came with Linux 6.6");
    }
    loaded.ok()
}

fn mended(interceptor: &mut Interceptor) -> Vec<Mended> {
    interceptor.mend_chains().into_iter().map(Result::unwrap).collect()
}

fn overtaken(direction: &'static str) -> Mended {
    Mended::Overtaken { interface: "v0".into(), direction }
}

#[test]
fn a_program_that_another_has_overtaken_comes_back_to_the_head_of_its_chain() {
    in_namespace(|| {
        let Some(Intercept { programs: mut interceptor, .. }) = intercept() else { return };
        ip("link add v0 type veth peer name v1");
        interceptor.hook("v0").unwrap();
        assert_eq!(mended(&mut interceptor), []);
        let (followed, names) = (Mended::Followed { interface: "v0".into() }, |chain: &[&str]| {
            chain.iter().map(|line| format!("{line}\n")).collect::<String>()
        });
        // TCX_PASS ends a chain.
        let others = [INGRESS, EGRESS].map(|direction| another(&verdict(0), "v0", direction, FIRST));
        assert!(attached("v0").starts_with("Ingress \nIngress learn\n"), "{}", attached("v0"));
        let done = mended(&mut interceptor);
        assert_eq!(done, [overtaken("ingress"), overtaken("egress"), followed.clone()]);
        // The kernel keeps 15 octets of a name.
        let egress = ["Egress swallow_tcx_aga", "Egress ", "Egress swallow_tcx_las"];
        let ingress = ["Ingress learn_again", "Ingress "];
        assert_eq!(attached("v0"), names(&[&ingress[..], &egress[..]].concat()));
        assert_eq!(mended(&mut interceptor), []);
        // And again, by one that comes first and one that comes last.
        let more = [FIRST, LAST].map(|place| another(&verdict(-1), "v0", EGRESS, place));
        assert_eq!(mended(&mut interceptor), [overtaken("egress"), followed]);
        let egress = ["Egress swallow_tcx", "Egress ", "Egress ", "Egress ", "Egress swallow_tcx_las"];
        assert_eq!(attached("v0"), names(&[&ingress[..], &egress[..]].concat()));
        // When the others are gone one is enough.
        drop((others, more));
        assert_eq!(mended(&mut interceptor), []);
        assert_eq!(attached("v0"), names(&["Ingress learn_again", "Egress swallow_tcx"]));
        drop(interceptor);
        assert_eq!(attached("v0"), "");
    });
}

/// As a load balancer does: what comes in for one port goes to another, and what that answers leaves from the first.
#[test]
fn an_answer_is_recognised_whose_address_is_changed_behind_our_program() {
    for (address, port_at) in [("127.0.0.1", 14 + 20), ("[::1]", 14 + 40)] {
        in_namespace(move || {
            let Some(intercept) = intercept() else { return };
            let Intercept { programs: mut interceptor, mut instances, reports: mut reader, mut sessions, .. } =
                intercept;
            // `learn` is not attached: the SYN below has no mark.
            interceptor.attach_swallow("lo").unwrap();
            let listener = TcpListener::bind(format!("{address}:8080")).unwrap();
            let client: SocketAddr = format!("{address}:40000").parse().unwrap();
            instances.add(1, &learn::KEY).unwrap();
            let syn = learn::marked_syn_to(&client.to_string(), &format!("{address}:80"), 1, 7);
            super::run_tc(interceptor.object(), "learn", &syn.bytes());
            learn::answered(&mut sessions, &syn.flow());
            let _other = another(&changes_port(port_at, 8080, 80), "lo", EGRESS, LAST);
            assert_eq!(mended(&mut interceptor), [Mended::Followed { interface: "lo".into() }]);

            let domain = socket2::Domain::for_address(client);
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.bind(&client.into()).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&listener.local_addr().unwrap().into());
            read_until(&mut reader, |record| {
                let report = *Response::from_record(record).unwrap().header();
                assert_eq!((report.flow, report.flags & (SYN | ACK)), (syn.flow(), SYN | ACK));
                true
            });
        });
    }
}

/// One that ends the chain, and behind which ours would look in vain, is told from one that lets it go on.
#[test]
fn a_program_that_ends_the_chain_before_ours_at_its_end_is_found() {
    for (returns, ends) in [(-1, false), (0, true)] {
        in_namespace(move || {
            let Some(Intercept { programs: mut interceptor, .. }) = intercept() else { return };
            ip("link add v0 type veth peer name v1");
            ip("link set v1 up");
            ip("link set v0 up");
            ip("address add 192.0.2.1/24 dev v0");
            ip("neighbour replace 192.0.2.2 lladdr 02:00:00:00:00:01 dev v0 nud permanent");
            interceptor.hook("v0").unwrap();
            let _other = another(&verdict(returns), "v0", EGRESS, LAST);
            assert_eq!(mended(&mut interceptor), [Mended::Followed { interface: "v0".into() }]);
            let socket = std::net::UdpSocket::bind("192.0.2.1:0").unwrap();
            for _ in 0..16 {
                socket.send_to(&[0], "192.0.2.2:9").unwrap();
            }
            let expected: &[_] = if ends { &[Mended::Ended { interface: "v0".into() }] } else { &[] };
            assert_eq!(mended(&mut interceptor), expected);
        });
    }
}
