//! Why the live server's TCP refuses a segment, so that it is not replayed.

use tcpcopy_common::{
    figures,
    figures::{Section, counter},
};

/// Why the live server's TCP refuses a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Its checksum is wrong.
    Checksum,
    /// Its sequence number is outside the receive window, and not that of a retransmission.
    OutOfWindow,
    /// Its acknowledgement number is none that the live server can have caused.
    Acknowledgement,
    /// A RST not at the number expected next.
    Reset,
    /// A SYN within a connection.
    Syn,
    /// Its timestamp is older than that of a segment before it.
    StaleTimestamp,
    /// A FIN within octets that were captured.
    Fin,
    /// It acknowledges no SYN-ACK of the live server.
    Unproven,
    /// A SYN whose client never acknowledged a SYN-ACK of the live server.
    Unfinished,
}

figures! {
    /// Segments that claim to be a live client's, and that the live server's TCP refuses.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Refused {
        /// Segments with a wrong checksum.
        pub bad_checksum: u64 = counter(Section::Refused),
        /// Segments whose sequence number is outside the receive window, and not that of a retransmission (RFC 9293,
        /// section 3.4).
        pub out_of_window: u64 = counter(Section::Refused),
        /// Segments whose acknowledgement number the live server cannot have caused (RFC 5961, section 5.2), or that
        /// have none.
        pub bad_acknowledgement: u64 = counter(Section::Refused),
        /// RSTs at another number than the one expected next (RFC 5961, section 3.2).
        pub bad_reset: u64 = counter(Section::Refused),
        /// SYNs within a connection, whose server did not answer them with a SYN-ACK (RFC 5961, section 4.2), and SYNs
        /// with other flags.
        pub bad_syn: u64 = counter(Section::Refused),
        /// Segments whose timestamp is older than that of a segment before them (PAWS: RFC 7323, section 5.3).
        pub stale_timestamp: u64 = counter(Section::Refused),
        /// FINs within octets that were captured.
        pub bad_fin: u64 = counter(Section::Refused),
        /// Segments that acknowledge no SYN-ACK of the live server, of connections that are not established.
        pub unproven_handshake: u64 = counter(Section::Refused),
        /// SYNs whose client did not acknowledge a SYN-ACK of the live server within a minute, or before others had
        /// taken their place: scans, floods, closed ports.
        pub unfinished_handshake: u64 = counter(Section::Refused),
        /// Payload octets of all these.
        pub refused_bytes: u64 = counter(Section::Refused).bytes(),
    }
}

impl Refused {
    /// Counts a segment with `octets` of payload.
    pub(crate) const fn add(&mut self, refusal: Refusal, octets: u64) {
        let counter = match refusal {
            Refusal::Checksum => &mut self.bad_checksum,
            Refusal::OutOfWindow => &mut self.out_of_window,
            Refusal::Acknowledgement => &mut self.bad_acknowledgement,
            Refusal::Reset => &mut self.bad_reset,
            Refusal::Syn => &mut self.bad_syn,
            Refusal::StaleTimestamp => &mut self.stale_timestamp,
            Refusal::Fin => &mut self.bad_fin,
            Refusal::Unfinished => &mut self.unfinished_handshake,
            Refusal::Unproven => &mut self.unproven_handshake,
        };
        *counter += 1;
        self.refused_bytes += octets;
    }
}
