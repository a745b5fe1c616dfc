//! `cargo xtask test --kernels`: the programs on Debian's kernels, each booted in an emulator.
//!
//! What the verifier of one kernel accepts, that of an older or a newer one may refuse. [`archive`] fetches the kernels
//! with apt, in a state directory of its own; [`initramfs`] packs what runs in the guest, from this machine's own
//! binaries; [`guest`] boots it in QEMU without KVM, and reads what it says; [`table`] shows it all.

mod archive;
mod guest;
mod initramfs;
mod series;
mod table;

use std::{path::PathBuf, process::Stdio, thread};

use anyhow::Context as _;

use self::{archive::Archive, guest::Transcript, initramfs::Root};
pub use self::{
    archive::Kernel,
    series::{USUAL, Wanted},
};
use crate::{build, packages, setup, shell};

/// What a test on one kernel came to: how it is called, and why it failed.
pub struct Outcome {
    /// Unique in a run.
    pub name: String,
    /// `None` when it passed.
    pub failure: Option<String>,
}

/// One kernel and what its guest said.
struct Trial {
    /// The upstream version, such as "6.1.192".
    version: String,
    transcript: Transcript,
}

/// What runs in the guests.
struct Programs {
    /// The unit tests of the library, among them those that load each program.
    tests: PathBuf,
    /// The demo and both programs under test.
    others: [PathBuf; 3],
}

/// Runs the tests on these kernels. Hands each outcome to `report`, then shows the table.
///
/// # Errors
/// When a guest cannot be made: not when a test in it fails.
pub fn run(kernels: &[Kernel], mut report: impl FnMut(Outcome)) -> anyhow::Result<()> {
    let root = Root::build(&Programs::build()?)?;
    let mut trials = Vec::new();
    // An emulator has one thread.
    for at_once in kernels.chunks(thread::available_parallelism().map_or(1, usize::from)) {
        for (kernel, transcript) in at_once.iter().zip(boot(at_once, &root)?) {
            for (test, failure) in [
                ("all programs load", transcript.loading_failure()),
                ("what is mirrored arrives", transcript.mirror_failure()),
            ] {
                report(Outcome { name: format!("kernel {}: {test}", kernel.version), failure });
            }
            trials.push(Trial { version: kernel.version.clone(), transcript });
        }
    }
    print!("\n{}", table::render(&trials));
    Ok(())
}

/// What the guests of these kernels say, which run at the same time.
fn boot(kernels: &[Kernel], root: &Root) -> anyhow::Result<Vec<Transcript>> {
    let boot = &|kernel| guest::run(kernel, &root.with_modules_of(kernel)?);
    thread::scope(|scope| {
        let guests: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || boot(kernel))).collect();
        let said = guests.into_iter().map(|guest| guest.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        said.collect()
    })
}

/// The kernels that are wanted, fetched if they are not here yet.
///
/// # Errors
/// When they are not to be had here: without a network, say.
pub fn fetch(wanted: &Wanted) -> anyhow::Result<Vec<Kernel>> {
    anyhow::ensure!(
        cfg!(target_arch = "x86_64"),
        "the guests run this machine's binaries, and are made for x86-64 only"
    );
    packages::install(packages::Purpose::Kernels)?;
    let archive = Archive::open(directory())?;
    wanted.series().map(|series| archive.kernel(series)).collect()
}

/// Everything of this module is below it.
fn directory() -> PathBuf {
    shell::target_dir().join("kernels")
}

impl Programs {
    fn build() -> anyhow::Result<Self> {
        setup::toolchain()?;
        let mut command = shell::cargo();
        command.args(["test", "--package", "tcpcopy", "--lib", "--no-run"]);
        command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
        eprintln!("$ {}", shell::shown(&command));
        let messages = shell::output(&mut command)?;
        let tests = executable(&messages).context("cargo does not tell where it has put the unit tests")?;
        let names = ["tcpcopy", "intercept", "demo"];
        shell::run(
            shell::cargo()
                .args(["build", "--release", "--package", "tcpcopy", "--package", "lab"])
                .args(names.iter().flat_map(|name| ["--bin", name])),
        )?;
        Ok(Self { tests, others: names.map(build::program) })
    }
}

/// The executable that cargo names in its messages, one JSON object a line. There is one at most.
fn executable(messages: &str) -> Option<PathBuf> {
    let (_, rest) = messages.split_once("\"executable\":\"")?;
    let (path, _) = rest.split_once('"')?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_of_the_unit_tests_is_found_among_cargo_s_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null,\"fresh\":true}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/deps/tcpcopy-1\",\"fresh\":true}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/deps/tcpcopy-1")));
        assert_eq!(executable("{\"executable\":null}"), None);
    }
}
