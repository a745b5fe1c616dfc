//! Clients and targets that misbehave, in any order: whatever they do, sessions end, the counts add up (the lab checks
//! after every step), and each target connection gets one contiguous piece of a live stream that begins with a request
//! (rule S5).

use proptest::prelude::*;
use tcpcopy_common::tcp_flags::ACK;

use super::{
    harness::{Client, Lab, Weather, config},
    target::{Act, App, Conn, lines, lines_then_close, silent},
};
use crate::{causality::greeting::FirstSpeaker, config::Config};

#[derive(Clone, Debug)]
enum Op {
    /// A request, after having read so much; in two segments if it is long.
    Request {
        client: usize,
        read: u32,
        len: usize,
    },
    /// A request that is never captured.
    Missed {
        client: usize,
        len: usize,
    },
    Fin(usize),
    Rst(usize),
    /// The same port again, with a new connection.
    Reuse(usize),
    Wait(u64),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => (0usize..3, prop_oneof![Just(0u32), Just(10u32)], 1usize..3000)
            .prop_map(|(client, read, len)| Op::Request { client, read, len }),
        1 => (0usize..3, 1usize..2000).prop_map(|(client, len)| Op::Missed { client, len }),
        1 => (0usize..3).prop_map(Op::Fin),
        1 => (0usize..3).prop_map(Op::Rst),
        1 => (0usize..3).prop_map(Op::Reuse),
        6 => prop_oneof![0u64..3, 0u64..300, 0u64..10_000].prop_map(Op::Wait),
    ]
}

fn app(kind: u8) -> App {
    match kind % 6 {
        0 | 1 => lines(10),
        2 => lines_then_close(10, 1 + usize::from(kind / 6) % 3),
        3 => silent(),
        4 => Box::new(move |input| match input {
            None => vec![Act::Write(u64::from(kind) * 100_000, 30)],
            Some(_) => vec![Act::Write(0, 10)],
        }),
        _ => {
            let mut left = kind / 6 % 4;
            Box::new(move |input| {
                if input.is_none() {
                    return Vec::new();
                }
                left = left.saturating_sub(1);
                vec![if left == 0 { Act::Reset(u64::from(kind) * 1000) } else { Act::Write(0, 10) }]
            })
        }
    }
}

/// One live connection: what its client sent, captured or not, and where its requests begin.
struct Live {
    client: Client,
    stream: Vec<u8>,
    starts: Vec<usize>,
    over: bool,
}

fn begin(lab: &mut Lab, port: usize, number: u32) -> Live {
    let mut client = Client::new(40_000 + port as u16);
    client.seq = client.seq.wrapping_add(number.wrapping_mul(77_000_000));
    client.syn(lab);
    Live { client, stream: Vec::new(), starts: Vec::new(), over: false }
}

impl Live {
    fn request(&mut self, lab: &mut Lab, number: usize, read: u32, len: usize, captured: bool) {
        let mut line = format!("{number}:").into_bytes();
        line.resize(line.len() + len, b'a' + (number % 26) as u8);
        line.push(b'\n');
        self.starts.push(self.stream.len());
        self.stream.extend_from_slice(&line);
        if !captured {
            self.client.seq = self.client.seq.wrapping_add(line.len() as u32);
            return;
        }
        let (first, rest) = line.split_at(line.len().min(1400));
        if rest.is_empty() {
            self.client.send(lab, read, first);
        } else {
            self.client.ack = self.client.ack.wrapping_add(read);
            let segment = self.client.segment(lab, ACK, first);
            lab.live(&segment);
            self.client.seq = self.client.seq.wrapping_add(first.len() as u32);
            self.client.send(lab, 0, rest);
        }
    }

    fn contains(&self, received: &[u8]) -> bool {
        self.starts.iter().any(|&at| self.stream[at..].starts_with(received))
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn sessions_end_counts_add_up_and_streams_stay_whole(
        ops in prop::collection::vec(op(), 1..60),
        apps in prop::collection::vec(any::<u8>(), 1..8),
        seed: u64,
        lose in prop_oneof![Just(0u32), 0u32..40],
        window in prop_oneof![Just(None), Just(Some(3000u32))],
        memory in prop_oneof![Just(1usize << 20), Just(6000usize)],
    ) {
        let mut lab = Lab::with(Config { max_session_memory: memory, ..config() });
        lab.set_first_speaker(FirstSpeaker::Unknown);
        lab.seed(seed);
        lab.weather = Weather { lose, duplicate: lose, delay: lose };
        lab.target.window = window;
        lab.target.window_scale = if window.is_some() { None } else { Some(7) };
        lab.target.new_app = Box::new(move |n| app(apps[n % apps.len()]));
        let mut now: Vec<Live> = (0..3).map(|port| begin(&mut lab, port, 0)).collect();
        let mut past = Vec::new();
        for (number, op) in ops.into_iter().enumerate() {
            match op {
                Op::Request { client, read, len } if !now[client].over => {
                    now[client].request(&mut lab, number, read, len, true);
                }
                Op::Missed { client, len } if !now[client].over => {
                    now[client].request(&mut lab, number, 0, len, false);
                }
                Op::Fin(client) if !now[client].over => {
                    now[client].client.fin(&mut lab, 10);
                    now[client].over = true;
                }
                Op::Rst(client) if !now[client].over => {
                    now[client].client.rst(&mut lab, 10);
                    now[client].over = true;
                }
                Op::Reuse(client) => {
                    let new = begin(&mut lab, client, number as u32 + 1);
                    past.push(std::mem::replace(&mut now[client], new));
                }
                Op::Wait(ms) => lab.run_ms(ms),
                Op::Request { .. } | Op::Missed { .. } | Op::Fin(_) | Op::Rst(_) => {}
            }
        }
        lab.weather = Weather::default();
        lab.run_ms(600_000);
        lab.assert_done();
        past.append(&mut now);
        for (flow, conn) in lab.target.past.iter().map(|(f, c)| (f, c)).chain(&lab.target.conns) {
            prop_assert!(
                conn.received.is_empty() || past.iter().any(|live| live.contains(&conn.received)),
                "{:?} got {:?}", flow.client_port, String::from_utf8_lossy(&conn.received)
            );
        }
        let ended = |c: &Conn| c.closed && c.fin_received || !c.established;
        // A RST that was lost is not repeated, as with any client.
        prop_assert!(lose > 0 || lab.target.conns.values().all(ended), "half open at the target");
    }
}
