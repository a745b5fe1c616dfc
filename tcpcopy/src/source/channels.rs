//! Keeping every worker's control channels up.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use log::Level;
use tcpcopy_common::prefix::Prefix;
use tcpcopy_replay::{Credentials, FuseEvent, RoundTrip, TargetId};
use tokio::{
    sync::{Notify, Semaphore, mpsc::UnboundedReceiver},
    task::{JoinError, JoinSet},
};

use super::{
    host::{Notice, Order},
    stopped::{News, Stopped},
};
use crate::{
    control::{Backoff, ConnectError, Established, Hello, Link, LinkError, Resume, Security, Welcome, connect},
    finding::Finding,
    log_limit::{LogLimit, limited},
    mailbox::Mailbox,
};

/// Whom a channel dials, and what it asks of it.
#[derive(Debug)]
pub(super) struct Dial {
    /// The `intercept`.
    pub intercept: SocketAddr,
    /// See [`Hello::prefixes`].
    pub prefixes: Vec<(SocketAddr, Prefix)>,
}

/// A channel that was dialled.
struct Dialled {
    worker: u32,
    target: TargetId,
    link: Box<Link>,
    welcome: Welcome,
}

static BROKEN_CHANNELS: LogLimit = LogLimit::new("broken channels");

/// How many are dialled at a time: an intercept takes only so many handshakes of a network at once.
const AT_ONCE: usize = 16;
/// How often a program that waits for its intercepts says so.
const REMINDER: Duration = Duration::from_secs(60);

/// Dials, and dials again, the channels of every worker, and hands each to its worker.
pub(super) struct Channels {
    /// By [`TargetId`].
    dials: Vec<Dial>,
    security: Security,
    workers: Arc<[Mailbox<Order>]>,
    /// Whether the targets are to see clients at some distance, whose acknowledgements nobody else may give.
    paced: bool,
    /// What each channel was given last, to take its sessions up again after a break.
    resume: HashMap<(u32, TargetId), Resume>,
    /// The channels that are being dialled.
    dialling: JoinSet<Result<Dialled, (u32, TargetId, ConnectError)>>,
    turns: Arc<Semaphore>,
    stopped: Arc<Mutex<Stopped>>,
    /// What workers have said before the start was over.
    early: Vec<(u32, Notice)>,
}

/// What to do about an intercept that is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Patience {
    /// Dial again, for ever.
    Endless,
    /// Dial again unless only a change of configuration can help.
    WhileItMayCome,
}

/// The longest wait for the workers to prove the ways to the targets, or to give up; they need less.
const PROVING: Duration = Duration::from_secs(3);

impl Channels {
    /// Nothing is dialled yet.
    #[must_use]
    pub(super) fn new(
        dials: Vec<Dial>,
        security: Security,
        workers: Arc<[Mailbox<Order>]>,
        round_trip: RoundTrip,
    ) -> Self {
        let paced = round_trip != RoundTrip::Near;
        let turns = Arc::new(Semaphore::new(AT_ONCE));
        let (resume, dialling) = (HashMap::new(), JoinSet::new());
        let (stopped, early) = (Arc::default(), Vec::new());
        Self { dials, security, workers, paced, resume, dialling, turns, stopped, early }
    }

    /// Brings every channel up, each tried once.
    ///
    /// # Errors
    /// The first channel that cannot be established.
    pub(super) async fn require_all(&mut self) -> Result<(), ConnectError> {
        self.dial_all();
        while let Some(dialled) = self.dialling.join_next().await {
            self.hand_over(joined(dialled).map_err(|(.., error)| error)?);
        }
        Ok(())
    }

    /// Brings every channel up, or at least, once each was tried, all those of one intercept: the others are dialled on.
    /// Tells `waiting` when there is one to wait for.
    ///
    /// # Errors
    /// The first channel that can be established only when the configuration has changed.
    pub(super) async fn wait_for_some(&mut self, waiting: &Notify) -> Result<(), ConnectError> {
        self.dial_all();
        let mut untried = self.dialling.len();
        let mut missing: HashMap<SocketAddr, usize> = HashMap::new();
        for dial in &self.dials {
            *missing.entry(dial.intercept).or_default() += self.workers.len();
        }
        let mut silent = BTreeSet::new();
        let mut reminder = tokio::time::interval_at((Instant::now() + REMINDER).into(), REMINDER);
        while !missing.is_empty() {
            let dialled = tokio::select! {
                Some(dialled) = self.dialling.join_next() => joined(dialled),
                _ = reminder.tick() => {
                    silent.iter().for_each(|&address| still_missing(address).log());
                    continue;
                }
            };
            untried = untried.saturating_sub(1);
            match dialled {
                Ok(dialled) => {
                    let address = self.intercept(dialled.target);
                    self.hand_over(dialled);
                    if let Some(channels) = missing.get_mut(&address) {
                        *channels -= 1;
                    }
                }
                Err((.., error)) if error.is_permanent() => return Err(error),
                Err((worker, target, error)) => {
                    let address = self.intercept(target);
                    if silent.insert(address) {
                        absent_intercept(address, &error).log();
                        waiting.notify_one();
                    }
                    self.dialling.spawn(self.redial(worker, target, Patience::WhileItMayCome));
                }
            }
            let there = |(address, channels): (&SocketAddr, &usize)| (*channels == 0).then_some(*address);
            let there: Vec<_> = missing.iter().filter_map(there).collect();
            for address in &there {
                if silent.remove(address) {
                    log::info!("intercept {address} is there now");
                }
            }
            if untried == 0 && !there.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn dial_all(&mut self) {
        for worker in 0..self.workers.len() as u32 {
            for target in 0..self.dials.len() as u16 {
                self.dialling.spawn(self.dial(worker, TargetId(target)));
            }
        }
    }

    /// Returns what workers find out about the targets.
    pub(super) fn stopped(&self) -> Arc<Mutex<Stopped>> {
        Arc::clone(&self.stopped)
    }

    /// Waits until the workers know of each of their `fuses` whether the target's programs see what is sent there.
    pub(super) async fn prove(&mut self, notices: &mut UnboundedReceiver<(u32, Notice)>, fuses: usize) {
        let proving = async {
            let mut known = HashSet::new();
            while known.len() < fuses {
                match notices.recv().await {
                    None => break,
                    Some((worker, Notice::Fuse { copy, event })) => {
                        known.insert((worker, copy, event.target));
                        self.note(worker, copy, event);
                    }
                    Some(other) => self.early.push(other),
                }
            }
        };
        if tokio::time::timeout(PROVING, proving).await.is_err() {
            log::debug!("some ways to targets are neither proved nor given up yet");
        }
    }

    /// Notes what a worker has found out about a target, and tells the log and the other workers.
    fn note(&self, worker: u32, copy: usize, event: FuseEvent) {
        let mut stopped = self.stopped.lock().unwrap_or_else(PoisonError::into_inner);
        let News { finding, order } = stopped.note((worker, copy), event, Instant::now());
        drop(stopped);
        finding.iter().for_each(Finding::log);
        if let Some(event) = order {
            self.workers.iter().for_each(|mailbox| mailbox.send(Order::Fuse(event)));
        }
    }

    /// Redials what breaks, for ever.
    pub(super) async fn keep_up(mut self, mut notices: UnboundedReceiver<(u32, Notice)>) {
        let mut reflecting = HashSet::new();
        let mut unseen = HashSet::new();
        let mut unjoinable_targets = HashSet::new();
        let mut early = std::mem::take(&mut self.early).into_iter();
        loop {
            let first = early.next();
            let next = async { if first.is_some() { first } else { notices.recv().await } };
            tokio::select! {
                biased;
                notice = next => match notice {
                    None => return,
                    Some((worker, Notice::Fuse { copy, event })) => self.note(worker, copy, event),
                    Some((worker, Notice::LinkDown { target, error })) => {
                        let address = self.intercept(target);
                        broken_channel(worker, address, &error).log_within(&BROKEN_CHANNELS);
                        self.dialling.spawn(self.redial(worker, target, Patience::Endless));
                    }
                    Some((_, Notice::Reflects { target })) => {
                        let address = self.intercept(target);
                        if self.paced && reflecting.insert(address) {
                            early_acknowledgements(address).log();
                        }
                    }
                    Some((_, Notice::AnswersUnseen { target })) => {
                        if unseen.insert(target) {
                            answers_unseen(target).log();
                        }
                    }
                    Some((_, Notice::Unjoinable { target })) => {
                        if unjoinable_targets.insert(target) {
                            unjoinable(target).log();
                        }
                    }
                },
                Some(dialled) = self.dialling.join_next() => match joined(dialled) {
                    Ok(dialled) => {
                        let (worker, address) = (dialled.worker, self.intercept(dialled.target));
                        let again = if self.resume.contains_key(&(worker, dialled.target)) { " again" } else { "" };
                        limited!(
                            "channels that are up",
                            Level::Info,
                            "worker {worker}: the channel to intercept {address} is up{again}"
                        );
                        self.hand_over(dialled);
                    }
                    // Of an intercept that was waited for at the start.
                    Err((worker, target, error)) => {
                        limited!("channels that cannot be established", Level::Warn, "worker {worker}: {error}");
                        self.dialling.spawn(self.redial(worker, target, Patience::Endless));
                    }
                }
            }
        }
    }

    fn hand_over(&mut self, dialled: Dialled) {
        let Dialled { worker, target, link, welcome } = dialled;
        self.resume.insert((worker, target), Resume { instance: welcome.instance, token: welcome.token });
        let credentials = Credentials { instance: welcome.instance, key: welcome.key, epoch: welcome.epoch };
        self.workers[worker as usize].send(Order::LinkUp(target, link, credentials));
    }

    fn intercept(&self, target: TargetId) -> SocketAddr {
        self.dials[usize::from(target.0)].intercept
    }

    fn hello(&self, worker: u32, target: TargetId) -> Hello {
        let name = rustix::system::uname();
        let resume = self.resume.get(&(worker, target)).copied();
        let prefixes = self.dials[usize::from(target.0)].prefixes.clone();
        Hello::new(worker as u16, resume, &name.nodename().to_string_lossy()).with_prefixes(prefixes)
    }

    fn dial(
        &self,
        worker: u32,
        target: TargetId,
    ) -> impl Future<Output = Result<Dialled, (u32, TargetId, ConnectError)>> + use<> {
        let address = self.intercept(target);
        let (security, turns) = (self.security.clone(), Arc::clone(&self.turns));
        let hello = self.hello(worker, target);
        async move {
            let _turn = turns.acquire().await;
            match connect(address, &security, &hello).await {
                Ok(established) => Ok(Dialled::new(worker, target, established)),
                Err(error) => Err((worker, target, error)),
            }
        }
    }

    fn redial(
        &self,
        worker: u32,
        target: TargetId,
        patience: Patience,
    ) -> impl Future<Output = Result<Dialled, (u32, TargetId, ConnectError)>> + use<> {
        let address = self.intercept(target);
        let (security, turns) = (self.security.clone(), Arc::clone(&self.turns));
        let mut hello = self.hello(worker, target);
        async move {
            // What only a change of configuration can mend is worth a line, but not one for each attempt.
            let mut told = false;
            let mut backoff = Backoff::new(u64::from(worker) << 16 | u64::from(target.0));
            let mut delay = backoff.next_delay();
            loop {
                tokio::time::sleep(delay).await;
                delay = backoff.next_delay();
                let turn = turns.acquire().await;
                let outcome = connect(address, &security, &hello).await;
                drop(turn);
                match outcome {
                    Ok(established) => return Ok(Dialled::new(worker, target, established)),
                    Err(error) if error.cannot_resume() => {
                        limited!(
                            "instances that are made anew",
                            Level::Info,
                            "intercept {address} does not know our sessions any more; starting afresh"
                        );
                        hello.resume = None;
                        // It is there, and what its predecessor has left at the target should not wait.
                        delay = Duration::ZERO;
                    }
                    Err(error) if error.is_permanent() && patience == Patience::WhileItMayCome => {
                        return Err((worker, target, error));
                    }
                    Err(error) if error.is_permanent() && !told => {
                        limited!("channels that cannot be established", Level::Warn, "worker {worker}: {error}");
                        told = true;
                    }
                    Err(error) => log::debug!("worker {worker}: {error}"),
                }
            }
        }
    }
}

impl Dialled {
    fn new(worker: u32, target: TargetId, established: Established) -> Self {
        Self { worker, target, link: Box::new(established.link), welcome: established.welcome }
    }
}

/// The value of a task, or its panic.
fn joined<T>(task: Result<T, JoinError>) -> T {
    task.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// Finds that an intercept is not there at the start.
fn absent_intercept(intercept: SocketAddr, error: &ConnectError) -> Finding {
    Finding::warning(format!("waiting for intercept {intercept}"))
        .because(error.to_string())
        .remedy("nothing is replayed there until it is up")
}

/// Finds the same once more.
fn still_missing(intercept: SocketAddr) -> Finding {
    Finding::warning(format!("still waiting for intercept {intercept}"))
        .remedy("nothing is replayed there until it is up")
}

fn broken_channel(worker: u32, intercept: SocketAddr, error: &LinkError) -> Finding {
    Finding::warning(format!("worker {worker}: the channel to intercept {intercept} broke"))
        .because(error.to_string())
        .remedy("nothing is replayed there until it is up again")
}

/// Finds that clients at a distance do not acknowledge by themselves, which is what they were to show the target.
fn early_acknowledgements(intercept: SocketAddr) -> Finding {
    Finding::warning(format!("intercept {intercept} acknowledges large answers itself, at once"))
        .because("-R has no effect on them")
        .remedy("start it with --ack relay")
}

/// The live server's SYN-ACKs to clients whose connections go to `target` do not leave by an interface that is captured
/// on.
fn answers_unseen(target: SocketAddr) -> Finding {
    Finding::warning(format!(
        "no SYN-ACK of the live service that is copied to {target} leaves by an interface that is captured on"
    ))
    .because("whoever can forge packets of a client can have requests replayed that the live server would refuse")
    .remedy("capture on the interface by which the service answers too, if that is on this host")
}

/// The service at `target` ends connections that are joined in the middle.
fn unjoinable(target: SocketAddr) -> Finding {
    Finding::warning(format!("{target} ends connections that are joined in the middle, so none is from now on"))
        .because(
            "its protocol begins with something that they lack, such as a login or a preface; they are replayed when \
             their clients connect again",
        )
        .remedy(
            "have the live service's clients connect anew after the start; if none of them is replayed either, the \
             test host refuses their logins",
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn findings_about_channels_name_the_intercept_and_what_follows() {
        let address = "10.0.0.3:36524".parse().unwrap();
        assert_eq!(
            broken_channel(2, address, &LinkError::Closed).to_string(),
            format!(
                "worker 2: the channel to intercept 10.0.0.3:36524 broke: {}; nothing is replayed there \
                 until it is up again",
                LinkError::Closed
            )
        );
        let absent = absent_intercept(address, &ConnectError::Timeout { address }).to_string();
        assert!(absent.starts_with("waiting for intercept 10.0.0.3:36524: intercept at 10.0.0.3:36524 did not answer"));
        assert!(absent.ends_with("; nothing is replayed there until it is up"), "{absent}");
        assert_eq!(
            early_acknowledgements(address).to_string(),
            "intercept 10.0.0.3:36524 acknowledges large answers itself, at once: -R has no effect on them; \
             start it with --ack relay"
        );
        let text = unjoinable("10.0.0.3:5432".parse().unwrap()).to_string();
        assert!(text.starts_with("10.0.0.3:5432 ends connections") && text.contains("connect anew"), "{text}");
    }
}
