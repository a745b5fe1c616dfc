//! What became of the packets that an injector built.

use std::io;

use tcpcopy_common::{
    figures,
    figures::{Section, counter},
};

figures! {
    /// Counts of packets. Every packet built is in exactly one of [`packets`](Self::packets), the discards below, or
    /// still pending in the injector.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct InjectStats {
        /// Packets handed to the kernel, which took them.
        pub packets: u64 = counter(Section::Stages).named("injected_packets"),
        /// Octets of the packets handed to the kernel, from the IP header on.
        pub bytes: u64 = counter(Section::Stages).named("injected_bytes").bytes(),
        /// Discarded: the socket's or the interface's queue was full, and stayed full until the batch was needed again.
        pub would_block: u64 = counter(Section::NotInjected),
        /// Discarded by the kernel: the interface's queue was full, or memory was short (ENOBUFS, ENOMEM).
        pub queue_full: u64 = counter(Section::NotInjected),
        /// Discarded by the kernel: larger than the interface's MTU (EMSGSIZE).
        pub emsgsize: u64 = counter(Section::NotInjected).named("larger_than_mtu"),
        /// Discarded by the kernel: the interface is down or gone, or there is no route any more.
        pub net_down: u64 = counter(Section::NotInjected).named("interface_down"),
        /// Discarded by the kernel for another reason; EPERM when a firewall rule says so.
        pub other: u64 = counter(Section::NotInjected),
        /// Discarded: no route to the target, or its next hop does not answer.
        pub unresolved: u64 = counter(Section::NotInjected).named("next_hop_unresolved"),
    }
}

/// Why the kernel refused a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Try again later.
    WouldBlock,
    QueueFull,
    TooLarge,
    NetDown,
    /// A firewall rule says so.
    Forbidden,
    Other,
}

impl Refusal {
    pub(super) fn of(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::EAGAIN) => Self::WouldBlock,
            Some(libc::ENOBUFS | libc::ENOMEM) => Self::QueueFull,
            Some(libc::EMSGSIZE) => Self::TooLarge,
            Some(
                libc::ENETDOWN | libc::ENXIO | libc::ENODEV | libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EHOSTDOWN,
            ) => Self::NetDown,
            Some(libc::EPERM | libc::EACCES) => Self::Forbidden,
            _ => Self::Other,
        }
    }
}

impl InjectStats {
    /// Returns all packets that were discarded.
    #[must_use]
    pub fn discarded(&self) -> u64 {
        self.would_block + self.queue_full + self.emsgsize + self.net_down + self.other + self.unresolved
    }

    /// Returns the counter of a reason.
    pub(super) fn refused(&mut self, refusal: Refusal) -> &mut u64 {
        match refusal {
            Refusal::WouldBlock => &mut self.would_block,
            Refusal::QueueFull => &mut self.queue_full,
            Refusal::TooLarge => &mut self.emsgsize,
            Refusal::NetDown => &mut self.net_down,
            Refusal::Forbidden | Refusal::Other => &mut self.other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_of_the_kernel_is_counted_by_its_reason() {
        let counted = |errno| {
            let mut stats = InjectStats::default();
            *stats.refused(Refusal::of(&io::Error::from_raw_os_error(errno))) += 1;
            assert_eq!(stats.discarded(), 1);
            [stats.would_block, stats.queue_full, stats.emsgsize, stats.net_down, stats.other].map(|count| count == 1)
        };
        let [would_block, queue_full, emsgsize, net_down, other] =
            std::array::from_fn(|i| std::array::from_fn(|counter: usize| counter == i));
        assert_eq!(counted(libc::EAGAIN), would_block);
        for errno in [libc::ENOBUFS, libc::ENOMEM] {
            assert_eq!(counted(errno), queue_full, "{errno}");
        }
        assert_eq!(counted(libc::EMSGSIZE), emsgsize);
        for errno in [libc::ENETDOWN, libc::ENXIO, libc::ENODEV, libc::ENETUNREACH, libc::EHOSTUNREACH] {
            assert_eq!(counted(errno), net_down, "{errno}");
        }
        for errno in [libc::EPERM, libc::EACCES, libc::EINVAL, libc::EIO] {
            assert_eq!(counted(errno), other, "{errno}");
        }
    }
}
