//! What runs in a guest: binaries of this machine with their libraries, and the kernel's modules.

use std::{
    collections::HashMap,
    fs,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};

use super::{
    archive::Kernel,
    programs::{Programs, directory},
};
use crate::shell;

/// What the laboratory and the programs need of a kernel. What is built in is not in `modules.dep`, and needs no
/// loading.
const MODULES: &[&str] =
    &["af_packet", "ipv6", "veth", "bridge", "sch_ingress", "cls_bpf", "inet_diag", "tcp_diag", "sch_fq"];

/// The part that all guests share.
pub struct Root {
    archive: PathBuf,
}

impl Root {
    /// Packs the programs, and what they and the first process need of this machine.
    pub fn build(programs: &Programs) -> anyhow::Result<Self> {
        let root = directory().join("root");
        empty(&root)?;
        for part in ["bin", "programs", "proc", "sys", "dev", "tmp", "run"] {
            fs::create_dir(root.join(part)).with_context(|| format!("cannot create {part} in {}", root.display()))?;
        }
        for name in ["busybox", "ip"] {
            let program = shell::find(name).with_context(|| format!("`{name}` is missing"))?;
            install(&program, &root, &format!("bin/{name}"))?;
        }
        let applets = shell::output(Command::new(root.join("bin/busybox")).arg("--list"))?;
        for applet in applets.lines().filter(|applet| !root.join("bin").join(applet).exists()) {
            symlink("busybox", root.join("bin").join(applet)).with_context(|| format!("cannot link {applet}"))?;
        }
        install(&programs.tests, &root, "programs/tests")?;
        for program in &programs.others {
            let name = program.file_name().context("a program without a name")?.to_string_lossy();
            install(program, &root, &format!("programs/{name}"))?;
        }
        let init = root.join("init");
        fs::write(&init, include_str!("init.sh")).with_context(|| format!("cannot write {}", init.display()))?;
        fs::set_permissions(&init, fs::Permissions::from_mode(0o755))?;
        let archive = directory().join("root.cpio");
        pack(&root, &archive)?;
        Ok(Self { archive })
    }

    /// Makes the initramfs for one kernel: the shared part, then its modules.
    pub fn with_modules_of(&self, kernel: &Kernel) -> anyhow::Result<PathBuf> {
        let tree = kernel.directory.join("guest");
        empty(&tree)?;
        let modules = tree.join("modules");
        fs::create_dir(&modules)?;
        let list = kernel.modules.join("modules.dep");
        let list = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let mut order = String::new();
        for path in in_order(&list, MODULES) {
            let name = name(path);
            fs::write(modules.join(&name), decompressed(&kernel.modules.join(path))?)?;
            order.push_str(&name);
            order.push('\n');
        }
        fs::write(modules.join("order"), order)?;
        let own = kernel.directory.join("modules.cpio");
        pack(&tree, &own)?;
        let initramfs = kernel.directory.join("initramfs");
        // The kernel unpacks one archive after the other.
        let both = [fs::read(&self.archive)?, fs::read(&own)?].concat();
        fs::write(&initramfs, both).with_context(|| format!("cannot write {}", initramfs.display()))?;
        Ok(initramfs)
    }
}

/// Makes a directory, without what may have been in it.
fn empty(directory: &Path) -> anyhow::Result<()> {
    if directory.exists() {
        fs::remove_dir_all(directory).with_context(|| format!("cannot empty {}", directory.display()))?;
    }
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))
}

/// Copies a program, without what only a debugger reads, and the libraries that it asks for.
fn install(program: &Path, root: &Path, to: &str) -> anyhow::Result<()> {
    let to = root.join(to);
    fs::copy(program, &to).with_context(|| format!("cannot copy {} to {}", program.display(), to.display()))?;
    shell::output(Command::new("strip").arg("--strip-debug").arg(&to))?;
    // A static program is none that ldd understands.
    let libraries = shell::output(Command::new("ldd").arg(program)).unwrap_or_default();
    for library in libraries.split_whitespace().filter(|word| word.starts_with('/')) {
        let to = root.join(&library[1..]);
        if !to.exists() {
            fs::create_dir_all(to.parent().context("a library without a directory")?)?;
            fs::copy(library, &to).with_context(|| format!("cannot copy {library}"))?;
        }
    }
    Ok(())
}

/// Packs a directory in the format that the kernel unpacks.
fn pack(directory: &Path, archive: &Path) -> anyhow::Result<()> {
    let pack = "find . | cpio --quiet --create --format=newc --owner=0:0 > \"$0\"";
    shell::output(Command::new("sh").args(["-c", pack]).arg(archive).current_dir(directory))?;
    Ok(())
}

/// Returns the files of these modules and of all that they depend on, as `modules.dep` names them, each behind what it
/// depends on.
fn in_order<'a>(modules_dep: &'a str, wanted: &[&str]) -> Vec<&'a str> {
    let lines = modules_dep.lines().filter_map(|line| line.split_once(':'));
    let known: HashMap<String, (&str, &str)> = lines.map(|(path, needs)| (name(path), (path, needs))).collect();
    let mut order = Vec::new();
    for (path, needs) in wanted.iter().filter_map(|wanted| known.get(&format!("{wanted}.ko"))) {
        // The list is complete, and what must come first stands last.
        for path in needs.split_whitespace().rev().chain([*path]) {
            if !order.contains(&path) {
                order.push(path);
            }
        }
    }
    order
}

/// Returns the file name of a module, without the suffix of its compression.
fn name(path: &str) -> String {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.split_once(".ko").map_or_else(|| name.to_owned(), |(stem, _)| format!("{}.ko", stem.replace('-', "_")))
}

fn decompressed(module: &Path) -> anyhow::Result<Vec<u8>> {
    let decompressor = match module.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return fs::read(module).with_context(|| format!("cannot read {}", module.display())),
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => bail!("{} is compressed in an unknown way", module.display()),
    };
    let output = Command::new(decompressor).arg("-dc").arg(module).output();
    let output = output.with_context(|| format!("could not start `{decompressor}`"))?;
    anyhow::ensure!(output.status.success(), "`{decompressor}` cannot read {}", module.display());
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_comes_behind_what_it_depends_on_and_once() {
        let list = "kernel/net/802/stp.ko.xz: kernel/net/llc/llc.ko.xz\n\
                    kernel/net/llc/llc.ko.xz:\n\
                    kernel/net/bridge/br_netfilter.ko.xz: kernel/net/bridge/bridge.ko.xz kernel/net/802/stp.ko.xz\n\
                    kernel/net/bridge/bridge.ko.xz: kernel/net/802/stp.ko.xz kernel/net/llc/llc.ko.xz\n\
                    kernel/net/sched/sch-x.ko.xz: kernel/net/llc/llc.ko.xz\n";
        let order = in_order(list, &["bridge", "sch_x", "built_in"]);
        let names: Vec<String> = order.into_iter().map(name).collect();
        assert_eq!(names, ["llc.ko", "stp.ko", "bridge.ko", "sch_x.ko"]);
    }
}
