//! What signals do to the programs: none of them ends one on the spot, which would let answers through to real clients.

use std::{
    fs::{self, File},
    io::{self, BufRead as _, BufReader},
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually, figure,
    http::{Client, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
    program::Ended,
    terminal::Terminal,
};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// Sessions that are open when a program ends.
const SESSIONS: usize = 50;

/// The signals that end a program, and `None`: the end of its terminal, at which the kernel sends SIGHUP.
const ENDS: [Option<Signal>; 4] = [Some(Signal::TERM), Some(Signal::INT), Some(Signal::QUIT), None];

/// A program with a terminal of its own.
struct AtTerminal(Program, Terminal);

impl AtTerminal {
    fn start(name: &str, mut command: Command) -> Self {
        let terminal = Terminal::give(&mut command).unwrap();
        Self(Program::start(name, &mut command).unwrap(), terminal)
    }

    fn stop_by(self, end: Option<Signal>) -> Ended {
        let Self(program, terminal) = self;
        match end {
            Some(signal) => program.stop_by(signal).unwrap(),
            None => {
                terminal.hang_up();
                let ended = program.wait(PATIENCE).unwrap();
                assert!(ended.status.success() && !ended.stderr.contains("ERROR"), "{}", ended.stderr);
                ended
            }
        }
    }
}

fn ask(client: &mut Client) {
    client.ask().unwrap();
}

/// Clients of both families, whose sessions are open at the target.
fn visitors(lab: &Lab, target: &Server) -> Vec<Client> {
    let servers = Family::BOTH.map(|family| lab.source.socket(family, LIVE_PORT));
    let mut clients: Vec<Client> =
        (0..SESSIONS).map(|n| Client::connect(&lab.client, servers[n % 2]).unwrap()).collect();
    clients.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(SESSIONS, PATIENCE), SESSIONS);
    assert_eq!(open_at_target(lab), SESSIONS);
    clients
}

fn open_at_target(lab: &Lab) -> usize {
    lab.target.connections(TARGET_PORT).unwrap()
}

#[test]
fn nothing_leaks_whatever_signal_ends_intercept() {
    let _guard = laboratory!();
    for signal in ENDS {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
        let intercept = AtTerminal::start("intercept", mirror.intercept_command().unwrap());
        intercept.0.wait_ready().unwrap();
        mirror.start_tcpcopy().unwrap();
        let mut clients = visitors(&lab, &target);
        let ended = intercept.stop_by(signal);
        assert!(figure(&ended.stdout, "swallowed segments") >= Some(50), "{signal:?}\n{}", ended.stdout);
        assert_eq!(open_at_target(&lab), 0, "{signal:?}: sockets are left");
        clients.iter_mut().for_each(ask);
        // Sockets that were left would say goodbye to the clients.
        drop(target);
        drop(clients);
        mirror.stop().unwrap().assert_no_leak();
    }
}

#[test]
fn whatever_signal_ends_tcpcopy_its_sessions_are_reset() {
    let _guard = laboratory!();
    for signal in ENDS {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
        mirror.start_intercept().unwrap();
        let tcpcopy = AtTerminal::start("tcpcopy", mirror.tcpcopy_command(&lab.source).unwrap());
        tcpcopy.0.wait_ready().unwrap();
        let _clients = visitors(&lab, &target);
        let ended = tcpcopy.stop_by(signal);
        assert_eq!(figure(&ended.stdout, "seen"), Some(SESSIONS as u64), "{signal:?}\n{}", ended.stdout);
        assert!(eventually(PATIENCE, || open_at_target(&lab) == 0), "{signal:?}: sessions are left");
        mirror.stop().unwrap().assert_no_leak();
    }
}

#[test]
fn the_figures_so_far_are_shown_and_the_mirror_goes_on() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::start(&lab, MirrorOptions::default()).unwrap();
    let mut clients = visitors(&lab, &target);
    // What threads have counted is published once a second.
    for (program, count) in [(mirror.tcpcopy(), "sent segments"), (mirror.intercept(), "sent")] {
        let shown = eventually(PATIENCE, || {
            program.signal(Signal::USR2).unwrap();
            program.signal(Signal::USR1).unwrap();
            figure(&program.output(), count) >= Some(SESSIONS as u64)
        });
        assert!(shown, "no {count}:\n{}\n{}", program.output(), program.log());
    }
    clients.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(2 * SESSIONS, PATIENCE), 2 * SESSIONS);
    // Programs that went on end as ever.
    let outcome = mirror.stop().unwrap();
    assert!(outcome.intercept.count("swallowed", "swallowed_segments") >= 2 * SESSIONS as u64, "{}", outcome.table);
    outcome.assert_no_leak();
}

/// With a log file, the log of a program, and where it was moved.
fn log_file(mirror: &Mirror, name: &str, mut command: Command) -> (Program, [std::path::PathBuf; 2]) {
    let path = mirror.directory().join(format!("{name}.log"));
    let moved = mirror.directory().join(format!("{name}.log.1"));
    let program = Program::start(name, command.arg("-l").arg(&path)).unwrap();
    wait_for_text(&path, "ready");
    (program, [path, moved])
}

fn wait_for_text(path: &Path, text: &str) {
    let read = || fs::read_to_string(path).unwrap_or_default();
    assert!(eventually(PATIENCE, || read().contains(text)), "no {text:?} in {}:\n{}", path.display(), read());
}

#[test]
fn with_a_log_file_a_hangup_opens_it_again() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
    let target = Server::start(&lab.target, TARGET_PORT).unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let intercept = log_file(&mirror, "intercept", mirror.intercept_command().unwrap());
    let tcpcopy = log_file(&mirror, "tcpcopy", mirror.tcpcopy_command(&lab.source).unwrap());
    let mut clients = visitors(&lab, &target);
    for (program, [path, moved]) in [&tcpcopy, &intercept] {
        fs::rename(path, moved).unwrap();
        program.signal(Signal::HUP).unwrap();
        wait_for_text(path, "opened the log file again");
    }
    clients.iter_mut().for_each(ask);
    assert_eq!(target.wait_for_requests(2 * SESSIONS, PATIENCE), 2 * SESSIONS);
    for (program, [path, moved]) in [tcpcopy, intercept] {
        let ended = program.stop().unwrap();
        assert_eq!(ended.stderr, "", "the log is not where -l says");
        wait_for_text(&path, "stopping");
        assert!(!fs::read_to_string(moved).unwrap().contains("stopping"));
        assert!(!fs::read_to_string(path).unwrap().contains("ERROR"));
    }
    mirror.stop().unwrap().assert_no_leak();
}

/// A daemon, which is not our child: killed when dropped.
struct Daemon(Pid);

impl Drop for Daemon {
    fn drop(&mut self) {
        // It has ended where all is well.
        let _ = kill_process(self.0, Signal::KILL);
    }
}

#[test]
fn a_daemon_shows_its_figures_in_its_log() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let [log, moved, pid] = ["log", "log.1", "pid"].map(|name| mirror.directory().join(name));
    let mut command = mirror.intercept_command().unwrap();
    command.arg("-d").arg("-l").arg(&log).arg("-P").arg(&pid);
    let parent = Program::start("intercept -d", &mut command).unwrap().wait(PATIENCE).unwrap();
    assert!(parent.status.success(), "{parent:?}");
    let number = fs::read_to_string(&pid).unwrap().trim().parse().unwrap();
    let daemon = Daemon(Pid::from_raw(number).unwrap());
    kill_process(daemon.0, Signal::USR1).unwrap();
    wait_for_text(&log, "swallowed segments");
    fs::rename(&log, &moved).unwrap();
    kill_process(daemon.0, Signal::HUP).unwrap();
    wait_for_text(&log, "opened the log file again");
    kill_process(daemon.0, Signal::QUIT).unwrap();
    // The end removes the process id file last.
    assert!(eventually(PATIENCE, || !pid.exists() && test_kill_process(daemon.0).is_err()), "it still runs");
    wait_for_text(&log, "swallowed segments");
}

#[test]
fn a_terminal_that_nohup_has_been_told_of_may_go() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    let mut command = mirror.intercept_command().unwrap();
    let ignore = || {
        // SAFETY: ignoring a signal touches nothing of this process's memory.
        match unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) } {
            libc::SIG_ERR => Err(io::Error::last_os_error()),
            _ => Ok(()),
        }
    };
    // SAFETY: between fork and exec only a system call is made.
    unsafe { command.pre_exec(ignore) };
    let AtTerminal(program, terminal) = AtTerminal::start("intercept", command);
    program.wait_ready().unwrap();
    terminal.hang_up();
    // The hangup is obeyed before it says so.
    program.wait_log(PATIENCE, |line| line.contains("read the key file again")).unwrap();
    assert!(program.is_running() && !program.log().contains("stopping"), "{}", program.log());
    program.stop().unwrap();
}

#[test]
fn a_hangup_that_somebody_sends_ends_no_program() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    // With a terminal that stays, and without one, as a service manager starts programs.
    let AtTerminal(program, terminal) = AtTerminal::start("intercept", mirror.intercept_command().unwrap());
    program.wait_ready().unwrap();
    program.signal(Signal::HUP).unwrap();
    program.wait_log(PATIENCE, |line| line.contains("read the key file again")).unwrap();
    AtTerminal(program, terminal).stop_by(None);

    let mut command = mirror.intercept_command().unwrap();
    let detach = || rustix::process::setsid().map(drop).map_err(io::Error::from);
    // SAFETY: between fork and exec only a system call is made.
    unsafe { command.pre_exec(detach) };
    let program = Program::start("intercept", &mut command).unwrap();
    program.wait_ready().unwrap();
    program.signal(Signal::HUP).unwrap();
    program.wait_log(PATIENCE, |line| line.contains("read the key file again")).unwrap();
    program.stop().unwrap();
}

#[test]
fn no_signal_ends_a_program_on_the_spot_before_it_is_ready() {
    let _guard = laboratory!();
    let lab = Lab::bridge().unwrap();
    let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
    mirror.start_intercept().unwrap();
    for signal in ENDS {
        // The channel is not established for as long as it is stopped.
        mirror.intercept().signal(Signal::STOP).unwrap();
        let pid = mirror.directory().join("pid");
        let mut command = mirror.tcpcopy_command(&lab.source).unwrap();
        command.arg("-P").arg(&pid);
        let AtTerminal(program, terminal) = AtTerminal::start("tcpcopy", command);
        // Whoever knows the process may signal it.
        assert!(eventually(PATIENCE, || pid.exists()), "{}", program.log());
        program.signal(Signal::USR2).unwrap();
        program.signal(Signal::USR1).unwrap();
        program.wait_output(PATIENCE, |line| line.contains("captured")).unwrap();
        match signal {
            Some(signal) => program.signal(signal).unwrap(),
            None => terminal.hang_up(),
        }
        let ended = program.wait(PATIENCE).unwrap();
        assert_eq!(ended.status.code(), Some(1), "{signal:?}: {}", ended.stderr);
        assert!(ended.stderr.contains("before it was ready"), "{}", ended.stderr);
        mirror.intercept().signal(Signal::CONT).unwrap();
    }
    // Where nothing is waited for, what was asked for meanwhile is done once it is ready.
    mirror.intercept.take().unwrap().stop().unwrap();
    for signal in ENDS {
        let pid = mirror.directory().join("pid");
        let mut command = mirror.intercept_command().unwrap();
        command.arg("-P").arg(&pid);
        let AtTerminal(program, terminal) = AtTerminal::start("intercept", command);
        assert!(eventually(PATIENCE, || pid.exists()), "{}", program.log());
        program.signal(Signal::USR2).unwrap();
        program.signal(Signal::USR1).unwrap();
        assert!(AtTerminal(program, terminal).stop_by(signal).stdout.contains("swallowed segments"));
    }
}

/// A program whose log and figures nobody takes.
struct Unheard(Child);

impl Unheard {
    /// With pipes that are read until the program is ready, and then closed.
    fn behind_pipes(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut program = Self(command.spawn().unwrap());
        let log = BufReader::new(program.0.stderr.take().unwrap());
        assert!(log.lines().any(|line| line.unwrap().contains("ready")), "it never got ready");
        drop(program.0.stdout.take());
        program
    }

    /// With a device that is always full.
    fn before_a_full_device(mut command: Command) -> Self {
        let full = || File::options().write(true).open("/dev/full").unwrap();
        Self(command.stdin(Stdio::null()).stdout(full()).stderr(full()).spawn().unwrap())
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    /// It must still run, and ends with success.
    fn stop(mut self, what: &str) {
        assert_eq!(self.0.try_wait().unwrap(), None, "{what}: it has ended by itself");
        self.signal(Signal::TERM);
        assert!(eventually(PATIENCE, || self.0.try_wait().unwrap().is_some()), "{what}: it does not end");
        let status = self.0.try_wait().unwrap().unwrap();
        assert!(status.success(), "{what}: {status}");
    }
}

impl Drop for Unheard {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A reader of standard output and standard error who goes, as `head` does, is no end; and when the end comes, the
/// figures that cannot be written change nothing about it.
#[test]
fn programs_whose_output_nobody_takes_go_on_and_end_in_good_order() {
    let _guard = laboratory!();
    for pipes in [true, false] {
        let what = |name: &str| format!("{name}, {}", if pipes { "closed pipes" } else { "a full device" });
        let start = if pipes { Unheard::behind_pipes } else { Unheard::before_a_full_device };
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mirror = Mirror::prepare(&lab, MirrorOptions { log: Some("debug"), ..MirrorOptions::default() }).unwrap();
        let intercept = start(mirror.intercept_command().unwrap());
        let tcpcopy = start(mirror.tcpcopy_command(&lab.source).unwrap());
        // Nobody hears that it is ready.
        let arrives = || {
            Client::connect(&lab.client, lab.source.socket(Family::V4, LIVE_PORT)).unwrap().ask().unwrap();
            target.count() > 0
        };
        assert!(eventually(PATIENCE, arrives), "{}: nothing is replayed", what("both"));
        assert!(eventually(PATIENCE, || open_at_target(&lab) == 0), "{}: sessions are left", what("both"));
        let before = target.count();
        let servers = Family::BOTH.map(|family| lab.source.socket(family, LIVE_PORT));
        let mut clients: Vec<Client> =
            (0..SESSIONS).map(|n| Client::connect(&lab.client, servers[n % 2]).unwrap()).collect();
        clients.iter_mut().for_each(ask);
        // Each of these is more lines.
        for program in [&tcpcopy, &intercept] {
            program.signal(Signal::USR1);
        }
        clients.iter_mut().for_each(ask);
        let expected = before + 2 * SESSIONS;
        assert_eq!(target.wait_for_requests(expected, PATIENCE), expected, "{}", what("both"));
        assert_eq!(open_at_target(&lab), SESSIONS);
        intercept.stop(&what("intercept"));
        assert_eq!(open_at_target(&lab), 0, "{}: sockets are left", what("intercept"));
        tcpcopy.stop(&what("tcpcopy"));
        clients.iter_mut().for_each(ask);
        // Sockets that were left would say goodbye to the clients.
        drop(target);
        drop(clients);
        mirror.stop().unwrap().assert_no_leak();
    }
}
