//! Compares what mirroring costs: the same load without a mirror, with ours and with others. `cargo xtask bench`.

mod contender;
mod measure;
mod meter;
mod page;
mod programs;
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

/// Compares what mirroring costs: the same load without a mirror, with ours, with nginx's own, and with another if you like.
#[derive(Parser)]
#[command(name = "cargo xtask bench", bin_name = "cargo xtask bench")]
struct Arguments {
    /// Only these workloads; --list shows them
    #[arg(short, long, value_name = "NAME,…", value_delimiter = ',', value_parser = Workload::named)]
    workload: Vec<Workload>,
    /// Show the workloads and end
    #[arg(long)]
    list: bool,
    /// Rounds; in each every contender runs every workload, and the order rotates from round to round
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of each measurement, after half a second of warming up
    #[arg(long, value_name = "SECONDS", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3_600))]
    seconds: u64,
    /// A command that mirrors between the hosts whose names, addresses and ports it finds in its environment (CLIENT_, SOURCE_ and
    /// TARGET_ with NETNS, IP and IF; LIVE_PORT, TARGET_PORT); it writes `ready` to standard error, and ends at SIGTERM
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

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    if arguments.list {
        for workload in workload::ALL {
            println!("{:<20} {}", workload.name, workload.purpose);
        }
        return Ok(());
    }
    ensure!(rustix::process::geteuid().is_root(), "the benchmark needs root for its network namespaces: use sudo");
    allow_many_files()?;
    let workloads = if arguments.workload.is_empty() { workload::ALL.to_vec() } else { arguments.workload.clone() };
    let contenders = contenders(arguments);
    let lab = Lab::bridge()?;
    let time = Duration::from_secs(arguments.seconds);
    let mut results = Results::new(&workloads, &contenders);
    let total = arguments.rounds as usize * workloads.len() * contenders.len();
    let mut done = 0;
    for round in 0..arguments.rounds as usize {
        for (w, workload) in workloads.iter().enumerate() {
            for turn in 0..contenders.len() {
                let c = (turn + round) % contenders.len();
                let contender = &contenders[c];
                done += 1;
                eprintln!("{done:>4}/{total}  round {}  {:<20} {}", round + 1, workload.name, contender.name());
                let sample = measure::measure(&lab, workload, contender, time)
                    .with_context(|| format!("{} under {}", workload.name, contender.name()))?;
                results.add(w, c, sample);
            }
        }
    }
    eprintln!("      the eBPF programs, measured by the kernel");
    results.programs = programs::measure(&lab)?;
    let json = serde_json::to_string_pretty(&results.to_json())?;
    fs::create_dir_all(&arguments.output).with_context(|| format!("cannot make {}", arguments.output.display()))?;
    fs::write(arguments.output.join("bench.json"), &json)?;
    let html = arguments.output.join("bench.html");
    fs::write(&html, page::render(&results)?)?;
    if arguments.json {
        println!("{json}");
    } else {
        println!("{}", table::render(&results));
        println!("{} and {}", html.display(), arguments.output.join("bench.json").display());
    }
    Ok(())
}

fn contenders(arguments: &Arguments) -> Vec<Contender> {
    let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let intercept = arguments.intercept_args.as_deref().map(words).unwrap_or_default();
    let ours = |name: String, tcpcopy| Contender::Tcpcopy { name, tcpcopy, intercept: intercept.clone() };
    let mut all = vec![Contender::Nothing];
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

/// Thousands of connections take as many files, here and in the servers that we start.
fn allow_many_files() -> anyhow::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = 65_536.min(limit.maximum.unwrap_or(u64::MAX));
    if limit.current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum: limit.maximum })
            .context("cannot allow more open files")?;
    }
    Ok(())
}
