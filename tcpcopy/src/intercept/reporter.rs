//! The report thread: from the ring of swallowed responses to the channels of their owners.

use std::{
    collections::HashMap,
    os::fd::AsFd as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use log::Level;
use tcpcopy_common::{
    figures,
    figures::{Section, counter},
    mark::Epoch,
    response::{Response, ResponseHeader, kind},
    wakeup::MAX_SLEEP_MS,
};
use tcpcopy_replay::{
    Nanos,
    worker::nap::{Naps, Rest},
};

use super::{
    orders::Order,
    registry::{Instances, lock},
    services::Services,
};
use crate::{
    bpf::RingReader,
    clock::{nap, now},
    control::{Batch, Frame, HURRY, Link, LinkError, Sent, Stats},
    log_limit::limited,
    mailbox::{Closed, Inbox},
    poll::{self, Interest},
};

/// Ring records handled before they are sent off.
const RECORDS_PER_TURN: usize = 1024;
/// The longest nap. So much later `tcpcopy` hears an answer that nobody waits for: the replay's lag has no part in it. Each report is
/// a segment on the control channel, which costs about 15 µs in all; twice the nap would halve what is left of it.
const NAP: Duration = Duration::from_millis(2);
/// How often each owner is told what was seen of its sessions, and the counts are published.
const STATS_INTERVAL: Duration = Duration::from_secs(1);

/// How long owners are waited for at the end. One that works closes its channel within milliseconds.
const PARTING: Duration = Duration::from_secs(5);

figures! {
    /// What the report thread has counted.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub(super) struct ReportCounts {
        /// Responses handed to a channel.
        pub reported: u64 = counter(Section::Reports).named("sent"),
        /// Responses that a channel had no room for: `tcpcopy` was too slow.
        pub dropped: u64 = counter(Section::NotReported).named("channel_too_slow"),
        /// Responses whose owner had no channel.
        pub unowned: u64 = counter(Section::NotReported).named("owner_without_channel"),
        /// Ring records of a wrong size, or whose lengths contradict each other.
        pub bad_records: u64 = counter(Section::NotReported),
    }
}

/// The owner of sessions, as the report thread sees it.
#[derive(Debug)]
struct Owner {
    link: Box<Link>,
    batch: Batch,
    dropped: u64,
}

/// Everything that the report thread owns.
pub(super) struct Reporter {
    ring: RingReader,
    inbox: Inbox<Order>,
    instances: Arc<Instances>,
    owners: HashMap<u32, Owner>,
    counts: ReportCounts,
    published: Arc<Mutex<ReportCounts>>,
    naps: Naps,
    services: Services,
}

impl Reporter {
    /// A reporter without channels, which publishes its counts once a second and at its end.
    #[must_use]
    pub(super) fn new(
        ring: RingReader,
        inbox: Inbox<Order>,
        instances: Arc<Instances>,
        published: Arc<Mutex<ReportCounts>>,
    ) -> Self {
        let (owners, counts) = (HashMap::new(), ReportCounts::default());
        let (naps, services) = (Naps::new(now(), NAP), Services::default());
        Self { ring, inbox, instances, owners, counts, published, naps, services }
    }

    /// Runs until it is told to stop; returns the ring.
    pub(super) fn run(mut self) -> RingReader {
        let mut stats_at = now().after(STATS_INTERVAL);
        loop {
            let mut stop = false;
            while !stop {
                match self.inbox.next() {
                    Ok(None) => break,
                    Ok(Some(Order::LinkUp(instance, link))) => {
                        self.instances.found(instance);
                        let owner = Owner { link, batch: Batch::new(), dropped: 0 };
                        self.owners.insert(instance, owner);
                    }
                    Ok(Some(Order::Stop)) | Err(Closed) => stop = true,
                }
            }
            let records = self.report(RECORDS_PER_TURN);
            let now = now();
            self.attend(now);
            if now >= stats_at {
                for id in self.owners.keys().copied().collect::<Vec<_>>() {
                    self.send_stats(id);
                }
                self.publish();
                stats_at = now.after(STATS_INTERVAL);
            }
            if stop {
                while self.report(RECORDS_PER_TURN) > 0 {}
                for id in self.owners.keys().copied().collect::<Vec<_>>() {
                    self.say_goodbye(id);
                }
                self.part(now);
                self.publish();
                return self.ring;
            }
            if records < RECORDS_PER_TURN {
                self.rest(now, stats_at.since(now));
            }
        }
    }

    /// Moves records from the ring into the owners' batches and sends these; returns how many records there were.
    fn report(&mut self, budget: usize) -> usize {
        let Self { ring, owners, counts, naps, services, instances, .. } = self;
        let mut broken = Vec::new();
        let used = ring.used();
        let records = ring.drain(budget, |record| {
            let Some(response) = Response::from_record(record) else {
                counts.bad_records += 1;
                return;
            };
            let instance = response.header().instance;
            let (kind, flow) = (response.header().kind, response.header().flow);
            let Some(owner) = owners.get_mut(&instance) else {
                counts.unowned += 1;
                return;
            };
            let response = match kind {
                kind::PROBED | kind::UNANSWERED => {
                    let ack = lost_reports(instances, instance, owner).to_be_bytes();
                    let options = services.look_up(&flow, now());
                    Response::from(ResponseHeader { options, ack, ..*response.header() })
                }
                _ => response,
            };
            if let Err(e) = owner.collect(&response, counts) {
                broken.push((instance, e));
            }
        });
        naps.found(records, used, ring.size());
        if records > 0 {
            for (&id, owner) in owners.iter_mut() {
                if let Err(e) = owner.send_batch(counts).and_then(|()| owner.link.flush().map(drop)) {
                    broken.push((id, e));
                }
            }
        }
        for (id, error) in broken {
            self.lose(id, &error);
        }
        records
    }

    fn publish(&self) {
        *lock(&self.published) = self.counts;
    }

    /// Reads what the owners say.
    fn attend(&mut self, now: Nanos) {
        let mut ended = Vec::new();
        let mut broken = Vec::new();
        for (&id, owner) in &mut self.owners {
            let (mut bye, mut hurry) = (false, false);
            let outcome = owner.link.receive(|frame| match frame {
                Frame::Bye => bye = true,
                Frame::Hurry => hurry = true,
                other => log::debug!("unexpected frame from instance {id:08x}: {other:?}"),
            });
            let outcome = outcome.and_then(|_| owner.link.flush().map(drop));
            if hurry {
                self.naps.suspend(now, now.after(HURRY));
            }
            match outcome {
                _ if bye => ended.push(id),
                Ok(()) => {}
                Err(e) => broken.push((id, e)),
            }
        }
        for id in ended {
            self.say_goodbye(id);
            if self.owners.remove(&id).is_some() {
                limited!("ended instances", Level::Info, "instance {id:08x} has ended");
            }
            self.instances.ended(id);
        }
        for (id, error) in broken {
            self.lose(id, &error);
        }
    }

    fn say_goodbye(&mut self, id: u32) {
        self.send_stats(id);
        self.with_link(id, |link| {
            // Without it the end of the connection says the same.
            let _ = link.send(&Frame::Bye)?;
            link.flush().map(drop)
        });
    }

    /// Closes our direction of the channels and waits until their owners have closed the other. Only then do they send no more: one
    /// that waits for a processor may be about to, and what comes when our programs are gone is answered to real clients.
    fn part(&mut self, since: Nanos) {
        let mut links: Vec<Box<Link>> = self.owners.drain().map(|(_, owner)| owner.link).collect();
        // A link that cannot be closed is broken, which is as good.
        links.retain(|link| link.finish().is_ok());
        if !links.is_empty() {
            log::info!("waiting for tcpcopy to let go of {} control channels", links.len());
        }
        loop {
            links.retain_mut(|link| link.receive(|_| ()).is_ok());
            let left = PARTING.saturating_sub(now().since(since));
            if links.is_empty() || left.is_zero() {
                break;
            }
            // What is swallowed meanwhile has nobody to be reported to.
            self.report(RECORDS_PER_TURN);
            poll::wait(&self.inbox, links.iter().map(|link| link.interest()), left.min(STATS_INTERVAL));
        }
        for link in links {
            limited!(
                "channels that were not closed",
                Level::Warn,
                "{} has not closed its control channel; what it still sends may be answered to real clients",
                link.peer()
            );
        }
    }

    fn send_stats(&mut self, id: u32) {
        let wire = match self.instances.wire_stats(id) {
            Ok(wire) => wire,
            Err(e) => {
                limited!("unread figures", Level::Warn, "cannot read what was seen of instance {id:08x}: {e}");
                return;
            }
        };
        let Some(owner) = self.owners.get(&id) else { return };
        let stats = Stats { wire, responses_dropped: owner.dropped };
        self.with_link(id, |link| {
            // A slow peer gets the next ones: the figures are totals, and the time is the present one.
            let _ = link.send(&Frame::Epoch(Epoch::at(now().0)))?;
            let _ = link.send(&Frame::Stats(stats))?;
            link.flush().map(drop)
        });
    }

    fn with_link(&mut self, id: u32, f: impl FnOnce(&mut Link) -> Result<(), LinkError>) {
        if let Some(owner) = self.owners.get_mut(&id)
            && let Err(e) = f(&mut owner.link)
        {
            self.lose(id, &e);
        }
    }

    fn lose(&mut self, id: u32, error: &LinkError) {
        if self.owners.remove(&id).is_some() {
            limited!("broken channels", Level::Warn, "the channel of instance {id:08x} broke: {error}");
            self.instances.lost(id);
        }
    }

    /// Waits for more to do: see [`nap`](tcpcopy_replay::worker::nap).
    fn rest(&mut self, now: Nanos, until_stats: Duration) {
        let timeout = until_stats.min(Duration::from_millis(u64::from(MAX_SLEEP_MS)));
        match self.naps.rest(now) {
            // What the owners say can wait.
            Rest::Nap(time) => nap(time.min(timeout)),
            Rest::Sleep if timeout.is_zero() || !self.ring.prepare_sleep() => {}
            Rest::Sleep => {
                let links = self.owners.values().map(|owner| owner.link.interest());
                let interests = std::iter::once(Interest::read(self.ring.as_fd())).chain(links);
                poll::wait(&self.inbox, interests, timeout);
                self.ring.awake();
            }
        }
    }
}

/// How many reports of an instance its owner has not got, modulo 2³².
fn lost_reports(instances: &Instances, instance: u32, owner: &Owner) -> u32 {
    let in_ring = instances.wire_stats(instance).map_or(0, |wire| wire.reports_lost);
    let [.., a, b, c, d] = in_ring.wrapping_add(owner.dropped).to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}

impl Owner {
    /// Adds a report to the batch, which is sent first if it has no room.
    fn collect(&mut self, response: &Response<'_>, counts: &mut ReportCounts) -> Result<(), LinkError> {
        if self.batch.push(response) {
            return Ok(());
        }
        let sent = self.send_batch(counts);
        // Now it is empty, also when the link is broken.
        let _ = self.batch.push(response);
        sent
    }

    fn send_batch(&mut self, counts: &mut ReportCounts) -> Result<(), LinkError> {
        if self.batch.is_empty() {
            return Ok(());
        }
        let n = self.batch.len() as u64;
        let sent = self.link.send(&Frame::Responses(self.batch.responses()));
        self.batch.clear();
        match sent? {
            Sent::Queued => counts.reported += n,
            Sent::Dropped => {
                counts.dropped += n;
                self.dropped += n;
            }
        }
        Ok(())
    }
}
