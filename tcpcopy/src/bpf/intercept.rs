//! The target's side: learning replayed sessions and swallowing the responses to them.

use std::collections::HashMap;

use aya::programs::{SchedClassifier, TcAttachType, tc::SchedClassifierLink};

use super::{
    BpfError, InstanceMaps, KernelFeature, ProgramLogger, RingReader, Sessions, TargetCounters,
    error::patiently,
    names::{global, map, program},
    object::{Object, Side},
    refusal::refusal,
    ring::{SignalPage, ring_size},
    sys, tc,
};
use crate::net::interface::{self, Interface};

/// How the programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcAttach {
    /// TCX where the kernel has it (Linux 6.6), else clsact.
    Auto,
    /// TCX links: gone with the process, however that ends.
    Tcx,
    /// Filters of a clsact qdisc: they survive a SIGKILL, and are removed at the next start.
    Clsact,
}

/// What the programs need.
#[derive(Clone, Copy, Debug)]
pub struct InterceptSetup {
    /// How to attach.
    pub attach: TcAttach,
    /// How many replayed sessions there can be at a time; the SYN of one more is dropped.
    pub max_sessions: u32,
    /// The size of the ring of reports, in bytes; rounded up to a power of two of pages.
    pub ring_bytes: u32,
    /// Whether the programs give the target the acknowledgements that it may wait for.
    pub reflect: bool,
    /// Whether the programs log.
    pub debug: bool,
}

/// What the target's programs consist of: each part for the thread that owns it.
pub struct Intercept {
    /// The programs, which can be attached.
    pub programs: Interceptor,
    /// Whose marks are accepted.
    pub instances: InstanceMaps,
    /// What is swallowed.
    pub sessions: Sessions,
    /// What was counted.
    pub counters: TargetCounters,
    /// The reports of what was swallowed.
    pub reports: RingReader,
}

/// The programs of the target, loaded. Dropping this detaches them: then responses reach the network again.
pub struct Interceptor {
    // Dropped before the object: first detach, then give up maps and programs.
    /// By the index of the interface: a name may pass to another one.
    hooks: HashMap<u32, Hooks>,
    object: Object,
    tcx: bool,
}

/// What is attached to one interface. The fields drop in this order: the filters before their qdisc.
#[derive(Default)]
struct Hooks {
    learn: Option<SchedClassifierLink>,
    swallow: Option<SchedClassifierLink>,
    qdisc: Option<tc::Qdisc>,
}

/// The programs for the two kinds of interface, with an Ethernet header and without one.
struct Programs {
    ethernet: &'static str,
    l3: &'static str,
}

impl Programs {
    const fn of(&self, interface: &Interface) -> &'static str {
        if interface.has_ethernet_header() { self.ethernet } else { self.l3 }
    }
}

const LEARN: Programs = Programs { ethernet: program::LEARN, l3: program::LEARN_L3 };
const SWALLOW_TCX: Programs = Programs { ethernet: program::SWALLOW_TCX, l3: program::SWALLOW_TCX_L3 };
const SWALLOW_CLSACT: Programs = Programs { ethernet: program::SWALLOW_CLSACT, l3: program::SWALLOW_CLSACT_L3 };

impl Interceptor {
    /// Makes maps, ring and programs. Nothing is attached yet.
    ///
    /// # Errors
    /// Any of [`BpfError`] but [`Attach`](BpfError::Attach) and those of capturing.
    pub fn load(setup: &InterceptSetup) -> Result<Intercept, BpfError> {
        let tcx = setup.attach.use_tcx()?;
        let ring_bytes = ring_size(setup.ring_bytes);
        let reflect: &'static u32 = if setup.reflect { &1 } else { &0 };
        let mut object = Object::load(Side::Intercept, setup.debug, |loader| {
            loader
                .override_global(global::REFLECT, reflect, true)
                .override_global(global::WITH_PREFIXES, InstanceMaps::with_prefixes(), true)
                .map_max_entries(map::SESSIONS, setup.max_sessions.max(1))
                .map_max_entries(map::REPORTS, ring_bytes);
        })?;
        let signals = SignalPage::new(object.map_fd(map::SIGNALS)?, 1)?;
        let ring = object.map_fd(map::REPORTS)?.try_clone_to_owned();
        let ring = ring.map_err(|error| BpfError::ring(ring_bytes, error))?;
        let reports = RingReader::new(ring, ring_bytes, signals.of(0))?;
        let swallow = if tcx { SWALLOW_TCX } else { SWALLOW_CLSACT };
        for name in [LEARN.ethernet, LEARN.l3, swallow.ethernet, swallow.l3] {
            let program = object.program::<SchedClassifier>(name)?;
            patiently(|| program.load()).map_err(|error| refusal(name, &error))?;
        }
        Ok(Intercept {
            instances: InstanceMaps::take(&mut object)?,
            sessions: Sessions::take(&mut object)?,
            counters: TargetCounters::take(&mut object)?,
            programs: Self { hooks: HashMap::new(), object, tcx },
            reports,
        })
    }

    /// Starts to learn sessions from what comes in by `interface`. Again for the same interface is a no-op.
    ///
    /// # Errors
    /// [`BpfError::Net`], [`BpfError::Permission`] or [`BpfError::Attach`].
    pub fn attach_learn(&mut self, interface: &str) -> Result<(), BpfError> {
        self.attach(interface, &LEARN, TcAttachType::Ingress, |hooks| &mut hooks.learn)
    }

    /// Starts to swallow responses that go out by `interface`. Again for the same interface is a no-op.
    ///
    /// # Errors
    /// [`BpfError::Net`], [`BpfError::Permission`] or [`BpfError::Attach`].
    pub fn attach_swallow(&mut self, interface: &str) -> Result<(), BpfError> {
        let programs = if self.tcx { SWALLOW_TCX } else { SWALLOW_CLSACT };
        self.attach(interface, &programs, TcAttachType::Egress, |hooks| &mut hooks.swallow)
    }

    /// Detaches from the interface of this index, or forgets it when it is gone.
    pub fn detach(&mut self, ifindex: u32) {
        self.hooks.remove(&ifindex);
    }

    /// Returns the indices of the interfaces with a program of ours, and of those where that has failed.
    pub fn attached(&self) -> impl Iterator<Item = u32> {
        self.hooks.keys().copied()
    }

    /// Returns whether responses that go out by the interface of this index are swallowed.
    #[must_use]
    pub fn swallows_on(&self, ifindex: u32) -> bool {
        self.hooks.get(&ifindex).is_some_and(|hooks| hooks.swallow.is_some())
    }

    fn attach(
        &mut self,
        name: &str,
        programs: &Programs,
        direction: TcAttachType,
        slot: fn(&mut Hooks) -> &mut Option<SchedClassifierLink>,
    ) -> Result<(), BpfError> {
        let interface = &interface::by_name(name)?;
        let hooks = self.hooks.entry(interface.index).or_default();
        if slot(hooks).is_some() {
            return Ok(());
        }
        let program_name = programs.of(interface);
        let program = self.object.program::<SchedClassifier>(program_name)?;
        let link = if self.tcx {
            tc::attach_tcx(program, program_name, name, direction)?
        } else {
            if hooks.qdisc.is_none() {
                let swallow = SWALLOW_CLSACT.of(interface);
                let stale = [(LEARN.of(interface), TcAttachType::Ingress), (swallow, TcAttachType::Egress)];
                hooks.qdisc = Some(tc::Qdisc::ensure(interface, &stale)?);
            }
            tc::attach_filter(program, program_name, name, direction)?
        };
        *slot(hooks) = Some(link);
        Ok(())
    }

    /// Returns the programs' log: `None` unless `debug` was set, or the second time.
    pub fn logger(&mut self) -> Option<ProgramLogger> {
        self.object.logger()
    }

    #[cfg(test)]
    pub(super) fn object(&mut self) -> &mut Object {
        &mut self.object
    }
}

impl TcAttach {
    fn use_tcx(self) -> Result<bool, BpfError> {
        let has_tcx = sys::kernel_at_least(6, 6);
        match self {
            Self::Auto => Ok(has_tcx),
            Self::Tcx if has_tcx => Ok(true),
            Self::Tcx => Err(BpfError::Kernel(KernelFeature::Tcx)),
            Self::Clsact => Ok(false),
        }
    }
}
