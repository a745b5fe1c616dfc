//! `cargo xtask build`

use std::path::PathBuf;

use crate::{setup, shell};

/// Builds both programs, optimised.
pub fn release() -> anyhow::Result<()> {
    setup::toolchain()?;
    shell::run(shell::cargo().args(["build", "--release", "--package", "tcpcopy", "--bins"]))?;
    println!("built {} and {}", program("tcpcopy").display(), program("intercept").display());
    Ok(())
}

/// Returns where [`release`] puts a program.
pub fn program(name: &str) -> PathBuf {
    shell::target_dir().join("release").join(name)
}
