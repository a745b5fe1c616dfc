//! What has to be on the machine before the eBPF programs can be built: the nightly toolchain with the sources of the
//! standard library, and a bpf-linker that speaks the LLVM of that nightly.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, bail};

use crate::{
    packages::{self, Purpose},
    shell::{self, step},
};

/// The release that deny.toml is written for.
const CARGO_DENY: &str = "0.20.2";
/// The release that was tried with this workspace.
const BPF_LINKER: &str = "0.10.4";
/// The LLVM versions that it can be built for.
const BPF_LINKER_LLVM: std::ops::RangeInclusive<u32> = 20..=22;

/// Runs `cargo xtask setup`.
pub fn everything() -> anyhow::Result<()> {
    toolchain()?;
    packages::install(Purpose::Test)?;
    packages::install(Purpose::Fuzz)?;
    packages::install(Purpose::Kernels)?;
    println!("set-up complete: `cargo xtask demo` shows tcpcopy at work, `cargo xtask test` tests it");
    Ok(())
}

/// Installs what building needs. Takes some tenths of a second when nothing is missing.
pub fn toolchain() -> anyhow::Result<()> {
    if shell::find("rustup").is_none() {
        bail!(
            "rustup is missing, and the eBPF programs need a nightly toolchain beside the stable one: install rustup \
             as https://rustup.rs says"
        );
    }
    let nightly = shell::nightly_toolchain();
    let sysroot = match shell::output(shell::nightly("rustc").args(["--print", "sysroot"])) {
        Ok(sysroot) => sysroot,
        Err(_) => {
            step(
                &format!("installing the toolchain {nightly}, which builds the eBPF programs"),
                Command::new("rustup")
                    .args(["toolchain", "install", nightly, "--profile", "minimal"])
                    .args(["--component", "rust-src"]),
            )?;
            shell::output(shell::nightly("rustc").args(["--print", "sysroot"]))?
        }
    };
    let sources = PathBuf::from(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs");
    if !sources.exists() {
        step(
            "installing the sources of the standard library for the nightly toolchain (core is built for the BPF \
             target)",
            Command::new("rustup").args(["component", "add", "rust-src", "--toolchain", nightly]),
        )?;
    }
    bpf_linker()
}

/// Installs clippy, rustfmt and cargo-deny where they are missing.
pub fn lint_tools() -> anyhow::Result<()> {
    for (component, probe) in [("rustfmt", "fmt"), ("clippy", "clippy")] {
        if shell::output(shell::cargo().args([probe, "--version"])).is_err() {
            step(&format!("installing {component}"), Command::new("rustup").args(["component", "add", component]))?;
        }
    }
    if shell::output(shell::nightly("cargo").args(["clippy", "--version"])).is_err() {
        let nightly = shell::nightly_toolchain();
        step(
            &format!("installing clippy of the toolchain {nightly}"),
            Command::new("rustup").args(["component", "add", "clippy", "--toolchain", nightly]),
        )?;
    }
    // Any release will do that the machine has: the format of deny.toml rarely changes, and a build takes minutes.
    if shell::output(shell::cargo().args(["deny", "--version"])).is_err() {
        step(
            "building cargo-deny, which judges dependencies; it takes some minutes, once",
            // Not optimised: it judges in three seconds all the same.
            shell::cargo().args(["install", "cargo-deny", "--version", CARGO_DENY, "--locked", "--debug"]),
        )?;
    }
    Ok(())
}

fn bpf_linker() -> anyhow::Result<()> {
    let llvm = llvm_of_nightly()?;
    let complaint = match shell::find("bpf-linker") {
        None => "bpf-linker, which links the eBPF programs, is missing".to_owned(),
        Some(_) => match link_probe() {
            Ok(()) => return Ok(()),
            Err(error) => format!("the bpf-linker that is installed cannot link for the nightly toolchain ({error})"),
        },
    };
    if !BPF_LINKER_LLVM.contains(&llvm) {
        bail!(
            "{complaint}, and bpf-linker {BPF_LINKER} cannot be built for LLVM {llvm} of {}: name another toolchain in \
             tcpcopy-ebpf/rust-toolchain.toml, or another bpf-linker in xtask/src/setup.rs",
            shell::nightly_toolchain()
        );
    }
    step(
        &format!("{complaint}; building it for LLVM {llvm}, which takes some minutes, once"),
        shell::nightly("cargo").args(["install", "bpf-linker", "--version", BPF_LINKER, "--locked", "--force"]).args([
            "--no-default-features",
            "--features",
            &format!("rust-llvm-{llvm}"),
        ]),
    )?;
    link_probe().context(
        "bpf-linker was installed, but cannot link: is ~/.cargo/bin before other places in PATH (`which -a \
         bpf-linker`)?",
    )
}

/// Returns the major version of the LLVM that the nightly compiler contains.
fn llvm_of_nightly() -> anyhow::Result<u32> {
    let version = shell::output(shell::nightly("rustc").arg("-vV"))?;
    version
        .lines()
        .find_map(|line| line.strip_prefix("LLVM version: "))
        .and_then(|v| v.split('.').next())
        .and_then(|major| major.parse().ok())
        .with_context(|| format!("`rustc -vV` of the nightly toolchain does not tell its LLVM version:\n{version}"))
}

/// Links a function of one instruction, as the version alone does not tell which LLVM a linker was built for.
fn link_probe() -> anyhow::Result<()> {
    let directory = shell::target_dir().join("xtask");
    fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
    let (input, object) = (directory.join("probe.ll"), directory.join("probe.o"));
    fs::write(&input, "target triple = \"bpfel\"\ndefine i64 @probe() {\n  ret i64 0\n}\n")?;
    shell::output(
        shell::nightly("bpf-linker")
            .args(["--target", "bpfel", "--export", "probe", "--emit", "obj", "-o"])
            .args([&object, &input]),
    )?;
    Ok(())
}
