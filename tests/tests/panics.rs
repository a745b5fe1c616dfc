//! A panic, which is a bug, ends both programs like SIGTERM: no session is left behind, and no answer reaches a client.

use std::process::Command;

use lab::{
    Family, Lab, Mirror, MirrorOptions, PATIENCE, Program, eventually,
    http::{Limit, Load, RunningLoad, Server},
    laboratory,
    mirror::{LIVE_PORT, TARGET_PORT},
};
use rustix::process::Signal;

/// Names the thread that panics at SIGUSR2.
const PROVOKED: &str = "TCPCOPY_TEST_PANIC";

/// Keeps connections of both families, and so sessions, open; so slowly that every thread sleeps now and then, where it
/// panics.
struct Loads([RunningLoad; 2]);

impl Loads {
    fn start(lab: &Lab) -> Self {
        Self(Family::BOTH.map(|family| {
            let keep_alive = Load::keep_alive(lab.source.socket(family, LIVE_PORT), 4, Limit::Stopped);
            Load { rate: Some(50), ..keep_alive }.start(&lab.client).unwrap()
        }))
    }

    fn go_on(&self) {
        self.0.iter().for_each(|load| load.wait_for_answers(50).unwrap());
    }

    fn stop(self, thread: &str) {
        self.0.into_iter().for_each(|load| assert_eq!(load.stop().unwrap().failed.first(), None, "{thread}"));
    }
}

fn start(name: &str, mut command: Command, thread: &str) -> Program {
    let program = Program::start(name, command.env(PROVOKED, thread)).unwrap();
    program.wait_ready().unwrap();
    program
}

/// Makes the thread panic; the program must end by itself, with an error that says so.
fn panic(program: Program, thread: &str) {
    program.signal(Signal::USR2).unwrap();
    let ended = program.wait(PATIENCE).unwrap();
    assert_eq!(ended.status.code(), Some(1), "{thread}: {}", ended.stderr);
    assert!(ended.stderr.contains(&format!("the thread {thread} panicked at ")), "{thread}: {}", ended.stderr);
    assert!(ended.stderr.contains(&format!("error: the thread {thread} panicked")), "{thread}: {}", ended.stderr);
    assert!(ended.stdout.contains("duration"), "{thread}: no figures\n{}", ended.stdout);
}

fn open_at_target(lab: &Lab) -> usize {
    lab.target.connections(TARGET_PORT).unwrap()
}

#[test]
fn nothing_leaks_whichever_thread_of_intercept_panics() {
    let _guard = laboratory!();
    for thread in ["reporter", "reaper", "main"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
        let intercept = start("intercept", mirror.intercept_command().unwrap(), thread);
        mirror.start_tcpcopy().unwrap();
        let loads = Loads::start(&lab);
        loads.go_on();
        assert!(eventually(PATIENCE, || open_at_target(&lab) >= 8), "{thread}: no sessions");
        panic(intercept, thread);
        assert_eq!(open_at_target(&lab), 0, "{thread}: sockets are left");
        loads.go_on();
        loads.stop(thread);
        // Sockets that were left would say goodbye to the clients.
        drop(target);
        mirror.stop().unwrap().assert_no_leak();
    }
}

#[test]
fn whichever_thread_of_tcpcopy_panics_its_sessions_end_and_the_live_side_goes_on() {
    let _guard = laboratory!();
    for thread in ["worker-0", "main"] {
        let lab = Lab::bridge().unwrap();
        let _source = Server::start(&lab.source, LIVE_PORT).unwrap();
        let _target = Server::start(&lab.target, TARGET_PORT).unwrap();
        let mut mirror = Mirror::prepare(&lab, MirrorOptions::default()).unwrap();
        mirror.start_intercept().unwrap();
        let tcpcopy = start("tcpcopy", mirror.tcpcopy_command(&lab.source).unwrap(), thread);
        let loads = Loads::start(&lab);
        loads.go_on();
        assert!(eventually(PATIENCE, || open_at_target(&lab) >= 8), "{thread}: no sessions");
        panic(tcpcopy, thread);
        // Those of a worker that cannot reset them are destroyed by intercept, ten seconds after it was lost.
        assert!(eventually(PATIENCE, || open_at_target(&lab) == 0), "{thread}: sessions are left");
        loads.go_on();
        loads.stop(thread);
        mirror.stop().unwrap().assert_no_leak();
    }
}
