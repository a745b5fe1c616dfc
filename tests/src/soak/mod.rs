//! A soak: the programs mirror a mixed load between real servers while one thing after another goes wrong, in an order
//! that a seed decides. At the end it is seen whether anything was lost, leaked or left behind.

mod fault;
mod verdict;

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use anyhow::ensure;
pub use fault::Fault;
use serde::Serialize;
pub use verdict::Report;

use crate::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Shape,
    bad_path::BadPath,
    capture::{End, Sniffer},
    eventually,
    forge::Forger,
    http::{Limit, Load, Method, RunningLoad, Server},
    mirror::{LIVE_PORT, TARGET_PORT},
    monotonic_ns,
    servers::RealServer,
    traces::network_state,
};

/// Requests that a server takes on one connection.
const UNLIMITED: u32 = 10_000_000;
/// The ports of the embedded servers, which remember what they were sent.
const LIVE_WITNESS: u16 = LIVE_PORT + 1;
const TARGET_WITNESS: u16 = TARGET_PORT + 1;
/// Requests of the last test, of each family.
const LAST_REQUESTS: u64 = 50;
/// What follows the last fault is calm, and is watched for so long.
const CALM: Duration = Duration::from_secs(10);
/// So long after an `intercept` that follows a killed one is ready, answers of sockets that the killed one has left may
/// still reach clients: until each was probed and has been reset.
const AFTERMATH: Duration = Duration::from_secs(5);
/// So long `intercept` keeps the sessions of a killed `tcpcopy`, in case it comes back. Until it has ended them, nobody
/// but it knows their sockets: it is not killed before (docs/limitations.md).
const FORGETTING: Duration = Duration::from_secs(12);

/// What to do for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long things go wrong.
    pub time: Duration,
    /// Decides which faults come, and when.
    pub seed: u64,
}

/// What is running.
struct Soak {
    lab: Lab,
    began: Instant,
    /// The same as ns of `CLOCK_MONOTONIC`.
    began_ns: u64,
    dice: fastrand::Rng,
    mirror: Mirror,
    /// The service under test, which faults restart.
    service: Option<RealServer>,
    witness: Server,
    forger: Forger,
    /// Forged segments so far.
    forged: u32,
    /// When answers may have reached clients because an `intercept` was killed: begin and end, ns of
    /// `CLOCK_MONOTONIC`.
    windows: Vec<(u64, u64)>,
    faults: BTreeMap<Fault, u64>,
    violations: Vec<String>,
    /// How long each restarted program took from readiness to its first request.
    returns: Vec<Duration>,
    /// When `tcpcopy` was killed last.
    tcpcopy_killed: Option<Instant>,
    /// The most memory of each program that was seen, octets.
    memory: BTreeMap<&'static str, u64>,
}

/// Memory and descriptors of a program.
#[derive(Clone, Copy, Debug, Serialize)]
struct Size {
    /// Octets that are its own: neither its file's nor a ring's.
    memory: u64,
    descriptors: usize,
}

/// Runs a soak, and tells of each fault as it comes. What was violated is in the report.
///
/// # Errors
/// When the laboratory fails, not when the programs do.
pub fn run(options: &Options) -> anyhow::Result<Report> {
    let lab = Lab::shaped(Shape::Stranger)?;
    let _live = RealServer::nginx(&lab.source, LIVE_PORT, UNLIMITED)?;
    let _live_witness = Server::start(&lab.source, LIVE_WITNESS)?;
    let service = Some(RealServer::apache(&lab.target, TARGET_PORT, UNLIMITED)?);
    let witness = Server::start(&lab.target, TARGET_WITNESS)?;
    let strangers = Sniffer::start(lab.other("stranger"), &lab.target, End::Source)?;
    let rules = Family::BOTH.map(|family| {
        let rule = |live, test| format!("{}-{}", lab.source.socket(family, live), lab.target.socket(family, test));
        format!("{},{}", rule(LIVE_PORT, TARGET_PORT), rule(LIVE_WITNESS, TARGET_WITNESS))
    });
    let options_of_mirror = MirrorOptions { rules: Some(rules.join(",")), ..MirrorOptions::default() };
    let mirror = Mirror::prepare(&lab, options_of_mirror)?;
    let before = [&lab.source, &lab.target].map(network_state);
    let forger = Forger::new(lab.other("stranger"), &lab.source)?;
    let mut soak = Soak {
        began: Instant::now(),
        began_ns: monotonic_ns(),
        dice: fastrand::Rng::with_seed(options.seed),
        mirror,
        service,
        witness,
        forger,
        forged: 0,
        windows: Vec::new(),
        faults: BTreeMap::new(),
        violations: Vec::new(),
        returns: Vec::new(),
        tcpcopy_killed: None,
        memory: BTreeMap::new(),
        lab,
    };
    soak.mirror.start_intercept()?;
    soak.mirror.start_tcpcopy()?;
    let loads = start_loads(&soak.lab)?;
    while soak.began.elapsed() < options.time {
        let fault = Fault::draw(&mut soak.dice);
        soak.suffer(fault)?;
        soak.weigh()?;
        soak.rest(300..1_500);
    }
    let [source, target] = before;
    verdict::reach(soak, options, loads, strangers, [source?, target?])
}

/// Keep-alive connections, connections for each request, large answers and uploads.
fn start_loads(lab: &Lab) -> anyhow::Result<Vec<RunningLoad>> {
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let server = lab.source.socket(family, LIVE_PORT);
        let index = Method::Get("/".into());
        let keep_alive = Load::keep_alive(server, 8, Limit::Stopped);
        loads.push(Load { method: index.clone(), rate: Some(100), ..keep_alive.clone() });
        loads.push(Load { method: index, rate: Some(50), ..Load::per_request(server, 4, Limit::Stopped) });
        let large = Load { connections: 1, method: Method::Get("/big.bin".into()), ..keep_alive.clone() };
        loads.push(Load { rate: Some(2), ..large });
        let uploads = Load { server: lab.source.socket(family, LIVE_WITNESS), connections: 2, ..keep_alive };
        loads.push(Load { method: Method::Post(20_000), rate: Some(20), ..uploads });
    }
    loads.into_iter().map(|load| load.start(&lab.client)).collect()
}

impl Soak {
    /// Does nothing for a random time, ms.
    fn rest(&mut self, range: std::ops::Range<u64>) -> Duration {
        let time = Duration::from_millis(self.dice.u64(range));
        thread::sleep(time);
        time
    }

    fn tell(&self, what: &str) {
        eprintln!("{:7.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    /// Lets one thing go wrong, and mends it.
    fn suffer(&mut self, fault: Fault) -> anyhow::Result<()> {
        *self.faults.entry(fault).or_default() += 1;
        if let (Fault::KillIntercept, Some(killed)) = (fault, self.tcpcopy_killed) {
            thread::sleep(FORGETTING.saturating_sub(killed.elapsed()));
        }
        let began = Instant::now();
        match fault {
            Fault::KillTcpcopy => {
                self.tcpcopy_killed = Some(began);
                self.mirror.tcpcopy.take().map(crate::Program::kill).transpose()?;
                self.rest(0..1_000);
                self.mirror.start_tcpcopy()?;
                self.expect_mirroring();
            }
            Fault::KillIntercept => {
                let killed = monotonic_ns();
                self.mirror.intercept.take().map(crate::Program::kill).transpose()?;
                self.rest(0..1_000);
                self.mirror.start_intercept()?;
                self.expect_mirroring();
                self.windows.push((killed, monotonic_ns() + AFTERMATH.as_nanos() as u64));
            }
            Fault::RestartTcpcopy => {
                if let Some(program) = self.mirror.tcpcopy.take() {
                    program.stop()?;
                    self.violations.extend(verdict::unbalanced(&self.mirror.summary("source")?));
                }
                self.mirror.start_tcpcopy()?;
                self.expect_mirroring();
            }
            Fault::RestartIntercept => {
                self.mirror.intercept.take().map(crate::Program::stop).transpose()?;
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
                signal(self, rustix::process::Signal::STOP)?;
                self.rest(100..3_000);
                signal(self, rustix::process::Signal::CONT)?;
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
            Fault::Forgery => self.forge()?,
        }
        self.tell(&format!("{fault} ({:.1} s)", began.elapsed().as_secs_f64()));
        Ok(())
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
    fn sizes(&self) -> anyhow::Result<[(&'static str, Size); 2]> {
        let [a, b] = [("tcpcopy", self.mirror.tcpcopy()), ("intercept", self.mirror.intercept())];
        Ok([(a.0, Size::of(a.1.pid())?), (b.0, Size::of(b.1.pid())?)])
    }

    fn weigh(&mut self) -> anyhow::Result<()> {
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
