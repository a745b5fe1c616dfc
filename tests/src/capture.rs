//! A sniffer: what passes a host's interfaces, with the time.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use anyhow::{Context as _, ensure};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use crate::{Family, Host, monotonic_ns};

/// TCP.
pub const TCP: u8 = 6;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// Which end of a packet a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It sent the packet.
    Source,
    /// The packet is for it.
    Destination,
}

/// A packet that was seen.
#[derive(Clone, Debug)]
pub struct Packet {
    /// When the kernel saw it, ns of `CLOCK_MONOTONIC`: whatever else the machine has to do before it is read here.
    pub time_ns: u64,
    /// The address that it comes from.
    pub source: IpAddr,
    /// The address that it goes to.
    pub destination: IpAddr,
    /// The IP protocol.
    pub protocol: u8,
    /// The source port, of TCP.
    pub source_port: u16,
    /// The destination port, of TCP.
    pub destination_port: u16,
    /// TCP's sequence number.
    pub seq: u32,
    /// TCP's acknowledgement number.
    pub ack: u32,
    /// TCP's control bits.
    pub flags: u8,
    /// TCP's options.
    pub options: Vec<u8>,
    /// TCP's payload, as much as was captured; of other protocols everything after the IP header.
    pub payload: Vec<u8>,
}

/// Captures packets of a host in a thread until it is stopped.
pub struct Sniffer {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Vec<Packet>>>,
    thread: Option<JoinHandle<anyhow::Result<()>>>,
}

impl Sniffer {
    /// Starts capturing, on all interfaces of `at`, the IP packets which have one of the addresses of `of` at their
    /// `end`, except neighbour discovery. At return it is listening.
    pub fn start(at: &Host, of: &Host, end: End) -> anyhow::Result<Self> {
        let addresses = (of.v4, of.v6);
        let socket = at.run(|| open(addresses, end))?.context("cannot sniff; it needs CAP_NET_RAW")?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let packets = Arc::<Mutex<Vec<Packet>>>::default();
        let seen = Arc::clone(&packets);
        let thread = at.spawn("sniffer", move || {
            capture(&socket, &stopped, |packet| {
                let address = if end == End::Source { packet.source } else { packet.destination };
                if address == IpAddr::from(addresses.0) || address == IpAddr::from(addresses.1) {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(packet);
                }
            })
        })?;
        Ok(Self { stop, packets, thread: Some(thread) })
    }

    /// Returns the packets since the last call.
    pub fn take(&self) -> Vec<Packet> {
        std::mem::take(&mut self.packets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops, and returns what arrived until now and was not [taken](Self::take). Fails when some was lost, as an
    /// absence then proves nothing.
    pub fn stop(mut self) -> anyhow::Result<Vec<Packet>> {
        self.stop.store(true, Ordering::Release);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result?,
            Some(Err(panic)) => std::panic::resume_unwind(panic),
            None => (),
        }
        Ok(self.take())
    }
}

impl Drop for Sniffer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn open((v4, v6): (Ipv4Addr, Ipv6Addr), end: End) -> io::Result<Socket> {
    // The protocol field of a packet socket is in network order.
    let every_protocol = Protocol::from(i32::from((libc::ETH_P_ALL as u16).to_be()));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(every_protocol))?;
    socket.attach_filter(&filter(v4, v6, end))?;
    let size: libc::c_int = 32 << 20;
    // SAFETY: the option takes an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            (&raw const size).cast(),
            size_of_val(&size) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // The kernel's time of each packet comes with it.
    let on: libc::c_int = 1;
    // SAFETY: the option takes an int, which outlives the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// Makes a classic BPF program: accept when the address at the end that matters is ours. Packets that came before it
/// was attached are sorted out afterwards.
fn filter(v4: Ipv4Addr, v6: Ipv6Addr, end: End) -> Vec<SockFilter> {
    let load = |at: u32| SockFilter::new((libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16, 0, 0, at);
    let half = |at: u32| SockFilter::new((libc::BPF_LD | libc::BPF_H | libc::BPF_ABS) as u16, 0, 0, at);
    let equal = |value: u32, yes: u8, no: u8| {
        SockFilter::new((libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16, yes, no, value)
    };
    let accept = |octets: u32| SockFilter::new((libc::BPF_RET | libc::BPF_K) as u16, 0, 0, octets);
    let (at4, at6) = match end {
        End::Source => (12, 8),
        End::Destination => (16, 24),
    };
    let protocol = (libc::SKF_AD_OFF + libc::SKF_AD_PROTOCOL) as u32;
    let word = |i: usize| {
        let octets = v6.octets();
        u32::from_be_bytes([octets[4 * i], octets[4 * i + 1], octets[4 * i + 2], octets[4 * i + 3]])
    };
    vec![
        half(protocol),
        equal(libc::ETH_P_IP as u32, 0, 2),
        load(at4),
        equal(v4.into(), 9, 10),
        equal(libc::ETH_P_IPV6 as u32, 0, 9),
        load(at6),
        equal(word(0), 0, 7),
        load(at6 + 4),
        equal(word(1), 0, 5),
        load(at6 + 8),
        equal(word(2), 0, 3),
        load(at6 + 12),
        equal(word(3), 0, 1),
        accept(u32::MAX),
        accept(0),
    ]
}

fn capture(socket: &Socket, stop: &AtomicBool, mut seen: impl FnMut(Packet)) -> anyhow::Result<()> {
    let mut buffer = vec![0; 1 << 17];
    let ahead = realtime_ahead();
    loop {
        let stopping = stop.load(Ordering::Acquire);
        match receive(socket, &mut buffer, ahead) {
            Ok((octets, time_ns)) => parse(octets, time_ns).into_iter().for_each(&mut seen),
            // A time-out: what had arrived before `stop` was set has been read.
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                if stopping {
                    break;
                }
            }
            Err(error) if matches!(error.raw_os_error(), Some(libc::ENETDOWN | libc::EINTR)) => (),
            Err(error) => return Err(error).context("the sniffer cannot receive"),
        }
    }
    ensure!(lost(socket)? == 0, "the sniffer lost packets: the machine is too slow for what is sniffed");
    Ok(())
}

/// Returns how far `CLOCK_REALTIME`, of which the kernel's time stamps are, is ahead of `CLOCK_MONOTONIC`, ns. The
/// clocks are read one after the other, with luck at once: of several readings the closest counts.
fn realtime_ahead() -> u64 {
    let reading = || {
        let before = monotonic_ns();
        let realtime = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
        let realtime = realtime.tv_sec as u64 * 1_000_000_000 + realtime.tv_nsec as u64;
        (monotonic_ns() - before, realtime.saturating_sub(before))
    };
    (0..16).map(|_| reading()).min().map_or(0, |(_, ahead)| ahead)
}

/// Receives a packet, and when the kernel saw it, ns of `CLOCK_MONOTONIC`.
fn receive<'a>(socket: &Socket, buffer: &'a mut [u8], ahead: u64) -> io::Result<(&'a [u8], u64)> {
    // Room for one control message, aligned for its header.
    let mut control = [0u64; 8];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: a msghdr is valid when zeroed.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (&raw mut piece, 1);
    (message.msg_control, message.msg_controllen) = (control.as_mut_ptr().cast(), size_of_val(&control) as _);
    // SAFETY: the message names memory of ours, with its lengths, that outlives the call.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    if length < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut time_ns = monotonic_ns();
    // SAFETY: the kernel has filled in the message and its control messages; the macros stay within the lengths that it
    // has set, and a message of this kind holds a timespec.
    unsafe {
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        if let Some(head) = header.as_ref()
            && (head.cmsg_level, head.cmsg_type) == (libc::SOL_SOCKET, libc::SO_TIMESTAMPNS)
        {
            let stamp = libc::CMSG_DATA(header).cast::<libc::timespec>().read_unaligned();
            time_ns = (stamp.tv_sec as u64 * 1_000_000_000 + stamp.tv_nsec as u64).saturating_sub(ahead);
        }
    }
    Ok((&buffer[..length as usize], time_ns))
}

fn lost(socket: &Socket) -> io::Result<u32> {
    /// `struct tpacket_stats` of `linux/if_packet.h`.
    #[repr(C)]
    #[derive(Default)]
    struct Statistics {
        packets: u32,
        drops: u32,
    }
    let mut statistics = Statistics::default();
    let mut length = size_of::<Statistics>() as libc::socklen_t;
    // SAFETY: the option writes a `tpacket_stats` of at most `length` octets.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut statistics).cast(),
            &mut length,
        )
    };
    if result == 0 { Ok(statistics.drops) } else { Err(io::Error::last_os_error()) }
}

/// Parses a packet from its IP header on; `None` when it is none that we look for.
fn parse(octets: &[u8], time_ns: u64) -> Option<Packet> {
    let (source, destination, protocol, rest): (IpAddr, IpAddr, u8, &[u8]) = match octets.first()? >> 4 {
        4 => {
            let header = octets.first_chunk::<20>()?;
            let length = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let end = if length == 0 { octets.len() } else { length.min(octets.len()) };
            let rest = octets.get(usize::from(header[0] & 0x0f) * 4..end)?;
            let source = Ipv4Addr::new(header[12], header[13], header[14], header[15]);
            let destination = Ipv4Addr::new(header[16], header[17], header[18], header[19]);
            (source.into(), destination.into(), header[9], rest)
        }
        6 => {
            let source: [u8; 16] = octets.get(8..24)?.try_into().ok()?;
            let destination: [u8; 16] = octets.get(24..40)?.try_into().ok()?;
            (source.into(), destination.into(), octets[6], octets.get(40..)?)
        }
        _ => return None,
    };
    let mut packet = Packet {
        time_ns,
        source,
        destination,
        protocol,
        source_port: 0,
        destination_port: 0,
        seq: 0,
        ack: 0,
        flags: 0,
        options: Vec::new(),
        payload: rest.to_vec(),
    };
    match protocol {
        TCP => {
            let header = rest.first_chunk::<20>()?;
            packet.source_port = u16::from_be_bytes([header[0], header[1]]);
            packet.destination_port = u16::from_be_bytes([header[2], header[3]]);
            packet.seq = u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
            packet.ack = u32::from_be_bytes([header[8], header[9], header[10], header[11]]);
            packet.flags = header[13];
            let end = usize::from(header[12] >> 4) * 4;
            packet.options = rest.get(20..end)?.to_vec();
            packet.payload = rest.get(end..)?.to_vec();
        }
        // Neighbour discovery, RFC 4861: types 133 to 137.
        ICMPV6 if (133..=137).contains(rest.first()?) => return None,
        _ => (),
    }
    Some(packet)
}

impl Packet {
    /// Describes it in a line, for a test's message.
    pub fn describe(&self) -> String {
        let protocol = match self.protocol {
            TCP => "TCP".into(),
            ICMP | ICMPV6 => format!("ICMP type {}", self.payload.first().copied().unwrap_or_default()),
            other => format!("protocol {other}"),
        };
        format!(
            "{protocol} {} port {} to {} port {} flags {:#04x}, {} octets",
            self.source,
            self.source_port,
            self.destination,
            self.destination_port,
            self.flags,
            self.payload.len()
        )
    }

    /// Returns the version of IP.
    pub fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpStream, UdpSocket};

    use super::*;
    use crate::{Lab, laboratory};

    #[test]
    fn only_packets_of_the_host_are_seen_resets_and_icmp_included() {
        let _guard = laboratory!();
        let lab = Lab::bridge().unwrap();
        let sniffer = Sniffer::start(&lab.client, &lab.target, End::Source).unwrap();
        for family in Family::BOTH {
            lab.client
                .run(|| {
                    // Closed ports: a reset from each, of which only the target's counts.
                    TcpStream::connect(lab.target.socket(family, 1)).unwrap_err();
                    TcpStream::connect(lab.source.socket(family, 1)).unwrap_err();
                    let any: IpAddr = if family == Family::V4 { [0; 4].into() } else { [0u8; 16].into() };
                    let udp = UdpSocket::bind((any, 0)).unwrap();
                    udp.connect(lab.target.socket(family, 1)).unwrap();
                    udp.send(b"x").unwrap();
                    // Waits for the ICMP error.
                    udp.recv(&mut [0]).unwrap_err();
                })
                .unwrap();
        }
        let packets = sniffer.stop().unwrap();
        let kinds: Vec<(Family, u8, u8)> = packets.iter().map(|p| (p.family(), p.protocol, p.flags)).collect();
        let expected =
            [(Family::V4, TCP, 0x14), (Family::V4, ICMP, 0), (Family::V6, TCP, 0x14), (Family::V6, ICMPV6, 0)];
        assert_eq!(kinds, expected, "{:#?}", packets.iter().map(Packet::describe).collect::<Vec<_>>());
    }
}
