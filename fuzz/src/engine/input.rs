//! What the octets of an input mean. All of them mean something, so that every mutation is another run.

use std::time::Duration;

use tcpcopy_common::tcp_flags::TcpFlags;
use tcpcopy_replay::{AddressPool, Config, Identity, Ports, RoundTrip, RuleTarget, Slot, TargetId};

/// More steps than that show nothing that fewer do not, and take their time.
const MOST_STEPS: usize = 160;
const HEADER: usize = 8;
const STEP: usize = 6;

pub(super) struct Input {
    pub settings: Settings,
    pub steps: Vec<Step>,
}

impl Input {
    pub fn decode(data: &[u8]) -> Option<Self> {
        let (header, steps) = data.split_first_chunk::<HEADER>()?;
        let (steps, _) = steps.as_chunks::<STEP>();
        Some(Self {
            settings: Settings::decode(header),
            steps: steps.iter().take(MOST_STEPS).map(Step::decode).collect(),
        })
    }
}

/// Copies are the engines that one live segment goes to.
#[derive(Debug)]
pub(super) struct Settings {
    pub config: Config,
    pub copies: u16,
    pub region: Option<u16>,
    pub dealt: bool,
    pub seed: u64,
    /// Whether it ends with a shutdown, or with a long silence.
    pub shutdown: bool,
    /// Whether the targets use timestamps.
    pub timestamps: bool,
    /// Whether the live server's SYN-ACKs are captured.
    pub answers: bool,
    pub reflex: Reflex,
}

/// What the targets do by themselves, at once, whenever something comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reflex {
    /// Nothing but what the steps say.
    None,
    /// All that they should, and answer what has come with PSH.
    Serve,
    /// RST to every SYN.
    Refuse,
    /// FIN or RST behind the SYN-ACK.
    Close,
    Reset,
    /// Their programs refuse every SYN as a collision.
    Collide,
}

/// What the rules replay to; rule 3 is not there.
pub(super) const TARGETS: [(TargetId, &str); 3] =
    [(TargetId(0), "10.0.0.3:8080"), (TargetId(0), "[fd00::3]:8080"), (TargetId(1), "10.0.0.4:2525")];

impl Settings {
    fn decode(&[flags, more, round_trip, memory, sessions, mss, times, seed]: &[u8; HEADER]) -> Self {
        let is = |bit: u8| flags >> bit & 1 != 0;
        let and = |bit: u8| more >> bit & 1 != 0;
        let pick = |octet: u8, from: &[usize]| from[usize::from(octet) % from.len()];
        let rule =
            |(target, address): (TargetId, &str)| RuleTarget { target, address: address.parse().expect("constant") };
        let mut addresses = AddressPool::default();
        addresses.add("10.9.0.1".parse().expect("constant"), 2);
        addresses.add("fd09::1".parse().expect("constant"), 2);
        let max_session_memory = pick(memory, &[32 << 20, 64 << 10, 6_000, 1_500]);
        let seconds = |octet: u8, from: &[usize]| Duration::from_secs(pick(octet, from) as u64);
        let config = Config {
            rules: TARGETS.map(rule).to_vec(),
            complete_only: is(0),
            join_open: !is(1),
            gate: !is(2),
            rejoin: !is(3),
            identity: Identity { addresses: is(4).then_some(addresses), ports: Ports::Own },
            loopback_client: is(5).then_some("10.8.0.1".parse().expect("constant")),
            round_trip: match round_trip % 5 {
                1 => RoundTrip::Live,
                2 => RoundTrip::Same(Duration::from_millis(1)),
                3 => RoundTrip::Same(Duration::from_millis(40)),
                4 => RoundTrip::Same(Duration::from_millis(300)),
                _ => RoundTrip::Near,
            },
            max_session_memory,
            max_memory: pick(memory / 4, &[512 << 20, 256 << 10, 12_000]).max(max_session_memory.min(12_000)),
            max_sessions: pick(sessions, &[1 << 20, 4, 1]),
            mss_v4: pick(mss, &[1460, 536, 88]) as u16,
            mss_v6: pick(mss / 3, &[1440, 536, 88]) as u16,
            session_timeout: seconds(times, &[120, 1, 10]),
            keepalive_timeout: Some(seconds(times / 3, &[240, 1, 300])),
            gap_timeout: seconds(times / 9, &[3, 1]),
            ..Config::default()
        };
        Self {
            config,
            copies: 1 + u16::from(and(0)),
            dealt: and(0) || and(1) || is(4),
            region: and(2).then_some(u16::from(seed) * 4),
            seed: seed.into(),
            shutdown: and(3),
            timestamps: !and(4),
            answers: !is(6),
            reflex: match more >> 5 {
                0..=2 => Reflex::None,
                3 => Reflex::Serve,
                4 => Reflex::Refuse,
                5 => Reflex::Close,
                6 => Reflex::Reset,
                _ => Reflex::Collide,
            },
        }
    }

    /// The settings of one engine.
    pub fn config(&self, copy: u16) -> Config {
        let mut config = self.config.clone();
        if self.dealt {
            let slot = Slot::new(copy, self.copies).expect("each copy has a slot");
            config.identity.ports = Ports::Dealt { slot, region: self.region };
        }
        config
    }
}

/// Something that happens. `who` is a live client, or a connection at a target.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    /// The next octets of a live client, who has read `read` octets more before.
    Data {
        who: u8,
        length: u16,
        push: bool,
        read: u16,
    },
    /// Octets from elsewhere: again, too early, or both.
    Displaced {
        who: u8,
        by: i16,
        length: u16,
        push: bool,
    },
    /// Octets that are never captured.
    Missed {
        who: u8,
        length: u16,
    },
    /// The live client's port is used for a new connection; perhaps with octets in the SYN.
    Syn {
        who: u8,
        isn: u16,
        length: u16,
    },
    /// The SYN is seen again.
    SynAgain {
        who: u8,
    },
    Fin {
        who: u8,
        length: u16,
        read: u16,
    },
    Rst {
        who: u8,
        by: i16,
        read: u16,
    },
    /// No octets: perhaps a keep-alive probe.
    Ack {
        who: u8,
        back: bool,
        read: u16,
    },
    /// Control bits and numbers that make no sense.
    Nonsense {
        who: u8,
        flags: TcpFlags,
        seq: u16,
        length: u8,
    },
    /// No rule of that number.
    NoRule {
        who: u8,
    },
    /// The target opens.
    SynAck {
        who: u8,
        window: u16,
        scale: u8,
        mss: u8,
    },
    /// The target acknowledges everything, or a part of it.
    Accept {
        who: u8,
        part: u16,
        window: u16,
    },
    /// The target answers.
    Answer {
        who: u8,
        length: u16,
        push: bool,
        fin: bool,
        reflected: bool,
    },
    TargetRst {
        who: u8,
        ack_only: bool,
    },
    /// Any report.
    Raw {
        who: u8,
        kind: u8,
        flags: TcpFlags,
        seq: i8,
        ack: i8,
        length: u8,
    },
    /// All targets do what they should, once.
    Honest {
        answer: u16,
    },
    /// Until the next timer, or so many µs.
    Timer,
    Wait {
        micros: u64,
    },
    ChannelDown {
        target: u8,
    },
    ChannelUp {
        target: u8,
        anew: bool,
    },
}

impl Step {
    fn decode(&[op, who, a, b, c, d]: &[u8; STEP]) -> Self {
        let (x, y) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
        match op % 36 {
            // Most are short, which is as good and takes less time.
            0..=5 => Self::Data { who, length: 1 + x % 300, push: y & 1 != 0, read: (y >> 1) % 4_000 },
            6 => Self::Data { who, length: 1 + x % 9_000, push: y & 1 != 0, read: (y >> 1) % 4_000 },
            7..=9 => Self::Displaced { who, by: x as i16, length: 1 + (y >> 1) % 3_000, push: y & 1 != 0 },
            10 => Self::Missed { who, length: 1 + x % 3_000 },
            11..=13 => Self::Syn { who, isn: x, length: if y & 0xf == 0xf { y >> 4 } else { 0 } },
            14 => Self::SynAgain { who },
            15 => Self::Fin { who, length: if x & 1 != 0 { x >> 6 } else { 0 }, read: y % 4_000 },
            16 => Self::Rst { who, by: if x & 1 != 0 { x as i16 } else { 0 }, read: y % 4_000 },
            17 => Self::Ack { who, back: x & 1 != 0, read: y },
            18 => Self::Nonsense { who, flags: TcpFlags::from_octet(a), seq: y, length: b },
            19 => Self::NoRule { who },
            20..=21 => Self::SynAck { who, window: x, scale: c, mss: d },
            22..=23 => Self::Accept { who, part: x, window: y },
            24..=25 => Self::Answer {
                who,
                length: x % 20_000,
                push: y & 3 != 0,
                fin: y & 12 == 12,
                reflected: y & 0x70 == 0x70,
            },
            26 => Self::TargetRst { who, ack_only: a & 1 != 0 },
            27..=28 => {
                Self::Raw { who, kind: op ^ c, flags: TcpFlags::from_octet(a), seq: b as i8, ack: c as i8, length: d }
            }
            29..=30 => Self::Honest { answer: x % 5_000 },
            31 => Self::Timer,
            32 => Self::Wait { micros: u64::from(x) },
            33 => Self::Wait { micros: u64::from(x) * 5_000 },
            34 => Self::ChannelDown { target: who },
            _ => Self::ChannelUp { target: who, anew: a & 1 != 0 },
        }
    }
}
