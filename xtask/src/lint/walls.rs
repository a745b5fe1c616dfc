//! The walls of the workspace: what the core may link, and which files may need which.

use std::path::{Path, PathBuf};

use anyhow::bail;

use super::imports::{self, Crate};
use crate::shell;

/// The crates that do no IO, each with everything that it may link. What can do IO does not belong here.
const CORE: &[(&str, &[&str])] = &[
    ("tcpcopy-common", &["bytemuck"]),
    ("tcpcopy-replay", &["bytemuck", "tcpcopy-common", "thiserror"]),
    ("tcpcopy-wire", &["bytemuck", "tcpcopy-common", "tcpcopy-replay", "thiserror"]),
];

/// The crates in which no two files may need each other, by their root files.
const LAYERED: &[&str] = &[
    "tcpcopy-common/src/lib.rs",
    "tcpcopy-replay/src/lib.rs",
    "tcpcopy-wire/src/lib.rs",
    "tcpcopy-ebpf/src/lib.rs",
    "tcpcopy-ebpf/src/capture/main.rs",
    "tcpcopy-ebpf/src/intercept/main.rs",
    "tcpcopy/src/lib.rs",
    "tests/src/lib.rs",
    "tests/src/bin/bench/main.rs",
    "tests/src/bin/demo/main.rs",
    "fuzz/src/lib.rs",
    "xtask/src/main.rs",
];

/// The root file of the core.
const REPLAY: &str = "tcpcopy-replay/src/lib.rs";

/// The layers of the core, each with those above it, which it may not need: not even where that closes no circle of
/// files.
const LAYERS: &[(&str, &[&str])] = &[
    ("store", &["input", "tcp", "causality", "engine", "worker"]),
    ("stats", &["input", "tcp", "causality", "store", "engine", "worker"]),
    ("input", &["causality", "engine", "worker"]),
    ("causality", &["engine", "worker"]),
    ("tcp", &["engine", "worker"]),
    ("engine", &["worker"]),
];

/// The crate with the command line.
const PROGRAMS: &str = "tcpcopy/src/lib.rs";

/// Files that may need each other all the same, with the reason.
const EXCEPTIONS: &[(&[&str], &str)] = &[];

/// The command line builds what the programs are made of; nothing below it knows it.
const COMMAND_LINE: &str = "tcpcopy/src/cli";

/// Fails with everything that breaks through a wall.
pub(super) fn check() -> anyhow::Result<()> {
    let mut breaches = links()?;
    for root in LAYERED {
        breaches.extend(circles(&Crate::read(&shell::workspace().join(root))?));
    }
    breaches.extend(layers(&Crate::read(&shell::workspace().join(REPLAY))?));
    breaches.extend(command_line(&Crate::read(&shell::workspace().join(PROGRAMS))?));
    if !breaches.is_empty() {
        bail!("these break through the walls (see docs/architecture.md):\n- {}", breaches.join("\n- "));
    }
    Ok(())
}

/// Returns what crates of the core link, and may not.
fn links() -> anyhow::Result<Vec<String>> {
    let mut breaches = Vec::new();
    for (name, allowed) in CORE {
        let mut command = shell::cargo();
        command.args([
            "tree",
            "--package",
            name,
            "--edges",
            "normal,no-proc-macro",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ]);
        breaches.extend(strangers(name, allowed, &shell::output(&mut command)?));
    }
    Ok(breaches)
}

/// Returns the crates of a dependency tree, one a line, that are not allowed.
fn strangers(name: &str, allowed: &[&str], tree: &str) -> Vec<String> {
    let linked = tree.lines().filter_map(|line| line.split_whitespace().next());
    let wrong = linked.filter(|linked| *linked != name && !allowed.contains(linked));
    wrong
        .map(|linked| format!("{name} links {linked}: if that does no IO, allow it in xtask/src/lint/walls.rs"))
        .collect()
}

fn circles(read: &Crate) -> Vec<String> {
    let needs = read.needs();
    let mut breaches = Vec::new();
    for circle in imports::circles(&needs) {
        let names: Vec<PathBuf> = circle.iter().map(|path| short(path)).collect();
        let is = |exception: &[&str]| {
            exception.len() == names.len() && names.iter().all(|n| exception.iter().any(|e| n == Path::new(e)))
        };
        if EXCEPTIONS.iter().any(|(exception, _)| is(exception)) {
            continue;
        }
        let arrows = circle.iter().map(|file| {
            let to = needs[file]
                .iter()
                .filter(|needed| circle.contains(needed))
                .map(|needed| short(needed).display().to_string());
            format!("{} needs {}", short(file).display(), to.collect::<Vec<_>>().join(", "))
        });
        breaches.push(format!("files need each other:\n    {}", arrows.collect::<Vec<_>>().join("\n    ")));
    }
    breaches
}

/// Returns the files of a layer that need one above it, and layers without files, which would hold nothing.
fn layers(read: &Crate) -> Vec<String> {
    let root = Path::new(REPLAY).with_file_name("");
    let needs = read.needs();
    let mut breaches = Vec::new();
    for (layer, above) in LAYERS {
        let is_in = |path: &Path, layer: &str| short(path).starts_with(root.join(layer));
        let files: Vec<_> = needs.iter().filter(|(file, _)| is_in(file, layer)).collect();
        if files.is_empty() {
            breaches.push(format!("{} has no files: has it another name?", root.join(layer).display()));
        }
        for (file, needed) in files {
            let wrong = needed.iter().filter(|needed| above.iter().any(|above| is_in(needed, above)));
            breaches.extend(wrong.map(|needed| {
                format!("{} needs {}, which is of a layer above", short(file).display(), short(needed).display())
            }));
        }
    }
    breaches
}

fn command_line(read: &Crate) -> Vec<String> {
    let is_command_line = |path: &Path| short(path).starts_with(COMMAND_LINE);
    let needs = read.needs();
    let below = needs.iter().filter(|(file, _)| !is_command_line(file));
    let wrong = below.filter(|(_, needed)| needed.iter().any(|needed| is_command_line(needed)));
    wrong.map(|(file, _)| format!("{} knows the command line", short(file).display())).collect()
}

/// Returns a path from the workspace on.
fn short(path: &Path) -> PathBuf {
    path.strip_prefix(shell::workspace()).unwrap_or(path).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_walls_stand() {
        check().unwrap_or_else(|why| panic!("{why}"));
    }

    #[test]
    fn a_crate_of_the_core_that_links_io_is_noticed() {
        let tree = "tcpcopy-common v0.1.0 (/somewhere)\nbytemuck v1.25.2\naya v0.14.0\nbytemuck v1.25.2 (*)\n";
        let wrong = strangers("tcpcopy-common", &["bytemuck"], tree);
        assert!(matches!(&wrong[..], [one] if one.starts_with("tcpcopy-common links aya")), "{wrong:?}");
    }

    #[test]
    fn a_layer_that_needs_one_above_is_noticed_and_so_is_one_that_is_gone() {
        let root = shell::workspace().join(REPLAY);
        let path = |name: &str| root.with_file_name(name).display().to_string();
        let files = ["", "store", "stats", "input", "causality", "tcp", "engine", "worker"].map(|module| {
            let text = match module {
                "" => "mod store; mod stats; mod input; mod causality; mod tcp; mod engine; mod worker;",
                "engine" => "use crate::{store::Slab, tcp::Session};",
                "tcp" => "use crate::worker::Nap;",
                _ => "",
            };
            let name = if module.is_empty() { root.display().to_string() } else { path(&format!("{module}/mod.rs")) };
            (module, name, text)
        });
        let files: Vec<_> = files.iter().map(|(module, name, text)| (*module, &**name, *text)).collect();
        let wrong = "tcpcopy-replay/src/tcp/mod.rs needs tcpcopy-replay/src/worker/mod.rs, which is of a layer above";
        assert_eq!(layers(&Crate::of(&files)), [wrong]);
        let files: Vec<_> = files.into_iter().filter(|(module, ..)| !["tcp", "stats"].contains(module)).collect();
        assert_eq!(
            layers(&Crate::of(&files)),
            [
                "tcpcopy-replay/src/stats has no files: has it another name?",
                "tcpcopy-replay/src/tcp has no files: has it another name?",
            ]
        );
    }

    #[test]
    fn a_file_that_knows_the_command_line_is_noticed_and_the_programs_may() {
        let root = shell::workspace().join("tcpcopy/src");
        let path = |name: &str| root.join(name).display().to_string();
        let (lib, cli, net) = (path("lib.rs"), path("cli/mod.rs"), path("net.rs"));
        let read = Crate::of(&[
            ("", &lib, "mod cli; mod net;"),
            ("cli", &cli, "use crate::net::Address;"),
            ("net", &net, "use crate::cli::Arguments;"),
        ]);
        assert_eq!(command_line(&read), ["tcpcopy/src/net.rs knows the command line"]);
    }
}
