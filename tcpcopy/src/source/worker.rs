//! A worker: one thread that owns a ring, the sessions of its flows in every copy, their control channels and an injector.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tcpcopy_common::{response::option, wakeup::MAX_SLEEP_MS};
use tcpcopy_replay::{Credentials, Engine, LiveSegment, Nanos, Stats, TargetId};
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    bpf::RingReader,
    clock::{nap, now},
    control::{Frame, HURRY, Link, LinkError, Stats as TargetStats},
    inject::{InjectStats, Injector},
    mailbox::{Closed, Inbox},
    nap::{Naps, Rest},
};

/// Ring records handled before the channels, the timers and the injector get their turn again.
const RECORDS_PER_TURN: usize = 256;
/// Octets of them, about: a turn of so many large ones would take tens of milliseconds, and all answers would wait for its end.
const CAPTURED_PER_TURN: usize = 1 << 20;
/// Ring records whose sessions are fetched from memory together.
const LOOK_AHEAD: usize = 32;
/// Octets sent before the ring gets its turn again: an upload that arrives at the speed of the machine must not fill the
/// ring while the worker is busy sending. A few hundred packets, less than a millisecond.
const OCTETS_PER_TURN: usize = 256 << 10;
/// What a packet costs beside its payload, in octets of payload: measured, packets of 100 and of 1400 octets cost the same.
const OCTETS_PER_PACKET: usize = 1400;
/// When a full interface is tried again.
const RETRY: Duration = Duration::from_millis(1);
/// The longest nap. While records flow, a segment waits for half of it on average, and lag is to stay below a millisecond.
const NAP: Duration = Duration::from_micros(600);
/// How long naps are interrupted by answers after a request that had to wait for one was late.
const ALERT: Duration = Duration::from_millis(10);
/// How often a worker publishes what it has counted.
const SNAPSHOT_INTERVAL: Duration = Duration::from_secs(1);
/// How long a stopping worker waits for the last figures of an intercept.
const FAREWELL: Duration = Duration::from_millis(500);

/// What the main thread tells a worker.
#[derive(Debug)]
pub enum Order {
    /// A control channel is up.
    LinkUp(TargetId, Box<Link>, Credentials),
    /// Handle what is in the ring, reset the replayed sessions and end. Nothing is captured any more.
    Stop,
}

/// What a worker tells the main thread.
#[derive(Debug)]
pub enum Notice {
    /// A control channel broke.
    LinkDown {
        /// Which worker.
        worker: u32,
        /// Which channel.
        target: TargetId,
        /// Why.
        error: LinkError,
    },
    /// A target acknowledges answers itself; told once by each worker.
    Reflects {
        /// Which channel.
        target: TargetId,
    },
}

/// For each rule id of the kernel, the engine's rules for IPv4 and for IPv6 flows.
pub type RuleTable = Vec<[Option<u16>; 2]>;

/// What a worker has counted.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The figures of each copy.
    pub copies: Vec<CopySnapshot>,
    /// The injector's figures.
    pub inject: InjectStats,
    /// What the targets saw of our sessions.
    pub targets: TargetStats,
    /// Ring records that contradict themselves.
    pub bad_records: u64,
    /// Segments of a flow for whose IP version no target is given.
    pub no_target: u64,
    /// Their payload octets.
    pub no_target_bytes: u64,
    /// Times the worker slept until it was woken.
    pub sleeps: u64,
    /// Times it napped, and could not be woken.
    pub naps: u64,
}

/// What a worker has counted of one copy.
#[derive(Clone, Debug, Default)]
pub struct CopySnapshot {
    /// The engine's figures.
    pub engine: Stats,
    /// Segments of a service that other copies have a target for, but not this one.
    pub elsewhere: u64,
    /// Their payload octets.
    pub elsewhere_bytes: u64,
}

/// One replay of every connection of a worker.
pub struct Copy {
    engine: Engine,
    rules: RuleTable,
    elsewhere: u64,
    elsewhere_bytes: u64,
}

impl Copy {
    /// A copy that `engine` replays, to the targets that `rules` names.
    #[must_use]
    pub const fn new(engine: Engine, rules: RuleTable) -> Self {
        Self { engine, rules, elsewhere: 0, elsewhere_bytes: 0 }
    }

    /// Takes a captured segment in; whether it has a target here.
    fn handle_live(&mut self, now: Nanos, segment: &LiveSegment<'_>) -> bool {
        let family = usize::from(!segment.flow.client.is_v4());
        let rule = self.rules.get(usize::from(segment.rule)).and_then(|r| r[family]);
        match rule {
            Some(rule) => self.engine.handle_live(now, &LiveSegment { rule, ..*segment }),
            None => {
                self.elsewhere += 1;
                self.elsewhere_bytes += segment.payload.len() as u64;
            }
        }
        rule.is_some()
    }

    fn snapshot(&self) -> CopySnapshot {
        let Self { engine, elsewhere, elsewhere_bytes, .. } = self;
        CopySnapshot { engine: engine.stats().clone(), elsewhere: *elsewhere, elsewhere_bytes: *elsewhere_bytes }
    }
}

/// One control channel as the worker sees it.
#[derive(Debug, Default)]
struct Channel {
    /// Whose sessions it is for: an index into [`Worker::copies`].
    copy: usize,
    link: Option<Box<Link>>,
    /// The last figures of the current instance, and the sum of those before it.
    current: TargetStats,
    earlier: TargetStats,
    instance: Option<u32>,
    /// Whether its intercept has acknowledged an answer itself.
    reflects: bool,
}

/// Everything that a worker owns.
pub struct Worker {
    index: u32,
    ring: RingReader,
    copies: Vec<Copy>,
    injector: Injector,
    channels: Vec<Channel>,
    inbox: Inbox<Order>,
    notices: UnboundedSender<Notice>,
    published: Arc<Mutex<Snapshot>>,
    own: Snapshot,
    naps: Naps,
    lateness: Lateness,
}

/// What a turn has taken from the ring.
#[derive(Clone, Copy, Debug, Default)]
struct Captured {
    records: usize,
    octets: usize,
    /// The budget was used up: there may be more.
    more: bool,
}

/// How many of the first records hold `octets` together, or a little more.
fn fitting<'a>(records: impl Iterator<Item = &'a [u8]>, octets: usize) -> usize {
    let mut left = octets;
    records
        .take_while(|record| {
            let fits = left > 0;
            left = left.saturating_sub(record.len());
            fits
        })
        .count()
}

/// Whether requests that wait for an answer are late, so that each answer should be heard at once.
#[derive(Debug, Default)]
struct Lateness {
    /// Late requests that were counted.
    seen: u64,
    until: Nanos,
    /// When the intercepts should be told next.
    tell: Nanos,
}

impl Lateness {
    /// `late` requests were late up to `now`; whether some were a short while ago.
    fn note(&mut self, now: Nanos, late: u64) -> bool {
        if late != self.seen {
            self.seen = late;
            self.until = now.after(ALERT);
        }
        now < self.until
    }

    /// Whether the intercepts should be told now that answers are waited for: again before what they were told runs out.
    fn is_news(&mut self, now: Nanos) -> bool {
        let due = now < self.until && now >= self.tell;
        if due {
            self.tell = now.after(HURRY / 2);
        }
        due
    }
}

impl Worker {
    /// A worker for ring `index` with control channels, none of which is up yet: for each the index of its copy.
    #[allow(clippy::too_many_arguments, reason = "each is a part that the worker owns from here on")]
    pub fn new(
        index: u32,
        ring: RingReader,
        copies: Vec<Copy>,
        injector: Injector,
        channels: impl Iterator<Item = usize>,
        inbox: Inbox<Order>,
        notices: UnboundedSender<Notice>,
        published: Arc<Mutex<Snapshot>>,
    ) -> Self {
        Self {
            index,
            ring,
            copies,
            injector,
            channels: channels.map(|copy| Channel { copy, ..Channel::default() }).collect(),
            inbox,
            notices,
            published,
            own: Snapshot::default(),
            naps: Naps::new(now(), NAP),
            lateness: Lateness::default(),
        }
    }

    /// Runs until it is told to stop.
    pub fn run(mut self) {
        let mut publish_at = Nanos::default();
        loop {
            let now = now();
            let mut stop = false;
            while !stop {
                match self.inbox.next() {
                    Ok(None) => break,
                    Ok(Some(Order::LinkUp(target, link, credentials))) => {
                        self.link_up(now, target, link, credentials);
                    }
                    // When nobody is left who could stop us in an orderly way, stop now.
                    Ok(Some(Order::Stop)) | Err(Closed) => stop = true,
                }
            }
            let captured = self.capture(now);
            self.receive(now);
            for Copy { engine, .. } in &mut self.copies {
                if engine.poll_timeout().is_some_and(|at| at <= now) {
                    engine.handle_timeout(now);
                }
            }
            let more = self.transmit(now);
            if now >= publish_at {
                self.publish();
                publish_at = now.after(SNAPSHOT_INTERVAL);
            }
            if stop {
                return self.stop();
            }
            if !captured.more && !more {
                self.rest(now);
            }
        }
    }

    fn link_up(&mut self, now: Nanos, target: TargetId, link: Box<Link>, credentials: Credentials) {
        let channel = &mut self.channels[usize::from(target.0)];
        if channel.instance != Some(credentials.instance) {
            let past = std::mem::take(&mut channel.current);
            channel.earlier += past;
            channel.instance = Some(credentials.instance);
        }
        channel.link = Some(link);
        self.copies[channel.copy].engine.handle_channel_up(now, target, credentials);
    }

    /// Hands captured segments to every copy, within the budget of a turn.
    fn capture(&mut self, now: Nanos) -> Captured {
        let used = self.ring.used();
        let mut all = Captured::default();
        loop {
            let step = fitting(self.ring.upcoming().take(LOOK_AHEAD), CAPTURED_PER_TURN - all.octets);
            // Asked after the records of this step were there, so that what was lost before them is known before them.
            let lost = self.ring.has_lost();
            for Copy { engine, .. } in &mut self.copies {
                if lost {
                    engine.handle_ring_full(now);
                }
                engine.expect_live(self.ring.upcoming().take(step).filter_map(LiveSegment::flow_of));
            }
            let some = self.capture_some(now, step);
            all.records += some.records;
            all.octets += some.octets;
            all.more = all.records >= RECORDS_PER_TURN || all.octets >= CAPTURED_PER_TURN;
            if all.more || some.records < LOOK_AHEAD {
                break;
            }
        }
        self.naps.found(all.records, used, self.ring.size());
        all
    }

    fn capture_some(&mut self, now: Nanos, budget: usize) -> Captured {
        let Self { ring, copies, own, .. } = self;
        let mut octets = 0;
        let records = ring.drain(budget, |record| {
            octets += record.len();
            match LiveSegment::parse(record) {
                Err(e) => {
                    own.bad_records += 1;
                    log::debug!("{e}");
                }
                Ok(segment) => {
                    let mut wanted = false;
                    for copy in copies.iter_mut() {
                        wanted |= copy.handle_live(now, &segment);
                    }
                    if !wanted {
                        own.no_target += 1;
                        own.no_target_bytes += segment.payload.len() as u64;
                    }
                }
            }
        });
        Captured { records, octets, more: false }
    }

    /// Hands the targets' responses to the engines.
    fn receive(&mut self, now: Nanos) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            let Some(link) = &mut channel.link else { continue };
            let target = TargetId(index as u16);
            let engine = &mut self.copies[channel.copy].engine;
            let current = &mut channel.current;
            let mut reflected = false;
            let outcome = link.receive(|frame| match frame {
                Frame::Responses(responses) => {
                    let (mut ahead, mut records) = (responses.iter(), responses.iter().peekable());
                    while records.peek().is_some() {
                        engine.expect_responses(ahead.by_ref().take(LOOK_AHEAD).map(|response| response.flow));
                        for response in records.by_ref().take(LOOK_AHEAD) {
                            reflected |= response.options & option::REFLECTED != 0;
                            engine.handle_response(now, target, &response);
                        }
                    }
                }
                Frame::Stats(stats) => *current = stats,
                // The link has queued the answer; after a farewell it reports the end.
                Frame::Ping { .. } | Frame::Bye => {}
                other => log::debug!("unexpected frame from intercept: {other:?}"),
            });
            let outcome = outcome.and_then(|_| link.flush().map(drop));
            if reflected && !std::mem::replace(&mut channel.reflects, true) {
                let _ = self.notices.send(Notice::Reflects { target });
            }
            if let Err(error) = outcome {
                channel.link = None;
                engine.handle_channel_down(now, target);
                let _ = self.notices.send(Notice::LinkDown { worker: self.index, target, error });
            }
        }
    }

    /// Sends what the engine has, within the budget of a turn; returns whether there is more.
    fn transmit(&mut self, now: Nanos) -> bool {
        self.injector.refresh();
        let mut more = false;
        let budget = OCTETS_PER_TURN / self.copies.len().max(1);
        for copy in &mut self.copies {
            let mut left = budget;
            while left > 0 {
                let Some(transmit) = copy.engine.poll_transmit(now) else { break };
                left = left.saturating_sub(transmit.payload.len().max(OCTETS_PER_PACKET));
                self.injector.push(&transmit);
            }
            more |= left == 0;
        }
        self.injector.flush();
        more
    }

    /// The earliest timer of all copies.
    fn poll_timeout(&self) -> Option<Nanos> {
        self.copies.iter().filter_map(|copy| copy.engine.poll_timeout()).min()
    }

    /// Waits for more to do: see [`crate::nap`]. What has come meanwhile, and was not looked for, ends a sleep at once.
    fn rest(&mut self, now: Nanos) {
        // Packets that the interface had no room for are tried again soon.
        let bound = if self.injector.pending() > 0 { RETRY } else { Duration::from_millis(u64::from(MAX_SLEEP_MS)) };
        let timeout = self.poll_timeout().map_or(bound, |at| at.since(now).min(bound));
        let late = self.copies.iter().map(|copy| copy.engine.stats().gate_late).sum();
        let alert = self.lateness.note(now, late);
        if self.lateness.is_news(now) {
            self.hurry();
        }
        match self.naps.rest(now) {
            // A timer may be late by a nap, and an answer be heard late, when nobody waits for it.
            Rest::Nap(time) if !alert => {
                self.own.naps += 1;
                nap(time.min(bound));
            }
            Rest::Nap(time) => {
                self.own.naps += 1;
                self.inbox.wait(None, links(&self.channels), timeout.min(time));
            }
            Rest::Sleep if timeout.is_zero() || !self.ring.prepare_sleep() => {}
            Rest::Sleep => {
                self.own.sleeps += 1;
                self.inbox.wait(Some(&self.ring), links(&self.channels), timeout);
                self.ring.awake();
            }
        }
    }

    /// Asks the intercepts to report each answer at once.
    fn hurry(&mut self) {
        for link in self.channels.iter_mut().filter_map(|channel| channel.link.as_mut()) {
            // What goes wrong here is met again when the channel is read.
            let _ = link.send(&Frame::Hurry).and_then(|_| link.flush());
        }
    }

    fn publish(&mut self) {
        let mut snapshot = self.own.clone();
        snapshot.copies = self.copies.iter().map(Copy::snapshot).collect();
        snapshot.inject = *self.injector.stats();
        for channel in &self.channels {
            snapshot.targets += channel.earlier;
            snapshot.targets += channel.current;
        }
        // A reader that panicked has no bearing on what we write.
        *self.published.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = snapshot;
    }

    /// Empties the ring, resets what is replayed, and asks the intercepts for their last figures.
    fn stop(mut self) {
        while self.capture(now()).records > 0 {
            self.receive(now());
            self.transmit(now());
        }
        for copy in &mut self.copies {
            copy.engine.handle_shutdown(now());
        }
        while self.transmit(now()) {}
        for channel in &mut self.channels {
            if let Some(link) = &mut channel.link
                && link.send(&Frame::Bye).and_then(|_| link.flush()).is_err()
            {
                channel.link = None;
            }
        }
        let end = now().after(FAREWELL);
        while self.channels.iter().any(|c| c.link.is_some()) {
            let left = end.since(now());
            if left.is_zero() {
                break;
            }
            self.inbox.wait(None, links(&self.channels), left);
            self.receive(now());
        }
        self.publish();
    }
}

/// The channels that are up.
fn links(channels: &[Channel]) -> impl Iterator<Item = &Link> {
    channels.iter().filter_map(|channel| channel.link.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intercepts_are_told_of_late_requests_before_they_forget_and_only_while_there_are_some() {
        let mut lateness = Lateness::default();
        let (mut told, mut at) = (Vec::new(), Nanos(1_000_000_000));
        let start = at;
        // A late request every millisecond, for a tenth of a second.
        for ms in 0..300 {
            assert_eq!(lateness.note(at, 1 + ms.min(100)), ms < 110, "after {ms} ms");
            if lateness.is_news(at) {
                told.push(at.since(start));
            }
            at = at.after(Duration::from_millis(1));
        }
        assert_eq!(told, [0, 25, 50, 75, 100].map(Duration::from_millis));
    }
}
