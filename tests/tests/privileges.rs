//! What the programs do with the privileges that they are given: the files that they write, and what they keep.

use std::{
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program,
    http::{Client, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};

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
        (at("second name"), "2 names"),
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
        assert!(lab::eventually(PATIENCE, ready), "the log is not appended to");
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
    program.signal(rustix::process::Signal::TERM).unwrap();
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
