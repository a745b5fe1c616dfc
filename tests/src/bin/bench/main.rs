//! Compares what mirroring costs: the same load without a mirror, with ours and with others. `cargo xtask bench`.

mod contender;
mod crowd;
mod idle;
mod measure;
mod meter;
mod page;
mod plot;
mod programs;
mod softirq;
mod statistics;
mod table;
mod workload;

use std::{fs, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context as _, ensure};
use clap::Parser;
use contender::Contender;
use lab::Lab;
use statistics::Results;
use workload::Workload;

/// Compares what mirroring costs: the same load without a mirror, with ours, with nginx's own, and with another if you
/// like.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Only these workloads; --list shows them, and NAME@RATE has so many requests per second
    #[arg(short, long, value_name = "NAME,…", value_delimiter = ',', value_parser = Chosen::named)]
    workload: Vec<Chosen>,
    /// Show the workloads and end
    #[arg(long)]
    list: bool,
    /// Rounds; in each every contender runs every workload, and the order rotates from round to round
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement, after half a second of warming up
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// A command that mirrors between the hosts whose names, addresses and ports it finds in its environment (CLIENT_,
    /// SOURCE_ and TARGET_ with NETNS, IP and IF; LIVE_PORT, TARGET_PORT); it writes `ready` to standard error, and
    /// ends at SIGTERM
    #[arg(long, value_name = "COMMAND")]
    peer_cmd: Option<String>,
    /// Leave nginx's mirror module out
    #[arg(long)]
    no_nginx: bool,
    /// Arguments of `tcpcopy` in place of the defaults; given several times, each is a contender of its own
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    tcpcopy_args: Vec<String>,
    /// Arguments of `intercept` in place of the defaults, for all of them
    #[arg(long, value_name = "ARGS", allow_hyphen_values = true)]
    intercept_args: Option<String>,
    /// Where bench.json and bench.html go
    #[arg(long, value_name = "DIRECTORY", default_value = "target/bench")]
    output: PathBuf,
    /// Print the JSON instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What can be chosen with `--workload`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Chosen {
    /// One that contenders are compared by.
    Compared(Workload),
    /// [`crowd`], which is about memory and only of the first of ours.
    Crowd,
    /// [`programs`] and [`softirq`], likewise.
    Kernel,
}

/// What the command line calls [`Chosen::Kernel`].
const KERNEL: &str = "kernel";

impl Chosen {
    fn named(name: &str) -> Result<Self, String> {
        match name {
            crowd::NAME => Ok(Self::Crowd),
            KERNEL => Ok(Self::Kernel),
            _ => Workload::named(name).map(Self::Compared),
        }
    }

    fn all() -> Vec<Self> {
        workload::ALL.into_iter().map(Self::Compared).chain([Self::Kernel, Self::Crowd]).collect()
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        let others = [(KERNEL, "what the eBPF programs and the softirqs cost"), (crowd::NAME, crowd::PURPOSE)];
        for (name, purpose) in workload::ALL.map(|workload| (workload.name, workload.purpose)).into_iter().chain(others)
        {
            println!("{name:<20} {purpose}");
        }
        return Ok(());
    }
    ensure!(rustix::process::geteuid().is_root(), "the benchmark needs root for its network namespaces: use sudo");
    lab::allow_open_files()?;
    let chosen = if arguments.workload.is_empty() { Chosen::all() } else { arguments.workload.clone() };
    let contenders = contenders(arguments);
    let lab = Lab::bridge()?;
    let ours = contenders.iter().find(|c| matches!(c, Contender::Tcpcopy { .. })).context("tcpcopy is a contender")?;
    let mut workloads: Vec<Workload> = Vec::new();
    for workload in chosen.iter().filter_map(|chosen| if let Chosen::Compared(w) = chosen { Some(*w) } else { None }) {
        workloads.push(calibrate(&lab, workload, ours)?);
    }
    let mut results = Results::new(&workloads, &contenders);
    compare(&lab, arguments, &mut results)?;
    if chosen.contains(&Chosen::Kernel) {
        eprintln!("      the eBPF programs, measured by the kernel");
        results.programs = programs::measure(&lab, ours)?;
        eprintln!("      the softirqs within the processes, by the kernel's tracepoints");
        let workloads = ["keep-alive", "connections", "uploads"].map(Workload::named).into_iter().flatten();
        match softirq::measure(&lab, ours, &workloads.collect::<Vec<_>>()) {
            Ok(shares) => results.softirqs = shares,
            Err(error) => eprintln!("SKIP softirqs: this kernel does not trace: {error:#}"),
        }
    }
    if chosen.contains(&Chosen::Crowd) {
        eprintln!("      {}", crowd::PURPOSE);
        results.crowd = Some(crowd::measure(&lab, ours)?);
    }
    let json = serde_json::to_string_pretty(&results.to_json())?;
    fs::create_dir_all(&arguments.output).with_context(|| format!("cannot make {}", arguments.output.display()))?;
    fs::write(arguments.output.join("bench.json"), &json)?;
    let html = arguments.output.join("bench.html");
    fs::write(&html, page::render(&results))?;
    if arguments.json {
        println!("{json}");
    } else {
        println!("{}", table::render(&results));
        println!("{} and {}", html.display(), arguments.output.join("bench.json").display());
    }
    Ok(())
}

/// Runs every workload with every contender, round by round.
fn compare(lab: &Lab, arguments: &Arguments, results: &mut Results) -> anyhow::Result<()> {
    let time = Duration::from_secs(arguments.seconds);
    let (workloads, contenders) = (results.workloads.clone(), results.contenders.clone());
    let has_a_turn = |workload: &Workload, contender: &Contender| match contender {
        Contender::Nothing | Contender::Tcpcopy { .. } => true,
        Contender::Direct => workload.direct,
        // What is more than we can do says nothing of others.
        Contender::NginxMirror | Contender::Peer(_) => workload.sustained().is_none(),
    };
    let turns = |workload| contenders.iter().filter(|contender| has_a_turn(workload, contender)).count();
    let total = arguments.rounds as usize * workloads.iter().map(turns).sum::<usize>();
    let mut done = 0;
    for round in 0..arguments.rounds as usize {
        for (w, workload) in workloads.iter().enumerate() {
            for turn in 0..contenders.len() {
                let c = (turn + round) % contenders.len();
                let contender = &contenders[c];
                if !has_a_turn(workload, contender) {
                    continue;
                }
                done += 1;
                eprintln!("{done:>4}/{total}  round {}  {:<20} {}", round + 1, workload.name, contender.name());
                let sample = measure::measure(lab, workload, contender, time)
                    .with_context(|| format!("{} under {}", workload.name, contender.name()))?;
                results.add(w, c, sample);
            }
        }
    }
    Ok(())
}

/// Finds out what an overload is: twice the throughput of the same requests in a closed loop under `tcpcopy`, which
/// must lose none of them.
fn calibrate(lab: &Lab, workload: Workload, ours: &Contender) -> anyhow::Result<Workload> {
    const TIME: Duration = Duration::from_secs(2);
    let Some(sustained) = workload.sustained() else { return Ok(workload) };
    eprintln!("      what the machine sustains, for {}", workload.name);
    let sample = measure::measure(lab, &sustained, ours, TIME)?;
    if sample.lost != Some(0) {
        eprintln!("warning: in the closed loop {:?} of {} requests were lost", sample.lost, sample.requests);
    }
    Ok(workload.overload(sample.throughput))
}

fn contenders(arguments: &Arguments) -> Vec<Contender> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let intercept = arguments.intercept_args.as_deref().map(words).unwrap_or_default();
    let ours = |name: String, tcpcopy| Contender::Tcpcopy { name, tcpcopy, intercept: intercept.clone() };
    let mut all = vec![Contender::Nothing, Contender::Direct];
    if arguments.tcpcopy_args.is_empty() {
        all.push(ours("tcpcopy".into(), Vec::new()));
    }
    all.extend(arguments.tcpcopy_args.iter().map(|line| ours(format!("tcpcopy {line}").trim().into(), words(line))));
    if !arguments.no_nginx {
        all.push(Contender::NginxMirror);
    }
    all.extend(arguments.peer_cmd.clone().map(Contender::Peer));
    all
}
