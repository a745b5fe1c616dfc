//! The files of this crate depend on each other in one direction only: no circle of imports, and no arrow from a lower layer
//! to a higher one. The compiler allows both; a reader who wants to understand one file at a time does not.

#![allow(missing_docs, reason = "a test")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

type Modules = BTreeMap<String, BTreeSet<String>>;

/// Each layer, and what must not be imported there.
const LAYERS: [(&str, &[&str]); 6] = [
    ("store", &["input", "tcp", "causality", "engine", "worker"]),
    ("input", &["causality", "engine", "worker"]),
    ("causality", &["engine", "worker"]),
    ("tcp", &["engine", "worker"]),
    ("stats", &["input", "tcp", "causality", "store", "engine", "worker"]),
    ("engine", &["worker"]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        // Tests, and what exists only for them, may look at everything.
        if ["tests", "testing", "script"].contains(&name) {
            continue;
        }
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// `a/b/mod.rs` is `a::b`.
fn module(path: &Path, root: &Path) -> String {
    let path = path.strip_prefix(root).unwrap().with_extension("");
    let parts: Vec<_> = path.iter().map(|part| part.to_str().unwrap()).filter(|&part| part != "mod").collect();
    parts.join("::")
}

/// The paths of an import tree: `a::{b, c::{d, e}}` has three.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let (mut depth, mut start) = (0, 0);
    let mut branches = Vec::new();
    for (at, letter) in tree.char_indices() {
        match letter {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                branches.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    branches.push(&tree[start..]);
    for branch in branches.into_iter().map(str::trim).filter(|branch| !branch.is_empty()) {
        match branch.split_once('{') {
            Some((head, rest)) => expand(&format!("{prefix}{head}"), rest.trim_end_matches('}').trim(), paths),
            None => paths.push(format!("{prefix}{}", branch.split(" as ").next().unwrap_or(branch))),
        }
    }
}

/// What a file imports from its crate: full paths, from the crate's root on.
fn imports(module: &str, source: &str) -> Vec<String> {
    let source = source.split("#[cfg(test)]\nmod tests").next().unwrap_or(source);
    let code: String =
        source.lines().filter(|line| !line.trim_start().starts_with("//")).collect::<Vec<_>>().join("\n");
    let mut paths = Vec::new();
    for statement in code.split("\nuse ").chain(code.split(" use ")).skip(1) {
        let tree = statement.split(';').next().unwrap_or(statement);
        expand("", &tree.replace('\n', " "), &mut paths);
    }
    // Paths in the code itself, too.
    for rest in code.split("crate::").skip(1) {
        let path: String =
            rest.chars().take_while(|&letter| letter.is_alphanumeric() || letter == '_' || letter == ':').collect();
        paths.push(format!("crate::{path}"));
    }
    let parts: Vec<&str> = if module == "lib" { Vec::new() } else { module.split("::").collect() };
    let absolute = |path: &String| {
        let names: Vec<&str> = path.split("::").collect();
        let above = names.iter().take_while(|&&name| name == "super").count();
        let own = match names.first() {
            Some(&"crate") => 0,
            Some(&"self") => parts.len(),
            Some(&"super") => parts.len().checked_sub(above)?,
            _ => return None,
        };
        Some([&parts[..own], &names[above.max(1)..]].concat().join("::"))
    };
    paths.iter().filter_map(absolute).collect()
}

/// Each module, and those that it imports from.
fn graph() -> Modules {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let texts: BTreeMap<String, String> =
        files.iter().map(|path| (module(path, &root), fs::read_to_string(path).unwrap())).collect();
    let owner = |path: &String| {
        let mut prefix = path.as_str();
        loop {
            if texts.contains_key(prefix) {
                return Some(prefix.to_owned());
            }
            prefix = prefix.rsplit_once("::")?.0;
        }
    };
    let edges = |(module, text): (&String, &String)| {
        let mut imported: BTreeSet<String> = imports(module, text).iter().filter_map(owner).collect();
        imported.remove(module);
        (module.clone(), imported)
    };
    texts.iter().map(edges).collect()
}

/// Finds a way from the last module of `way` back to the first.
fn circle(modules: &Modules, way: &mut Vec<String>, done: &mut BTreeSet<String>) -> Option<Vec<String>> {
    let here = way.last()?.clone();
    for next in &modules[&here] {
        if let Some(at) = way.iter().position(|module| module == next) {
            return Some(way[at..].to_vec());
        }
        if done.insert(next.clone()) {
            way.push(next.clone());
            if let Some(found) = circle(modules, way, done) {
                return Some(found);
            }
            way.pop();
        }
    }
    None
}

#[test]
fn no_files_import_from_each_other_in_a_circle() {
    let modules = graph();
    let edges: usize = modules.values().map(BTreeSet::len).sum();
    assert!(modules.len() > 30 && edges > 100, "{} files with {edges} imports: were they found?", modules.len());
    let mut done = BTreeSet::new();
    for module in modules.keys() {
        if done.insert(module.clone()) {
            let found = circle(&modules, &mut vec![module.clone()], &mut done);
            assert!(found.is_none(), "a circle of imports: {found:?}");
        }
    }
}

#[test]
fn no_layer_imports_from_one_above() {
    let modules = graph();
    let layer = |module: &str| module.split("::").next().unwrap_or(module).to_owned();
    for (module, imported) in &modules {
        let forbidden = LAYERS.iter().find(|(name, _)| *name == layer(module)).map_or(&[][..], |(_, above)| above);
        for other in imported {
            assert!(!forbidden.contains(&layer(other).as_str()), "{module} imports from {other}");
        }
    }
    for (name, _) in LAYERS {
        assert!(modules.keys().any(|module| layer(module) == name), "no layer {name}");
    }
}
