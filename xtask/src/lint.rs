//! `cargo xtask lint`

use crate::{setup, shell};

/// Formatting, then clippy for user space, then clippy for the eBPF programs as they are really compiled.
pub fn run() -> anyhow::Result<()> {
    setup::toolchain()?;
    setup::lint_components()?;
    shell::run(shell::cargo().args(["fmt", "--all", "--check"]))?;
    shell::run(
        shell::cargo()
            .args(["clippy", "--workspace", "--exclude", "tcpcopy-ebpf", "--all-targets"])
            .args(["--", "--deny", "warnings"]),
    )?;
    shell::run(
        shell::nightly("cargo")
            .args(["clippy", "--package", "tcpcopy-ebpf", "--target", "bpfel-unknown-none", "-Zbuild-std=core"])
            .args(["--", "--deny", "warnings"]),
    )?;
    println!("lint: clean");
    Ok(())
}
