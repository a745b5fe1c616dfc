//! Live clients: the octet at each place of a stream tells whose it is and where it belongs.

use tcpcopy_common::flow::{Flow, IpAddress};

/// How many clients there are, each with a port of its own.
pub(super) const CLIENTS: u8 = 8;
/// Octets that surely hold a whole word, and so tell where they come from.
pub(super) const ENOUGH: usize = 15;

/// The octet with sequence number `seq` of connection `id`, which is less than 64. In words of eight: the id, marked by
/// the highest bit, then the number of the word.
pub(super) fn octet(id: u8, seq: u32) -> u8 {
    let word = seq >> 3;
    match seq & 7 {
        0 => 0x80 | id,
        n @ 1..=5 => (word >> (7 * (n - 1))) as u8 & 0x7f,
        n => n as u8,
    }
}

/// Connection and sequence number of the first of these octets, which must be [`ENOUGH`].
pub(super) fn origin(octets: &[u8]) -> Option<(u8, u32)> {
    let at = octets.iter().take(8).position(|octet| octet & 0x80 != 0)?;
    let number = octets[at + 1..at + 6].iter().rev().fold(0u64, |number, &group| number << 7 | u64::from(group));
    Some((octets[at] & 0x3f, ((number << 3) as u32).wrapping_sub(at as u32)))
}

/// One client's port, and the connection that it has now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Client {
    pub flow: Flow,
    pub rule: u16,
    /// Of the connection.
    pub id: u8,
    pub isn: u32,
    /// The next sequence number.
    pub seq: u32,
    pub ack: u32,
}

impl Client {
    pub fn new(number: u8) -> Self {
        let rule = u16::from(number % 3);
        let address = |last: u8| match rule {
            1 => IpAddress([0xfd, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]),
            _ if number == 6 => IpAddress::from_v4([127, 0, 0, 1]),
            _ => IpAddress::from_v4([10, 1, 0, last]),
        };
        // The last is another client of the second to who looks only at the client's side: at a target they collide.
        let (host, port) = if number + 1 == CLIENTS { (201, 1) } else { (200, u16::from(number)) };
        let flow = Flow::tcp((address(1), (40_000 + port).to_be_bytes()), (address(host), [0, 80]));
        // Numbers wrap early.
        Self { flow, rule, id: number, isn: 0, seq: u32::MAX - 2_000, ack: u32::MAX - 500 }
    }
}

/// What was captured of each connection: ranges of sequence numbers, and FINs.
#[derive(Default)]
pub(super) struct Captured {
    ranges: Vec<Vec<(u32, u32)>>,
    fins: Vec<Vec<u32>>,
}

impl Captured {
    pub fn add(&mut self, id: u8, seq: u32, length: u32, fin: bool) {
        let index = usize::from(id);
        if self.ranges.len() <= index {
            self.ranges.resize(index + 1, Vec::new());
            self.fins.resize(index + 1, Vec::new());
        }
        if length > 0 {
            self.ranges[index].push((seq, length));
        }
        if fin {
            self.fins[index].push(seq.wrapping_add(length));
        }
    }

    /// Whether all of these octets were.
    pub fn covers(&self, id: u8, seq: u32, length: u32) -> bool {
        let Some(ranges) = self.ranges.get(usize::from(id)) else { return length == 0 };
        let mut done = 0;
        while done < length {
            let next = seq.wrapping_add(done);
            let more = ranges.iter().filter_map(|&(start, length)| length.checked_sub(next.wrapping_sub(start))).max();
            match more {
                Some(more) if more > 0 => done += more,
                _ => return false,
            }
        }
        true
    }

    /// Whether the client has said that its stream ends here.
    pub fn ends(&self, id: u8, seq: u32) -> bool {
        self.fins.get(usize::from(id)).is_some_and(|fins| fins.contains(&seq))
    }
}
