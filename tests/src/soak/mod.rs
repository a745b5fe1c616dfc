//! A soak: the programs mirror a mixed load between real servers while one thing after another goes wrong, in an order
//! that a seed decides. At the end it is seen whether anything was lost, leaked or left behind.

mod fault;
mod forgery;
mod ledger;
mod verdict;
mod world;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

pub use fault::Fault;
pub use verdict::Report;

use self::world::{LIVE_WITNESS, Soak, TARGET_WITNESS, UNLIMITED};
use crate::{
    Family, Lab, Mirror, MirrorOptions, Shape,
    capture::{End, Sniffer},
    forge::Forger,
    http::{Limit, Load, Method, RunningLoad, Server},
    mirror::{LIVE_PORT, TARGET_PORT},
    monotonic_ns,
    servers::RealServer,
    traces::network_state,
};

/// What to do for how long.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// How long things go wrong.
    pub time: Duration,
    /// Decides which faults come, and when.
    pub seed: u64,
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
    verdict::reach(soak, options.seed, loads, strangers, [source?, target?])
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
