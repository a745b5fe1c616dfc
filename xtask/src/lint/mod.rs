//! `cargo xtask lint`

mod imports;
mod source;
mod walls;

use crate::{setup, shell};

/// Crates that others link: what is public there but cannot be reached is hidden from the lint that finds dead code.
const LIBRARIES: [&str; 5] = ["tcpcopy", "tcpcopy-common", "tcpcopy-ebpf", "tcpcopy-replay", "tcpcopy-wire"];
/// Crates that read or build packets, where a cast that loses bits is a bug until it is argued.
const PACKETS: [&str; 2] = ["tcpcopy-common", "tcpcopy-wire"];
const LOSSY_CASTS: [&str; 2] = ["clippy::cast_possible_truncation", "clippy::cast_sign_loss"];

/// Formatting, then clippy for user space, then clippy for the eBPF programs as they are really compiled.
pub fn run() -> anyhow::Result<()> {
    setup::toolchain()?;
    setup::lint_tools()?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    walls::check()?;
    shell::run(
        shell::cargo()
            .args(["clippy", "--workspace", "--exclude", "tcpcopy-ebpf", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    strictly(&LIBRARIES, &["unreachable_pub"])?;
    strictly(&PACKETS, &LOSSY_CASTS)?;
    shell::run(
        shell::nightly("cargo")
            .args(["clippy", "--package", "tcpcopy-ebpf", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .args(["--", "--deny", "warnings"]),
    )?;
    println!("lint: clean");
    Ok(())
}

/// Holds libraries to lints that the rest of the workspace need not keep.
fn strictly(packages: &[&str], lints: &[&str]) -> anyhow::Result<()> {
    let packages = packages.iter().flat_map(|name| ["--package", name]);
    let lints = lints.iter().flat_map(|lint| ["--deny", lint]);
    shell::run(shell::cargo().arg("clippy").args(packages).args(["--lib", "--no-deps", "--"]).args(lints))
}
