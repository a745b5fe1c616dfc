//! S4: nothing outlives the processes, however they end, and live traffic goes on.

use std::time::{Duration, Instant};

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

/// Either program is killed under load, again and again, at a moment that chance chooses: live traffic goes on, nothing
/// is left in the kernel, and the program that follows mirrors. A hundred times each with `LAB_FULL_MATRIX`.
#[test]
fn either_program_may_be_killed_at_any_moment() {
    let _guard = laboratory!(1_000);
    let times = if std::env::var_os("LAB_FULL_MATRIX").is_some() { 100 } else { 6 };
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let before = [&lab.source, &lab.target].map(|host| network_state(host).unwrap());
    mirror.start_intercept().unwrap();
    mirror.start_tcpcopy().unwrap();
    let loads = Family::BOTH.map(|family| {
        let server = lab.source.socket(family, LIVE_PORT);
        let loads = [Load::keep_alive(server, 4, Limit::Stopped), Load::per_request(server, 4, Limit::Stopped)];
        loads.map(|load| Load { rate: Some(100), ..load }.start(&lab.client).unwrap())
    });
    let (mut took, mut dice) = (Vec::new(), fastrand::Rng::new());
    for number in 0..2 * times {
        std::thread::sleep(Duration::from_millis(dice.u64(0..300)));
        let (host, program) = if number % 2 == 0 {
            (&lab.source, mirror.tcpcopy.take().unwrap())
        } else {
            (&lab.target, mirror.intercept.take().unwrap())
        };
        let objects = BpfObjects::of(program.pid()).unwrap();
        program.kill().unwrap();
        let before = if host.role == "source" { &before[0] } else { &before[1] };
        // Sockets come and go with the load.
        let lasting = |line: &String| !line.contains("ss -H");
        let before: Vec<String> = before.iter().filter(|line| lasting(line)).cloned().collect();
        let changes = || {
            let after: Vec<String> = network_state(host).unwrap().into_iter().filter(lasting).collect();
            differences(&before, &after)
        };
        assert!(eventually(PATIENCE, || objects.remaining().is_empty()), "{:?}", objects.remaining());
        assert!(eventually(PATIENCE, || changes().is_empty()), "{:#?}", changes());
        if number % 2 == 0 {
            mirror.start_tcpcopy().unwrap()
        } else {
            mirror.start_intercept().unwrap()
        }
        let (ready, mut asked) = (Instant::now(), Vec::new());
        let mirrored = eventually(PATIENCE, || {
            let load = Load::per_request(lab.source.socket(Family::V4, LIVE_PORT), 1, Limit::Requests(1));
            asked.extend(load.run(&lab.client).unwrap().answered);
            target.arrivals().iter().rev().take(500).any(|arrival| asked.contains(&arrival.id))
        });
        assert!(mirrored, "death {number}: nothing is mirrored\n{}", mirror.tcpcopy().log());
        took.push(ready.elapsed());
    }
    for load in loads.into_iter().flatten() {
        let report = load.stop().unwrap();
        assert_eq!(report.failed.first(), None, "{} live requests failed", report.failed.len());
    }
    took.sort_unstable();
    println!("mirrored again after {:?} in the middle, at most {:?}", took[took.len() / 2], took[took.len() - 1]);
    // Whatever else the machine has to do: half of them within two seconds.
    assert!(took[took.len() / 2] <= Duration::from_secs(2), "{took:?}");
    mirror.stop().unwrap();
}
