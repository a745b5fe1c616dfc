//! What the programs take of a host's memory: what they need is what else is not there for production.

use std::fs;

use lab::{
    Family, Lab, Mirror, MirrorOptions, Program,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

const CONNECTIONS: usize = 256;
const MIB: u64 = 1 << 20;

/// The most memory that a program has had so far, octets, but for what of its file and of the C library's is resident:
/// how much of that the kernel reads at a time is its own choice, and all that runs the same file shares it.
fn peak(program: &Program) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", program.pid())).unwrap();
    let of = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
    };
    of("VmHWM:") - of("RssFile:")
}

#[test]
fn with_hundreds_of_connections_the_programs_are_small() {
    let _guard = laboratory!(1_000);
    if cfg!(debug_assertions) {
        return lab::skip("memory", "programs that are not optimised are larger");
    }
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    // The smallest rings, 256 KiB, which are seen twice each: with larger ones, which come last, an earlier peak would
    // not be seen.
    let rings = ["--ring-size", "256K"].map(str::to_owned).to_vec();
    let options = MirrorOptions { tcpcopy: rings.clone(), intercept: rings, ..MirrorOptions::default() };
    let mirror = Mirror::start(&lab, options).unwrap();
    let server = lab.source.socket(Family::V4, LIVE_PORT);
    let report =
        Load::keep_alive(server, CONNECTIONS, Limit::Requests(20 * CONNECTIONS as u64)).run(&lab.client).unwrap();
    assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    let (tcpcopy, intercept) = (peak(mirror.tcpcopy()), peak(mirror.intercept()));
    mirror.stop().unwrap();
    eprintln!("with rings: tcpcopy {} KiB, intercept {} KiB", tcpcopy >> 10, intercept >> 10);
    assert!(tcpcopy <= 16 * MIB, "tcpcopy had {} KiB", tcpcopy >> 10);
    // The aim is 8; but how much of a program's file and of the C library's is resident is the kernel's choice.
    assert!(intercept <= 10 * MIB, "intercept had {} KiB", intercept >> 10);
}
