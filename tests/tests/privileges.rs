//! What the programs do with the privileges that they are given: the files that they write, and what they keep.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use lab::{
    Family, Host, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually,
    http::{Client, Limit, Load, Server},
    laboratory,
    mirror::{self, LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// A user without any privileges, `nobody` as a rule.
const NOBODY: u32 = 65534;

/// Runs a command that must fail, with one message, and returns that.
fn refusal(command: &mut Command) -> String {
    let ended = Program::start("a program that must not start", command).unwrap().wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    let errors: Vec<&str> = ended.stderr.lines().filter(|line| line.starts_with("error:")).collect();
    let [error] = errors[..] else { panic!("not one error:\n{}", ended.stderr) };
    assert!(!ended.stderr.contains("ready"), "{}", ended.stderr);
    error.to_owned()
}

/// What may be at a path that the operator has named, with what the refusal says of it.
fn obstacles(directory: &Path) -> Vec<(PathBuf, &'static str)> {
    let at = |name: &str| directory.join(name);
    fs::write(at("victim"), "precious").unwrap();
    symlink(at("victim"), at("link")).unwrap();
    symlink(at("nowhere"), at("dangling")).unwrap();
    fs::hard_link(at("victim"), at("second name")).unwrap();
    fs::create_dir(at("directory")).unwrap();
    fs::write(at("foreign"), "").unwrap();
    std::os::unix::fs::chown(at("foreign"), Some(NOBODY), None).unwrap();
    let (pipe, kind) = (at("pipe"), rustix::fs::FileType::Fifo);
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, kind, rustix::fs::Mode::RUSR, 0).unwrap();
    vec![
        (at("link"), "symbolic link"),
        (at("dangling"), "symbolic link"),
        (at("second name"), "hard links"),
        (at("directory"), "a directory"),
        (at("foreign"), "belongs to user 65534"),
        (pipe, "a pipe"),
        ("/dev/null".into(), "a device"),
        ("/nonexistent/file".into(), "No such file"),
    ]
}

#[test]
fn files_that_cannot_or_must_not_be_written_are_refused_at_the_start() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    for (path, reason) in obstacles(directory.path()) {
        for option in ["-l", "-P", "--summary-json"] {
            for mut command in
                [mirror.intercept_on(&lab.target).unwrap(), mirror.tcpcopy_without_summary(&lab.source).unwrap()]
            {
                let said = refusal(command.arg(option).arg(&path));
                let expected = [reason, &path.display().to_string(), &format!("({option} FILE)")];
                assert!(expected.iter().all(|part| said.contains(part)), "{option} {}: {said}", path.display());
            }
        }
    }
    assert_eq!(fs::read_to_string(directory.path().join("victim")).unwrap(), "precious");
    assert_eq!(fs::read_to_string(directory.path().join("foreign")).unwrap(), "");
    assert!(!directory.path().join("nowhere").exists());
}

#[test]
fn one_file_does_not_serve_two_purposes_and_no_content_is_lost() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let at = |name: &str| mirror.directory().join(name);
    let refusal_of = |arguments: &[(&str, PathBuf)]| {
        let mut command = mirror.intercept_on(&lab.target).unwrap();
        for (option, path) in arguments {
            command.arg(option).arg(path);
        }
        refusal(&mut command)
    };
    for [first, second] in [["-l", "-P"], ["-l", "--summary-json"], ["--summary-json", "-P"]] {
        let said = refusal_of(&[(first, at("both")), (second, at("both"))]);
        assert!(said.contains("the same file as another"), "{first} {second}: {said}");
    }
    fs::write(at("notes"), "buy milk\n").unwrap();
    for (option, what) in [("-P", "a process id"), ("--summary-json", "a summary")] {
        let said = refusal_of(&[(option, at("notes"))]);
        assert!(said.contains(&format!("something other than {what}")), "{said}");
    }
    assert_eq!(fs::read_to_string(at("notes")).unwrap(), "buy milk\n");
    // A run that fails leaves no summary.
    let said = refusal_of(&[("--summary-json", at("new.json")), ("-i", "eth9".into())]);
    assert!(said.contains("eth9") && !at("new.json").exists(), "{said}");
}

#[test]
fn files_are_private_and_what_was_there_is_treated_as_its_kind_wants() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let [log, pid, summary] = ["log", "pid", "summary"].map(|name| mirror.directory().join(name));
    for run in 0..2 {
        let mut command = mirror.intercept_on(&lab.target).unwrap();
        command.arg("-l").arg(&log).arg("-P").arg(&pid).arg("--summary-json").arg(&summary);
        let program = Program::start("intercept", &mut command).unwrap();
        let ready = || fs::read_to_string(&log).unwrap_or_default().matches("ready").count() == run + 1;
        assert!(eventually(PATIENCE, ready), "the log is not appended to");
        for path in [&log, &pid, &summary] {
            // The laboratory's umask takes nothing of that away.
            assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, 0o640, "{}", path.display());
        }
        assert_eq!(fs::read_to_string(&pid).unwrap(), format!("{}\n", program.pid()));
        program.stop().unwrap();
        assert!(!pid.exists());
        let figures: serde_json::Value = serde_json::from_str(&fs::read_to_string(&summary).unwrap()).unwrap();
        assert_eq!(figures["program"], "intercept");
        // A crash leaves its process id, and half a summary may be longer than the next.
        fs::write(&pid, "12345\n").unwrap();
        fs::set_permissions(&pid, fs::Permissions::from_mode(0o640)).unwrap();
        fs::write(&summary, format!("{{{}", " ".repeat(1 << 20))).unwrap();
    }
}

/// A limit on file sizes stands for a disk that is full: writing fails where nothing did at the start.
#[test]
fn a_summary_that_finds_no_room_does_not_take_the_table_with_it() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let summary = mirror.directory().join("summary");
    let command = mirror.intercept_on(&lab.target).unwrap();
    // What `Host::command` puts before it: `netns exec NAME`.
    let mut limited = lab.target.command("prlimit");
    limited.args(["--fsize=100:100"]).args(command.get_args().skip(3)).arg("--summary-json").arg(&summary);
    let program = Program::start("intercept", &mut limited).unwrap();
    program.wait_ready().unwrap();
    program.signal(Signal::TERM).unwrap();
    let ended = program.wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{}", ended.stderr);
    assert!(ended.stdout.contains("swallowed segments"), "the table is missing: {}\n{}", ended.stdout, ended.stderr);
    assert!(ended.stderr.contains("cannot write the summary") && ended.stderr.contains("File too large"));
    assert_eq!(fs::read_to_string(&summary).unwrap(), "", "half a summary is left");
}

#[test]
fn a_log_that_has_reached_its_limit_ends_nothing() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let log = mirror.directory().join("log");
    let command = mirror.intercept_on(&lab.target).unwrap();
    let mut limited = lab.target.command("prlimit");
    limited.args(["--fsize=10:10"]).args(command.get_args().skip(3)).arg("-l").arg(&log);
    let intercept = Program::start("intercept", &mut limited).unwrap();
    mirror.start_tcpcopy().unwrap();
    let mut client = Client::connect(&lab.client, lab.source.socket(Family::V4, LIVE_PORT)).unwrap();
    client.ask().unwrap();
    assert_eq!(target.wait_for_requests(1, PATIENCE), 1);
    assert_eq!(fs::metadata(&log).unwrap().len(), 10);
    mirror.tcpcopy.take().unwrap().stop().unwrap();
    assert!(intercept.stop().unwrap().stdout.contains("swallowed segments"));
}

/// Where a host has a program, for users other than root too.
fn installed(mirror: &Mirror, name: &str) -> PathBuf {
    let path = mirror.directory().join(name);
    if !path.exists() {
        fs::set_permissions(mirror.directory(), fs::Permissions::from_mode(0o755)).unwrap();
        fs::copy(mirror::program(name).unwrap(), &path).unwrap();
    }
    path
}

/// Makes of a command of the laboratory one that runs as [`NOBODY`] with capabilities, given as setpriv(1) writes them.
fn unprivileged(mirror: &Mirror, host: &Host, command: &Command, capabilities: &[&str]) -> Command {
    let sets: String = capabilities.iter().map(|capability| format!(",+{capability}")).collect();
    // What `Host::command` puts before it: `netns exec NAME`.
    let mut line = command.get_args().skip(3);
    let name = Path::new(line.next().unwrap()).file_name().unwrap().to_str().unwrap();
    let user = [format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"), "--clear-groups".into()];
    let sets = ["inh", "ambient", "bounding"].map(|set| match set {
        // What a program may have at all, as a container grants it.
        "bounding" if capabilities.is_empty() => "--bounding-set=-all".to_owned(),
        "bounding" => format!("--bounding-set=-all{sets}"),
        set => format!("--{set}-caps=-all{sets}"),
    });
    let mut unprivileged = host.command("setpriv");
    unprivileged.args(user).args(sets).arg(installed(mirror, name)).args(line);
    std::os::unix::fs::chown(mirror.key(), Some(NOBODY), Some(NOBODY)).unwrap();
    unprivileged
}

const OF_INTERCEPT: &[&str] = &["bpf", "net_admin", "perfmon"];
const OF_TCPCOPY: &[&str] = &["bpf", "net_admin", "perfmon", "net_raw"];

/// `CAP_NET_ADMIN` and `CAP_BPF` in the masks of proc(5).
const NET_ADMIN: u64 = 1 << 12;
const BPF: u64 = 1 << 39;

/// What each thread of a program keeps, by the beginning of its name.
const KEPT: &[(&str, u64)] = &[
    ("tcpcopy-paths", NET_ADMIN),
    ("tcpcopy", NET_ADMIN),
    ("worker-", 0),
    ("intercept", NET_ADMIN),
    ("reporter", 0),
    ("reaper", NET_ADMIN),
];

/// A status file of proc(5), by the names of its lines.
fn status(path: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter_map(|line| line.split_once(":\t")).map(|(k, v)| (k.to_owned(), v.trim().to_owned())).collect()
}

/// Returns what is wrong with the privileges of a program's threads.
fn excess(program: &Program) -> Vec<String> {
    let mut wrong = Vec::new();
    for task in fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap() {
        let status = status(&task.unwrap().path().join("status"));
        let name = &status["Name"];
        let mask = |set: &str| u64::from_str_radix(&status[set], 16).unwrap();
        let Some((_, kept)) = KEPT.iter().find(|(beginning, _)| name.starts_with(beginning)) else {
            wrong.push(format!("{name} is a thread of which nothing is known"));
            continue;
        };
        // Kernels before 5.19 let nobody else use maps, where unprivileged use of bpf(2) is forbidden.
        let effective = if kernel_before_5_19() { mask("CapEff") & !BPF } else { mask("CapEff") };
        if effective != *kept || mask("CapPrm") != mask("CapEff") {
            wrong.push(format!("{name} has {:x} and may have {:x}", mask("CapEff"), mask("CapPrm")));
        }
        if mask("CapInh") != 0 || mask("CapAmb") != 0 {
            wrong.push(format!("{name} can hand capabilities down"));
        }
        if status["NoNewPrivs"] != "1" {
            wrong.push(format!("{name} can gain privileges"));
        }
    }
    wrong
}

fn kernel_before_5_19() -> bool {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|number| number.parse::<u32>().ok());
    (numbers.next(), numbers.next()) < (Some(5), Some(19))
}

fn assert_no_more_than_needed(program: &Program) {
    // A thread gives up what it does not need as it begins; `ready` does not wait for that.
    let settled = eventually(PATIENCE, || excess(program).is_empty());
    assert!(settled, "{:#?}\n{}", excess(program), program.log());
    let status = status(Path::new(&format!("/proc/{}/status", program.pid())));
    assert_ne!(status["VmLck"], "0 kB", "the key is not locked");
    let limits = fs::read_to_string(format!("/proc/{}/limits", program.pid())).unwrap();
    let core = limits.lines().find(|line| line.starts_with("Max core file size")).unwrap();
    assert_eq!(core.split_whitespace().skip(4).take(2).collect::<Vec<_>>(), ["0", "0"]);
}

/// Whether the kernel would dump a process, or lets its own user look into it: to others than root the files of such a
/// process belong (proc(5), under `/proc/pid`).
fn is_dumpable(program: &Program) -> bool {
    fs::metadata(format!("/proc/{}/environ", program.pid())).unwrap().uid() != 0
}

/// Clients of both families make requests, and all arrive.
fn mirror_some(lab: &Lab, target: &Server, before: usize) -> usize {
    let mut requests = before;
    for family in Family::BOTH {
        let live = lab.source.socket(family, LIVE_PORT);
        for load in [Load::per_request, Load::keep_alive] {
            let report = load(live, 4, Limit::Requests(100)).run(&lab.client).unwrap();
            assert_eq!((report.answered.len(), report.failed), (100, vec![]));
            requests += 100;
        }
    }
    assert_eq!(target.wait_for_requests(requests, PATIENCE), requests);
    requests
}

/// Makes an interface on the target, which must be hooked, and then nothing of the mirror has changed.
fn add_an_interface(lab: &Lab, program: &Program) {
    lab.target.ip(&["link add late0 type veth peer name late1", "link set late0 up"]).unwrap();
    program.wait_log(PATIENCE, |line| line.contains("late0") && line.contains("new interface")).unwrap();
}

#[test]
fn every_thread_keeps_only_what_it_needs_and_the_mirror_works_to_its_end() {
    let _guard = laboratory!();
    for (tcpcopy, intercept) in [("--hook tc", "--attach auto"), ("--hook xdp --inject raw -w 2", "--attach clsact")] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::start(&lab, MirrorOptions::arguments(tcpcopy, intercept)).unwrap();
        for program in [mirror.tcpcopy(), mirror.intercept()] {
            assert_no_more_than_needed(program);
        }
        let requests = mirror_some(&lab, &target, 0);
        // What comes later is done with what is left: another interface, another next hop, sockets to destroy.
        add_an_interface(&lab, mirror.intercept());
        lab.source.ip(&["neigh flush dev eth0"]).unwrap();
        mirror_some(&lab, &target, requests);
        let mut clients: Vec<Client> = Family::BOTH
            .iter()
            .map(|family| Client::connect(&lab.client, lab.source.socket(*family, LIVE_PORT)).unwrap())
            .collect();
        clients.iter_mut().for_each(|client| client.ask().unwrap());
        assert!(eventually(PATIENCE, || lab.target.connections(TARGET_PORT).unwrap() == 2));
        let outcome = mirror.stop().unwrap();
        assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 0, "{}", outcome.logs);
        for denied in ["not permitted", "ermission denied"] {
            assert!(!outcome.logs.contains(denied), "{}", outcome.logs);
        }
        assert!(!lab.target.output("tc qdisc show").unwrap().contains("clsact"));
        outcome.assert_no_leak();
    }
}

/// `intercept` destroys sockets by itself when it ends first: that takes a capability which it must not have given up.
#[test]
fn intercept_can_destroy_sockets_to_its_end() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let command = unprivileged(&mirror, &lab.target, &mirror.intercept_on(&lab.target).unwrap(), OF_INTERCEPT);
    let intercept = Program::start("intercept", &mut { command }).unwrap();
    intercept.wait_ready().unwrap();
    std::os::unix::fs::chown(mirror.key(), Some(0), Some(0)).unwrap();
    mirror.start_tcpcopy().unwrap();
    let mut client = Client::connect(&lab.client, lab.source.socket(Family::V6, LIVE_PORT)).unwrap();
    client.ask().unwrap();
    assert_eq!(target.wait_for_requests(1, PATIENCE), 1);
    assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 1);
    intercept.stop().unwrap();
    assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 0);
    mirror.tcpcopy.take().unwrap().stop().unwrap();
}

#[test]
fn without_root_the_documented_capabilities_mirror_everything() {
    let _guard = laboratory!();
    for (tcpcopy, intercept) in [
        ("", ""),
        ("--hook xdp --inject raw", "--attach clsact --ack reflect"),
        ("--hook tc --inject packet -w 2 -n 2", "--attach tcx"),
    ] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::arguments(tcpcopy, intercept)).unwrap();
        let command = unprivileged(&mirror, &lab.target, &mirror.intercept_on(&lab.target).unwrap(), OF_INTERCEPT);
        let program = Program::start("intercept", &mut { command }).unwrap();
        program.wait_ready().unwrap();
        mirror.intercept = Some(program);
        let command = mirror.tcpcopy_without_summary(&lab.source).unwrap();
        let command = unprivileged(&mirror, &lab.source, &command, OF_TCPCOPY);
        let program = Program::start("tcpcopy", &mut { command }).unwrap();
        program.wait_ready().unwrap();
        mirror.tcpcopy = Some(program);
        for program in [mirror.tcpcopy(), mirror.intercept()] {
            assert_no_more_than_needed(program);
            assert!(!is_dumpable(program));
            let status = status(Path::new(&format!("/proc/{}/status", program.pid())));
            assert_eq!(status["Uid"], [NOBODY.to_string().as_str(); 4].join("\t"));
        }
        let copies = if tcpcopy.contains("-n 2") { 2 } else { 1 };
        for family in Family::BOTH {
            let live = lab.source.socket(family, LIVE_PORT);
            Load::per_request(live, 4, Limit::Requests(100)).run(&lab.client).unwrap();
            Load::keep_alive(live, 4, Limit::Requests(100)).run(&lab.client).unwrap();
        }
        assert_eq!(target.wait_for_requests(400 * copies, PATIENCE), 400 * copies, "{tcpcopy} {intercept}");
        add_an_interface(&lab, mirror.intercept());
        mirror.stop_programs().unwrap();
        assert_eq!(lab.target.connections(TARGET_PORT).unwrap(), 0);
    }
}

#[test]
fn a_capability_that_is_missing_is_named() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let intercept = mirror.intercept_on(&lab.target).unwrap();
    for missing in OF_INTERCEPT {
        let granted: Vec<&str> = OF_INTERCEPT.iter().copied().filter(|capability| capability != missing).collect();
        let said = refusal(&mut unprivileged(&mirror, &lab.target, &intercept, &granted));
        let name = format!("CAP_{}", missing.to_uppercase());
        assert!(said.contains(&name) && said.contains("run as root"), "without {name}: {said}");
        assert!(said.starts_with(&format!("error: lacking {name}: ")), "without {name}: {said}");
    }
    let said = refusal(&mut unprivileged(&mirror, &lab.target, &intercept, &[]));
    assert!(OF_INTERCEPT.iter().all(|name| said.contains(&format!("CAP_{}", name.to_uppercase()))), "{said}");

    std::os::unix::fs::chown(mirror.key(), Some(0), Some(0)).unwrap();
    mirror.start_intercept().unwrap();
    let tcpcopy = mirror.tcpcopy_without_summary(&lab.source).unwrap();
    for missing in ["bpf", "net_admin", "net_raw"] {
        let granted: Vec<&str> = OF_TCPCOPY.iter().copied().filter(|capability| *capability != missing).collect();
        let said = refusal(&mut unprivileged(&mirror, &lab.source, &tcpcopy, &granted));
        let name = format!("CAP_{}", missing.to_uppercase());
        assert!(said.starts_with(&format!("error: lacking {name}: ")), "without {name}: {said}");
        assert!(said.contains("run as root"), "without {name}: {said}");
    }
}

/// A user without any privileges of its own, whom root's process becomes: files and key are opened before.
#[test]
fn the_programs_become_another_user_and_can_do_their_work() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::arguments("--user nobody", "--user 65534:65534")).unwrap();
    let pid_file = mirror.directory().join("pid");
    let command = mirror.intercept_command().unwrap();
    let intercept = Program::start("intercept", { command }.arg("-P").arg(&pid_file)).unwrap();
    intercept.wait_ready().unwrap();
    mirror.intercept = Some(intercept);
    mirror.start_tcpcopy().unwrap();
    for program in [mirror.tcpcopy(), mirror.intercept()] {
        assert_no_more_than_needed(program);
        assert!(!is_dumpable(program));
        for task in fs::read_dir(format!("/proc/{}/task", program.pid())).unwrap() {
            let status = status(&task.unwrap().path().join("status"));
            let four = [NOBODY.to_string().as_str(); 4].join("\t");
            assert_eq!((&status["Uid"], &status["Gid"]), (&four, &four), "{}", status["Name"]);
            assert!(status["Groups"].is_empty() || status["Groups"] == NOBODY.to_string(), "{}", status["Groups"]);
        }
    }
    mirror_some(&lab, &target, 0);
    add_an_interface(&lab, mirror.intercept());
    // The directory is root's: the user cannot remove the file, but it names no process any more.
    assert_eq!(fs::read_to_string(&pid_file).unwrap(), format!("{}\n", mirror.intercept().pid()));
    let outcome = mirror.stop().unwrap();
    outcome.assert_no_leak();
    assert!(outcome.tcpcopy.count("sessions", "seen") > 0, "{:#}", outcome.tcpcopy.0);
    assert!(!outcome.logs.contains("ermission denied (os error 13)") || outcome.logs.contains("is left, empty"));
}

#[test]
fn a_user_that_is_not_there_is_named() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let said = refusal(mirror.intercept_on(&lab.target).unwrap().args(["--user", "no-such-user"]));
    assert!(said.contains("no user \"no-such-user\"") && said.contains("(--user NAME)"), "{said}");
    let command = mirror.intercept_on(&lab.target).unwrap();
    let mut command = unprivileged(&mirror, &lab.target, &command, OF_INTERCEPT);
    // A key that both may read.
    std::os::unix::fs::chown(mirror.key(), Some(0), Some(NOBODY)).unwrap();
    fs::set_permissions(mirror.key(), fs::Permissions::from_mode(0o440)).unwrap();
    let said = refusal(command.args(["--user", "daemon"]));
    assert!(said.contains("cannot become") && said.contains("start as root"), "{said}");
}

/// Waits until a file contains a text so many times.
fn wait_for_lines(path: &Path, text: &str, count: usize) {
    let found = || fs::read_to_string(path).unwrap_or_default().matches(text).count() >= count;
    assert!(eventually(PATIENCE, found), "{text:?} in {}: {:?}", path.display(), fs::read_to_string(path));
}

#[test]
fn the_log_is_rotated_after_privileges_are_given_up() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    for (user, owner) in [(None, 0), (Some("nobody"), NOBODY)] {
        let directory = tempfile::tempdir().unwrap();
        let [log, first, second] = ["log", "log.1", "log.2"].map(|name| directory.path().join(name));
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = mirror.intercept_on(&lab.target).unwrap();
        command.arg("-l").arg(&log).args(user.iter().flat_map(|user| ["--user", user]));
        let program = Program::start("intercept", &mut command).unwrap();
        wait_for_lines(&log, "ready", 1);
        assert_eq!(fs::metadata(&log).unwrap().uid(), owner, "the log is not its user's");
        // Without moving it first, as after a rotation by copying.
        program.signal(Signal::HUP).unwrap();
        wait_for_lines(&log, "opened the log file again", 1);
        fs::rename(&log, &first).unwrap();
        program.signal(Signal::HUP).unwrap();
        if user.is_some() {
            // Its directory is root's: whoever rotates must make the file, and the start has said so.
            wait_for_lines(&first, "the log stays in the file that is open", 1);
            wait_for_lines(&first, "may not write to the directory", 1);
            // As `create 0640 USER` of logrotate does.
            fs::write(&log, "").unwrap();
            fs::set_permissions(&log, fs::Permissions::from_mode(0o640)).unwrap();
            std::os::unix::fs::chown(&log, Some(owner), None).unwrap();
            program.signal(Signal::HUP).unwrap();
        }
        wait_for_lines(&log, "opened the log file again", 1);
        // Somebody who may write to the directory puts a link there: it is not followed, and the log goes on.
        fs::rename(&log, &second).unwrap();
        fs::write(directory.path().join("victim"), "precious").unwrap();
        symlink(directory.path().join("victim"), &log).unwrap();
        program.signal(Signal::HUP).unwrap();
        wait_for_lines(&second, "it is a symbolic link", 1);
        program.stop().unwrap();
        wait_for_lines(&second, "stopping", 1);
        assert_eq!(fs::read_to_string(directory.path().join("victim")).unwrap(), "precious");
    }
}
