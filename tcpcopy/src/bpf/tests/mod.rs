//! Tests of the programs, run in the kernel by `BPF_PROG_TEST_RUN`. They need root.

use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions, Xdp};

use super::object::Object;

mod attach;
mod capture;
mod cost;
mod learn;
mod loading;
mod mutated;
mod packets;
mod prefix;
mod reflect;
mod sockets;
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
        crate::net::testing::skip("loading eBPF programs needs root");
    }
    root
}

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
