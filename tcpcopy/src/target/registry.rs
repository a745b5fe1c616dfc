//! The instances: who may own replayed sessions, and with which key.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tcpcopy_common::{mark::MarkKey, response::WireStats};

use crate::{
    bpf::{BpfError, target::Interceptor},
    control::{
        frame::{Refusal, Welcome},
        server::{Hello, Registry},
    },
    time::now,
};

/// How long the sessions of a broken channel wait for its return before they are destroyed.
pub const RESUME_GRACE: Duration = Duration::from_secs(10);

/// One worker of one tcpcopy.
#[derive(Debug)]
struct Instance {
    key: MarkKey,
    token: [u8; 16],
    /// Since when it has had no channel; `None` while it has one.
    lost: Option<Instant>,
}

/// All instances, and the programs that know them.
#[derive(Debug)]
pub struct Instances {
    interceptor: Arc<Mutex<Interceptor>>,
    known: Mutex<HashMap<u32, Instance>>,
    /// What was seen of instances that are gone.
    past: Mutex<WireStats>,
}

impl Instances {
    /// None yet.
    #[must_use]
    pub fn new(interceptor: Arc<Mutex<Interceptor>>) -> Self {
        Self { interceptor, known: Mutex::default(), past: Mutex::default() }
    }

    /// The channel of `instance` broke: its sessions wait for [`RESUME_GRACE`].
    pub fn lost(&self, instance: u32) {
        if let Some(instance) = lock(&self.known).get_mut(&instance) {
            instance.lost = Some(Instant::now());
        }
    }

    /// The owner of `instance` said that it has ended: nothing is waited for.
    pub fn ended(&self, instance: u32) {
        if let Some(instance) = lock(&self.known).get_mut(&instance) {
            instance.lost = Instant::now().checked_sub(RESUME_GRACE).or(Some(Instant::now()));
        }
    }

    /// Forgets the instances that nobody has taken up again, and names them: their SYNs are no longer accepted.
    pub fn expire(&self) -> Vec<u32> {
        let mut known = lock(&self.known);
        let expired: Vec<u32> = known
            .iter()
            .filter(|(_, i)| i.lost.is_some_and(|at| at.elapsed() >= RESUME_GRACE))
            .map(|(&id, _)| id)
            .collect();
        for id in &expired {
            known.remove(id);
            let mut interceptor = lock(&self.interceptor);
            if let Ok(seen) = interceptor.wire_stats(*id) {
                add(&mut lock(&self.past), &seen);
            }
            if let Err(e) = interceptor.remove_instance(*id) {
                log::warn!("cannot forget instance {id:08x}: {e}");
            }
        }
        expired
    }

    /// Whether sessions of `instance` are still somebody's.
    #[must_use]
    pub fn is_known(&self, instance: u32) -> bool {
        lock(&self.known).contains_key(&instance)
    }

    /// What the wire has seen of `instance`.
    ///
    /// # Errors
    /// When the kernel's map cannot be read.
    pub fn wire_stats(&self, instance: u32) -> Result<WireStats, BpfError> {
        lock(&self.interceptor).wire_stats(instance)
    }

    /// What the wire has seen of all instances, those that are gone included.
    #[must_use]
    pub fn total(&self) -> WireStats {
        let mut sum = *lock(&self.past);
        for id in lock(&self.known).keys() {
            if let Ok(seen) = self.wire_stats(*id) {
                add(&mut sum, &seen);
            }
        }
        sum
    }
}

impl Registry for Instances {
    fn register(&self, hello: &Hello, peer: SocketAddr) -> Result<Welcome, Refusal> {
        let mut known = lock(&self.known);
        let (id, key, token) = match &hello.resume {
            Some(resume) => {
                let instance = known
                    .get_mut(&resume.instance)
                    .filter(|i| constant_time_eq(&i.token, &resume.token))
                    .ok_or(Refusal::UnknownInstance)?;
                instance.lost = None;
                (resume.instance, instance.key, instance.token)
            }
            None => {
                let mut random = [0u8; 36];
                rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty()).map_err(|e| {
                    log::error!("no random numbers for a new instance: {e}");
                    Refusal::Internal
                })?;
                let word = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| random[at + i]));
                let key = MarkKey { k0: word(0), k1: word(8) };
                let token: [u8; 16] = std::array::from_fn(|i| random[16 + i]);
                let mut id = u32::from_ne_bytes(std::array::from_fn(|i| random[32 + i])).max(1);
                while known.contains_key(&id) {
                    id = id.wrapping_add(1).max(1);
                }
                lock(&self.interceptor).add_instance(id, &key).map_err(|e| {
                    log::error!("cannot add an instance for {peer}: {e}");
                    Refusal::Internal
                })?;
                known.insert(id, Instance { key, token, lost: None });
                (id, key, token)
            }
        };
        log::info!(
            "worker {} of {} at {peer} {} instance {id:08x}",
            hello.worker,
            hello.name,
            if hello.resume.is_some() { "resumes" } else { "is" }
        );
        Ok(Welcome { instance: id, key, token, time_ns: now().0 })
    }
}

/// Compares without telling by its duration where the first difference is.
fn constant_time_eq(a: &[u8; 16], b: &[u8; 16]) -> bool {
    a.iter().zip(b).fold(0, |d, (x, y)| d | (x ^ y)) == 0
}

/// Locks; what a thread that panicked left is plain counters and maps, valid at every moment.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn add(sum: &mut WireStats, more: &WireStats) {
    sum.segments += more.segments;
    sum.payload_bytes += more.payload_bytes;
    sum.syns += more.syns;
    sum.fins += more.fins;
    sum.swallowed += more.swallowed;
    sum.swallowed_bytes += more.swallowed_bytes;
}
