//! Builds the eBPF object for [`tcpcopy::bpf`] with the nightly toolchain.

use anyhow::Context as _;
use aya_build::Toolchain;

fn main() -> anyhow::Result<()> {
    // aya-build watches the programs' crate, but not what that depends on.
    println!("cargo:rerun-if-changed=../tcpcopy-common");
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
