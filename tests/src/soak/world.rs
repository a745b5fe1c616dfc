//! What runs in a soak, and what happens to it.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
use rustix::process::Signal;
use serde::Serialize;

use super::{fault::Fault, forgery, ledger::unbalanced};
use crate::{
    Family, Lab, Mirror, PATIENCE, Program,
    bad_path::BadPath,
    eventually, figure,
    forge::Forger,
    http::{Limit, Load, Server},
    mirror::{LIVE_PORT, TARGET_PORT},
    monotonic_ns,
    servers::RealServer,
};

/// Requests that a server takes on one connection.
pub(super) const UNLIMITED: u32 = 10_000_000;
/// The ports of the embedded servers, which remember what they were sent.
pub(super) const LIVE_WITNESS: u16 = LIVE_PORT + 1;
pub(super) const TARGET_WITNESS: u16 = TARGET_PORT + 1;
/// So long after an `intercept` that follows a killed one is ready, answers of sockets that the killed one has left may
/// still reach clients: until each was probed and has been reset.
const AFTERMATH: Duration = Duration::from_secs(5);
/// So long `intercept` keeps the sessions of a killed `tcpcopy`, in case it comes back. Until it has ended them, nobody
/// but it knows their sockets: it is not killed before (docs/limitations.md).
const FORGETTING: Duration = Duration::from_secs(12);

/// What is running.
pub(super) struct Soak {
    pub(super) lab: Lab,
    pub(super) began: Instant,
    /// The same as ns of `CLOCK_MONOTONIC`.
    pub(super) began_ns: u64,
    pub(super) dice: fastrand::Rng,
    pub(super) mirror: Mirror,
    /// The service under test, which faults restart.
    pub(super) service: Option<RealServer>,
    pub(super) witness: Server,
    pub(super) forger: Forger,
    /// Forged segments so far.
    pub(super) forged: u32,
    /// When answers may have reached clients because an `intercept` was killed: begin and end, ns of
    /// `CLOCK_MONOTONIC`.
    pub(super) windows: Vec<(u64, u64)>,
    pub(super) faults: BTreeMap<Fault, u64>,
    pub(super) violations: Vec<String>,
    /// How long each restarted program took from readiness to its first request.
    pub(super) returns: Vec<Duration>,
    /// When `tcpcopy` was killed last.
    pub(super) tcpcopy_killed: Option<Instant>,
    /// The most memory of each program that was seen, octets.
    pub(super) memory: BTreeMap<&'static str, u64>,
}

/// Memory and descriptors of a program.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Size {
    /// Octets that are its own: neither its file's nor a ring's.
    pub(super) memory: u64,
    pub(super) descriptors: usize,
}

impl Soak {
    /// Does nothing for a random time, ms.
    pub(super) fn rest(&mut self, range: std::ops::Range<u64>) -> Duration {
        let time = Duration::from_millis(self.dice.u64(range));
        thread::sleep(time);
        time
    }

    pub(super) fn tell(&self, what: &str) {
        eprintln!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Lets one thing go wrong, and mends it.
    pub(super) fn suffer(&mut self, fault: Fault) -> anyhow::Result<()> {
        *self.faults.entry(fault).or_default() += 1;
        if let (Fault::KillIntercept, Some(killed)) = (fault, self.tcpcopy_killed) {
            thread::sleep(FORGETTING.saturating_sub(killed.elapsed()));
        }
        if fault == Fault::KillTcpcopy {
            self.wait_for_orphans()?;
        }
        let began = Instant::now();
        match fault {
            Fault::KillTcpcopy => {
                self.tcpcopy_killed = Some(began);
                self.mirror.tcpcopy.take().map(Program::kill).transpose()?;
                self.rest(0..1_000);
                self.mirror.start_tcpcopy()?;
                self.expect_mirroring();
            }
            Fault::KillIntercept => {
                let killed = monotonic_ns();
                self.mirror.intercept.take().map(Program::kill).transpose()?;
                self.rest(0..1_000);
                self.mirror.start_intercept()?;
                self.expect_mirroring();
                self.windows.push((killed, monotonic_ns() + AFTERMATH.as_nanos() as u64));
            }
            Fault::RestartTcpcopy => {
                if let Some(program) = self.mirror.tcpcopy.take() {
                    program.stop()?;
                    self.violations.extend(unbalanced(&self.mirror.summary("source")?));
                }
                self.mirror.start_tcpcopy()?;
                self.expect_mirroring();
            }
            Fault::RestartIntercept => {
                self.mirror.intercept.take().map(Program::stop).transpose()?;
                self.rest(0..1_000);
                self.mirror.start_intercept()?;
                self.expect_mirroring();
            }
            Fault::PauseTcpcopy | Fault::PauseIntercept => {
                let paused = fault == Fault::PauseTcpcopy;
                let signal = |soak: &Self, signal| {
                    let program = if paused { soak.mirror.tcpcopy() } else { soak.mirror.intercept() };
                    program.signal(signal)
                };
                signal(self, Signal::STOP)?;
                self.rest(100..3_000);
                signal(self, Signal::CONT)?;
            }
            Fault::RestartService => {
                self.service = None;
                self.rest(0..1_500);
                self.service = Some(RealServer::apache(&self.lab.target, TARGET_PORT, UNLIMITED)?);
            }
            Fault::LinkDown => {
                let lines = |state| [format!("link set target {state}")];
                self.lab.switch.ip(&lines("down"))?;
                self.rest(100..3_000);
                self.lab.switch.ip(&lines("up"))?;
            }
            Fault::AddressChange => {
                let lines = |action| [format!("address {action} 10.77.0.103/24 dev eth0")];
                self.lab.target.ip(&lines("add"))?;
                self.rest(100..1_000);
                self.lab.target.ip(&lines("del"))?;
            }
            Fault::BadPath => {
                let weather = Fault::weather(&mut self.dice);
                let path = BadPath::new(&self.lab, weather)?;
                self.rest(1_000..4_000);
                path.repair(&self.lab)?;
            }
            Fault::Forgery => {
                let server = |family| self.lab.source.socket(family, LIVE_WITNESS);
                forgery::forge(&self.forger, &mut self.dice, &mut self.forged, server)?;
            }
        }
        self.tell(&format!("{fault} ({:.1} s)", began.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Waits until `tcpcopy` has probed every socket that a killed `intercept` has left: until then nobody but it knows
    /// them, and it is not killed (docs/limitations.md).
    fn wait_for_orphans(&mut self) -> anyhow::Result<()> {
        let settled = || {
            let program = self.mirror.tcpcopy();
            program.signal(Signal::USR1)?;
            let table = program.output();
            let [orphans, settled, given_up] =
                ["orphans", "orphans settled", "orphans given up"].map(|name| figure(&table, name).unwrap_or(0));
            anyhow::Ok(orphans == settled + given_up)
        };
        // A table is of the second before; two that agree are not from before the kill.
        let (mut result, mut agreed) = (Ok(false), 0);
        let over = eventually(PATIENCE, || {
            thread::sleep(Duration::from_millis(500));
            result = settled();
            agreed = if matches!(result, Ok(true)) { agreed + 1 } else { 0 };
            agreed > 3 || result.is_err()
        });
        if !over {
            self.violations.push("sockets that a killed intercept has left are never accounted for".into());
        }
        result.map(|_| ())
    }

    /// Waits until a restarted program mirrors, and notes how long it took.
    fn expect_mirroring(&mut self) {
        let (ready, mut asked) = (Instant::now(), Vec::new());
        // Each asks on a connection of its own, as one that is under way need not be joined.
        let mirrored = eventually(PATIENCE, || {
            let load = Load::per_request(self.lab.source.socket(Family::V4, LIVE_WITNESS), 1, Limit::Requests(1));
            asked.extend(load.run(&self.lab.client).map(|report| report.answered).unwrap_or_default());
            self.witness.arrivals().iter().rev().take(200).any(|arrival| asked.contains(&arrival.id))
        });
        if mirrored {
            self.returns.push(ready.elapsed());
        } else {
            self.violations.push(format!("a restarted program does not mirror after {PATIENCE:?}"));
        }
    }

    /// Sizes of both programs now.
    pub(super) fn sizes(&self) -> anyhow::Result<[(&'static str, Size); 2]> {
        let [a, b] = [("tcpcopy", self.mirror.tcpcopy()), ("intercept", self.mirror.intercept())];
        Ok([(a.0, Size::of(a.1.pid())?), (b.0, Size::of(b.1.pid())?)])
    }

    pub(super) fn weigh(&mut self) -> anyhow::Result<()> {
        for (name, size) in self.sizes()? {
            let most = self.memory.entry(name).or_default();
            *most = size.memory.max(*most);
        }
        Ok(())
    }
}

impl Size {
    fn of(pid: u32) -> anyhow::Result<Self> {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
        ensure!(kib.is_some(), "/proc/{pid}/status has no RssAnon");
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        Ok(Self { memory: kib.unwrap_or_default() << 10, descriptors })
    }
}
