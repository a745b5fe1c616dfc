//! System calls that fail: each that may fail for a reason that is not the programs' does so, at the start, under load
//! and at the end. Production notices nothing, the mirror goes on or ends with an error that says why, and nothing is
//! left behind.

use std::{
    net::TcpStream,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually,
    http::{Client, Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    program::Ended,
    syscalls::{Call, Fault, Faults, On},
    traces::{BpfObjects, differences, network_state},
};
use rustix::{io::Errno, process::Signal};

/// Commands of bpf(2) (`linux/bpf.h`).
mod bpf {
    pub const MAP_CREATE: u64 = 0;
    pub const MAP_LOOKUP_ELEM: u64 = 1;
    pub const PROG_LOAD: u64 = 5;
    pub const BTF_LOAD: u64 = 18;
    pub const LINK_CREATE: u64 = 28;
    pub const MAP_LOOKUP_BATCH: u64 = 24;
}

/// The call that the C library makes of epoll_wait(3).
const WAIT: &str = if cfg!(target_arch = "x86_64") { "epoll_wait" } else { "epoll_pwait" };
/// Where `intercept` listens.
const CONTROL_PORT: u16 = 36524;
/// The command of fcntl(2) that duplicates a descriptor.
const F_DUPFD_CLOEXEC: u64 = libc::F_DUPFD_CLOEXEC as u64;

/// How the kernel may refuse packets for the moment.
const SENDING: &[(Errno, Outcome)] = &[
    (Errno::INTR, Outcome::Ready),
    (Errno::AGAIN, Outcome::Ready),
    (Errno::NOBUFS, Outcome::Ready),
    (Errno::NOMEM, Outcome::Ready),
    (Errno::NETDOWN, Outcome::Ready),
    (Errno::NETUNREACH, Outcome::Ready),
    (Errno::PERM, Outcome::Ready),
];

/// The names of the main threads, which are those of the programs.
const PROGRAMS: [&str; 2] = ["intercept", "tcpcopy"];

/// Starts one of the programs with faults.
fn start(program: &str, mirror: &Mirror, lab: &Lab, order: impl FnOnce(&Faults)) -> (Program, Faults) {
    let mut command: Command = match program {
        "intercept" => mirror.intercept_command(),
        _ => mirror.tcpcopy_command(&lab.source),
    }
    .unwrap();
    command.arg("--pid-file").arg(mirror.directory().join("pid"));
    let faults = Faults::prepare(&mut command).unwrap();
    order(&faults);
    (Program::start(program, &mut command).unwrap(), faults)
}

/// Starts both programs, and returns how each is told which calls fail; none does yet.
fn mirror(lab: &Lab) -> (Mirror, [Faults; 2]) {
    let mut mirror = Mirror::prepare(lab, MirrorOptions::default()).unwrap();
    let (intercept, of_intercept) = start("intercept", &mirror, lab, |_| {});
    intercept.wait_ready().unwrap();
    mirror.intercept = Some(intercept);
    let mut command = mirror.tcpcopy_command(&lab.source).unwrap();
    let of_tcpcopy = Faults::prepare(&mut command).unwrap();
    let tcpcopy = Program::start("tcpcopy", &mut command).unwrap();
    tcpcopy.wait_ready().unwrap();
    mirror.tcpcopy = Some(tcpcopy);
    (mirror, [of_intercept, of_tcpcopy])
}

/// What must come of a fault at the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    /// The program gets ready.
    Ready,
    /// It ends with an error that says what the kernel has said.
    Error,
    /// One of both: not every such call is needed.
    Either,
}

/// How a call may fail for a reason that is not the program's (its manual page), and what must come of that at a start;
/// `None` for a call that is not known here. Those with an empty list fail only if they are made wrongly.
fn failures(call: &Call) -> Option<&'static [(Errno, Outcome)]> {
    use Outcome::{Either, Error, Ready};
    Some(match (call.name, call.on) {
        ("read", On::File) => &[(Errno::INTR, Ready), (Errno::IO, Either)],
        ("read" | "recvfrom" | "recvmsg", On::Event | On::Unix) => &[(Errno::AGAIN, Ready)],
        ("write" | "writev", On::Pipe) => {
            &[(Errno::INTR, Ready), (Errno::AGAIN, Ready), (Errno::PIPE, Ready), (Errno::NOSPC, Ready)]
        }
        ("write", On::File) => &[(Errno::INTR, Ready), (Errno::NOSPC, Error), (Errno::IO, Error)],
        ("write" | "sendto", On::Event | On::Unix) => &[(Errno::AGAIN, Ready)],
        ("openat", _) => {
            &[(Errno::INTR, Ready), (Errno::MFILE, Either), (Errno::NFILE, Either), (Errno::NOMEM, Either)]
        }
        ("ftruncate", On::File) => &[(Errno::INTR, Ready), (Errno::IO, Error)],
        ("flock", _) => &[(Errno::NOLCK, Error)],
        ("fcntl", On::Command(F_DUPFD_CLOEXEC)) => &[(Errno::MFILE, Either)],
        ("ppoll" | "poll", _) => &[(Errno::INTR, Ready), (Errno::NOMEM, Ready)],
        ("epoll_wait" | "epoll_pwait", _) => &[(Errno::INTR, Ready)],
        ("epoll_ctl", _) => &[(Errno::NOMEM, Either), (Errno::NOSPC, Either)],
        ("epoll_create1" | "eventfd2", _) => &[(Errno::MFILE, Error), (Errno::NFILE, Error), (Errno::NOMEM, Error)],
        ("socket", On::Packet | On::Raw) => &[(Errno::MFILE, Error), (Errno::NOBUFS, Error)],
        ("socket", _) => {
            &[(Errno::MFILE, Either), (Errno::NFILE, Either), (Errno::NOBUFS, Either), (Errno::NOMEM, Either)]
        }
        ("socketpair", _) => &[(Errno::MFILE, Error), (Errno::NFILE, Error)],
        ("bind" | "listen" | "setsockopt" | "getsockopt" | "getsockname" | "getpeername", _) => {
            &[(Errno::NOBUFS, Either), (Errno::NOMEM, Either)]
        }
        ("connect", On::Tcp) => &[(Errno::ADDRNOTAVAIL, Ready), (Errno::NETUNREACH, Ready), (Errno::NOBUFS, Ready)],
        ("connect", _) => &[(Errno::NOBUFS, Either)],
        ("sendto", On::Netlink) => &[(Errno::INTR, Ready), (Errno::NOBUFS, Ready), (Errno::NOMEM, Ready)],
        ("recvfrom", On::Netlink) => &[(Errno::INTR, Ready), (Errno::NOBUFS, Ready), (Errno::NOMEM, Ready)],
        ("sendto", On::Tcp) => &[(Errno::INTR, Ready), (Errno::NOBUFS, Ready), (Errno::PIPE, Ready)],
        ("recvfrom", On::Tcp) => &[(Errno::INTR, Ready), (Errno::CONNRESET, Ready), (Errno::NOMEM, Ready)],
        ("sendmmsg", _) => SENDING,
        ("bpf", On::Command(bpf::MAP_CREATE | bpf::PROG_LOAD | bpf::LINK_CREATE)) => {
            &[(Errno::INTR, Ready), (Errno::AGAIN, Ready), (Errno::NOMEM, Ready), (Errno::MFILE, Either)]
        }
        ("bpf", _) => &[(Errno::INTR, Ready), (Errno::AGAIN, Ready), (Errno::NOMEM, Ready)],
        ("mmap", On::Bpf) => &[(Errno::AGAIN, Ready), (Errno::NOMEM, Ready)],
        // Memory of the process itself, without which the runtime aborts.
        ("mmap", _) => &[],
        ("mlock", _) => &[(Errno::AGAIN, Ready), (Errno::NOMEM, Ready), (Errno::PERM, Ready)],
        ("clone3" | "clone", _) => &[(Errno::AGAIN, Either), (Errno::NOMEM, Either)],
        ("unshare" | "chroot", _) => &[(Errno::PERM, Ready), (Errno::NOMEM, Ready)],
        ("nanosleep" | "clock_nanosleep", _) => &[(Errno::INTR, Ready)],
        ("getrandom", _) => &[(Errno::INTR, Ready)],
        ("capset" | "prctl", _) => &[(Errno::PERM, Ready)],
        ("fstat" | "newfstatat" | "statx" | "lseek" | "readlinkat" | "readlink" | "fcntl" | "ioctl" | "capget", _) => {
            &[]
        }
        (
            "rt_sigaction" | "sigaltstack" | "sched_getaffinity" | "prlimit64" | "fchown" | "unlinkat" | "shutdown"
            | "fsync",
            _,
        ) => &[],
        _ => return None,
    })
}

/// Whether a call is made at every start: others depend on who is faster, or are made only after another (chroot(2)
/// after unshare(2)).
fn is_certain(fault: &Fault) -> bool {
    let by_chance = ["bpf", "ppoll", "epoll_wait", "epoll_pwait", "nanosleep", "clock_nanosleep", "sendmmsg"];
    !by_chance.contains(&fault.name)
        && fault.name != "chroot"
        && !matches!(fault.on, Some(On::Tcp | On::Event | On::Unix | On::Pipe))
}

/// Has a call fail at a start.
fn fault(call: &Call, error: Errno) -> Fault {
    // With the first of these aya asks, once for ever, what the kernel can do. Who has no memory to be told is told
    // that it can do nothing; the program then ends with an error about something else.
    let asked = match call.on {
        On::Command(bpf::BTF_LOAD) => 9,
        On::Command(bpf::MAP_CREATE | bpf::PROG_LOAD) => 5,
        _ => 0,
    };
    Fault::once(call.name, error).on(call.on).after(if call.name == "bpf" { asked } else { 0 })
}

/// Starts a program with orders, and says what has come of it.
fn outcome(program: &str, mirror: &Mirror, lab: &Lab, orders: &[Fault]) -> (Outcome, String) {
    let (running, faults) = start(program, mirror, lab, |faults| orders.iter().for_each(|order| faults.order(*order)));
    if running.wait_ready().is_ok() {
        let undone: Vec<_> = faults.undone().into_iter().filter(is_certain).collect();
        assert!(undone.is_empty(), "{program} has not made the calls that were to fail: {undone:?}");
        faults.withdraw();
        let ended = running.stop().unwrap_or_else(|error| panic!("{program} with {orders:?}: {error:#}"));
        return (Outcome::Ready, ended.stderr);
    }
    let ended = running.wait(PATIENCE).unwrap_or_else(|error| panic!("{program} with {orders:?}: {error:#}"));
    let what = format!("{program} with {orders:?}: {}, {}", ended.status, ended.stderr);
    assert!(matches!(ended.status.code(), Some(1..=3)), "{what}");
    assert!(ended.stderr.contains("error: ") && !ended.stderr.contains("panicked"), "{what}");
    let said = |order: &Fault| ended.stderr.contains(&std::io::Error::from(order.error).to_string());
    assert!(orders.iter().any(said) || ended.stderr.contains("limit on open files"), "{what}");
    (Outcome::Error, ended.stderr)
}

/// The host of a program.
fn host<'a>(program: &str, lab: &'a Lab) -> &'a Host {
    if program == "intercept" { &lab.target } else { &lab.source }
}

#[test]
fn a_call_that_fails_at_the_start_is_made_again_or_explained() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    for program in PROGRAMS {
        if program == "tcpcopy" {
            mirror.start_intercept().unwrap();
        }
        let before = network_state(host(program, &lab)).unwrap();
        let (running, faults) = start(program, &mirror, &lab, Faults::record);
        running.wait_ready().unwrap();
        running.stop().unwrap();
        let calls: Vec<Call> = faults.recorded().into_keys().collect();
        let unknown: Vec<_> = calls.iter().filter(|call| failures(call).is_none()).collect();
        assert!(unknown.is_empty(), "{program} makes calls of which nobody has said how they fail: {unknown:?}");
        let faults = |call: &Call, ready| -> Vec<Fault> {
            let failures =
                failures(call).into_iter().flatten().filter(|(_, outcome)| (*outcome == Outcome::Ready) == ready);
            failures.map(|(error, _)| fault(call, *error)).collect()
        };
        // What must make no difference makes none all at once.
        for nth in 0.. {
            let orders: Vec<_> = calls.iter().filter_map(|call| faults(call, true).get(nth).copied()).collect();
            if orders.is_empty() {
                break;
            }
            let (came, said) = outcome(program, &mirror, &lab, &orders);
            assert_eq!(came, Outcome::Ready, "{program} said: {said}\nwith {orders:?}");
        }
        for call in &calls {
            for (error, expected) in failures(call).into_iter().flatten() {
                if *expected != Outcome::Ready {
                    let (came, said) = outcome(program, &mirror, &lab, &[fault(call, *error)]);
                    let as_expected = *expected == Outcome::Either || came == *expected;
                    assert!(as_expected, "{program}: {call:?} {error}: {came:?}; it said: {said}");
                }
            }
        }
        let changes = || differences(&before, &network_state(host(program, &lab)).unwrap());
        eventually(PATIENCE, || changes().is_empty());
        assert_eq!(changes(), Vec::<String>::new(), "{program}");
    }
    mirror.stop_programs().unwrap();
}

/// Both programs at work, with a load, and faults.
struct Stage<'a> {
    lab: &'a Lab,
    target: &'a Server,
    mirror: Mirror,
    faults: [Faults; 2],
    loads: Vec<RunningLoad>,
}

/// What makes a program make a call that it does not make under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provoked {
    /// It makes it by itself.
    Anyway,
    /// An interface appears at its host.
    ByInterface,
    /// A route changes at its host.
    ByRoute,
    /// Somebody connects to the control port.
    ByStranger,
    /// Its control channel breaks.
    ByBreak,
    /// SIGHUP.
    ByHangup,
    /// SIGUSR1.
    ByReport,
}

impl<'a> Stage<'a> {
    fn set(lab: &'a Lab, target: &'a Server) -> Self {
        let (mirror, [of_intercept, of_tcpcopy]) = mirror(lab);
        let loads = Family::BOTH.map(|family| {
            let server = lab.source.socket(family, LIVE_PORT);
            let loads = [Load::keep_alive(server, 2, Limit::Stopped), Load::per_request(server, 2, Limit::Stopped)];
            loads.map(|load| Load { rate: Some(50), ..load }.start(&lab.client).unwrap())
        });
        Self { lab, target, mirror, faults: [of_intercept, of_tcpcopy], loads: loads.into_iter().flatten().collect() }
    }

    fn program(&self, name: &str) -> (&Program, &Faults) {
        if name == "intercept" {
            (self.mirror.intercept(), &self.faults[0])
        } else {
            (self.mirror.tcpcopy(), &self.faults[1])
        }
    }

    fn provoke(&self, program: &str, how: Provoked, number: usize) {
        let host = host(program, self.lab);
        match how {
            Provoked::Anyway => {}
            Provoked::ByInterface => {
                host.ip(&[format!("link add fault{number} type veth peer name other{number}")]).unwrap();
            }
            Provoked::ByRoute => {
                host.ip(&[format!("route add 203.0.113.{number}/32 dev {}", host.interface)]).unwrap();
            }
            Provoked::ByStranger => {
                let port = self.lab.target.socket(Family::V4, CONTROL_PORT);
                drop(self.lab.client.run(|| TcpStream::connect(port)).unwrap().unwrap());
            }
            Provoked::ByBreak => {
                let broken = Fault::once("recvfrom", Errno::CONNRESET).on(On::Tcp).by("worker-0");
                self.faults[1].order(broken);
            }
            Provoked::ByHangup => self.program(program).0.signal(Signal::HUP).unwrap(),
            Provoked::ByReport => self.program(program).0.signal(Signal::USR1).unwrap(),
        }
    }

    fn tidy_up(&self, program: &str, how: Provoked, number: usize) {
        let host = host(program, self.lab);
        match how {
            Provoked::ByInterface => host.ip(&[format!("link delete fault{number}")]).unwrap(),
            Provoked::ByRoute => {
                host.ip(&[format!("route delete 203.0.113.{number}/32 dev {}", host.interface)]).unwrap();
            }
            _ => {}
        }
    }

    /// Sees a fault done, and then a new client's request at the target.
    fn endure(&self, program: &str, fault: Fault, how: Provoked, number: usize) {
        let (running, faults) = self.program(program);
        let what = || format!("{program} with {fault:?} {how:?}; its log:\n{}", running.log());
        faults.order(fault);
        self.provoke(program, how, number);
        faults.wait_done().unwrap_or_else(|error| panic!("{error:#}; {}", what()));
        for faults in &self.faults {
            faults.wait_done().unwrap();
            faults.withdraw();
        }
        if how == Provoked::ByInterface {
            let hooked = format!("swallowing on the new interface fault{number} too");
            running.wait_log(PATIENCE, |line| line.contains(&hooked)).unwrap();
        }
        self.tidy_up(program, how, number);
        for family in Family::BOTH {
            let server = self.lab.source.socket(family, LIVE_PORT);
            let mut client = Client::connect(&self.lab.client, server).unwrap();
            let id = 1_000_000_000 + 2 * number as u64 + u64::from(family == Family::V6);
            client.request(id).unwrap();
            let arrived = || self.target.arrivals().iter().any(|arrival| arrival.id == id);
            assert!(eventually(PATIENCE, arrived), "{family:?} is not mirrored any more: {}", what());
        }
    }
}

/// What fails while there is load: by which thread it is made, and what makes it be made.
fn under_load() -> Vec<(&'static str, Fault, Provoked)> {
    use Provoked::{Anyway, ByBreak, ByHangup, ByInterface, ByReport, ByRoute, ByStranger};
    let command = |command, error| Fault::once("bpf", error).on(On::Command(command));
    let netlink = |name, error| Fault::once(name, error).on(On::Netlink);
    let tcp = |name, error| Fault::once(name, error).on(On::Tcp);
    let mut cases = Vec::new();
    for (program, thread) in [("intercept", "reporter"), ("tcpcopy", "worker-0"), ("tcpcopy", "tcpcopy-paths")] {
        for error in [Errno::INTR, Errno::NOMEM] {
            cases.push((program, Fault::once("ppoll", error).by(thread), ByRoute));
        }
    }
    for (program, thread) in [("intercept", "reporter"), ("tcpcopy", "worker-0")] {
        for error in [Errno::INTR, Errno::AGAIN, Errno::NOMEM, Errno::CONNRESET] {
            cases.push((program, tcp("recvfrom", error).by(thread), Anyway));
        }
    }
    for error in [Errno::INTR, Errno::AGAIN, Errno::NOBUFS, Errno::PIPE] {
        cases.push(("intercept", tcp("sendto", error).by("reporter"), Anyway));
    }
    cases.extend(SENDING.iter().map(|(error, _)| ("tcpcopy", Fault::once("sendmmsg", *error).by("worker-0"), Anyway)));
    // A main thread waits for days.
    cases.extend(PROGRAMS.map(|program| (program, Fault::once(WAIT, Errno::INTR).by(program), ByReport)));
    for error in [Errno::INTR, Errno::AGAIN, Errno::NOMEM] {
        cases.push(("intercept", command(bpf::MAP_LOOKUP_ELEM, error).by("reaper"), Anyway));
        cases.push(("intercept", command(bpf::MAP_LOOKUP_ELEM, error).by("reporter"), Anyway));
    }
    for error in [Errno::INTR, Errno::NOBUFS, Errno::NOMEM] {
        cases.push(("intercept", netlink("sendto", error).by("reaper"), Anyway));
        cases.push(("intercept", netlink("recvfrom", error).by("reaper"), Anyway));
        cases.push(("intercept", netlink("recvfrom", error).by("intercept"), ByInterface));
        cases.push(("tcpcopy", netlink("recvfrom", error).by("tcpcopy-paths"), ByRoute));
        cases.push(("tcpcopy", netlink("sendto", error).by("tcpcopy-paths"), ByRoute));
    }
    for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS] {
        cases.push(("intercept", netlink("socket", error).by("reaper"), Anyway));
        cases.push(("intercept", netlink("socket", error).by("intercept"), ByInterface));
        cases.push(("tcpcopy", tcp("socket", error).by("tcpcopy"), ByBreak));
    }
    // glibc looks an interface up by any socket.
    cases.push(("intercept", Fault::once("socket", Errno::MFILE).on(On::Unix).by("intercept"), ByInterface));
    for error in [Errno::MFILE, Errno::NOMEM, Errno::AGAIN] {
        cases.push(("intercept", command(bpf::LINK_CREATE, error).by("intercept"), ByInterface));
    }
    for error in [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::CONNABORTED, Errno::INTR] {
        cases.push(("intercept", Fault::once("accept4", error), ByStranger));
    }
    for error in [Errno::NETUNREACH, Errno::ADDRNOTAVAIL, Errno::NOBUFS, Errno::CONNREFUSED] {
        cases.push(("tcpcopy", tcp("connect", error), ByBreak));
    }
    for name in ["epoll_ctl", "setsockopt", "getsockopt", "sendto", "recvfrom"] {
        cases.push(("tcpcopy", tcp(name, Errno::NOMEM).by("tcpcopy"), ByBreak));
    }
    for name in ["epoll_ctl", "setsockopt", "recvfrom"] {
        cases.push(("intercept", tcp(name, Errno::NOMEM).by("intercept"), ByBreak));
    }
    for program in PROGRAMS {
        cases.extend([Errno::INTR, Errno::MFILE].map(|error| (program, Fault::once("openat", error), ByHangup)));
        cases.push((program, Fault::once("read", Errno::IO).on(On::File), ByHangup));
        cases.push((program, command(bpf::MAP_LOOKUP_ELEM, Errno::NOMEM).by(program), ByReport));
        cases.extend(
            [Errno::PIPE, Errno::AGAIN].map(|error| (program, Fault::once("write", error).on(On::Pipe), ByReport)),
        );
    }
    cases
}

/// What fails again and again, and how often it may be tried in a second: who tries without a pause does so ten
/// thousand times.
fn persistent() -> Vec<(&'static str, Fault, Provoked, u64)> {
    use Provoked::{Anyway, ByInterface, ByRoute, ByStranger};
    let again = |name, error| Fault::once(name, error).for_ever();
    vec![
        // Two threads, which wait for ten milliseconds at least unless something is due before.
        ("intercept", again("ppoll", Errno::NOMEM), Anyway, 1_000),
        ("tcpcopy", again("ppoll", Errno::NOMEM), Anyway, 1_000),
        ("intercept", again("accept4", Errno::MFILE), ByStranger, 50),
        ("intercept", again("accept4", Errno::NOBUFS), ByStranger, 50),
        ("intercept", again("accept4", Errno::INTR), ByStranger, 1_500),
        ("intercept", again("recvfrom", Errno::NOBUFS).on(On::Netlink), ByInterface, 500),
        ("intercept", again("socket", Errno::MFILE).on(On::Netlink), ByInterface, 100),
        ("tcpcopy", again("recvfrom", Errno::NOBUFS).on(On::Netlink), ByRoute, 2_000),
    ]
}

#[test]
fn a_call_that_fails_under_load_costs_at_most_what_it_was_about() {
    let _guard = laboratory!(500);
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let before = [&lab.target, &lab.source].map(|host| network_state(host).unwrap());
    let mut stage = Stage::set(&lab, &target);
    let objects = PROGRAMS.map(|program| BpfObjects::of(stage.program(program).0.pid()).unwrap());
    for (number, (program, fault, how)) in under_load().into_iter().enumerate() {
        stage.endure(program, fault, how, number);
    }
    for (number, (program, fault, how, most)) in persistent().into_iter().enumerate() {
        let faults = stage.program(program).1;
        faults.order(fault);
        stage.provoke(program, how, 200 + number);
        let began = Instant::now();
        faults.wait_done().unwrap();
        thread::sleep(Duration::from_secs(1));
        let (times, took) = (faults.withdraw(), began.elapsed());
        // In proportion, when the machine has kept us from looking in time.
        assert!(
            times as f64 <= most as f64 * took.as_secs_f64(),
            "{program} tried {times} times in {took:?}: {fault:?}"
        );
        stage.tidy_up(program, how, 200 + number);
        stage.endure(program, Fault::once(WAIT, Errno::INTR).by(program), Provoked::ByReport, 220 + number);
    }
    // The end, while there are sessions. What is mirrored of the ends of connections is nobody's.
    let [of_intercept, of_tcpcopy] = &stage.faults;
    let at_the_end = |faults: &Faults| {
        let files = ["ftruncate", "fsync", "write"].map(|name| Fault::once(name, Errno::INTR).on(On::File));
        files.into_iter().for_each(|fault| faults.order(fault));
        faults.order(Fault::once("bpf", Errno::NOMEM).on(On::Command(bpf::MAP_LOOKUP_ELEM)));
    };
    at_the_end(of_intercept);
    for fault in [
        Fault::once("bpf", Errno::NOMEM).on(On::Command(bpf::MAP_LOOKUP_BATCH)),
        Fault::once("socket", Errno::MFILE).on(On::Netlink),
        Fault::once("recvfrom", Errno::NOBUFS).on(On::Netlink),
    ] {
        of_intercept.order(fault.by("reaper"));
    }
    let intercept = stage.mirror.intercept.take().unwrap();
    intercept.stop().unwrap();
    assert_eq!(of_intercept.undone(), [], "not failed at the end of intercept");
    assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 0, "sockets are left");
    at_the_end(of_tcpcopy);
    stage.mirror.tcpcopy.take().unwrap().stop().unwrap();
    assert_eq!(of_tcpcopy.undone(), [], "not failed at the end of tcpcopy");
    for load in stage.loads {
        let report = load.stop().unwrap();
        assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    }
    // The control port answers strangers, who are no client of the service.
    stage.mirror.stop().unwrap().assert_no_leak_but(&[]);
    for ((objects, before), host) in objects.iter().zip(&before).zip([&lab.target, &lab.source]) {
        eventually(PATIENCE, || objects.remaining().is_empty());
        assert_eq!(objects.remaining(), []);
        let changes = || differences(before, &network_state(host).unwrap());
        eventually(PATIENCE, || changes().is_empty());
        assert_eq!(changes(), Vec::<String>::new());
    }
}

/// Stops a program of a mirror with a session open, while a call fails; returns what it leaves.
fn end(lab: &Lab, program: &str, fault: Fault) -> Ended {
    let (mut mirror, [of_intercept, of_tcpcopy]) = mirror(lab);
    let mut client = Client::connect(&lab.client, lab.source.socket(Family::V4, LIVE_PORT)).unwrap();
    client.ask().unwrap();
    assert!(eventually(PATIENCE, || lab.target.connections(TARGET_PORT).unwrap() == 1));
    let (faults, slot) =
        if program == "intercept" { (of_intercept, &mut mirror.intercept) } else { (of_tcpcopy, &mut mirror.tcpcopy) };
    faults.order(fault);
    let stopped = slot.take().unwrap();
    stopped.signal(Signal::TERM).unwrap();
    let ended = stopped.wait(PATIENCE).unwrap();
    assert_eq!(faults.undone(), [], "{program} has not made the call; its log:\n{}", ended.stderr);
    assert!(eventually(PATIENCE, || lab.target.connections(TARGET_PORT).unwrap() == 0), "{program}: a session is left");
    client.ask().unwrap();
    drop(client);
    mirror.stop_programs().unwrap();
    ended
}

#[test]
fn figures_that_cannot_be_read_or_written_at_the_end_are_missed_and_no_others() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    for program in PROGRAMS {
        let file = |name, error| Fault::once(name, error).on(On::File);
        let unread = Fault::once("bpf", Errno::NOMEM).on(On::Command(bpf::MAP_LOOKUP_ELEM)).by(program).for_ever();
        for fault in [file("write", Errno::NOSPC), file("fsync", Errno::IO), unread] {
            let ended = end(&lab, program, fault);
            let what = format!("{program} with {fault:?}: {}\n{}\n{}", ended.status, ended.stdout, ended.stderr);
            assert_eq!(ended.status.code(), Some(1), "{what}");
            assert!(ended.stderr.contains(&std::io::Error::from(fault.error).to_string()), "{what}");
            assert!(ended.stdout.contains("duration"), "no table of figures: {what}");
        }
    }
}
