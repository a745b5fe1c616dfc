//! Tests of the programs, run in the kernel by `BPF_PROG_TEST_RUN`. They need root.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};

use tcpcopy_common::capture::criterion;

use super::object::Object;

mod attach;
mod capture;
mod cost;
mod learn;
mod packets;
mod reflect;
mod swallow;

/// Verdicts of TC programs.
const TCX_NEXT: u32 = -1i32 as u32;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_STOLEN: u32 = 4;
const TC_ACT_REDIRECT: u32 = 7;

/// Whether eBPF programs can be loaded; says so if not.
fn privileged() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: loading eBPF programs needs root");
    }
    root
}

/// The verifier follows every path through a program, and gives up after a million instructions. What is near that takes
/// seconds to load, and is one change away from not loading at all.
#[test]
fn no_program_is_near_the_verifier_s_limit() {
    if !privileged() {
        return;
    }
    for debug in [false, true] {
        // What is not asked for is removed, and so would not be counted.
        let criteria = criterion::CLIENT | criterion::SAMPLE;
        let mut object = Object::load(debug, |loader| {
            loader.override_global("CAPTURE_CRITERIA", &criteria, true);
        })
        .unwrap();
        let mut report = String::new();
        let mut worst = 0;
        for name in TC_PROGRAMS {
            let program = object.program::<SchedClassifier>(name).unwrap();
            program.load().unwrap();
            let count = program.info().unwrap().verified_instruction_count().unwrap_or_default();
            report.push_str(&format!("{name}: {count}\n"));
            worst = worst.max(count);
        }
        let program = object.program::<Xdp>("capture_xdp").unwrap();
        program.load().unwrap();
        let count = program.info().unwrap().verified_instruction_count().unwrap_or_default();
        assert!(worst.max(count) < 200_000, "debug {debug}:\n{report}capture_xdp: {count}");
    }
}

const TC_PROGRAMS: [&str; 8] = [
    "capture_tc",
    "capture_tc_l3",
    "learn",
    "learn_l3",
    "swallow_tcx",
    "swallow_tcx_l3",
    "swallow_clsact",
    "swallow_clsact_l3",
];

/// Runs a TC program on a packet and returns its verdict.
fn run_tc(object: &mut Object, program: &'static str, packet: &[u8]) -> u32 {
    let program = object.program::<SchedClassifier>(program).unwrap();
    program.test_run(TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() }).unwrap().return_value
}

/// Runs an XDP program on a packet and returns its verdict.
fn run_xdp(object: &mut Object, program: &'static str, packet: &[u8]) -> u32 {
    let program = object.program::<Xdp>(program).unwrap();
    program.test_run(TestRunOptions { data_in: Some(packet), ..TestRunOptions::new() }).unwrap().return_value
}
