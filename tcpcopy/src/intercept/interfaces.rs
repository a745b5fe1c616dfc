//! The interfaces of the test host: all but loopback are hooked, by whatever name a segment of a session comes or an
//! answer leaves, and those that appear later as soon as they do.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use log::Level;
use tokio::time::{Interval, MissedTickBehavior, interval};

use super::checks;
use crate::{
    bpf::{BpfError, Interceptor, Mended},
    finding::Finding,
    links::Links,
    log_limit::limited,
    net::{
        NetError, encapsulation,
        interface::{self, Interface, LinkChange, interfaces},
    },
};

/// How soon interfaces are looked at again when that, or the hooking of one, has failed, or announcements were lost.
const AGAIN: Duration = Duration::from_millis(200);
/// How often the programs of others are looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Between two lines about the same interface.
const TOLD_INTERVAL: Duration = Duration::from_secs(60);

/// Watches the interfaces. Nothing is hooked yet.
pub(super) struct Interfaces {
    links: Links,
    ways_out: encapsulation::Watch,
    present: Vec<Interface>,
    named: Vec<String>,
}

impl Interfaces {
    /// Looks which interfaces there are; `named` are those that the operator expects replayed packets on.
    ///
    /// # Errors
    /// When the kernel cannot be asked, one of `named` is not there or a loopback, or answers would leave in a form in
    /// which they cannot be recognised.
    pub(super) fn open(named: &[String]) -> anyhow::Result<Self> {
        let links = Links::watch()?;
        let present = interfaces()?;
        for name in named {
            anyhow::ensure!(
                !interface::named(&present, name)?.loopback,
                "-i {name}: the kernel answers clients on a loopback interface by that interface, where responses are \
                 not swallowed; replay from another host, or through a veth pair"
            );
        }
        let ways_out = encapsulation::Watch::open()?;
        if let Some(found) = encapsulation::encapsulation()? {
            return Err(checks::wrapped_up(&found));
        }
        Ok(Self { links, ways_out, present, named: named.to_vec() })
    }

    /// Guards the sockets against interfaces that are not hooked, and hooks all that there are: first all ways out, then
    /// all ways in.
    ///
    /// # Errors
    /// When one of them cannot be hooked.
    pub(super) fn hook_all(self, mut programs: Interceptor) -> anyhow::Result<Hooked> {
        let Self { links, ways_out, present, named } = self;
        let present: Vec<_> = present.iter().filter(|interface| !interface.loopback).collect();
        let guarded = programs.guard();
        checks::guard(&guarded).iter().for_each(Finding::log);
        for Interface { name, .. } in &present {
            while_it_lasts(programs.attach_swallow(name))
                .with_context(|| format!("cannot swallow responses on {name}"))?;
        }
        for Interface { name, .. } in &present {
            while_it_lasts(programs.attach_learn(name)).with_context(|| format!("cannot learn sessions on {name}"))?;
        }
        named.iter().filter_map(|name| checks::reverse_path_filter(name)).for_each(|finding| finding.log());
        let mut look = interval(LOOK_INTERVAL);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (told, failed, again) = (HashMap::new(), None, None);
        let mut hooked = Hooked { links, ways_out, programs, named, look, told, failed, again };
        hooked.look_at_chains();
        Ok(hooked)
    }
}

/// An interface that went while we looked is announced by the monitor.
fn while_it_lasts(hooked: Result<(), BpfError>) -> Result<(), BpfError> {
    match hooked {
        Err(BpfError::Net(NetError::NoInterface { .. })) => Ok(()),
        hooked => hooked,
    }
}

/// The interfaces with the programs on them. Dropping this detaches the programs.
pub(super) struct Hooked {
    links: Links,
    ways_out: encapsulation::Watch,
    programs: Interceptor,
    named: Vec<String>,
    look: Interval,
    told: HashMap<Mended, Instant>,
    /// When the operator was last told that something could not be looked at.
    failed: Option<Instant>,
    /// When all interfaces are to be looked at once more, for want of memory or descriptors up to now.
    again: Option<Instant>,
}

/// Waits for a moment; for ever, if there is none.
async fn passed(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment.into()).await,
        None => std::future::pending().await,
    }
}

impl Hooked {
    /// Hooks interfaces that appear, so that no answer leaves by one of them, and looks after the programs; ends only
    /// when it fails, or when answers could leave in a form in which they are not recognised: better to end, in good
    /// order. Cancel safe: no change is lost.
    pub(super) async fn follow(&mut self) -> anyhow::Error {
        loop {
            let changes = tokio::select! {
                biased;
                changes = self.links.changes() => changes,
                // What came behind a gap may still be there, and is announced no more.
                () = passed(self.again) => {
                    self.again = None;
                    Ok(vec![LinkChange::Missed])
                }
                _ = self.look.tick() => {
                    self.look_at_chains();
                    match self.ways_out.look() {
                        Ok(None) => {}
                        Ok(Some(found)) => return checks::wrapped_up(&found),
                        Err(e) => self.warn("cannot see whether answers are wrapped up on their way out", &e),
                    }
                    continue;
                }
            };
            match changes {
                Ok(changes) => {
                    for change in &changes {
                        if !self.apply(change) {
                            self.again = Some(Instant::now() + AGAIN);
                        }
                    }
                }
                Err(e) => return anyhow::Error::from(e).context("cannot watch the interfaces any more"),
            }
        }
    }

    /// Returns whether every interface that is there is known to be hooked by now.
    fn apply(&mut self, change: &LinkChange) -> bool {
        match change {
            LinkChange::Present(interface) => self.hook(interface),
            LinkChange::Removed { index, name } => {
                self.programs.detach(*index);
                if self.named.contains(name) {
                    log::warn!("{name} (-i) is gone; it will be hooked when it is there again");
                }
                true
            }
            LinkChange::Missed => match interfaces() {
                Ok(present) => {
                    let gone: Vec<u32> =
                        self.programs.attached().filter(|index| present.iter().all(|i| i.index != *index)).collect();
                    gone.into_iter().for_each(|index| self.programs.detach(index));
                    let unhooked = present.iter().filter(|interface| !self.hook(interface)).count();
                    unhooked == 0
                }
                Err(e) => {
                    limited!(
                        "interfaces that cannot be listed",
                        Level::Warn,
                        "cannot list the interfaces: {e}; until that is mended, responses may leave by a new one"
                    );
                    false
                }
            },
        }
    }

    /// Idempotent: an interface is announced again whenever something about it changes. Returns whether it is hooked, or
    /// need not be.
    fn hook(&mut self, interface: &Interface) -> bool {
        if interface.loopback || self.programs.is_hooked(interface.index) {
            return true;
        }
        let name = &interface.name;
        match self.programs.hook(name) {
            Ok(()) => {
                log::info!("learning and swallowing on the new interface {name} too");
                if self.named.contains(name) {
                    checks::reverse_path_filter(name).iter().for_each(Finding::log);
                }
            }
            // It was there for a moment only.
            Err(BpfError::Net(NetError::NoInterface { .. })) => {}
            Err(e) => {
                limited!(
                    "interfaces that are not hooked",
                    Level::Warn,
                    "cannot hook the new interface {name} yet: {e}; until that is mended, responses may leave by it"
                );
                return false;
            }
        }
        true
    }

    /// Puts our programs back where they belong among those of others.
    fn look_at_chains(&mut self) {
        for mended in self.programs.mend_chains() {
            match mended {
                Ok(mended) => {
                    let now = Instant::now();
                    if self.told.get(&mended).is_none_or(|at| now.duration_since(*at) >= TOLD_INTERVAL) {
                        checks::chain(&mended).log();
                        self.told.insert(mended, now);
                    }
                }
                Err(e) => self.warn("a program of another agent may hide packets from ours", &e),
            }
        }
    }

    /// Says that something cannot be looked at: it is tried again, but not told each time.
    fn warn(&mut self, what: &str, error: &dyn std::error::Error) {
        let now = Instant::now();
        if self.failed.is_none_or(|at| now.duration_since(at) >= TOLD_INTERVAL) {
            log::warn!("{what}: {error}");
            self.failed = Some(now);
        }
    }
}
