//! Keeping every worker's control channels up.

use std::{
    collections::{HashMap, HashSet},
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tcpcopy_common::prefix::Prefix;
use tcpcopy_replay::{Credentials, RoundTrip, TargetId};
use tokio::{sync::mpsc::UnboundedReceiver, task::JoinSet};

use super::host::{Notice, Order};
use crate::{
    control::{Backoff, ConnectError, Hello, Link, LinkError, Resume, Security, Welcome, connect},
    finding::Finding,
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

/// How many are dialled at a time: an intercept takes only so many handshakes of a network at once.
const AT_ONCE: usize = 16;

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
}

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
        Self { dials, security, workers, paced, resume: HashMap::new() }
    }

    /// Brings every channel up, each tried once.
    ///
    /// # Errors
    /// The first channel that cannot be established.
    pub(super) async fn dial_all(&mut self) -> Result<(), ConnectError> {
        let targets = self.dials.len() as u16;
        let all = (0..self.workers.len() as u32).flat_map(|worker| (0..targets).map(move |target| (worker, target)));
        let mut waiting = all.collect::<Vec<_>>().into_iter();
        let mut dials = JoinSet::new();
        loop {
            for (worker, target) in waiting.by_ref().take(AT_ONCE - dials.len()) {
                dials.spawn(self.dial(worker, TargetId(target)));
            }
            match dials.join_next().await {
                None => return Ok(()),
                Some(Ok(dialled)) => self.hand_over(dialled?),
                Some(Err(e)) => std::panic::resume_unwind(e.into_panic()),
            }
        }
    }

    /// Redials what breaks, for ever.
    pub(super) async fn keep_up(mut self, mut notices: UnboundedReceiver<(u32, Notice)>) {
        let mut dials = JoinSet::new();
        let mut reflecting = HashSet::new();
        let mut unseen = HashSet::new();
        let mut unjoinable_targets = HashSet::new();
        loop {
            tokio::select! {
                notice = notices.recv() => match notice {
                    None => return,
                    Some((worker, Notice::LinkDown { target, error })) => {
                        let address = self.intercept(target);
                        broken_channel(worker, address, &error).log();
                        dials.spawn(self.redial(worker, target));
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
                Some(Ok(dialled)) = dials.join_next() => {
                    let address = self.intercept(dialled.target);
                    log::info!("worker {}: the channel to intercept {address} is up again", dialled.worker);
                    self.hand_over(dialled);
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

    fn dial(&self, worker: u32, target: TargetId) -> impl Future<Output = Result<Dialled, ConnectError>> + use<> {
        let address = self.intercept(target);
        let security = self.security.clone();
        let hello = self.hello(worker, target);
        async move {
            let established = connect(address, &security, &hello).await?;
            Ok(Dialled { worker, target, link: Box::new(established.link), welcome: established.welcome })
        }
    }

    fn redial(&self, worker: u32, target: TargetId) -> impl Future<Output = Dialled> + use<> {
        let address = self.intercept(target);
        let security = self.security.clone();
        let mut hello = self.hello(worker, target);
        async move {
            // What only a change of configuration can mend is worth a line, but not one for each attempt.
            let mut told = false;
            let mut backoff = Backoff::new(u64::from(worker) << 16 | u64::from(target.0));
            let mut delay = backoff.next_delay();
            loop {
                tokio::time::sleep(delay).await;
                delay = backoff.next_delay();
                match connect(address, &security, &hello).await {
                    Ok(established) => {
                        return Dialled {
                            worker,
                            target,
                            link: Box::new(established.link),
                            welcome: established.welcome,
                        };
                    }
                    Err(error) if error.cannot_resume() => {
                        log::info!("intercept {address} does not know our sessions any more; starting afresh");
                        hello.resume = None;
                        // It is there, and what its predecessor has left at the target should not wait.
                        delay = Duration::ZERO;
                    }
                    Err(error) if error.is_permanent() && !told => {
                        log::warn!("worker {worker}: {error}");
                        told = true;
                    }
                    Err(error) => log::debug!("worker {worker}: {error}"),
                }
            }
        }
    }
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
        assert_eq!(
            early_acknowledgements(address).to_string(),
            "intercept 10.0.0.3:36524 acknowledges large answers itself, at once: -R has no effect on them; \
             start it with --ack relay"
        );
        let text = unjoinable("10.0.0.3:5432".parse().unwrap()).to_string();
        assert!(text.starts_with("10.0.0.3:5432 ends connections") && text.contains("connect anew"), "{text}");
    }
}
