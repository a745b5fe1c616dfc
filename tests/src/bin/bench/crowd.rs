//! A hundred thousand connections that are open at the same time, and what each of them takes.
//!
//! One client address has 64,512 ports for a service, so there are several. Each connection takes three sockets of the
//! kernel (the live client's, the live server's, the target's; the replayed client has none) and a session of
//! `tcpcopy`, an entry in the session map of `intercept`.

use std::{fs, net::SocketAddr, time::Duration};

use anyhow::{Context as _, ensure};
use lab::{
    Family, Host, Lab, eventually,
    http::{Limit, Load, RunningLoad},
    mirror::LIVE_PORT,
};
use serde::Serialize;

use crate::{
    contender::{Contender, Stage},
    measure,
    meter::{Tree, slabs},
};

/// On the command line.
pub const NAME: &str = "100k-connections";
/// What it is there to show.
pub const PURPOSE: &str = "a hundred thousand open connections, and the memory that each takes";

const CONNECTIONS: usize = 100_000;
/// Client addresses, threads of the client, and processes of each server: a process or thread may have only so many
/// open files (20,000 is usual), and an address only so many ports.
const LANES: u8 = 8;
/// Connections opened, and later requests sent, per second.
const RATE: u32 = 2_500;
/// How long after the last connection was opened the requests go on.
const STAY: Duration = Duration::from_secs(8);

/// How long the target may take to see that all of them are closed.
const CLOSING: Duration = Duration::from_secs(20);

/// What they came to.
#[derive(Clone, Debug, Serialize)]
pub struct Crowd {
    /// Live connections that were open at the same time.
    pub connections: usize,
    /// Replayed connections that were open at the target then.
    pub replayed: usize,
    /// Live requests.
    pub requests: u64,
    /// Of them, without an answer.
    pub failed: usize,
    /// Of them, how many the target has not served.
    pub lost: i64,
    /// What `tcpcopy` says that it has lost, by reason.
    pub counted: std::collections::BTreeMap<String, u64>,
    /// CPU time per second of `tcpcopy` and of `intercept` while all were open, percent of a processor.
    pub cpu: [f64; 2],
    /// What was taken from before the first connection until all were open.
    pub memory: Vec<Part>,
}

/// One part of the memory.
#[derive(Clone, Debug, Serialize)]
pub struct Part {
    /// Whose.
    pub what: String,
    /// How much more than without connections.
    pub octets: f64,
}

impl Crowd {
    /// Returns a line for tables.
    pub fn title(&self) -> String {
        let Self { connections, replayed, requests, failed, lost, cpu: [source, target], .. } = self;
        format!(
            "{NAME}: {connections} connections open, {replayed} replayed ones; {requests} requests, {failed} failed, \
             {lost} lost; {source:.1} % and {target:.1} % of a processor at {RATE} requests/s; counted losses: {:?}",
            self.counted
        )
    }
}

/// Opens them, measures, and closes them.
pub fn measure(lab: &Lab, contender: &Contender) -> anyhow::Result<Crowd> {
    let addresses: Vec<_> = (0..LANES).map(|n| std::net::Ipv4Addr::new(10, 77, 0, 100 + n)).collect();
    lab.client.ip(&addresses.iter().map(|a| format!("address replace {a}/24 dev eth0")).collect::<Vec<_>>())?;
    let stage = Stage::with_workers(lab, contender, Some(LANES.into()))?;
    let before = Readings::take(&stage)?;
    let opening = Duration::from_secs(CONNECTIONS as u64) / RATE;
    let loads = addresses
        .iter()
        .map(|&address| {
            let limit = Limit::Time(opening + STAY);
            let each = CONNECTIONS / usize::from(LANES);
            let load = Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), each, limit);
            let method = lab::http::Method::Get("/small".into());
            let bind = Some(SocketAddr::new(address.into(), 0));
            Load { method, bind, rate: Some(RATE / u32::from(LANES)), ..load }.start(&lab.client)
        })
        .collect::<anyhow::Result<Vec<RunningLoad>>>()?;
    let open = || established(&lab.source).unwrap_or(0).min(established(&lab.target).unwrap_or(0)) >= CONNECTIONS;
    eventually(opening + STAY / 2, open);
    let (connections, replayed) = (established(&lab.source)?, established(&lab.target)?);
    let after = Readings::take(&stage)?;
    std::thread::sleep(STAY / 4);
    let cpu = after.processors(&Readings::take(&stage)?);
    let (mut requests, mut failed) = (0, 0);
    for load in loads {
        let report = load.join()?;
        requests += report.answered.len() as u64;
        failed += report.failed.len();
    }
    let (lost, _) = measure::settle(&stage)?;
    // All close at once; what is still open at the end would count as aborted.
    eventually(CLOSING, || established(&lab.target).is_ok_and(|open| open == 0));
    let counted = stage.clear()?.as_ref().map(measure::counted).unwrap_or_default();
    ensure!(connections > 0, "no connection was open");
    Ok(Crowd { connections, replayed, requests, failed, lost, counted, cpu, memory: after.beyond(&before) })
}

/// Counts the TCP sockets of a host that are connected. In the laboratory these are clients of the services, but for a
/// control channel.
fn established(host: &Host) -> anyhow::Result<usize> {
    let text = host.run(|| fs::read_to_string("/proc/thread-self/net/snmp"))??;
    let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
    let (names, values) = lines.next().zip(lines.next()).context("the kernel has no figures of TCP")?;
    let at = names.split(' ').position(|name| name == "CurrEstab").context("there is no CurrEstab")?;
    Ok(values.split(' ').nth(at).context("there is no CurrEstab")?.parse::<usize>()?.saturating_sub(1))
}

/// Memory and CPU time at one moment.
struct Readings {
    at: std::time::Instant,
    cpu: [Duration; 2],
    memory: Vec<Part>,
}

impl Readings {
    fn take(stage: &Stage) -> anyhow::Result<Self> {
        let processes = stage.processes();
        let source = processes.source.context("tcpcopy does not run")?;
        let target = processes.target.context("intercept does not run")?;
        let part = |what: &str, octets: u64| Part { what: what.to_owned(), octets: octets as f64 };
        let of = |what: &str, tree: Tree| part(what, tree.memory());
        let mut memory = vec![of("tcpcopy", source), of("intercept", target)];
        memory.extend(processes.server.map(|tree| of("server under test", tree)));
        memory.push(part("kernel slabs: three sockets, the entry of the session map", slabs()?));
        Ok(Self { at: std::time::Instant::now(), cpu: [source.cpu_time()?, target.cpu_time()?], memory })
    }

    fn beyond(&self, before: &Self) -> Vec<Part> {
        let pairs = self.memory.iter().zip(&before.memory);
        pairs.map(|(now, then)| Part { what: now.what.clone(), octets: now.octets - then.octets }).collect()
    }

    fn processors(&self, later: &Self) -> [f64; 2] {
        let time = (later.at - self.at).as_secs_f64();
        [0, 1].map(|i| 100.0 * later.cpu[i].saturating_sub(self.cpu[i]).as_secs_f64() / time)
    }
}
