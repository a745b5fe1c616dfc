//! Builds the eBPF objects for [`tcpcopy::bpf`] with the nightly toolchain of `tcpcopy-ebpf/rust-toolchain.toml`.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use aya_build::Toolchain;
use object::{
    build::elf::{Builder, SectionData},
    elf,
};

fn main() -> anyhow::Result<()> {
    // aya-build watches the programs' crate, but not what that depends on.
    println!("cargo:rerun-if-changed=../tcpcopy-common");
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let objects = ["tcpcopy-ebpf-capture", "tcpcopy-ebpf-intercept"].map(|name| out.join(name));
    // What is fuzzed loads no programs, and they take a while.
    if env::var_os("CARGO_CFG_FUZZING").is_some() {
        return objects.iter().try_for_each(|object| write(object, &[]));
    }
    aya_build::build_ebpf(
        [aya_build::Package {
            name: "tcpcopy-ebpf",
            root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/../tcpcopy-ebpf"),
            ..Default::default()
        }],
        Toolchain::Custom(toolchain()?),
    )
    .context("building the eBPF programs failed; `cargo xtask setup` installs what it needs")?;
    for object in &objects {
        let whole = fs::read(object).with_context(|| format!("cannot read {}", object.display()))?;
        let stripped = without_dwarf(&whole).context("cannot take the debug information out of an eBPF object")?;
        write(object, &stripped)?;
    }
    Ok(())
}

fn write(object: &Path, octets: &[u8]) -> anyhow::Result<()> {
    fs::write(object, octets).with_context(|| format!("cannot write {}", object.display()))
}

/// Returns the toolchain that compiles the eBPF programs.
fn toolchain() -> anyhow::Result<&'static str> {
    let file = include_str!("../tcpcopy-ebpf/rust-toolchain.toml");
    let channel = file.lines().find_map(|line| line.strip_prefix("channel = \"")?.strip_suffix('"'));
    channel.context("tcpcopy-ebpf/rust-toolchain.toml names no channel")
}

/// Returns the object without DWARF. The linker makes BTF, which the kernel wants, of it and leaves it there: four
/// fifths of what every start of the programs would otherwise read.
fn without_dwarf(object: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut whole = Builder::read(object)?;
    for section in &mut whole.sections {
        section.delete = [".debug_", ".rel.debug_"].iter().any(|dwarf| section.name.starts_with(dwarf.as_bytes()));
    }
    whole.delete_orphans();
    // LLVM keeps all names in one table, the writer those of sections in one of their own.
    for section in whole.sections.iter_mut().filter(|section| section.name.as_slice() == b".strtab") {
        section.data = SectionData::String;
    }
    let names = whole.sections.add();
    names.name = b".shstrtab".as_slice().into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
    let mut stripped = Vec::new();
    whole.write(&mut stripped)?;
    Ok(stripped)
}
