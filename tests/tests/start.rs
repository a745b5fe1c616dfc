//! The start: in whichever order the two programs come, and with what else may be missing.

use std::fs;

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, Shape, eventually,
    http::{Limit, Load, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};

/// Requests of both families; how many there are.
fn ask(lab: &Lab) -> usize {
    for family in Family::BOTH {
        Load::keep_alive(lab.source.socket(family, LIVE_PORT), 2, Limit::Requests(50)).run(&lab.client).unwrap();
    }
    100
}

#[test]
fn tcpcopy_waits_for_an_intercept_that_is_started_later_and_says_so() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::arguments("-w 2", "")).unwrap();
    let tcpcopy = Program::start("tcpcopy", &mut mirror.tcpcopy_command(&lab.source).unwrap()).unwrap();
    tcpcopy
        .wait_log(PATIENCE, |line| line.contains("WARN") && line.contains("waiting for intercept 10.77.0.3"))
        .unwrap();
    // Nothing is captured, and nothing sent, for as long.
    ask(&lab);
    assert!(tcpcopy.is_running() && !tcpcopy.log().contains("ready"), "{}", tcpcopy.log());
    mirror.start_intercept().unwrap();
    tcpcopy.wait_ready().unwrap();
    assert_eq!(tcpcopy.log().matches("waiting for").count(), 1, "one line, not one for each worker\n{}", tcpcopy.log());
    let asked = ask(&lab);
    assert_eq!(target.wait_for_requests(asked, PATIENCE), asked);
    mirror.tcpcopy = Some(tcpcopy);
    let outcome = mirror.stop().unwrap();
    assert_eq!(target.count(), asked);
    outcome.assert_no_leak();
}

#[test]
fn an_intercept_that_is_required_and_not_there_ends_tcpcopy_with_an_exit_code_of_its_own() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::arguments("--require-intercept", "")).unwrap();
    let start = |mirror: &Mirror| Program::start("tcpcopy", &mut mirror.tcpcopy_command(&lab.source).unwrap()).unwrap();
    let ended = start(&mirror).wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains("error: cannot reach intercept at 10.77.0.3:36524"), "{}", ended.stderr);
    mirror.start_intercept().unwrap();
    let program = start(&mirror);
    program.wait_ready().unwrap();
    program.stop().unwrap();
}

#[test]
fn what_only_another_configuration_can_mend_ends_tcpcopy_whenever_it_is_found() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let tcpcopy = Program::start("tcpcopy", &mut mirror.tcpcopy_command(&lab.source).unwrap()).unwrap();
    tcpcopy.wait_log(PATIENCE, |line| line.contains("waiting for intercept")).unwrap();
    // Another key by the time that somebody answers.
    fs::remove_file(mirror.key()).unwrap();
    mirror::make_key(mirror.directory(), "psk").unwrap();
    mirror.start_intercept().unwrap();
    let ended = tcpcopy.wait(PATIENCE).unwrap();
    assert!(ended.status.code() == Some(1) && ended.stderr.contains("a different key"), "{}", ended.stderr);
}

#[test]
fn one_of_two_intercepts_is_enough_to_begin_and_the_other_is_dialled_on() {
    let _guard = laboratory!();
    let lab = Lab::shaped(Shape::TwoTargets).unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let second_host = lab.other("target2");
    let [first, second] = [&lab.target, second_host].map(|host| Server::start(host, TARGET_PORT).unwrap());
    let rules = [&lab.target, second_host].map(|host| mirror::rule(&lab.source, host, Family::V4)).join(",");
    let options =
        MirrorOptions { rules: Some(rules), ..MirrorOptions::arguments(&format!("-w 2 -s {}", second_host.v4), "") };
    let mut mirror = Mirror::prepare(&lab, options).unwrap();
    mirror.start_intercept().unwrap();
    mirror.start_tcpcopy().unwrap();
    let absent = format!("waiting for intercept {}", second_host.v4);
    assert_eq!(mirror.tcpcopy().log().matches(&absent).count(), 1, "{}", mirror.tcpcopy().log());
    let load = || Load::keep_alive(lab.source.socket(Family::V4, LIVE_PORT), 2, Limit::Requests(50));
    load().run(&lab.client).unwrap();
    assert_eq!(first.wait_for_requests(50, PATIENCE), 50);

    let other = Program::start("intercept", &mut mirror.intercept_on(second_host).unwrap()).unwrap();
    other.wait_ready().unwrap();
    let up = format!("the channel to intercept {}:36524 is up", second_host.v4);
    assert!(eventually(PATIENCE, || mirror.tcpcopy().log().matches(&up).count() == 2), "{}", mirror.tcpcopy().log());
    load().run(&lab.client).unwrap();
    assert_eq!(first.wait_for_requests(100, PATIENCE), 100);
    // And whatever was still kept for it.
    assert!(second.wait_for_requests(50, PATIENCE) >= 50);
    let tcpcopy = mirror.tcpcopy.take().unwrap().stop().unwrap();
    assert!(!tcpcopy.stderr.contains("broke"), "{}", tcpcopy.stderr);
    other.stop().unwrap();
    mirror.stop().unwrap().assert_no_leak();
}

#[test]
fn a_daemon_that_waits_is_in_the_background_and_its_log_says_for_what() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let [log, pid] = ["log", "pid"].map(|name| mirror.directory().join(name));
    let mut command = mirror.tcpcopy_command(&lab.source).unwrap();
    command.arg("-d").arg("-l").arg(&log).arg("-P").arg(&pid);
    let parent = Program::start("tcpcopy -d", &mut command).unwrap().wait(PATIENCE).unwrap();
    assert!(parent.status.success(), "{parent:?}");
    let logged = |text: &str| fs::read_to_string(&log).unwrap_or_default().contains(text);
    assert!(logged("waiting for intercept"));
    mirror.start_intercept().unwrap();
    let ready = eventually(PATIENCE, || logged("ready"));
    let text = fs::read_to_string(&log).unwrap();
    // It is no child of ours.
    let number = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(number).unwrap(), rustix::process::Signal::TERM)
        .unwrap();
    assert!(ready, "{text}");
    assert!(eventually(PATIENCE, || !pid.exists()), "it still runs");
}

/// Each interface takes descriptors of its own: with too few of them the limit is to blame, and nothing else.
#[test]
fn with_hundreds_of_interfaces_and_few_descriptors_the_limit_is_named() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let lines: Vec<String> = (0..150).map(|i| format!("link add many{i} type veth peer name peer{i}")).collect();
    lab.target.ip(&lines).unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let command = mirror.intercept_command().unwrap();
    let line = command.get_args().skip(3);
    let mut limited = lab.target.command("prlimit");
    limited.arg("--nofile=256:256").args(line);
    let ended = Program::start("intercept", &mut limited).unwrap().wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let error = ended.stderr.lines().find(|line| line.starts_with("error:")).unwrap();
    assert!(["limit on open files", "256", "ulimit -n"].iter().all(|part| error.contains(part)), "{error}");
    assert!(!error.contains("seccomp"), "{error}");
}
