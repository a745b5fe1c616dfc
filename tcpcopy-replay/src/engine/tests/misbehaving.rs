//! Two thousand clients at once, none of which does what a textbook's does, on a path that loses a little: no session
//! gets stuck, nothing panics, and the counts add up.

use tcpcopy_common::tcp_flags::{ACK, FIN, PSH, RST, SYN, TcpFlags};

use super::{
    harness::{Client, Lab, Weather, config},
    target::{Act, App, lines, lines_then_close, silent},
};
use crate::{config::Config, segment::LiveSegment};

const CLIENTS: u16 = 2_000;
const KINDS: u16 = 12;
/// Turns that each client has; all have the first before any has the second.
const TURNS: u32 = 24;
const LINE: &[u8] = b"a request of forty octets, one at a time\n";

/// One client: what it does depends on its number only.
struct Rogue {
    client: Client,
    kind: u16,
}

impl Rogue {
    fn new(number: u16) -> Self {
        Self { client: Client::new(10_000 + number), kind: number % KINDS }
    }

    /// A segment at a place relative to the next one; the engine gets it without a word of the others in between.
    fn say(&self, lab: &mut Lab, offset: i32, flags: TcpFlags, payload: &[u8]) {
        let segment = self.client.segment(lab, flags, payload);
        let seq = segment.seq.wrapping_add_signed(offset);
        lab.hand(&LiveSegment { seq, ..segment });
    }

    fn advance(&mut self, octets: u32) {
        self.client.seq = self.client.seq.wrapping_add(octets);
    }

    fn syn(&mut self, lab: &mut Lab) {
        self.say(lab, 0, SYN, &[]);
        self.advance(1);
        let answer = self.client.answer(lab);
        lab.engine.handle_answer(lab.now, &answer);
        self.say(lab, 0, ACK, &[]);
    }

    fn line(&mut self, lab: &mut Lab) {
        self.say(lab, 0, ACK | PSH, LINE);
        self.advance(LINE.len() as u32);
    }

    fn turn(&mut self, lab: &mut Lab, turn: u32) {
        if turn == 0 {
            return self.syn(lab);
        }
        match (self.kind, turn) {
            // RST in the middle of a request.
            (0, 1) => {
                self.say(lab, 0, ACK, &LINE[..10]);
                self.advance(10);
            }
            (0, 2) => self.say(lab, 0, RST, &[]),
            // Half-close, with the request in the same segment, and again and again.
            (1, 1..) => self.say(lab, 0, ACK | PSH | FIN, LINE),
            // An octet a segment; the last turns are for the rest.
            (2, 1..TURNS) => {
                self.say(lab, 0, ACK | PSH, &LINE[turn as usize - 1..turn as usize]);
                self.advance(1);
            }
            // A request, then silence for ever.
            (3, 1) => self.line(lab),
            // The port again before the other side has said a word, with numbers far away.
            (4, 1 | 4 | 7) => self.line(lab),
            (4, 2 | 5 | 8) => {
                self.say(lab, 0, ACK | FIN, &[]);
                self.advance(77_000_000);
            }
            (4, 3 | 6) => self.syn(lab),
            // The FIN before what it ends; the gap is filled, or not.
            (6, 1) => self.say(lab, 2 * LINE.len() as i32, ACK | FIN, &[]),
            (6, 2) => self.say(lab, LINE.len() as i32, ACK | PSH, LINE),
            (6, 20) if self.client.flow.client_port[1] & 1 == 0 => self.say(lab, 0, ACK | PSH, LINE),
            // Overlaps that disagree with what was sent before.
            (7, 1..) => {
                self.line(lab);
                self.say(lab, -20, ACK | PSH, &[b'x'; 30]);
            }
            // Flags that contradict each other, and octets beyond the FIN.
            (8, 1) => self.say(lab, 0, SYN | FIN, LINE),
            (8, 2) => self.say(lab, 0, SYN | RST, &[]),
            (8, 3) => self.say(lab, 0, ACK | FIN, LINE),
            (8, 4..) => self.say(lab, turn as i32 * 50, TcpFlags::from_octet(0xff), LINE),
            // Both sides close at once: the target after its first answer.
            (9, 1) => self.line(lab),
            (9, 2) => self.say(lab, 0, ACK | FIN, &[]),
            // Numbers from anywhere.
            (10, 1..) => self.say(lab, (turn as i32).wrapping_mul(0x1234_5677), ACK | PSH, LINE),
            // It goes on after its RST.
            (11, 3) => self.say(lab, 0, ACK | RST, &[]),
            (11, _) => self.line(lab),
            // A SYN and nothing else, or no more of it.
            _ => {}
        }
    }
}

fn app(number: usize) -> App {
    match number % 5 {
        0 | 1 => lines(50),
        2 => lines_then_close(50, 1),
        3 => silent(),
        _ => Box::new(|input| input.map_or(Vec::new(), |_| vec![Act::Reset(0)])),
    }
}

fn two_thousand_clients(seed: u64, weather: Weather) {
    let mut lab = Lab::with(Config { max_memory: 4 << 20, max_session_memory: 64 << 10, ..config() });
    lab.seed(seed);
    lab.weather = weather;
    // With so many connections the test does it turn by turn.
    lab.audits = false;
    lab.target.new_app = Box::new(app);
    let mut rogues: Vec<Rogue> = (0..CLIENTS).map(Rogue::new).collect();
    for turn in 0..TURNS {
        for rogue in &mut rogues {
            rogue.turn(&mut lab, turn);
        }
        lab.settle();
        lab.audit();
        // Three seconds for all: who uses a port again does so within one.
        lab.run_ms(125);
    }
    let seen = lab.engine.stats().sessions.seen;
    assert!(seen >= u64::from(CLIENTS), "seed {seed}: only {seen} sessions");
    // Long after every time-out there is.
    for minutes in [1, 2, 4, 8, 30] {
        lab.run_ms(minutes * 60_000);
        lab.audit();
    }
    lab.assert_done();
    let stats = lab.engine.stats();
    assert_eq!(stats.sessions.seen, stats.sessions.finished + stats.sessions.aborted.total(), "seed {seed}");
    assert_eq!(stats.bytes.captured, stats.bytes.sent + stats.bytes.discarded.total(), "seed {seed}");
    for (reason, what) in [(crate::Reason::CaptureGap, "gap"), (crate::Reason::IdleTimeout, "silence")] {
        assert!(
            stats.sessions.aborted.get(reason) > 0,
            "seed {seed}: no session ended by a {what}: the test is too tame"
        );
    }
}

#[test]
fn two_thousand_misbehaving_clients_leave_nothing_behind() {
    two_thousand_clients(1, Weather::default());
}

#[test]
fn two_thousand_misbehaving_clients_on_a_bad_path_leave_nothing_behind() {
    two_thousand_clients(2, Weather { lose: 20, duplicate: 20, delay: 50 });
}
