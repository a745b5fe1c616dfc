//! `cargo xtask lint`

mod docs;
mod imports;
mod source;
mod walls;

use crate::{setup, shell};

/// Crates that others link: what is public there but cannot be reached is hidden from the lint that finds dead code.
const LIBRARIES: [&str; 5] = ["tcpcopy", "tcpcopy-common", "tcpcopy-ebpf", "tcpcopy-replay", "tcpcopy-wire"];
/// Crates that read or build packets, where a cast that loses bits is a bug until it is argued.
const PACKETS: [&str; 2] = ["tcpcopy-common", "tcpcopy-wire"];
const LOSSY_CASTS: [&str; 2] = ["clippy::cast_possible_truncation", "clippy::cast_sign_loss"];

/// Formatting and what may need what, then clippy for user space, then clippy for the eBPF programs as they are really
/// compiled, then what is linked.
pub fn run() -> anyhow::Result<()> {
    setup::toolchain()?;
    setup::lint_tools()?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    walls::check()?;
    docs::check()?;
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
    dependencies()?;
    println!("lint: clean");
    Ok(())
}

/// Holds libraries to lints that the rest of the workspace need not keep.
fn strictly(packages: &[&str], lints: &[&str]) -> anyhow::Result<()> {
    let packages = packages.iter().flat_map(|name| ["--package", name]);
    let lints = lints.iter().flat_map(|lint| ["--deny", lint]);
    shell::run(shell::cargo().arg("clippy").args(packages).args(["--lib", "--no-deps", "--"]).args(lints))
}

/// Licences, sources and duplicates of what is linked (deny.toml), and known vulnerabilities as far as they can be had.
fn dependencies() -> anyhow::Result<()> {
    shell::run(shell::cargo().args(["deny", "check", "bans", "licenses", "sources"]))?;
    // Without a network there is nothing to compare with; that is no fault of the change that is judged.
    if let Err(error) = shell::output(shell::cargo().args(["deny", "fetch", "db"])) {
        let why = format!("{error:#}");
        let why = why.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
        eprintln!("lint: KNOWN VULNERABILITIES WERE NOT LOOKED FOR: the advisory database cannot be fetched: {why}");
        return Ok(());
    }
    shell::run(shell::cargo().args(["deny", "check", "--disable-fetch", "advisories"]))
}
