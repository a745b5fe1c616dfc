//! A cable of a host that nobody else is on: of frames that are put in at one end it is known which come out.
//!
//! ```text
//!   into the host:  socket ─► outer ══► interface ─► programs of others ─► the last program ─► the stack
//!                                                                              └─ copy ══► behind ─► socket
//!   out of it:      socket ─► interface ─► programs of others ══► outer ─► socket
//! ```

use std::{
    collections::HashMap,
    io,
    os::fd::AsRawFd as _,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use rustix::thread::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use socket2::{Domain, Protocol, Socket, Type};

use crate::{
    Host, PATIENCE,
    classifier::{Classifier, copy_to},
    frames,
    namespace::{self, Namespace},
};

/// Frames that are under way at a time: far fewer than a processor's queue takes (`net.core.netdev_max_backlog`, 1000),
/// or that of an interface with an XDP program (256).
const BATCH: usize = 64;
/// How often frames are sent that a full queue may have cost.
const TRIES: usize = 5;
/// How long the last frame of a batch is waited for before it is sent again.
const SOON: Duration = Duration::from_millis(500);
/// Of the frame that ends a batch: for experiments (IEEE 802, local experimental EtherType 1).
const END: [u8; 2] = [0x88, 0xb5];

/// The cable, with an interface of the host at one end. Removed when dropped.
pub struct Cable {
    inner: Port,
    outer: Port,
    behind: Port,
    host: Host,
    name: String,
    last: Option<Classifier>,
    _nobody: Namespace,
}

impl Cable {
    /// Gives a host another interface, without addresses.
    pub fn new(host: &Host, name: &str) -> anyhow::Result<Self> {
        let nobody = Namespace::create(format!("{}-nobody", namespace::unique_prefix()))?;
        host.ip(&[
            format!(
                "link add {name} address {} type veth peer outer address {} netns {}",
                text(frames::INNER),
                text(frames::OUTER),
                nobody.name()
            ),
            format!("link add {name}-copy type veth peer behind netns {}", nobody.name()),
        ])?;
        // No packets of the kernel's own.
        host.set_sysctls(&[(&format!("ipv6/conf/{name}-copy/disable_ipv6"), "1")])?;
        host.ip(&[format!("link set {name} up"), format!("link set {name}-copy up")])?;
        let enter = || -> anyhow::Result<_> {
            nobody.enter()?;
            for interface in ["outer", "behind"] {
                std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
            }
            nobody.ip(&["link set outer up".into(), "link set behind up".into()])?;
            Ok((Port::open("outer")?, Port::open("behind")?))
        };
        let (outer, behind) = std::thread::scope(|scope| {
            scope.spawn(enter).join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let inner = host.run(|| Port::open(name))??;
        Ok(Self { inner, outer, behind, host: host.clone(), name: name.into(), last: None, _nobody: nobody })
    }

    /// Puts the last program behind all that the host's interface has. Fails where programs have no order (before
    /// Linux 6.6).
    pub fn watch(&mut self) -> anyhow::Result<()> {
        let copy = format!("/sys/class/net/{}-copy/ifindex", self.name);
        let index = self.host.output(&format!("cat {copy}"))?.trim().parse()?;
        self.last = Some(Classifier::attach(&self.host, &self.name, "lab_last", &copy_to(index))?);
        Ok(())
    }

    /// Sends frames to the host; returns those of which no copy comes behind its programs.
    pub fn inwards<'a>(&self, frames: &'a [Vec<u8>]) -> anyhow::Result<Vec<&'a [u8]>> {
        ensure!(self.last.is_some(), "nobody watches what is behind the programs");
        pass(&self.outer, &self.behind, frames)
    }

    /// Sends frames from the host; returns those that do not come out at the other end.
    pub fn outwards<'a>(&self, frames: &'a [Vec<u8>]) -> anyhow::Result<Vec<&'a [u8]>> {
        pass(&self.inner, &self.outer, frames)
    }
}

/// Writes down a link-layer address as `ip` takes it.
fn text(address: [u8; 6]) -> String {
    address.map(|octet| format!("{octet:02x}")).join(":")
}

/// Sends frames, and returns those that do not arrive. One that is lost because a queue was full, whoever filled it,
/// comes through at another try; what is taken from among them is taken each time.
fn pass<'a>(from: &Port, to: &Port, frames: &'a [Vec<u8>]) -> anyhow::Result<Vec<&'a [u8]>> {
    let _here = Pinned::here()?;
    to.discard()?;
    let mut missing = Vec::new();
    for batch in frames.chunks(BATCH) {
        let mut left: Vec<&[u8]> = batch.iter().map(Vec::as_slice).collect();
        for _ in 0..TRIES {
            let full = full_queues()?;
            let refused;
            (left, refused) = once(from, to, left)?;
            if left.is_empty() || !refused && full == full_queues()? {
                break;
            }
        }
        missing.extend(left);
    }
    Ok(missing)
}

/// Sends frames once, and returns those that do not arrive before the one that ends them: all take the same way, on one
/// processor, in order. Also whether the kernel has refused to send one, as it does where a queue is full, or where a
/// program drops it.
fn once<'a>(from: &Port, to: &Port, sent: Vec<&'a [u8]>) -> anyhow::Result<(Vec<&'a [u8]>, bool)> {
    let mut refused = false;
    for frame in &sent {
        match from.send(frame) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => refused = true,
            result => result.with_context(|| format!("cannot send {frame:02x?}"))?,
        }
    }
    let mut arrived: HashMap<Vec<u8>, usize> = HashMap::new();
    let deadline = Instant::now() + PATIENCE;
    'end: loop {
        let mut end = [&frames::INNER[..], &frames::OUTER, &END, &crate::monotonic_ns().to_be_bytes()].concat();
        end.resize(60, 0);
        match from.send(&end) {
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
            result => result?,
        }
        let soon = Instant::now() + SOON;
        while Instant::now() < soon {
            match to.receive()? {
                Some(frame) if frame == end => break 'end,
                Some(frame) => *arrived.entry(frame).or_default() += 1,
                None => {}
            }
        }
        ensure!(Instant::now() < deadline, "nothing comes through");
    }
    let missing = |frame: &&[u8]| match arrived.get_mut(*frame) {
        Some(count @ 1..) => {
            *count -= 1;
            false
        }
        _ => true,
    };
    Ok((sent.into_iter().filter(missing).collect(), refused))
}

/// Returns how many packets the processors' full queues have cost so far: the second column.
fn full_queues() -> anyhow::Result<u64> {
    let text = std::fs::read_to_string("/proc/net/softnet_stat")?;
    let columns = text.lines().map(|line| line.split_whitespace().nth(1).unwrap_or("0"));
    columns.map(|column| Ok(u64::from_str_radix(column, 16)?)).sum()
}

/// Keeps this thread on the processor where it is, until dropped: frames that are sent from one processor stay in order.
struct Pinned(CpuSet);

impl Pinned {
    fn here() -> anyhow::Result<Self> {
        let before = sched_getaffinity(None)?;
        let mut here = CpuSet::new();
        here.set(sched_getcpu());
        sched_setaffinity(None, &here)?;
        Ok(Self(before))
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.0);
    }
}

/// Binds a packet socket to an interface of the calling thread's namespace: from then on it receives its frames.
///
/// # Errors
/// When there is no such interface, or bind(2) fails.
pub fn bind(socket: &Socket, interface: &str) -> anyhow::Result<()> {
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    ensure!(index > 0, "there is no interface {interface}");
    // SAFETY: a sockaddr_ll is valid when zeroed; it is filled in, and outlives the call.
    let result = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = index.cast_signed();
        let length = size_of_val(&address) as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    ensure!(result == 0, "cannot bind to {interface}: {}", io::Error::last_os_error());
    Ok(())
}

/// A socket for whole frames of an interface, which receives what comes in there.
pub struct Port {
    socket: Socket,
}

impl Port {
    /// Opens it on an interface of the calling thread's namespace.
    pub fn open(interface: &str) -> anyhow::Result<Self> {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
        for (level, option, value) in [
            (libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 16 << 20),
            (libc::SOL_PACKET, libc::PACKET_AUXDATA, 1),
            (libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1),
        ] {
            let value: libc::c_int = value;
            let length = size_of_val(&value) as libc::socklen_t;
            // SAFETY: these options take an int, which outlives the call.
            let result =
                unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
            ensure!(result == 0, "cannot set option {option}: {}", io::Error::last_os_error());
        }
        bind(&socket, interface)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self { socket })
    }

    /// Sends a frame.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        self.socket.send(frame).map(|_| ())
    }

    /// Receives a frame as it was on the cable; `None` when none comes for a while.
    pub fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        let mut buffer = [0; 4096];
        // Room for one control message, aligned for its header.
        let mut control = [0u64; 8];
        let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
        // SAFETY: a msghdr is valid when zeroed.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
        (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
        // SAFETY: the message names memory of ours, with its lengths, that outlives the call.
        let length = unsafe { libc::recvmsg(self.socket.as_raw_fd(), &raw mut message, 0) };
        if length < 0 {
            let error = io::Error::last_os_error();
            return match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => Ok(None),
                _ => Err(error),
            };
        }
        let mut frame = buffer[..length as usize].to_vec();
        // SAFETY: the kernel has filled in the message and its control messages; the macros stay within the lengths that
        // it has set, and a message of this kind holds such a structure.
        let auxiliary = unsafe {
            let header = libc::CMSG_FIRSTHDR(&raw const message);
            header
                .as_ref()
                .filter(|head| (head.cmsg_level, head.cmsg_type) == (libc::SOL_PACKET, libc::PACKET_AUXDATA))
                .map(|_| libc::CMSG_DATA(header).cast::<libc::tpacket_auxdata>().read_unaligned())
        };
        // The kernel has taken the outer tag out of the frame.
        if let Some(auxiliary) = auxiliary.filter(|a| a.tp_status & libc::TP_STATUS_VLAN_VALID != 0) {
            let tag = [auxiliary.tp_vlan_tpid.to_be_bytes(), auxiliary.tp_vlan_tci.to_be_bytes()].concat();
            frame.splice(12..12, tag);
        }
        Ok(Some(frame))
    }

    /// Forgets what has arrived so far.
    pub fn discard(&self) -> io::Result<()> {
        let now = Instant::now();
        self.socket.set_nonblocking(true)?;
        while now.elapsed() < PATIENCE && self.receive()?.is_some() {}
        self.socket.set_nonblocking(false)
    }
}
