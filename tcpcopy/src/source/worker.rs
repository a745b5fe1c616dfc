//! A worker: one thread that owns a ring, the sessions of its flows, its control channels and its injector.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tcpcopy_common::wakeup::MAX_SLEEP_MS;
use tokio::sync::mpsc::UnboundedSender;

use crate::{
    bpf::RingReader,
    control::{Frame, Link, LinkError, Stats as TargetStats},
    engine::{Credentials, Engine, Stats, TargetId},
    inject::{InjectStats, Injector},
    mailbox::{Closed, Inbox},
    segment::LiveSegment,
    time::{Nanos, now},
};

/// Ring records handled before the channels, the timers and the injector get their turn again.
const RECORDS_PER_TURN: usize = 256;
/// Octets sent before the ring gets its turn again: an upload that arrives at the speed of the machine must not fill the
/// ring while the worker is busy sending. A few hundred packets, less than a millisecond.
const OCTETS_PER_TURN: usize = 256 << 10;
/// What a packet costs beside its payload, in octets of payload: measured, packets of 100 and of 1400 octets cost the same.
const OCTETS_PER_PACKET: usize = 1400;
/// When a full interface is tried again.
const RETRY: Duration = Duration::from_millis(1);
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
}

/// For each rule id of the kernel, the engine's rules for IPv4 and for IPv6 flows.
pub type RuleTable = Vec<[Option<u16>; 2]>;

/// What a worker has counted.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// The engine's figures.
    pub engine: Stats,
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
    /// Times the worker slept.
    pub sleeps: u64,
}

/// One control channel as the worker sees it.
#[derive(Debug, Default)]
struct Channel {
    link: Option<Box<Link>>,
    /// The last figures of the current instance, and the sum of those before it.
    current: TargetStats,
    earlier: TargetStats,
    instance: Option<u32>,
}

/// Everything that a worker owns.
pub struct Worker {
    index: u32,
    ring: RingReader,
    rules: RuleTable,
    engine: Engine,
    injector: Injector,
    channels: Vec<Channel>,
    inbox: Inbox<Order>,
    notices: UnboundedSender<Notice>,
    published: Arc<Mutex<Snapshot>>,
    own: Snapshot,
}

impl Worker {
    /// A worker for ring `index` and `channels` control channels, none of which is up yet.
    #[allow(clippy::too_many_arguments, reason = "each is a part that the worker owns from here on")]
    pub fn new(
        index: u32,
        ring: RingReader,
        rules: RuleTable,
        engine: Engine,
        injector: Injector,
        channels: usize,
        inbox: Inbox<Order>,
        notices: UnboundedSender<Notice>,
        published: Arc<Mutex<Snapshot>>,
    ) -> Self {
        Self {
            index,
            ring,
            rules,
            engine,
            injector,
            channels: std::iter::repeat_with(Channel::default).take(channels).collect(),
            inbox,
            notices,
            published,
            own: Snapshot::default(),
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
            let records = self.capture(now, RECORDS_PER_TURN);
            let frames = self.receive(now);
            if self.engine.poll_timeout().is_some_and(|at| at <= now) {
                self.engine.handle_timeout(now);
            }
            let more = self.transmit(now);
            if now >= publish_at {
                self.publish();
                publish_at = now.after(SNAPSHOT_INTERVAL);
            }
            if stop {
                return self.stop();
            }
            if records == 0 && frames == 0 && !more {
                self.sleep(now);
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
        self.engine.handle_channel_up(now, target, credentials);
    }

    /// Hands captured segments to the engine; returns how many records there were.
    fn capture(&mut self, now: Nanos, budget: usize) -> usize {
        let Self { ring, rules, engine, own, .. } = self;
        ring.drain(budget, |record| match LiveSegment::parse(record) {
            Err(e) => {
                own.bad_records += 1;
                log::debug!("{e}");
            }
            Ok(mut segment) => {
                let family = usize::from(!segment.flow.client.is_v4());
                match rules.get(usize::from(segment.rule)).and_then(|r| r[family]) {
                    Some(rule) => {
                        segment.rule = rule;
                        engine.handle_live(now, &segment);
                    }
                    None => {
                        own.no_target += 1;
                        own.no_target_bytes += segment.payload.len() as u64;
                    }
                }
            }
        })
    }

    /// Hands the targets' responses to the engine; returns how many frames there were.
    fn receive(&mut self, now: Nanos) -> usize {
        let mut frames = 0;
        for (index, channel) in self.channels.iter_mut().enumerate() {
            let Some(link) = &mut channel.link else { continue };
            let target = TargetId(index as u16);
            let engine = &mut self.engine;
            let current = &mut channel.current;
            let outcome = link.receive(|frame| match frame {
                Frame::Responses(responses) => {
                    for response in responses.iter() {
                        engine.handle_response(now, target, &response);
                    }
                }
                Frame::Stats(stats) => *current = stats,
                // The link has queued the answer; after a farewell it reports the end.
                Frame::Ping { .. } | Frame::Bye => {}
                other => log::debug!("unexpected frame from intercept: {other:?}"),
            });
            let outcome = outcome.and_then(|n| {
                frames += n;
                link.flush().map(drop)
            });
            if let Err(error) = outcome {
                channel.link = None;
                engine.handle_channel_down(now, target);
                let _ = self.notices.send(Notice::LinkDown { worker: self.index, target, error });
            }
        }
        frames
    }

    /// Sends what the engine has, within the budget of a turn; returns whether there is more.
    fn transmit(&mut self, now: Nanos) -> bool {
        self.injector.refresh();
        let mut budget = OCTETS_PER_TURN;
        while budget > 0 {
            let Some(transmit) = self.engine.poll_transmit(now) else { break };
            budget = budget.saturating_sub(transmit.payload.len().max(OCTETS_PER_PACKET));
            self.injector.push(&transmit);
        }
        self.injector.flush();
        budget == 0
    }

    fn sleep(&mut self, now: Nanos) {
        // Packets that the interface had no room for are tried again soon.
        let bound = if self.injector.pending() > 0 { RETRY } else { Duration::from_millis(u64::from(MAX_SLEEP_MS)) };
        let timeout = self.engine.poll_timeout().map_or(bound, |at| at.since(now).min(bound));
        if timeout.is_zero() || !self.ring.prepare_sleep() {
            return;
        }
        self.own.sleeps += 1;
        self.inbox.wait(Some(&self.ring), links(&self.channels), timeout);
        self.ring.awake();
    }

    fn publish(&mut self) {
        let mut snapshot = self.own.clone();
        snapshot.engine = self.engine.stats().clone();
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
        while self.capture(now(), RECORDS_PER_TURN) > 0 {
            self.receive(now());
            self.transmit(now());
        }
        self.engine.handle_shutdown(now());
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
