//! The instances: who may own replayed sessions, and with which key.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use log::Level;
use tcpcopy_common::{
    mark::{Epoch, MarkKey},
    prefix::Prefix,
    response::WireStats,
};

use super::orders::Order;
use crate::{
    bpf::{BpfError, InstanceMaps},
    clock::now,
    control::{Accepted, Hello, Refusal, RefusalCode, Registry, Token, Welcome, random_bytes},
    log_limit::limited,
    mailbox::Mailbox,
};

/// How long the sessions of a broken channel wait for its return before they are destroyed.
pub(super) const RESUME_GRACE: Duration = Duration::from_secs(10);

/// One worker of one tcpcopy.
#[derive(Debug)]
struct Instance {
    key: MarkKey,
    token: Token,
    /// Since when it has had no channel; `None` while it has one.
    lost: Option<Instant>,
}

/// All instances, for every thread of the program. The lock is held for some map operations at most, and no other is taken
/// meanwhile.
pub(super) struct Instances {
    reporter: Mailbox<Order>,
    known: Mutex<Known>,
}

/// What is known of instances, here and in the kernel.
struct Known {
    instances: HashMap<u32, Instance>,
    maps: InstanceMaps,
    /// What was seen of instances that are gone.
    past: WireStats,
}

impl Instances {
    /// None yet.
    #[must_use]
    pub(super) fn new(maps: InstanceMaps, reporter: Mailbox<Order>) -> Self {
        let known = Known { instances: HashMap::new(), maps, past: WireStats::default() };
        Self { reporter, known: Mutex::new(known) }
    }

    /// Ends the report thread, once it has reported what there is.
    pub(super) fn stop_reporting(&self) {
        self.reporter.send(Order::Stop);
    }

    /// The channel of `instance` broke: its sessions wait for [`RESUME_GRACE`].
    pub(super) fn lost(&self, instance: u32) {
        if let Some(instance) = lock(&self.known).instances.get_mut(&instance) {
            instance.lost = Some(Instant::now());
        }
    }

    /// The channel of `instance` is up.
    pub(super) fn found(&self, instance: u32) {
        if let Some(instance) = lock(&self.known).instances.get_mut(&instance) {
            instance.lost = None;
        }
    }

    /// The owner of `instance` said that it has ended: nothing is waited for.
    pub(super) fn ended(&self, instance: u32) {
        if let Some(instance) = lock(&self.known).instances.get_mut(&instance) {
            instance.lost = Instant::now().checked_sub(RESUME_GRACE).or(Some(Instant::now()));
        }
    }

    /// Forgets the instances that nobody has taken up again: their SYNs are no longer accepted. Returns whether there were any.
    pub(super) fn expire(&self) -> bool {
        let mut known = lock(&self.known);
        let expired: Vec<u32> = known
            .instances
            .iter()
            .filter(|(_, i)| i.lost.is_some_and(|at| at.elapsed() >= RESUME_GRACE))
            .map(|(&id, _)| id)
            .collect();
        expired.iter().for_each(|id| known.forget(*id));
        !expired.is_empty()
    }

    /// Forgets every instance: no SYN is accepted any more.
    pub(super) fn forget_all(&self) {
        let mut known = lock(&self.known);
        let all: Vec<u32> = known.instances.keys().copied().collect();
        all.into_iter().for_each(|id| known.forget(id));
    }

    /// Whether sessions of `instance` are still somebody's.
    #[must_use]
    pub(super) fn is_known(&self, instance: u32) -> bool {
        lock(&self.known).instances.contains_key(&instance)
    }

    /// What the wire has seen of `instance`.
    ///
    /// # Errors
    /// When the kernel's map cannot be read.
    pub(super) fn wire_stats(&self, instance: u32) -> Result<WireStats, BpfError> {
        lock(&self.known).maps.wire_stats(instance)
    }

    /// What the wire has seen of all instances, those that are gone included.
    #[must_use]
    pub(super) fn total(&self) -> WireStats {
        let known = lock(&self.known);
        let seen = known.instances.keys().filter_map(|id| known.maps.wire_stats(*id).ok());
        seen.fold(known.past, |mut sum, seen| {
            sum += seen;
            sum
        })
    }
}

impl Known {
    fn forget(&mut self, id: u32) {
        self.instances.remove(&id);
        if let Ok(seen) = self.maps.wire_stats(id) {
            self.past += seen;
        }
        if let Err(e) = self.maps.remove(id) {
            limited!("instances that are not forgotten", Level::Warn, "cannot forget instance {id:08x}: {e}");
        }
    }
}

impl Registry for Instances {
    fn register(&self, hello: &Hello, peer: SocketAddr) -> Result<Welcome, Refusal> {
        let mut known = lock(&self.known);
        if hello.prefixes.iter().any(|(_, prefix)| *prefix != Prefix::NONE) && !known.maps.can_report_prefixes() {
            let why =
                "the first octets of responses are reported from Linux 6.6 on, and the test host's kernel is older";
            return Err(Refusal::new(RefusalCode::BadPrefix, why));
        }
        let internal = |what: &str, e: &dyn std::fmt::Display| {
            limited!("instances that cannot be made", Level::Error, "{what} for {peer}: {e}");
            Refusal::new(RefusalCode::Full, "intercept cannot make an instance; see its log")
        };
        let (id, key, token) = match &hello.resume {
            Some(resume) => {
                let instance = known.instances.get(&resume.instance).filter(|i| i.token == resume.token);
                let instance = instance.ok_or_else(|| {
                    Refusal::new(
                        RefusalCode::CannotResume,
                        "intercept was restarted, or the channel was down for too long",
                    )
                })?;
                let (key, token) = (instance.key, instance.token);
                known.maps.set_prefixes(resume.instance, &hello.prefixes).map_err(|e| internal("no prefixes", &e))?;
                // The report thread calls it found, once it has the new channel in the place of the old.
                (resume.instance, key, token)
            }
            None => {
                let key: [u64; 2] = bytemuck::cast(random_bytes::<16>().map_err(|e| internal("no key", &e))?);
                let key = MarkKey { k0: key[0], k1: key[1] };
                let token = Token(random_bytes().map_err(|e| internal("no token", &e))?);
                let mut id = u32::from_ne_bytes(random_bytes().map_err(|e| internal("no instance id", &e))?);
                while id == 0 || known.instances.contains_key(&id) {
                    id = id.wrapping_add(1);
                }
                // The prefixes first: a SYN that is valid must find them.
                let added = known.maps.set_prefixes(id, &hello.prefixes).and_then(|()| known.maps.add(id, &key));
                if let Err(e) = added {
                    known.forget(id);
                    return Err(internal("no instance", &e));
                }
                known.instances.insert(id, Instance { key, token, lost: None });
                (id, key, token)
            }
        };
        limited!(
            "registered workers",
            Level::Info,
            "worker {} of {} at {peer} {} instance {id:08x}",
            hello.worker,
            hello.name(),
            if hello.resume.is_some() { "resumes" } else { "is" }
        );
        Ok(Welcome { instance: id, key, epoch: Epoch::at(now().0), token })
    }

    fn established(&self, accepted: Accepted) {
        self.reporter.send(Order::LinkUp(accepted.welcome.instance, Box::new(accepted.link)));
    }
}

/// Locks; what a thread that panicked left is plain counters and maps, valid at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
