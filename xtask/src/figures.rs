//! `cargo xtask figures`

use crate::{setup, shell};

/// Writes docs/figures.md from the declarations of figures. A test compares the two, so it is the test that writes.
pub fn write() -> anyhow::Result<()> {
    setup::toolchain()?;
    let mut command = shell::cargo();
    command.args(["test", "--quiet", "--package", "tcpcopy", "--lib", "figures_are_documented"]);
    shell::run(command.env("TCPCOPY_WRITE_FIGURES", "1"))
}
