//! The programs in the kernel log through the same log as those in user space.

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

#[test]
fn a_debug_line_of_each_program_is_seen() {
    let _guard = laboratory!();
    for (hook, attach) in [("tc", "tcx"), ("xdp", "clsact")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let intercept = ["--attach", attach].map(str::to_owned).to_vec();
        let options = MirrorOptions { hook: Some(hook), intercept, log: Some("debug"), ..MirrorOptions::default() };
        let mirror = Mirror::start(&lab, options).unwrap();
        let load = Load::per_request(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(5));
        load.run(&lab.client).unwrap();
        for (program, what) in [
            (mirror.tcpcopy(), "captured the SYN"),
            (mirror.intercept(), "learned the session"),
            (mirror.intercept(), "swallowed the SYN+ACK"),
        ] {
            let is_it = |line: &str| line.contains("DEBUG") && line.contains(what);
            program.wait_log(PATIENCE, is_it).unwrap();
        }
        mirror.stop().unwrap();
    }
}
