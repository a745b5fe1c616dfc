//! The sink, and the way from there to the targets.

use std::collections::HashSet;

use tcpcopy_common::{flow::Flow, tcp_flags::SYN};
use tcpcopy_replay::Transmit;

use super::{Event, PACKET_COST, SINK_ROOM, World};
use crate::{live::START, target::HOST, wire, worker::site::Site};

impl World<'_> {
    fn is_full(&self) -> bool {
        let since = self.now.since(START);
        self.scenario.surroundings.full.iter().any(|(from, to)| (*from..*to).contains(&since))
    }

    pub fn push(&mut self, transmit: &Transmit<'_>) {
        let host =
            if transmit.flow.server.is_v4() { transmit.flow.server.v4_octets()[3] } else { transmit.flow.server.0[15] };
        let index = usize::from(host - HOST);
        self.tell(|| format!("send     {index} {}", wire::shown(transmit)));
        self.require(!self.left, || "a segment is sent after the farewell".to_owned());
        self.judge(index, transmit);
        // As the worker counts: a packet costs something, whatever it carries.
        self.sent += transmit.payload.len().max(1400);
        self.progress = true;
        for packet in wire::packets(transmit) {
            self.cost += PACKET_COST;
            if self.random.chance(self.scenario.surroundings.refused) {
                self.refused += 1;
            } else if !self.is_full() {
                self.flush();
                self.depart(index, packet);
            } else if self.waiting.len() == SINK_ROOM {
                self.refused += 1;
            } else {
                if self.waiting.is_empty() {
                    self.waiting_since = self.now;
                }
                self.outcome.waited_in_the_sink += 1;
                self.waiting.push_back((index, packet));
            }
        }
    }

    /// Checks that a segment may be sent.
    fn judge(&mut self, index: usize, transmit: &Transmit<'_>) {
        let Site { attached, instance, sessions, oracle, .. } = &mut self.sites[index];
        let verdict = match *attached {
            None => Err("a segment is sent while the channel is down".to_owned()),
            Some((_, believed)) => oracle.sends(transmit).and_then(|()| learn(sessions, *instance, believed, transmit)),
        };
        self.require(verdict.is_ok(), || verdict.unwrap_err());
    }

    pub fn flush(&mut self) {
        if self.is_full() {
            return;
        }
        while let Some((index, packet)) = self.waiting.pop_front() {
            self.depart(index, packet);
        }
    }

    fn depart(&mut self, index: usize, packet: Vec<u8>) {
        self.departed += 1;
        let arrivals = self.sites[index].up.carry(self.now, packet.len());
        for at in arrivals.into_iter().flatten() {
            self.put(at, Event::ToTarget(index, packet.clone()));
        }
    }
}

/// The programs at the target see a segment of an `instance` that the worker believes to be `believed`.
fn learn(sessions: &mut HashSet<Flow>, instance: u32, believed: u32, transmit: &Transmit<'_>) -> Result<(), String> {
    if transmit.flags.contains(SYN) {
        let mark = transmit.options.syn.ok_or("a SYN without options")?.mark;
        if !wire::is_valid(&mark, believed, transmit) {
            return Err("a SYN whose mark the target would refuse".to_owned());
        }
        // The worker cannot know yet that another instance is there, which refuses the mark.
        if believed == instance {
            sessions.insert(transmit.flow);
        }
    } else if believed == instance && !sessions.contains(&transmit.flow) {
        return Err("a segment of a session that the target does not know".to_owned());
    }
    Ok(())
}
