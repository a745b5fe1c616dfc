//! The replay engine in a simulated world: live clients, capture, a lossy path, and an independent TCP (smoltcp) as the
//! target, in virtual time. One seed is one run.
//!
//! ```text
//! scenario ─► live ─► capture ─► engine ─► path ─► target (smoltcp and a small service)
//!                                  ▲                 │
//!                                  └──── path ◄──────┘ reports
//!                     oracle: judges everything that is sent, and what has arrived in the end
//! ```
//!
//! The same world surrounds a whole worker, too: see [`worker`].
//!
//! `cargo xtask fuzz --seeds N` runs as many seeds as you like. A failing one is shrunk to the parts that it needs, and
//! is to be added to [`KEPT`].

mod live;
mod oracle;
mod path;
mod proxy_protocol;
mod random;
mod reflector;
mod scenario;
mod shrink;
mod surroundings;
mod target;
mod wire;
mod worker;
mod world;

use std::{
    collections::BTreeSet,
    env,
    io::Write as _,
    time::{Duration, Instant},
};

use scenario::{Part, Scenario};
use shrink::Run;
use world::Outcome;

/// Runs that failed once, with the parts that the failure did not need. Each is to name the symptom.
const KEPT: &[(u64, &str)] = &[
    // A request was sent a third time: a RST that answered an earlier connection ended the one after it.
    (159, "header"),
    (626, "header"),
    (3355, "header"),
    // Octets from before the capture had begun made a counter overflow.
    (1331, "header"),
    // A request was lost without a count: the answer before it seemed complete, although a report of it was missing.
    (2035, "header"),
    // Likewise: an answer that the gate had cut in two passed for the next ones too, as they were as long as the live
    // ones.
    (4194, "header"),
    (9199, "header"),
    // A connection began in the middle of a request: a retransmission had filled two holes, one of them unmarked.
    (75226, "c0,c1,c3,c4,c5,c6,c7,c8,c9,c10,c11,c12,c13,c2w5,c2w6,up,down,close,slow,limits,header"),
];

/// The same for runs of the worker.
const KEPT_OF_THE_WORKER: &[(u64, &str)] = &[];

/// Seeds of every test run.
const SEEDS: u64 = 2000;
/// Seeds of every test run, of the worker.
const SEEDS_OF_THE_WORKER: u64 = 600;

#[test]
fn seeds_that_failed_once_pass() {
    for &(seed, without) in KEPT {
        verify(world::run, seed, &parse(without));
    }
    for &(seed, without) in KEPT_OF_THE_WORKER {
        verify(worker::run, seed, &parse(without));
    }
}

#[test]
fn every_octet_arrives_or_is_accounted_for() {
    let mut sum = Outcome::default();
    for seed in 0..SEEDS {
        let outcome = verify(world::run, seed, &BTreeSet::new());
        sum.lost += outcome.lost;
        sum.octets += outcome.octets;
        sum.reconnects += outcome.reconnects;
        sum.retransmissions += outcome.retransmissions;
        sum.discarded += outcome.discarded;
        sum.distant += outcome.distant;
        sum.reflected += outcome.reflected;
        sum.inserted += outcome.inserted;
    }
    // A simulation in which nothing goes wrong would prove nothing.
    for much in [
        sum.lost,
        sum.octets / 1000,
        sum.reconnects,
        sum.retransmissions,
        sum.discarded / 100,
        sum.distant,
        sum.reflected,
        sum.inserted / 50,
    ] {
        assert!(much > SEEDS, "{sum:?}");
    }
}

#[test]
fn a_worker_keeps_its_promises_whatever_surrounds_it() {
    let mut sum = Outcome::default();
    for seed in 0..SEEDS_OF_THE_WORKER {
        let outcome = verify(worker::run, seed, &BTreeSet::new());
        sum.lost += outcome.lost;
        sum.octets += outcome.octets;
        sum.worker.breaks += outcome.worker.breaks;
        sum.worker.resumed += outcome.worker.resumed;
        sum.worker.ring_full += outcome.worker.ring_full;
        sum.worker.stopped_with_sessions += outcome.worker.stopped_with_sessions;
        sum.worker.waited_in_the_sink += outcome.worker.waited_in_the_sink;
        sum.worker.sleeps += outcome.worker.sleeps;
        sum.worker.naps += outcome.worker.naps;
        sum.worker.crowded_turns += outcome.worker.crowded_turns;
    }
    // A simulation in which nothing goes wrong would prove nothing.
    for much in [
        sum.lost,
        sum.octets / 1000,
        sum.worker.breaks * 4,
        sum.worker.resumed * 8,
        sum.worker.ring_full,
        sum.worker.stopped_with_sessions * 8,
        sum.worker.waited_in_the_sink * 2,
        sum.worker.sleeps,
        sum.worker.naps,
        sum.worker.crowded_turns * 8,
    ] {
        assert!(much > SEEDS_OF_THE_WORKER, "{sum:?}");
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for run in [world::run as Run, worker::run] {
        for seed in 0..5 {
            let run = || format!("{:?}", run(&Scenario::new(seed, &BTreeSet::new()), false));
            assert_eq!(run(), run());
        }
    }
}

/// For `cargo xtask fuzz`: the seeds that the environment names.
#[test]
#[ignore = "as many seeds as the environment asks for; run by `cargo xtask fuzz`"]
fn seeds_of_the_environment() {
    let number = |name: &str| env::var(name).ok().map(|n| n.parse::<u64>().expect("a number in the environment"));
    let from = number("SIMULATION_FROM").unwrap_or(0);
    let seeds = number("SIMULATION_SEEDS").unwrap_or(1);
    let without = parse(&env::var("SIMULATION_WITHOUT").unwrap_or_default());
    if env::var_os("SIMULATION_TRACE").is_some() {
        let scenario = Scenario::new(from, &without);
        eprintln!("{scenario:#?}");
        eprintln!("the engine: {:?}", world::run(&scenario, true));
        eprintln!("the worker: {:?}", worker::run(&scenario, true));
        return;
    }
    let (begin, mut shown) = (Instant::now(), Instant::now());
    for done in 0..seeds {
        verify(world::run, from + done, &without);
        verify(worker::run, from + done, &without);
        if shown.elapsed() >= Duration::from_secs(1) || done + 1 == seeds {
            shown = Instant::now();
            let rate = (done + 1) as f64 / begin.elapsed().as_secs_f64();
            eprint!("\r{} of {seeds} seeds, {rate:.0} per second ", done + 1);
            std::io::stderr().flush().expect("a standard error");
        }
    }
    eprintln!();
}

/// Runs a seed; if it fails, finds out what it needs, and says so.
fn verify(run: Run, seed: u64, without: &BTreeSet<Part>) -> Outcome {
    let why = match shrink::attempt(run, seed, without) {
        Ok(outcome) => return outcome,
        Err(why) => why,
    };
    let shrunk = shrink::shrink(run, seed, without);
    let needed = shrink::attempt(run, seed, &shrunk).err().unwrap_or_else(|| why.clone());
    let list = shown(&shrunk);
    panic!(
        "seed {seed} fails: {why}\nshrunk: {needed}\nreplay: cargo xtask fuzz --from {seed} --without '{list}' --trace\n\
         keep:   ({seed}, \"{list}\"),"
    );
}

fn parse(parts: &str) -> BTreeSet<Part> {
    let words = parts.split([',', ' ']).filter(|word| !word.is_empty());
    words.map(|word| word.parse().unwrap_or_else(|why: String| panic!("{why}"))).collect()
}

fn shown(parts: &BTreeSet<Part>) -> String {
    parts.iter().map(Part::to_string).collect::<Vec<_>>().join(",")
}
