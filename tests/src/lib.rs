//! A laboratory of network namespaces for tcpcopy: hosts on a network of their own, real and embedded servers, clients,
//! sniffers, and the programs under test. The end-to-end tests, the demo and the benchmark use it.
//!
//! Start at [`Lab`], which builds the hosts and the network between them, then [`Mirror`], which runs `intercept` and
//! `tcpcopy` in it. Everything is taken down in `Drop`.

pub mod bad_path;
pub mod capture;
pub mod host;
pub mod http;
pub mod mirror;
pub mod namespace;
pub mod program;
pub mod servers;
pub mod streams;
pub mod topology;
pub mod traces;
mod wait;

pub use host::{Family, Host};
pub use mirror::{Mirror, MirrorOptions};
pub use program::{Program, Summary};
pub use topology::{Lab, Options, Shape};
pub use wait::{eventually, monotonic_ns};

/// Leaves a test with a loud SKIP when it cannot run here; otherwise keeps other tests of this process waiting until the
/// returned guard is dropped, because each loads the whole machine.
#[macro_export]
macro_rules! laboratory {
    () => {
        match $crate::may_run() {
            Ok(guard) => guard,
            Err(reason) => {
                $crate::skip(std::thread::current().name().unwrap_or(module_path!()), &reason);
                return;
            }
        }
    };
}

static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// Whether namespaces can be made here; if so, the right to be the only test that runs. Use [`laboratory!`].
pub fn may_run() -> Result<std::sync::MutexGuard<'static, ()>, String> {
    if !rustix::process::geteuid().is_root() {
        return Err("network namespaces need root".into());
    }
    // A test that failed poisons the lock; the next one builds a laboratory of its own.
    Ok(ONE_AT_A_TIME.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
}

/// Says on a line of its own, past the test harness's capturing, that a test did not run.
pub fn skip(test: &str, reason: &str) {
    use std::io::Write as _;
    // Nobody is left to be told when standard output is gone.
    let _ = writeln!(std::io::stdout(), "\nSKIP {test}: {reason}");
}
