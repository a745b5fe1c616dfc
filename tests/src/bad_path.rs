//! A path to a host that loses, duplicates and reorders packets, or is long, in both directions.
//!
//! The host's cable is taken out of the switch, and a thread carries the frames between the two. It stands where every
//! packet passes: packet sockets, by which requests are injected, know no netfilter and no queueing discipline. Frames
//! are carried with their offload header, so that large ones and unfinished checksums stay what they are.

use std::{
    collections::{HashMap, VecDeque},
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, Socket, Type};

use crate::{Host, Lab};

/// Chances, of 1000, that something happens to a frame.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// It is lost; but after [`MOST_IN_A_ROW`] frames of one connection the next one comes through.
    pub lose: u32,
    /// It comes twice.
    pub duplicate: u32,
    /// It comes later, so that others overtake it.
    pub reorder: u32,
    /// How long every frame is on its way.
    pub delay: Duration,
    /// TCP to the host comes only from this host, as where a switch knows which addresses are behind each port.
    pub only_from: Option<[IpAddr; 2]>,
    /// Seed of the dice.
    pub seed: u64,
}

/// The most frames of one connection, in one direction, that are lost one after the other. With one in twenty lost, one
/// of a thousand connections would lose six SYNs in a row in every 60,000th run, and be given up by right. What is
/// tested is a bad path, not a dead one. A frame that this saves comes once in three million.
pub const MOST_IN_A_ROW: u8 = 4;
/// How long a frame that is overtaken is held.
const LATER: Duration = Duration::from_micros(800);
/// `virtio_net_hdr` (`linux/virtio_net.h`), and the largest frame.
const LARGEST: usize = 10 + 18 + (64 << 10);

/// What happened in one direction.
#[derive(Debug, Default)]
struct Tally {
    passed: AtomicU64,
    lost: AtomicU64,
    duplicated: AtomicU64,
    reordered: AtomicU64,
}

/// Frames of one direction.
#[derive(Clone, Copy, Debug)]
pub struct Fate {
    /// That came through, in order or not.
    pub passed: u64,
    /// That did not.
    pub lost: u64,
    /// That came twice.
    pub duplicated: u64,
    /// That others overtook.
    pub reordered: u64,
}

impl std::ops::Add for Fate {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
        }
    }
}

/// The bad path, until it is dropped.
pub struct BadPath {
    tallies: Arc<[Tally; 2]>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl BadPath {
    /// Worsens the path between the switch and the target.
    pub fn new(lab: &Lab, weather: Weather) -> anyhow::Result<Self> {
        Self::to(lab, &lab.target, weather)
    }

    /// Worsens the path between the switch and a host that is plugged into it.
    pub fn to(lab: &Lab, host: &Host, weather: Weather) -> anyhow::Result<Self> {
        let role = host.role;
        let ends = [0, 1].map(|n| format!("{role}.bad{n}"));
        lab.switch.ip(&[
            format!("link add {} type veth peer {}", ends[0], ends[1]),
            format!("link set {} up", ends[1]),
            format!("link set {role} nomaster"),
            format!("link set {} master br0 up", ends[0]),
        ])?;
        let [_, outer] = ends;
        let (tallies, stop) = (Arc::<[Tally; 2]>::default(), Arc::<AtomicBool>::default());
        let (counted, stopped) = (Arc::clone(&tallies), Arc::clone(&stop));
        let switch = Arc::clone(&lab.switch);
        let (ready, opened) = std::sync::mpsc::channel();
        let thread = std::thread::Builder::new().name("bad path".into()).spawn(move || {
            let sockets = switch.enter().and_then(|()| Ok([open(&outer)?, open(role)?]));
            // A thread that nobody joins must not keep the laboratory from being removed.
            drop(switch);
            match sockets {
                Ok(sockets) => {
                    let _ = ready.send(Ok(()));
                    carry(&sockets, weather, &counted, &stopped).context("carrying frames failed")
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    Ok(())
                }
            }
        })?;
        opened.recv().context("the bad path ended before it began")??;
        Ok(Self { tallies, stop, thread: Some(thread) })
    }

    /// Makes the target's path good again.
    pub fn repair(self, lab: &Lab) -> anyhow::Result<()> {
        let role = lab.target.role;
        drop(self);
        lab.switch.ip(&[format!("link del {role}.bad0"), format!("link set {role} master br0")])
    }

    /// Returns what happened to frames to the host, and to those from it.
    pub fn fates(&self) -> [Fate; 2] {
        self.tallies.each_ref().map(|tally| {
            let [passed, lost, duplicated, reordered] =
                [&tally.passed, &tally.lost, &tally.duplicated, &tally.reordered].map(|n| n.load(Ordering::Relaxed));
            Fate { passed, lost, duplicated, reordered }
        })
    }
}

impl Drop for BadPath {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            log::error!("{error:#}");
        }
    }
}

/// Creates a packet socket on an interface, which sees what arrives there, with offload headers.
fn open(interface: &str) -> anyhow::Result<Socket> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, None)?;
    socket.set_recv_buffer_size(16 << 20)?;
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_IGNORE_OUTGOING] {
        let on: libc::c_int = 1;
        let length = size_of_val(&on) as libc::socklen_t;
        // SAFETY: both options take an int, which outlives the call.
        let result =
            unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, option, (&raw const on).cast(), length) };
        anyhow::ensure!(result == 0, "cannot set option {option}: {}", io::Error::last_os_error());
    }
    let name = std::ffi::CString::new(interface)?;
    // SAFETY: the name is a C string that outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    anyhow::ensure!(index > 0, "there is no interface {interface}");
    let every_protocol = (libc::ETH_P_ALL as u16).to_be();
    // SAFETY: a sockaddr_ll is valid when zeroed; it is filled in, and outlives the call.
    let result = unsafe {
        let mut address: libc::sockaddr_ll = std::mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = every_protocol;
        address.sll_ifindex = index as i32;
        let length = size_of_val(&address) as libc::socklen_t;
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length)
    };
    anyhow::ensure!(result == 0, "cannot bind to {interface}: {}", io::Error::last_os_error());
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// Carries frames from each socket to the other until it is told to stop.
fn carry(sockets: &[Socket; 2], weather: Weather, tallies: &[Tally; 2], stop: &AtomicBool) -> anyhow::Result<()> {
    let mut held: VecDeque<(Instant, usize, Vec<u8>)> = VecDeque::new();
    let mut dice = Dice(weather.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut losses = [Losses::default(), Losses::default()];
    let mut buffer = vec![0; LARGEST];
    while !stop.load(Ordering::Acquire) {
        let pause =
            held.front().map_or(Duration::from_millis(20), |(at, ..)| at.saturating_duration_since(Instant::now()));
        let pause = Timespec { tv_sec: 0, tv_nsec: pause.as_nanos() as i64 };
        let mut ready = sockets.each_ref().map(|socket| PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::IN));
        match poll(&mut ready, Some(&pause)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while held.front().is_some_and(|(at, ..)| *at <= Instant::now()) {
            if let Some((_, to, frame)) = held.pop_front() {
                send(&sockets[to], &frame)?;
            }
        }
        for (from, tally) in tallies.iter().enumerate() {
            let to = 1 - from;
            // A few at a time, so that neither direction starves the other.
            for _ in 0..64 {
                let length = match rustix::net::recv(&sockets[from], &mut buffer[..], rustix::net::RecvFlags::empty()) {
                    Ok((length, _)) => length,
                    Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::NETDOWN) => break,
                    Err(error) => return Err(error.into()),
                };
                let frame = &buffer[..length];
                let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
                let is_foreign = from == 0 && weather.only_from.is_some_and(|addresses| is_foreign(frame, addresses));
                if is_foreign || losses[from].admit(frame, dice.falls(weather.lose)) {
                    count(&tally.lost);
                    continue;
                }
                count(&tally.passed);
                if dice.falls(weather.duplicate) {
                    count(&tally.duplicated);
                    send(&sockets[to], frame)?;
                }
                let mut delay = weather.delay;
                if dice.falls(weather.reorder) {
                    count(&tally.reordered);
                    delay += LATER;
                }
                if delay.is_zero() {
                    send(&sockets[to], frame)?;
                } else {
                    let at = Instant::now() + delay;
                    let place = held.partition_point(|(due, ..)| *due <= at);
                    held.insert(place, (at, to, frame.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Sends a frame. One that finds no room is lost, as on any cable.
fn send(socket: &Socket, frame: &[u8]) -> anyhow::Result<()> {
    match socket.send(frame) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN | libc::ENETDOWN)) => Ok(()),
        Err(error) => Err(error).context("cannot send a frame"),
    }
}

/// How many frames of each connection were lost in a row, in one direction.
#[derive(Default)]
struct Losses(HashMap<Vec<u8>, u8>);

impl Losses {
    /// Returns whether a frame is lost on which the dice have fallen.
    fn admit(&mut self, frame: &[u8], falls: bool) -> bool {
        let lost = self.0.entry(connection(frame).to_vec()).or_default();
        *lost = if falls && *lost < MOST_IN_A_ROW { *lost + 1 } else { 0 };
        *lost > 0
    }
}

/// Returns what tells a frame's connection: addresses and ports, as they stand in it. All that is not TCP without
/// options of IP is one.
fn connection(frame: &[u8]) -> &[u8] {
    // The offload header, and Ethernet's.
    let packet = frame.get(10 + 14..).unwrap_or_default();
    match packet.first() {
        Some(0x45) if packet.get(9) == Some(&6) => packet.get(12..24).unwrap_or_default(),
        Some(first) if first >> 4 == 6 && packet.get(6) == Some(&6) => packet.get(8..44).unwrap_or_default(),
        _ => &[],
    }
}

/// Returns whether a frame is TCP from none of these addresses.
fn is_foreign(frame: &[u8], addresses: [IpAddr; 2]) -> bool {
    let source = match connection(frame) {
        [] => return false,
        [a, b, c, d, ..] if connection(frame).len() == 12 => IpAddr::from([*a, *b, *c, *d]),
        both => match both.first_chunk::<16>() {
            Some(source) => IpAddr::from(*source),
            None => return false,
        },
    };
    !addresses.contains(&source)
}

/// xorshift64.
struct Dice(u64);

impl Dice {
    fn falls(&mut self, of_thousand: u32) -> bool {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % 1000 < u64::from(of_thousand)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns a TCP frame over IPv4 from a port.
    fn frame(port: u16) -> Vec<u8> {
        let mut frame = vec![0; 10 + 14 + 40];
        (frame[24], frame[24 + 9]) = (0x45, 6);
        frame[24 + 20..24 + 22].copy_from_slice(&port.to_be_bytes());
        frame
    }

    #[test]
    fn no_connection_loses_more_in_a_row_than_it_can_bear() {
        let mut losses = Losses::default();
        let mut fates = |port, n| (0..n).map(|_| losses.admit(&frame(port), true)).collect::<Vec<_>>();
        assert_eq!(fates(1, 6), [true, true, true, true, false, true]);
        assert_eq!(fates(2, 2), [true, true], "connections have counts of their own");
        assert_eq!(fates(1, 4), [true, true, true, false]);
    }

    #[test]
    fn only_tcp_from_another_address_is_foreign() {
        let addresses = ["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let mut v4 = frame(80);
        assert!(is_foreign(&v4, addresses));
        v4[24 + 12..24 + 16].copy_from_slice(&[10, 0, 0, 2]);
        assert!(!is_foreign(&v4, addresses));
        let mut v6 = vec![0; 10 + 14 + 60];
        (v6[24], v6[24 + 6]) = (0x60, 6);
        assert!(is_foreign(&v6, addresses));
        (v6[24 + 8], v6[24 + 23]) = (0xfd, 2);
        assert!(!is_foreign(&v6, addresses));
        v6[24 + 6] = 58;
        (v6[24 + 8], v6[24 + 23]) = (0, 0);
        assert!(!is_foreign(&v6, addresses), "neighbour discovery");
    }

    #[test]
    fn the_dice_fall_as_often_as_they_should() {
        let mut dice = Dice(0x9e37_79b9_7f4a_7c15 | 1);
        for chance in [0, 10, 50, 500, 1000] {
            let fallen = (0..100_000).filter(|_| dice.falls(chance)).count() as u64;
            let range = crate::chance::binomial(100_000, f64::from(chance) / 1000.0);
            assert!(
                range.contains(&fallen),
                "{fallen} of 100,000 with a chance of {chance} in a thousand, not {range:?}"
            );
        }
    }
}
