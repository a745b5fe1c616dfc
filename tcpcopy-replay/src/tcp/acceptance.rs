//! What the live server's TCP accepts of a segment: RFC 9293, section 3.10.7.4, as RFC 5961 and RFC 7323, section 5,
//! tighten it, and Linux does it. What it refuses is not replayed (rule S8).
//!
//! The live server's variables are not seen, only what bounds them. RCV.NXT is what was captured in order, or more when
//! something was not captured. RCV.WND is at most 65,535 octets times the scale of its SYN-ACK. SND.UNA is at least
//! what was acknowledged in captured segments, of which those without payload are none. So a segment that is refused
//! here is refused there; of those that are accepted here the live server may still refuse some.

use std::time::Duration;

use crate::{
    segment::LiveOptions,
    stats::Refusal,
    tcp::seq::{LiveAck, LiveSeq, LiveStamp},
};

/// The largest window without scaling (RFC 9293, section 3.1).
const WINDOW: i64 = 65_535;
/// The largest shift count (RFC 7323, section 2.3); assumed where the SYN was not seen.
const MAX_SHIFT: u8 = 14;
/// A record's payload: a coalesced segment that repeats the end of another may begin so much earlier.
const COALESCED: i64 = 65_536;
/// In so short a time no server sends 2 GiB to one client (172 Gbit/s). Afterwards the acknowledgement number may be
/// any, because a download of that size cannot be excluded: pure ACKs are not captured.
const NO_LAP: Duration = Duration::from_millis(100);
/// A timestamp older than this says nothing (RFC 7323, section 5.5).
const TIMESTAMP_LIFETIME: Duration = Duration::from_secs(24 * 24 * 3600);

/// What bounds the live server's variables.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Acceptance {
    /// The highest number that was acknowledged: at most SND.UNA. `None` before the first.
    una: Option<LiveAck>,
    /// The live server's first octet after its SYN; `None` where that was not seen, or is more than 2 GiB ago.
    first: Option<LiveAck>,
    /// TS.Recent, or less.
    recent: Option<LiveStamp>,
    /// The live server's window scale.
    shift: u8,
    /// The live client's: MAX.SND.WND of the live server is what it allows.
    client_shift: u8,
    /// Whether the connection was captured from its start: no octet was sent before offset 0.
    complete: bool,
    /// Whether timestamps were negotiated, as far as is known.
    timestamps: bool,
}

/// A live client's position: what its stream knows of RCV.NXT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Position {
    /// After the last octet in order; `None` while it is unknown.
    pub next: Option<LiveSeq>,
    /// Octets in order so far.
    pub received: u64,
    /// After the last octet behind a gap, counted from `next`; zero without one.
    pub beyond: u64,
    /// Whether the FIN is what comes next, or came.
    pub fin: bool,
}

/// A segment of an established connection, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrival<'a> {
    pub seq: LiveSeq,
    /// `None` without ACK.
    pub ack: Option<LiveAck>,
    pub reset: bool,
    pub options: &'a LiveOptions,
    /// Since the last segment that was accepted.
    pub after: Duration,
    /// Whether segments may have been lost between the last one and this: then RCV.NXT may be anywhere ahead.
    pub after_loss: bool,
}

impl Acceptance {
    /// Of a connection whose handshake was seen: `first` is the live server's first octet after its SYN.
    pub(crate) fn established(first: LiveAck, server: Option<&LiveOptions>, client: Option<&LiveOptions>) -> Self {
        // Scaling holds only if both SYNs have it (RFC 7323, section 2.2), and so do timestamps (section 3.2).
        let shift = |options: Option<&LiveOptions>| {
            options.map_or(MAX_SHIFT, |options| options.window_scale.unwrap_or(0).min(MAX_SHIFT))
        };
        let scaled = server.is_none_or(|server| server.window_scale.is_some());
        Self {
            una: Some(first),
            first: Some(first),
            recent: client.and_then(|client| client.timestamps).map(|(tsval, _)| LiveStamp::new(tsval)),
            shift: shift(server),
            client_shift: if scaled { shift(client) } else { 0 },
            complete: true,
            timestamps: server.or(client).is_none_or(|options| options.timestamps.is_some()),
        }
    }

    /// Of a connection that was open when the capture began.
    pub(crate) const fn joined() -> Self {
        Self {
            una: None,
            first: None,
            recent: None,
            shift: MAX_SHIFT,
            client_shift: MAX_SHIFT,
            complete: false,
            timestamps: true,
        }
    }

    /// The largest RCV.WND that the live server can advertise.
    const fn window(&self) -> i64 {
        WINDOW << self.shift
    }

    /// Judges a segment, and learns from it when it is accepted.
    ///
    /// # Errors
    /// Why the live server refuses it.
    pub(crate) fn accept(&mut self, position: Position, segment: &Arrival<'_>) -> Result<(), Refusal> {
        let begin = position.next.map(|next| i64::from(segment.seq.distance(next)));
        self.check_timestamp(segment)?;
        self.check_sequence(position, begin, segment)?;
        if segment.reset {
            return self.check_reset(position, begin, segment);
        }
        self.check_acknowledgement(begin, segment)?;
        if let Some(ack) = segment.ack {
            let ahead = self.una.map_or(0, |una| ack.distance(una));
            if self.una.is_none() || ahead > 0 || !self.is_near(ack) {
                self.una = Some(ack);
                self.first = self.first.filter(|first| ack.distance(*first) >= 0);
            }
        }
        // TS.Recent follows only what is not ahead (RFC 7323, section 4.3).
        if let (true, Some((tsval, _))) =
            (self.timestamps && begin.is_none_or(|begin| begin <= 0), segment.options.timestamps)
        {
            let stamp = LiveStamp::new(tsval);
            let newer = self.recent.is_none_or(|recent| stamp.is_after(recent));
            if newer || segment.after > TIMESTAMP_LIFETIME {
                self.recent = Some(stamp);
            }
        }
        Ok(())
    }

    /// PAWS (RFC 7323, section 5.3); not of a RST (section 5.2).
    fn check_timestamp(&self, segment: &Arrival<'_>) -> Result<(), Refusal> {
        let (Some(recent), Some((tsval, _))) = (self.recent, segment.options.timestamps) else { return Ok(()) };
        let is_old = recent.is_after(LiveStamp::new(tsval));
        let counts = self.timestamps && !segment.reset && segment.after <= TIMESTAMP_LIFETIME;
        if is_old && counts { Err(Refusal::StaleTimestamp) } else { Ok(()) }
    }

    /// The window of RFC 9293, section 3.4, from above; and from below what may be a retransmission.
    fn check_sequence(&self, position: Position, begin: Option<i64>, segment: &Arrival<'_>) -> Result<(), Refusal> {
        let Some(begin) = begin else { return Ok(()) };
        let window = self.window();
        let refused = if begin >= 0 {
            begin > 0 && begin >= window && !segment.after_loss
        } else {
            // Nothing was sent before the SYN, whose number a keep-alive probe may have.
            let sent = i64::try_from(position.received).unwrap_or(i64::MAX).saturating_add(1);
            let sent = if self.complete { sent } else { i64::MAX };
            -begin > sent.min(window + COALESCED)
        };
        if refused { Err(Refusal::OutOfWindow) } else { Ok(()) }
    }

    /// A RST is taken at exactly RCV.NXT (RFC 5961, section 3.2), or behind the last octet that was received out of
    /// order, which the client may know by a SACK (Linux, `tcp_reset_check`).
    fn check_reset(&self, position: Position, begin: Option<i64>, segment: &Arrival<'_>) -> Result<(), Refusal> {
        let taken = begin.is_some_and(|begin| {
            let after_fin = begin == 1 && position.fin;
            let after_gap = position.beyond > 0 && u64::try_from(begin) == Ok(position.beyond);
            begin == 0 || after_fin || after_gap || segment.after_loss && begin > 0
        });
        if taken { Ok(()) } else { Err(Refusal::Reset) }
    }

    /// `SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT` (RFC 5961, section 5.2).
    fn check_acknowledgement(&self, begin: Option<i64>, segment: &Arrival<'_>) -> Result<(), Refusal> {
        // Without ACK it is dropped (RFC 9293, section 3.10.7.4, fifth).
        let Some(ack) = segment.ack else { return Err(Refusal::Acknowledgement) };
        // Too much may have been sent since to tell; then only the very next octet proves that it is the client.
        let lapped = segment.after >= NO_LAP && begin.is_none_or(|begin| begin == 0);
        if self.is_near(ack) || lapped { Ok(()) } else { Err(Refusal::Acknowledgement) }
    }

    /// Whether a number is not too far behind the highest acknowledged, or ahead of it.
    fn is_near(&self, ack: LiveAck) -> bool {
        let Some(una) = self.una else { return true };
        let ahead = i64::from(ack.distance(una));
        let sent = self.first.map_or(i64::MAX, |first| una.distance(first).into());
        ahead >= 0 || -ahead <= (WINDOW << self.client_shift).min(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEXT: u32 = u32::MAX - 100;
    const FIRST: u32 = u32::MAX - 7;

    fn options(window_scale: Option<u8>, tsval: Option<u32>) -> LiveOptions {
        LiveOptions { window_scale, timestamps: tsval.map(|tsval| (tsval, 0)) }
    }

    fn acceptance() -> Acceptance {
        let (server, client) = (options(Some(2), Some(1)), options(Some(3), Some(1_000)));
        Acceptance::established(LiveAck::new(FIRST), Some(&server), Some(&client))
    }

    fn position() -> Position {
        Position { next: Some(LiveSeq::new(NEXT)), received: 500, beyond: 0, fin: false }
    }

    const NONE: LiveOptions = LiveOptions { window_scale: None, timestamps: None };

    fn arrival(seq: u32, ack: u32) -> Arrival<'static> {
        Arrival {
            seq: LiveSeq::new(seq),
            ack: Some(LiveAck::new(ack)),
            reset: false,
            options: &NONE,
            after: Duration::from_millis(1),
            after_loss: false,
        }
    }

    fn judged(segment: Arrival<'_>) -> Result<(), Refusal> {
        acceptance().accept(position(), &segment)
    }

    fn at(offset: i64) -> u32 {
        NEXT.wrapping_add(offset as u32)
    }

    #[test]
    fn a_segment_is_accepted_from_the_client_s_first_octet_to_the_end_of_the_largest_window() {
        let window = 65_535 << 2;
        for (offset, accepted) in
            [(0, true), (1, true), (window - 1, true), (window, false), (-501, true), (-502, false), (1 << 31, false)]
        {
            assert_eq!(judged(arrival(at(offset), FIRST)).is_ok(), accepted, "{offset}");
        }
        // After a loss of ours the client may be anywhere ahead.
        assert!(judged(Arrival { after_loss: true, ..arrival(at(window + 5), FIRST) }).is_ok());
        assert!(judged(Arrival { after_loss: true, ..arrival(at(-502), FIRST) }).is_err());
    }

    #[test]
    fn an_acknowledgement_is_accepted_from_the_server_s_first_octet_on_and_a_window_back() {
        for (offset, accepted) in [(0u32, true), (1 << 30, true), (u32::MAX, false), (1 << 31, false)] {
            assert_eq!(judged(arrival(at(0), FIRST.wrapping_add(offset))).is_ok(), accepted, "{offset}");
        }
        let mut acceptance = acceptance();
        let mut say = |ack: u32| acceptance.accept(position(), &arrival(at(0), FIRST.wrapping_add(ack))).is_ok();
        let window = 65_535 << 3;
        assert!(say(5_000_000));
        assert!(say(5_000_000 - window) && !say(5_000_000 - window - 1));
        assert_eq!(judged(Arrival { ack: None, ..arrival(at(0), 0) }), Err(Refusal::Acknowledgement));
    }

    /// The client has read more than 2 GiB since, and pure ACKs are not captured.
    #[test]
    fn after_a_long_download_only_the_very_next_octet_proves_the_client() {
        let wild = FIRST.wrapping_add(3 << 30);
        let late = Duration::from_secs(1);
        assert!(judged(Arrival { after: late, ..arrival(at(0), wild) }).is_ok());
        assert!(judged(Arrival { after: late, ..arrival(at(1), wild) }).is_err());
        assert!(judged(arrival(at(0), wild)).is_err());
        let mut acceptance = acceptance();
        acceptance.accept(position(), &Arrival { after: late, ..arrival(at(0), wild) }).unwrap();
        assert!(acceptance.accept(position(), &arrival(at(0), wild.wrapping_add(100))).is_ok());
    }

    #[test]
    fn a_reset_is_taken_at_the_next_octet_or_behind_what_a_sack_has_told() {
        let reset = |offset| Arrival { reset: true, ack: None, ..arrival(at(offset), 0) };
        for offset in [-1, 1, 5, 1_000, 1 << 30] {
            assert!(judged(reset(offset)).is_err(), "{offset}");
        }
        assert!(judged(reset(0)).is_ok());
        let at_gap = Position { beyond: 300, ..position() };
        assert!(acceptance().accept(at_gap, &reset(300)).is_ok() && acceptance().accept(at_gap, &reset(299)).is_err());
        let closed = Position { fin: true, ..position() };
        assert!(acceptance().accept(closed, &reset(1)).is_ok() && acceptance().accept(closed, &reset(2)).is_err());
        let unknown = Position { next: None, ..position() };
        assert!(acceptance().accept(unknown, &reset(0)).is_err());
    }

    #[test]
    fn a_stale_timestamp_is_refused_unless_it_has_outlived_its_meaning() {
        let (old, new) = (options(None, Some(999)), options(None, Some(2_000)));
        assert_eq!(judged(Arrival { options: &old, ..arrival(at(0), FIRST) }), Err(Refusal::StaleTimestamp));
        assert!(judged(Arrival { options: &old, after: TIMESTAMP_LIFETIME * 2, ..arrival(at(0), FIRST) }).is_ok());
        assert!(judged(Arrival { options: &old, reset: true, ..arrival(at(0), FIRST) }).is_ok());
        // What is ahead does not set the mark: the retransmission before it may be older.
        let mut acceptance = acceptance();
        let between = options(None, Some(1_500));
        for (options, offset, accepted) in
            [(&new, 10, true), (&between, 0, true), (&new, 0, true), (&between, 0, false)]
        {
            let segment = Arrival { options, ..arrival(at(offset), FIRST) };
            assert_eq!(acceptance.accept(position(), &segment).is_ok(), accepted, "{segment:?}");
        }
    }

    #[test]
    fn what_was_not_negotiated_does_not_count() {
        let (server, client) = (options(None, None), options(Some(9), Some(1_000)));
        let mut acceptance = Acceptance::established(LiveAck::new(FIRST), Some(&server), Some(&client));
        let old = options(None, Some(1));
        assert!(acceptance.accept(position(), &Arrival { options: &old, ..arrival(at(0), FIRST) }).is_ok());
        assert!(acceptance.accept(position(), &arrival(at(65_535), FIRST)).is_err());
    }
}
