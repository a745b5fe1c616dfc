//! Throw-away network namespaces for tests: nameless, so they vanish with the threads that live in them.

use std::{
    io,
    net::SocketAddr,
    os::fd::AsFd,
    process::Command,
    sync::mpsc::{Sender, channel},
    thread,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tcpcopy_common::flow::Flow;

use super::interface::Mac;

/// Link-layer address of the near end of [`veth`].
pub(crate) const NEAR_MAC: Mac = [2, 0, 0, 0, 0x77, 1];
/// Link-layer address of its far end.
pub(crate) const PEER_MAC: Mac = [2, 0, 0, 0, 0x77, 2];

/// Returns the four-tuple of a connection.
pub(crate) fn flow(client: SocketAddr, server: SocketAddr) -> Flow {
    let end = |end: SocketAddr| (end.ip().into(), end.port().to_be_bytes());
    Flow::tcp(end(client), end(server))
}

type Job = Box<dyn FnOnce() + Send>;

/// A second namespace, to run things in.
pub(crate) struct Peer {
    jobs: Sender<Job>,
    /// Path of the namespace, for `ip link … netns`.
    path: String,
}

impl Peer {
    fn start() -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let (ready, started) = channel();
        thread::spawn(move || {
            let entered = enter_new_namespace();
            // SAFETY: gettid has no preconditions.
            let tid = unsafe { libc::gettid() };
            let path = format!("/proc/{}/task/{tid}/ns/net", std::process::id());
            if ready.send(entered.map(|()| path)).is_ok() {
                queue.into_iter().for_each(|job| job());
            }
        });
        Ok(Self { jobs, path: started.recv().map_err(io::Error::other)?? })
    }

    /// Runs `f` in the peer's namespace and waits for it.
    pub(crate) fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.jobs.send(Box::new(move || drop(done.send(f())))).expect("the peer's thread lives");
        result.recv().expect("the peer's job did not panic")
    }
}

fn enter_new_namespace() -> io::Result<()> {
    // SAFETY: only this thread moves to another namespace; no memory is involved.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // Without duplicate address detection, which keeps a fresh link-local address, and so neighbour discovery, from
    // being used for two seconds.
    std::fs::write("/proc/sys/net/ipv6/conf/default/accept_dad", "0")?;
    ip("link set lo up");
    Ok(())
}

/// Runs `test` on a thread in a network namespace of its own, with an empty second one. Says SKIP and why where that is
/// not possible.
pub(crate) fn isolated(test: impl FnOnce(&Peer) + Send + 'static) {
    // The thread that the test runs in has its name.
    let name = test_name();
    let worker = thread::spawn(move || {
        match enter_new_namespace().and_then(|()| Peer::start()) {
            Ok(peer) => test(&peer),
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::EPERM), "cannot create a network namespace: {e}");
                skip_as(&name, &format!("creating a network namespace takes root ({e})"));
            }
        };
    });
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Says that the test of the calling thread does not run here, and why: past what the test harness captures, on a line
/// of its own, where `cargo xtask test` counts it.
pub(crate) fn skip(reason: &str) {
    skip_as(&test_name(), reason);
}

fn test_name() -> String {
    thread::current().name().unwrap_or("a test").to_owned()
}

fn skip_as(test: &str, reason: &str) {
    use io::Write as _;
    // Nobody is left to be told when standard output is gone.
    let _ = writeln!(io::stdout(), "\nSKIP {test}: {reason}");
}

/// Runs `ip` with these words in the namespace of the calling thread.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split_whitespace()).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Joins the two namespaces by a veth pair: v0 with 10.77.0.1/24 and fd77::1/64 here, v1 with .2 and ::2 there.
pub(crate) fn veth(peer: &Peer) {
    ip(&format!(
        "link add v0 address 02:00:00:00:77:01 type veth peer name v1 address 02:00:00:00:77:02 netns {}",
        peer.path
    ));
    let up = |near: &str, host: u8| {
        ip(&format!("addr add 10.77.0.{host}/24 dev {near}"));
        ip(&format!("addr add fd77::{host}/64 dev {near} nodad"));
        ip(&format!("link set {near} up"));
    };
    peer.run(move || up("v1", 2));
    up("v0", 1);
}

/// How long a test waits for what must happen; only one that fails waits so long.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns whether `fd` has something to read, now or before long.
pub(crate) fn readable(fd: &impl AsFd) -> bool {
    let limit = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    poll(&mut [PollFd::new(fd, PollFlags::IN)], Some(&limit)) == Ok(1)
}

/// Asserts that `condition` holds, or comes to hold before long.
pub(crate) fn eventually(mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "what the test waits for did not happen within {PATIENCE:?}");
        thread::yield_now();
    }
}
