//! Builds the eBPF object for [`tcpcopy::bpf`] with the nightly toolchain.

use std::{env, fs, path::PathBuf};

use anyhow::Context as _;
use aya_build::Toolchain;

fn main() -> anyhow::Result<()> {
    // aya-build watches the programs' crate, but not what that depends on.
    println!("cargo:rerun-if-changed=../tcpcopy-common");
    // What is fuzzed loads no programs, and they take a while.
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        let object = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?).join("tcpcopy-ebpf");
        return fs::write(&object, []).with_context(|| format!("cannot write {}", object.display()));
    }
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "tcpcopy-ebpf",
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../tcpcopy-ebpf"),
            ..Default::default()
        }],
        Toolchain::default(),
    )
    .context("building the eBPF programs failed; `cargo xtask setup` installs what it needs")
}
