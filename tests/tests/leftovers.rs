//! S4: nothing outlives the processes, however they end, and live traffic goes on.

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, eventually,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    traces::{BpfObjects, Kind, differences, network_state},
};

fn serve(lab: &Lab) {
    for family in Family::BOTH {
        let server = lab.source.socket(family, LIVE_PORT);
        let report = Load::keep_alive(server, 4, Limit::Requests(200)).run(&lab.client).unwrap();
        assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Death {
    Term,
    Kill,
}

/// The kernel frees programs and maps a little after the last reference is gone.
fn assert_gone(objects: &BpfObjects, host: &Host, before: &[String], what: &str) {
    eventually(PATIENCE, || objects.remaining().is_empty());
    assert_eq!(objects.remaining(), [], "{what}");
    let changes = || differences(before, &network_state(host).unwrap());
    eventually(PATIENCE, || changes().is_empty());
    assert_eq!(changes(), Vec::<String>::new(), "{what}");
}

fn tcpcopy_leaves_nothing(hook: &'static str, inject: &'static str, death: Death) {
    let what = format!("tcpcopy --hook {hook} --inject {inject} after {death:?}");
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let options = MirrorOptions { hook: Some(hook), inject: Some(inject), ..MirrorOptions::default() };
    let mut mirror = Mirror::prepare(&lab, options).unwrap();
    let before = network_state(&lab.source).unwrap();
    mirror.start_intercept().unwrap();
    mirror.start_tcpcopy().unwrap();
    serve(&lab);
    let program = mirror.tcpcopy.take().unwrap();
    let objects = BpfObjects::of(program.pid()).unwrap();
    assert!(objects.count(Kind::Map) > 0 && !objects.remaining().is_empty(), "{what}: {objects:?}");
    assert!(objects.count(Kind::Link) > 0, "{what}: an attachment that is no link stays after SIGKILL: {objects:?}");
    match death {
        Death::Term => drop(program.stop().unwrap()),
        Death::Kill => drop(program.kill().unwrap()),
    }
    assert_gone(&objects, &lab.source, &before, &what);
    assert_eq!(lab.source.namespace().processes(), Vec::<i32>::new(), "{what}");
    serve(&lab);
}

#[test]
fn tcpcopy_leaves_nothing_behind() {
    let _guard = laboratory!();
    for hook in ["tc", "xdp", "xdp-generic"] {
        for death in [Death::Term, Death::Kill] {
            tcpcopy_leaves_nothing(hook, "packet", death);
        }
    }
    tcpcopy_leaves_nothing("tc", "raw", Death::Kill);
}

fn intercept_leaves_nothing(attach: &str, death: Death) {
    let what = format!("intercept --attach {attach} after {death:?}");
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let intercept = ["--attach", attach].map(str::to_owned).to_vec();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions { intercept, ..MirrorOptions::default() }).unwrap();
    let before = network_state(&lab.target).unwrap();
    mirror.start_intercept().unwrap();
    mirror.start_tcpcopy().unwrap();
    serve(&lab);
    let program = mirror.intercept.take().unwrap();
    let objects = BpfObjects::of(program.pid()).unwrap();
    assert!(objects.count(Kind::Map) > 0 && !objects.remaining().is_empty(), "{what}: {objects:?}");
    match death {
        Death::Term => drop(program.stop().unwrap()),
        Death::Kill => drop(program.kill().unwrap()),
    }
    if (attach, death) == ("clsact", Death::Kill) {
        // Filters stay, as the design says; the next start removes them.
        mirror.start_intercept().unwrap();
        mirror.intercept.take().unwrap().stop().unwrap();
    }
    assert_gone(&objects, &lab.target, &before, &what);
    serve(&lab);
}

#[test]
fn intercept_leaves_nothing_behind() {
    let _guard = laboratory!();
    for death in [Death::Term, Death::Kill] {
        intercept_leaves_nothing("tcx", death);
    }
}

#[test]
fn the_clsact_fallback_leaves_nothing_behind_after_the_next_start() {
    let _guard = laboratory!();
    for death in [Death::Term, Death::Kill] {
        intercept_leaves_nothing("clsact", death);
    }
}
