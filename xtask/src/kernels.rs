//! `cargo xtask test --kernels`: the programs on Debian's kernels, each booted in an emulator.
//!
//! What the verifier of one kernel accepts, that of an older or a newer one may refuse. [`archive`] fetches the kernels
//! with apt, in a state directory of its own; [`initramfs`] packs what runs in the guest, from this machine's own
//! binaries; [`guest`] boots it in QEMU without KVM, and reads what it says; [`table`] shows it all.

mod archive;
mod guest;
mod initramfs;
mod programs;
mod series;
mod table;

use std::thread;

use self::{
    archive::Archive,
    guest::Transcript,
    initramfs::Root,
    programs::{Programs, directory},
};
pub use self::{
    archive::Kernel,
    series::{USUAL, Wanted},
};
use crate::packages;

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

/// Boots these kernels and returns what their guests say, which run at the same time.
fn boot(kernels: &[Kernel], root: &Root) -> anyhow::Result<Vec<Transcript>> {
    let boot = &|kernel| guest::run(kernel, &root.with_modules_of(kernel)?);
    thread::scope(|scope| {
        let guests: Vec<_> = kernels.iter().map(|kernel| scope.spawn(move || boot(kernel))).collect();
        let said = guests.into_iter().map(|guest| guest.join().map_err(|_| anyhow::anyhow!("a thread panicked"))?);
        said.collect()
    })
}

/// Returns the kernels that are wanted, fetched if they are not here yet.
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
