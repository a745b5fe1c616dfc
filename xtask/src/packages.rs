//! Debian packages that the laboratory and the end-to-end tests use.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path, process::Command};

use anyhow::{Context as _, bail};

use crate::shell::{self, step};

/// What the packages are for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// Namespaces only.
    Demo,
    /// Real servers and clients too.
    Test,
    /// A compiler for libFuzzer, and nothing else.
    Fuzz,
    /// An emulator, and what makes a guest for it; namespaces too, as they are made in the guest.
    Kernels,
}

impl Purpose {
    /// Returns whether what is needed for `other` is needed for this.
    fn includes(self, other: Self) -> bool {
        self == other || (other == Self::Demo && matches!(self, Self::Test | Self::Kernels))
    }
}

/// A program, the package that has it, and what for.
const PROGRAMS: &[(&str, &str, Purpose)] = &[
    ("ip", "iproute2", Purpose::Demo),
    ("tc", "iproute2", Purpose::Demo),
    ("nginx", "nginx-light", Purpose::Test),
    ("apache2", "apache2", Purpose::Test),
    ("redis-server", "redis-server", Purpose::Test),
    ("redis-cli", "redis-tools", Purpose::Test),
    ("redis-benchmark", "redis-tools", Purpose::Test),
    ("curl", "curl", Purpose::Test),
    ("memcached", "memcached", Purpose::Test),
    ("python3", "python3", Purpose::Test),
    ("h2load", "nghttp2-client", Purpose::Test),
    ("websocketd", "websocketd", Purpose::Test),
    ("pgbench", "postgresql", Purpose::Test),
    ("c++", "g++", Purpose::Fuzz),
    ("qemu-system-x86_64", "qemu-system-x86", Purpose::Kernels),
    ("busybox", "busybox-static", Purpose::Kernels),
    ("cpio", "cpio", Purpose::Kernels),
    ("depmod", "kmod", Purpose::Kernels),
    ("xz", "xz-utils", Purpose::Kernels),
    ("zstd", "zstd", Purpose::Kernels),
    ("strip", "binutils", Purpose::Kernels),
];

/// The distribution's Python, which has the modules of its packages; another that comes first in `PATH` has not.
const PYTHON: &str = "/usr/bin/python3";

/// A module of Python, the package that has it, and what for.
const MODULES: &[(&str, &str, Purpose)] = &[("grpc", "python3-grpcio", Purpose::Test)];

/// Installs the packages whose programs or modules are missing.
pub fn install(purpose: Purpose) -> anyhow::Result<()> {
    let has = |module: &str| shell::output(Command::new(PYTHON).args(["-c", &format!("import {module}")])).is_ok();
    let programs =
        PROGRAMS.iter().filter(|(program, _, needed)| purpose.includes(*needed) && shell::find(program).is_none());
    let modules = MODULES.iter().filter(|(module, _, needed)| purpose.includes(*needed) && !has(module));
    let mut missing: Vec<&str> = programs.chain(modules).map(|(_, package, _)| *package).collect();
    missing.dedup();
    if missing.is_empty() {
        return Ok(());
    }
    let list = missing.join(" ");
    if shell::find("apt-get").is_none() {
        bail!("these programs are missing and there is no apt-get here: install what Debian calls `{list}`");
    }
    if !shell::is_root() && shell::output(Command::new("sudo").args(["-n", "true"])).is_err() {
        bail!("these packages are missing, and installing them needs root:\n    sudo apt-get install {list}");
    }
    let _no_daemons = NoDaemons::new()?;
    step("reading the lists of Debian packages", shell::as_root("apt-get").args(["-qq", "update"]))?;
    step(
        &format!("installing the Debian packages {list} (their daemons are not started)"),
        shell::as_root("env")
            .args(["DEBIAN_FRONTEND=noninteractive", "RUNLEVEL=1", "apt-get", "-qq", "--no-install-recommends"])
            .args(["install", "-y"])
            .args(&missing),
    )
}

/// While it lives, packages that are installed do not start their daemons: the laboratory starts its own.
struct NoDaemons {
    ours: bool,
}

impl NoDaemons {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn new() -> anyhow::Result<Self> {
        // A policy that is there is somebody's decision. Without root we cannot write one; RUNLEVEL=1 then does what it
        // can.
        if Path::new(Self::POLICY).exists() || !shell::is_root() {
            return Ok(Self { ours: false });
        }
        fs::write(Self::POLICY, "#!/bin/sh\n# Written by `cargo xtask setup`, and removed at its end.\nexit 101\n")
            .and_then(|()| fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("cannot write {} to keep daemons from starting", Self::POLICY))?;
        Ok(Self { ours: true })
    }
}

impl Drop for NoDaemons {
    fn drop(&mut self) {
        if self.ours && fs::remove_file(Self::POLICY).is_err() {
            eprintln!("set-up: remove {} by hand, or no daemon will start on installation", Self::POLICY);
        }
    }
}
