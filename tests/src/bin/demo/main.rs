//! Mirrors live traffic between namespaces of this machine and shows what arrived: `cargo xtask demo`.

mod interrupt;
mod requests;
mod table;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use clap::Parser;
use interrupt::Interrupt;
use lab::{
    Family, Lab, Mirror, MirrorOptions, eventually,
    http::{Limit, Load, Method, RunningLoad, Style},
    mirror::{LIVE_PORT, TARGET_PORT},
};
use requests::Witness;
use table::{Costs, Row};

/// Mirrors live traffic between network namespaces of this machine and shows what arrived.
#[derive(Parser)]
#[command(name = "cargo xtask demo", bin_name = "cargo xtask demo")]
struct Arguments {
    /// How long to produce load
    #[arg(
        long, value_name = "SECONDS", default_value_t = 10,
        value_parser = clap::value_parser!(u64).range(1..=86_400),
    )]
    seconds: u64,
    /// Requests per second, a fifth of them with a connection of their own; 0: as many as the machine can
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    rate: u32,
    /// Keep everything running afterwards, until Ctrl-C, and print commands to play with it
    #[arg(long)]
    keep: bool,
    /// Command that serves port 80 of the source in place of the embedded server; {port} stands for the port
    #[arg(long, value_name = "COMMAND")]
    source_cmd: Option<String>,
    /// Command that serves port 8080 of the target in place of the embedded server; {port} stands for the port
    #[arg(long, value_name = "COMMAND")]
    target_cmd: Option<String>,
    /// Where tcpcopy captures: auto, tc, xdp or xdp-generic
    #[arg(long, value_name = "HOOK", value_parser = ["auto", "tc", "xdp", "xdp-generic"], default_value = "auto")]
    hook: String,
    /// How tcpcopy sends: auto, packet or raw
    #[arg(long, value_name = "BACKEND", value_parser = ["auto", "packet", "raw"], default_value = "auto")]
    inject: String,
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    match run(&Arguments::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Mirrors for some time; returns whether everything was mirrored and nothing leaked.
fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    ensure!(rustix::process::geteuid().is_root(), "the demo needs root for its network namespaces: use sudo");
    let interrupt = Interrupt::install()?;

    println!("Building a network of three hosts: client, source and target.");
    let lab = Lab::bridge()?;
    let source = Witness::start(&lab.source, LIVE_PORT, arguments.source_cmd.as_deref())?;
    let target = Witness::start(&lab.target, TARGET_PORT, arguments.target_cmd.as_deref())?;
    println!("Starting intercept on the target, and tcpcopy on the source.");
    let options = MirrorOptions {
        tcpcopy: ["--hook", &arguments.hook, "--inject", &arguments.inject].map(str::to_owned).to_vec(),
        ..MirrorOptions::default()
    };
    let mirror = Mirror::start(&lab, options)?;

    let cpu = || anyhow::Ok((mirror.tcpcopy().cpu_time()?, mirror.intercept().cpu_time()?));
    let before = cpu()?;
    let loads = start_loads(&lab, arguments)?;
    show_progress(&loads, &target, Duration::from_secs(arguments.seconds));
    let mut rows = Vec::new();
    let mut answered = Vec::new();
    for (name, load) in loads {
        let report = load.join()?;
        for failure in report.failed.iter().take(3) {
            eprintln!("a live request over {name} failed: {failure}");
        }
        ensure!(report.failed.is_empty(), "{} live requests over {name} failed", report.failed.len());
        answered.push((name, report));
    }
    let live: usize = answered.iter().map(|(_, report)| report.answered.len()).sum();
    ensure!(live > 0, "no live request was answered");
    // What is still on its way has five seconds without any progress before it counts as lost.
    let mut seen = 0;
    while target.seen() < live && target.seen() > seen {
        seen = target.seen();
        eventually(Duration::from_secs(5), || target.seen() >= live || target.seen() > seen);
    }
    let after = cpu()?;

    if arguments.keep {
        print_playground(&lab);
        interrupt.wait();
    }
    // The programs stop before the witnesses, so that the servers see no connection break.
    let outcome = mirror.stop().context("a program did not stop as it should")?;
    let (source, target) = (source.stop()?, target.stop()?);
    for (name, report) in &answered {
        rows.push(Row::new(name, &report.answered, &source, &target)?);
    }
    let costs = Costs {
        tcpcopy: after.0.saturating_sub(before.0) / live as u32,
        intercept: after.1.saturating_sub(before.1) / live as u32,
        leaked: outcome.leaked.len(),
    };
    println!("\n{}", table::render(&rows, &costs)?);
    let good = costs.leaked == 0 && rows.iter().all(|row| row.lost == 0);
    if !good {
        println!("\n{}\n{}", outcome.logs, outcome.table);
    }
    Ok(good)
}

fn start_loads(lab: &Lab, arguments: &Arguments) -> anyhow::Result<Vec<(String, RunningLoad)>> {
    let limit = Limit::Time(Duration::from_secs(arguments.seconds));
    let mut loads = Vec::new();
    for family in Family::BOTH {
        let version = if family == Family::V4 { "IPv4" } else { "IPv6" };
        let server = lab.source.socket(family, LIVE_PORT);
        // Of the whole rate two fifths and one tenth for each version of IP.
        for (style, what, connections, rate) in [
            (Style::KeepAlive, "keep-alive", 16, arguments.rate / 5 * 2),
            (Style::PerRequest, "connection each", 8, arguments.rate / 10),
        ] {
            let rate = (arguments.rate > 0).then_some(rate.max(1));
            // A server of the user's is sure to answer its root, with whatever status.
            let path = if arguments.source_cmd.is_some() { "/" } else { "/size/64" };
            let load = Load {
                style,
                rate,
                method: Method::Get(path.into()),
                any_status: arguments.source_cmd.is_some(),
                ..Load::keep_alive(server, connections, limit)
            };
            loads.push((format!("{version}, {what}"), load.start(&lab.client)?));
        }
    }
    Ok(loads)
}

fn show_progress(loads: &[(String, RunningLoad)], target: &Witness, time: Duration) {
    let started = Instant::now();
    for second in 1..=time.as_secs() {
        // The pace of a display, not of what is displayed.
        std::thread::sleep((started + Duration::from_secs(second)).saturating_duration_since(Instant::now()));
        let live: u64 = loads.iter().map(|(_, load)| load.answered()).sum();
        println!("{second:>4}/{} s   live {live:>9}   mirrored {:>9}", time.as_secs(), target.seen());
    }
}

fn print_playground(lab: &Lab) {
    let inside = |host: &lab::Host| format!("ip netns exec {}", host.namespace().name());
    println!("\nEverything keeps running until Ctrl-C. As root, in another terminal:\n");
    for family in Family::BOTH {
        let url = lab.source.socket(family, LIVE_PORT);
        println!(
            "  {} curl -sS 'http://{url}/hello'            # a live request, which is mirrored",
            inside(&lab.client)
        );
    }
    let direct = lab.target.socket(Family::V4, TARGET_PORT);
    println!("  {} curl -sS 'http://{direct}/hello'       # the target's own traffic is answered", inside(&lab.client));
    println!("  {} tcpdump -ni eth0 tcp port {TARGET_PORT}   # what the target sees", inside(&lab.target));
    println!("  {} bash                                     # a shell on the source", inside(&lab.source));
}
