//! What must hold: rules S5 and S6, judged from outside the engine.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use tcpcopy_common::{
    flow::Flow,
    tcp_flags::{FIN, RST, SYN},
};
use tcpcopy_replay::{Stats, Transmit};

use crate::{
    live::{Captured, Live, method},
    proxy_protocol::header,
    scenario::{EarlyClose, Ending, Scenario},
    target::{Received, RequestId},
};

pub struct Oracle<'a> {
    scenario: &'a Scenario,
    lives: &'a [Live],
    /// By live connection: the header that introduces it.
    headers: Vec<Vec<u8>>,
    /// Octets of headers that the engine has sent.
    inserted: u64,
    /// By live connection: which octets were handed to the engine, and which it has sent.
    captured: Vec<Vec<bool>>,
    sent: Vec<Vec<bool>>,
    /// By live connection: the end of what was sent.
    high: Vec<usize>,
    /// The present connections at the target, as the engine opened them.
    outgoing: HashMap<Flow, Outgoing>,
    /// Requests of whose answers the engine knows.
    told: HashSet<RequestId>,
    /// By live connection: something of it never reached the engine.
    damaged: Vec<bool>,
    /// Sessions may have been given up for other reasons than the live client and the target give.
    disturbed: bool,
    /// Connections that were given up before it was clear what they carried: of at most one octet each.
    obscure: u64,
}

/// A connection at the target, judged by what the engine sends on it.
struct Outgoing {
    isn: u32,
    /// Octets of a header that were sent on it.
    inserted: usize,
    /// Which live connections it may carry, and from which offset on; `None` before the first octet.
    candidates: Option<Vec<(usize, usize)>>,
}

impl Outgoing {
    fn is_obscure(&self) -> bool {
        self.candidates.as_ref().is_some_and(|c| c.len() > 1)
    }
}

impl<'a> Oracle<'a> {
    pub fn new(scenario: &'a Scenario, lives: &'a [Live]) -> Self {
        let nothing = || lives.iter().map(|live| vec![false; live.stream.len()]).collect();
        Self {
            scenario,
            lives,
            headers: lives.iter().map(|live| header(scenario.header, &live.flow)).collect(),
            inserted: 0,
            captured: nothing(),
            sent: nothing(),
            high: vec![0; lives.len()],
            outgoing: HashMap::new(),
            told: HashSet::new(),
            damaged: lives.iter().map(|live| live.gap || live.slept).collect(),
            disturbed: false,
            obscure: 0,
        }
    }

    pub fn captured(&mut self, segment: &Captured) {
        let octets = segment.offset..segment.offset + segment.payload.len();
        self.captured[segment.connection][octets].fill(true);
    }

    /// A segment was lost on its way to the engine, although the live server has got it.
    pub fn lost(&mut self, segment: &Captured) {
        self.damaged[segment.connection] = true;
    }

    /// From now on not everything need arrive, but what is sent must still be right.
    pub fn disturb(&mut self) {
        self.disturbed = true;
    }

    pub fn told(&mut self, answers: &[RequestId]) {
        self.told.extend(answers);
    }

    /// The engine sends: what may it send?
    pub fn sends(&mut self, transmit: &Transmit<'_>) -> Result<(), String> {
        if transmit.flags.contains(SYN) {
            if self.outgoing.get(&transmit.flow).is_none_or(|o| o.isn != transmit.seq) {
                let new = Outgoing { isn: transmit.seq, inserted: 0, candidates: None };
                let old = self.outgoing.insert(transmit.flow, new);
                self.obscure += u64::from(old.is_some_and(|o| o.is_obscure()));
            }
            return Ok(());
        }
        if transmit.flags.contains(RST) || transmit.payload.is_empty() && !transmit.flags.contains(FIN) {
            return Ok(());
        }
        let Some(outgoing) = self.outgoing.get_mut(&transmit.flow) else {
            return Err(format!("octets without a connection on port {:?}", transmit.flow.client_port));
        };
        let offset = transmit.seq.wrapping_sub(outgoing.isn).wrapping_sub(1) as usize;
        let lives = self.lives;
        let begun = outgoing.candidates.is_some();
        if !begun && offset != 0 {
            return Err(format!("the first octet sent on a connection has offset {offset}"));
        }
        let candidates = outgoing.candidates.get_or_insert_with(|| {
            let starts = |(n, live): (usize, &Live)| {
                let starts = if live.starts.is_empty() { vec![0] } else { live.starts.clone() };
                starts.into_iter().map(move |start| (n, start))
            };
            lives.iter().enumerate().flat_map(starts).collect()
        });
        let was_certain = candidates.len() == 1;
        if !transmit.payload.is_empty() {
            let headers = &self.headers;
            let matches = |&(n, start): &(usize, usize)| {
                let (inserted, octets) = split(&headers[n], offset, transmit.payload);
                let place = start + offset.saturating_sub(headers[n].len());
                headers[n].get(offset..).unwrap_or_default().starts_with(inserted)
                    && lives[n].stream.get(place..).is_some_and(|rest| rest.starts_with(octets))
            };
            candidates.retain(matches);
            if candidates.is_empty() {
                return Err(format!("octets that no live client sent in this place: {:?}", brief(transmit.payload)));
            }
        } else if !begun {
            // Nothing but a FIN: nothing to recognise.
            outgoing.candidates = None;
            return Ok(());
        }
        // All of them have the same one, or this segment is too short to tell.
        if let Some(&(n, _)) = candidates.first() {
            let until = (offset + transmit.payload.len()).min(self.headers[n].len());
            self.inserted += until.saturating_sub(outgoing.inserted) as u64;
            outgoing.inserted = outgoing.inserted.max(until);
        }
        let &[(n, start)] = &candidates[..] else { return Ok(()) };
        let begin = start + offset.saturating_sub(self.headers[n].len());
        let end = start + (offset + transmit.payload.len()).saturating_sub(self.headers[n].len());
        let live = &lives[n];
        if transmit.flags.contains(FIN)
            && (end != live.stream.len() || !matches!(live.ending, Ending::Fin | Ending::HalfClose))
        {
            return Err(format!("a FIN after {end} of {} octets of connection {}", live.stream.len(), live.id));
        }
        if !was_certain {
            let again = (live.request_at(start)..live.starts.len()).take_while(|&k| live.starts[k] < self.high[n]);
            if let Some(k) = again.into_iter().find(|&k| self.told.contains(&(live.id, k as u8))) {
                return Err(format!("request {k} of connection {} is sent again although it was answered", live.id));
            }
        }
        if let Some(missing) = (begin..end).find(|&at| !self.captured[n][at]) {
            return Err(format!("octet {missing} of connection {} is sent, but was not captured", live.id));
        }
        // The first octets may not have told yet whose they are.
        let first = if was_certain { begin } else { start };
        self.sent[n][first..end].fill(true);
        self.high[n] = self.high[n].max(end);
        Ok(())
    }

    /// After everything is over.
    pub fn verdict(&self, stats: &Stats, received: &[Received]) -> Result<(), String> {
        let active = stats.sessions.active;
        let pending = (stats.bytes.pending, stats.syns.pending, stats.fins.pending);
        if active > 0 || pending != (0, 0, 0) {
            return Err(format!("{active} sessions never end, pending {pending:?}"));
        }
        let sent = count(&self.sent);
        let obscure = self.obscure + self.outgoing.values().filter(|o| o.is_obscure()).count() as u64;
        if !(sent..=sent + obscure).contains(&stats.bytes.sent) {
            return Err(format!("{} octets counted as sent, in truth {sent}", stats.bytes.sent));
        }
        if stats.inserted_bytes != self.inserted {
            return Err(format!("{} octets counted as inserted, in truth {}", stats.inserted_bytes, self.inserted));
        }
        for one in received {
            let introduces = |header: &Vec<u8>| match one.octets[..] {
                [] => header.starts_with(&one.header),
                _ => *header == one.header,
            };
            let begins = |live: &Live| {
                one.octets.is_empty() || live.starts.iter().any(|&start| live.stream[start..].starts_with(&one.octets))
            };
            if !self.lives.iter().zip(&self.headers).any(|(live, header)| introduces(header) && begins(live)) {
                return Err(format!(
                    "a connection at the target got no piece of a live stream: {:?}, after {:?}",
                    brief(&one.octets),
                    one.header.escape_ascii().to_string()
                ));
            }
        }
        if self.scenario.session_memory.is_some() || self.disturbed {
            return Ok(());
        }
        let undamaged = self.damaged.iter().all(|damaged| !damaged);
        if undamaged && !self.scenario.closes_early() {
            self.everything_arrives(stats, received)?;
        }
        self.each_request_is_answered_once(stats, received)
    }

    fn everything_arrives(&self, stats: &Stats, received: &[Received]) -> Result<(), String> {
        let captured = count(&self.captured);
        let discarded = stats.bytes.discarded;
        if discarded.total() > 0 || stats.syns.discarded.total() > 0 {
            return Err(format!("discarded without need: {:?}", discarded.iter().collect::<Vec<_>>()));
        }
        if stats.bytes.captured != captured {
            return Err(format!("{} octets counted as captured, in truth {captured}", stats.bytes.captured));
        }
        for live in self.lives.iter().filter(|live| !live.stream.is_empty()) {
            let mine = |one: &&Received| one.octets.first() == Some(&method(live.id));
            let parts: Vec<_> = received.iter().filter(mine).collect();
            if parts.len() != 1 || parts[0].octets != live.stream {
                let lengths: Vec<_> = parts.iter().map(|part| part.octets.len()).collect();
                let whole = live.stream.len();
                return Err(format!("of {whole} octets of connection {}, {lengths:?} arrived", live.id));
            }
        }
        Ok(())
    }

    /// A client that waits for each answer loses no request to a target that answers only so many per connection and
    /// then closes in an orderly way.
    fn each_request_is_answered_once(&self, stats: &Stats, received: &[Received]) -> Result<(), String> {
        let mut lost = 0;
        for (live, _) in self.lives.iter().zip(&self.damaged).filter(|(live, damaged)| live.closed_loop && !**damaged) {
            let service = &self.scenario.services[live.service];
            let (orderly, certain) = match service.limit {
                None => (true, true),
                // Where an answer ends cannot be told if it does not come in one piece, and a gate that has not waited
                // to the end lets a request go that the target will not answer. Then the lost ones are counted.
                Some((_, how)) => {
                    let whole = live.largest_reply <= self.scenario.target.send_buffer;
                    (how == EarlyClose::Fin, whole && stats.gate_expired == 0)
                }
            };
            // A greeting that takes longer than 50 ms may come too late, and pass for an answer (docs/limitations.md).
            let (up, down) = (&self.scenario.up, &self.scenario.down);
            if service.greeting > 0 && up.delay + down.delay > Duration::from_millis(45) {
                continue;
            }
            let judged = orderly && (certain || self.scenario.alike && stats.sessions.aborted.total() == 0);
            if !judged || !matches!(live.ending, Ending::Fin) {
                continue;
            }
            for number in 0..live.starts.len() {
                let id = (live.id, number as u8);
                let answers = received.iter().flat_map(|one| &one.answered).filter(|answered| **answered == id).count();
                if answers == 0 && !certain {
                    lost += 1;
                } else if answers != 1 {
                    return Err(format!("request {number} of connection {} was answered {answers} times", live.id));
                }
            }
        }
        let counted = stats.requests_unanswered + stats.requests_unclear;
        // Several in a row may be counted as one: where the first of them ended can only be guessed.
        if lost > 0 && counted == 0 {
            return Err(format!("{lost} requests were lost without a count"));
        }
        Ok(())
    }
}

/// What of a segment's octets is of the header, and what comes after it.
fn split<'a>(header: &[u8], offset: usize, payload: &'a [u8]) -> (&'a [u8], &'a [u8]) {
    payload.split_at(header.len().saturating_sub(offset).min(payload.len()))
}

fn count(octets: &[Vec<bool>]) -> u64 {
    octets.iter().flatten().filter(|there| **there).count() as u64
}

fn brief(octets: &[u8]) -> &[u8] {
    &octets[..octets.len().min(16)]
}
