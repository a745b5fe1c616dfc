//! Wrong command lines and environments end with exit code 2 or 1 and one clear message, never with a panic.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use lab::{Host, Lab, Mirror, MirrorOptions, PATIENCE, Program, laboratory, mirror};
use rustix::process::{Resource, getrlimit};

/// A wrong call: the program with its arguments, `KEY` standing for a good key file; its exit code; what it must say.
type Case = (&'static str, i32, &'static str);

const USAGE: i32 = 2;
const FAILURE: i32 = 1;
const NO_INTERCEPT: i32 = 3;

/// Wrong by themselves.
const COMMAND_LINES: &[Case] = &[
    ("tcpcopy", USAGE, "required"),
    ("tcpcopy -x 80-10.77.0.3:8080 --psk-file KEY", USAGE, "--intercept"),
    ("tcpcopy -s 10.77.0.3 --psk-file KEY", USAGE, "--rules"),
    ("tcpcopy -x 80 -s 10.77.0.3 --psk-file KEY", USAGE, "[SRCIP:]PORT-TARGETIP:PORT"),
    ("tcpcopy -x 80-10.77.0.3 -s 10.77.0.3 --psk-file KEY", USAGE, "[SRCIP:]PORT-TARGETIP:PORT"),
    ("tcpcopy -x 0-10.77.0.3:8080 -s 10.77.0.3 --psk-file KEY", USAGE, "not a port"),
    ("tcpcopy -x 65536-10.77.0.3:8080 -s 10.77.0.3 --psk-file KEY", USAGE, "not a port"),
    ("tcpcopy -x 80-10.77.0.300:8080 -s 10.77.0.3 --psk-file KEY", USAGE, "not an IP address"),
    ("tcpcopy -x 80-fd77::3:8080 -s 10.77.0.3 --psk-file KEY", USAGE, "bracket"),
    ("tcpcopy -x 80-10.77.0.3:8080,, -s 10.77.0.3 --psk-file KEY", USAGE, "is missing"),
    ("tcpcopy -x 80-10.77.0.3:8080,80-10.77.0.3:8080 -s 10.77.0.3 --psk-file KEY", USAGE, "there twice"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s fd77::3 --psk-file KEY", USAGE, "bracket"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3:99999 --psk-file KEY", USAGE, "not a port"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -p 0 --psk-file KEY", USAGE, "1..=65535"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -w 0 --psk-file KEY", USAGE, "1..=64"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -w 65 --psk-file KEY", USAGE, "1..=64"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -t soon --psk-file KEY", USAGE, "soon"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 --hook netfilter --psk-file KEY", USAGE, "xdp-generic"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 --inject pigeon --psk-file KEY", USAGE, "packet"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 --ring-size 1K --psk-file KEY", USAGE, "256K"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -H localhost --psk-file KEY", USAGE, "not an IP address"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i lo --psk-file KEY", USAGE, "-H"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 --psk-file KEY --insecure", USAGE, "--insecure"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -Z --psk-file KEY", USAGE, "-Z"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -d --psk-file KEY", USAGE, "-l"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -r 101 --psk-file KEY", USAGE, "1..=100"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 --clients 10.0.0.1/8 --psk-file KEY", USAGE, "10.0.0.0/8"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -F port --psk-file KEY", USAGE, "--exclude"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -C 0 --psk-file KEY", USAGE, "1..=64"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -C 2 -w 2 --psk-file KEY", USAGE, "cannot be used"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -n 0 --psk-file KEY", USAGE, "1..=64"),
    ("tcpcopy keygen KEY", USAGE, "exists"),
    ("tcpcopy keygen /nonexistent/directory/psk", USAGE, "directory"),
    ("intercept", USAGE, "-i"),
    ("intercept -i eth0 -p 65536 --psk-file KEY", USAGE, "1..=65535"),
    ("intercept -i eth0 -b nowhere --psk-file KEY", USAGE, "not an IP address"),
    ("intercept -i eth0 --attach glue --psk-file KEY", USAGE, "clsact"),
    ("intercept -i eth0 --psk-file KEY surplus", USAGE, "surplus"),
];

/// Right by themselves, but not here.
const ENVIRONMENTS: &[Case] = &[
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth9 --psk-file KEY", FAILURE, "eth9"),
    (
        "tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth0 --require-intercept --psk-file KEY",
        NO_INTERCEPT,
        "cannot reach intercept",
    ),
    ("tcpcopy -x 80-192.0.2.1:8080 -s 10.77.0.3 -i eth0 --psk-file KEY", FAILURE, "no route"),
    ("tcpcopy -x 80-10.77.0.99:8080 -s 10.77.0.3 -i eth0 --inject packet --psk-file KEY", FAILURE, "10.77.0.99"),
    ("tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth0 --psk-file /nonexistent", USAGE, "tcpcopy keygen"),
    (
        "tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth0 -l /nonexistent/log --psk-file KEY",
        FAILURE,
        "/nonexistent/log",
    ),
    (
        "tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth0 -P /nonexistent/pid --psk-file KEY",
        FAILURE,
        "/nonexistent/pid",
    ),
    ("intercept -i eth9 --psk-file KEY", FAILURE, "eth9"),
    ("intercept -i eth0 -b 192.0.2.1 --psk-file KEY", FAILURE, "192.0.2.1"),
    ("intercept -i eth0 --psk-file OPEN", USAGE, "chmod 600"),
    ("intercept -i eth0 --psk-file FOREIGN", USAGE, "belongs to user 65534"),
    ("intercept -i eth0 --psk-file SHORT", USAGE, "64"),
    ("intercept -i eth0 --psk-file LETTERS", USAGE, "hex"),
    ("intercept -i eth0 --psk-file /", USAGE, "regular file"),
];

/// Runs the case and says what was wrong with the outcome, if anything.
fn check(command: &mut Command, case: &Case) -> Result<(), String> {
    let (line, code, part) = case;
    let ended = Program::start(line, command)
        .and_then(|program| program.wait(PATIENCE))
        .map_err(|error| format!("{line}: {error:#}"))?;
    let fail = |why: &str| Err(format!("{line}: {why} ({})\n{}", ended.status, ended.stderr));
    if ended.status.code() != Some(*code) {
        return fail(&format!("exit code {code} was expected"));
    }
    if ended.stderr.contains("panicked") || ended.stderr.contains("RUST_BACKTRACE") {
        return fail("it panicked");
    }
    if !ended.stderr.contains(part) {
        return fail(&format!("the message does not mention {part:?}"));
    }
    if ended.stderr.lines().filter(|line| line.starts_with("error:")).count() != 1 {
        return fail("there is not exactly one message that begins with `error:`");
    }
    Ok(())
}

fn arguments(line: &str, directory: &Path) -> Vec<String> {
    let file = |word: &str| directory.join(word).to_string_lossy().into_owned();
    let is_file = |word: &str| ["KEY", "OPEN", "SHORT", "LETTERS", "FOREIGN"].contains(&word);
    line.split(' ').skip(1).map(|word| if is_file(word) { file(word) } else { word.to_owned() }).collect()
}

fn on(host: &Host, case: &Case, directory: &Path) -> Result<(), String> {
    let name = case.0.split(' ').next().unwrap_or_default();
    let mut command = host.command(mirror::program(name).unwrap());
    check(command.args(arguments(case.0, directory)), case)
}

fn keys() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let key = mirror::make_key(directory.path(), "KEY").unwrap();
    let text = fs::read_to_string(key).unwrap();
    for (name, text, mode) in
        [("OPEN", text.clone(), 0o644), ("SHORT", text[..40].to_owned(), 0o600), ("LETTERS", "z".repeat(64), 0o600)]
    {
        fs::write(directory.path().join(name), text).unwrap();
        fs::set_permissions(directory.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    directory
}

fn report(failures: Vec<String>) {
    assert!(failures.is_empty(), "{} cases failed:\n\n{}", failures.len(), failures.join("\n\n"));
}

/// These need neither root nor a network.
#[test]
fn wrong_command_lines_are_refused() {
    assert!(COMMAND_LINES.len() + ENVIRONMENTS.len() >= 25);
    let directory = keys();
    let outcomes = COMMAND_LINES.iter().map(|case| {
        let name = case.0.split(' ').next().unwrap_or_default();
        check(Command::new(mirror::program(name).unwrap()).args(arguments(case.0, directory.path())), case)
    });
    report(outcomes.filter_map(Result::err).collect());
}

#[test]
fn wrong_environments_are_explained() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let directory = keys();
    let foreign = mirror::make_key(directory.path(), "FOREIGN").unwrap();
    std::os::unix::fs::chown(foreign, Some(65534), None).unwrap();
    report(ENVIRONMENTS.iter().filter_map(|case| on(&lab.source, case, directory.path()).err()).collect());
}

#[test]
fn a_driver_without_xdp_is_explained() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let options = MirrorOptions {
        interfaces: vec!["lo"],
        hook: Some("xdp"),
        tcpcopy: vec!["-H".into(), "10.77.0.9".into()],
        ..MirrorOptions::default()
    };
    let mut mirror = Mirror::prepare(&lab, options).unwrap();
    mirror.start_intercept().unwrap();
    let said = format!("{:#}", mirror.start_tcpcopy().unwrap_err());
    assert!(said.contains("refused XDP in native mode") && said.contains("--hook tc"), "{said}");
}

#[test]
fn a_port_that_is_in_use_is_named() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let directory = keys();
    let _holder = lab::http::Server::start(&lab.target, 36524).unwrap();
    on(&lab.target, &("intercept -i eth0 --psk-file KEY", FAILURE, "in use"), directory.path()).unwrap();
}

#[test]
fn a_second_process_with_the_same_process_id_file_is_refused() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let directory = keys();
    let pid_file = directory.path().join("KEY.pid");
    let start = |port: &str| {
        let mut command = lab.target.command(mirror::program("intercept").unwrap());
        command.args(["-i", "eth0", "-p", port, "--psk-file"]).arg(directory.path().join("KEY"));
        command.arg("-P").arg(&pid_file);
        command
    };
    let first = Program::start("intercept", &mut start("36524")).unwrap();
    first.wait_ready().unwrap();
    check(&mut start("36525"), &("a second intercept", FAILURE, "running process")).unwrap();
    first.stop().unwrap();
}

#[test]
fn a_user_without_privileges_is_told_what_is_missing() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    // A directory that the user may enter, with a key and programs of his own.
    let directory = keys();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::chown(directory.path().join("KEY"), Some(65534), Some(65534)).unwrap();
    for (name, line) in [
        ("tcpcopy", "tcpcopy -x 80-10.77.0.3:8080 -s 10.77.0.3 -i eth0 --psk-file KEY"),
        ("intercept", "intercept -i eth0 --psk-file KEY"),
    ] {
        fs::copy(mirror::program(name).unwrap(), directory.path().join(name)).unwrap();
        let mut command = lab.source.command("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(directory.path().join(name));
        check(command.args(arguments(line, directory.path())), &(line, FAILURE, "root")).unwrap();
    }
}

/// Starts a command of the laboratory with a limit on open files and so many more descriptors than the standard
/// streams. Whether it got ready; else it must have ended with a clear message, and not for want of a descriptor in the
/// middle of something.
fn starts_with(host: &Host, command: &Command, limit: u32, inherited: u32) -> bool {
    // What `Host::command` puts before it: `netns exec NAME`.
    let line = command.get_args().skip(3);
    let open: String = (3..3 + inherited).map(|fd| format!("exec {fd}<&0; ")).collect();
    let mut limited = host.command("sh");
    limited.args(["-c", &format!("{open} exec prlimit --nofile={limit}:{limit} \"$0\" \"$@\"")]).args(line);
    let program = Program::start("a program with few descriptors", &mut limited).unwrap();
    if program.wait_ready().is_ok() {
        program.stop().unwrap();
        return true;
    }
    let ended = program.wait(PATIENCE).unwrap();
    let what = format!("with a limit of {limit}, {inherited} inherited: {}\n{}", ended.status, ended.stderr);
    // With none left, not even the C library can be opened: the program has not begun.
    if limit <= 3 + inherited && ended.status.code() == Some(127) {
        return false;
    }
    assert_eq!(ended.status.code(), Some(FAILURE), "{what}");
    let [message] = &ended.stderr.lines().collect::<Vec<_>>()[..] else { panic!("not one line {what}") };
    let said = ["error: ", "open files", &limit.to_string(), "ulimit -n"];
    assert!(said.iter().all(|part| message.contains(part)), "{what}");
    false
}

/// How many descriptors a process inherits differs from machine to machine, and so does how many are missing.
#[test]
fn a_limit_on_open_files_is_explained() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let intercept = mirror.intercept_command().unwrap();
    let tcpcopy = mirror.tcpcopy_command(&lab.source).unwrap();
    for (host, command, name) in [(&lab.target, &intercept, "intercept"), (&lab.source, &tcpcopy, "tcpcopy")] {
        if name == "tcpcopy" {
            mirror.start_intercept().unwrap();
        }
        for (inherited, step) in [(0, 1), (1, 7), (6, 7)] {
            let mut outcomes = Vec::new();
            for limit in (3 + inherited..100).step_by(step) {
                outcomes.push(starts_with(host, command, limit, inherited));
                if outcomes.ends_with(&[true; 3]) {
                    break;
                }
            }
            let refused = outcomes.iter().take_while(|ready| !**ready).count();
            assert!((40..70).contains(&(refused * step)), "{name} with {inherited} inherited: {outcomes:?}");
            assert!(outcomes[refused..].iter().all(|ready| *ready), "{name} with {inherited} inherited: {outcomes:?}");
        }
    }
}

/// The soft limit is what a shell or systemd has set for programs that do not care; the hard one is what a program may
/// have.
#[test]
fn a_soft_limit_on_open_files_does_not_matter() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut command = lab.target.command("prlimit");
    let directory = keys();
    // No more than this process may have: not everywhere may root raise it.
    let hard = getrlimit(Resource::Nofile).maximum.map_or(4096, |own| own.min(4096)).to_string();
    command.arg(format!("--nofile=16:{hard}")).arg(mirror::program("intercept").unwrap());
    command.args(arguments("intercept -i eth0 --psk-file KEY", directory.path()));
    let program = Program::start("intercept", &mut command).unwrap();
    program.wait_ready().unwrap();
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert_eq!(line.split_whitespace().skip(3).take(2).collect::<Vec<_>>(), [hard.as_str(), &hard]);
    program.stop().unwrap();
}
