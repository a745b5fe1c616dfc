//! Which files of a crate need each other.
//!
//! A file needs another if it names something in it by a path that begins with `crate`, `super`, `self` or one of its
//! own modules. Re-exports are followed to where the item is. `mod child;` alone is no need.
//!
//! Limits: macros are not expanded, `include!` is not known, what is called without being named (a method, a trait's
//! implementation) does not count, nor do tests, nor modules in the midst of a file, nor how far something can be seen
//! (`pub(in path)`).

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::source;

/// A module that is a file, by its path from the crate's root: the root's own is empty.
type Module = Vec<String>;

/// The files of a crate, and what each names.
#[derive(Default)]
pub(super) struct Crate {
    files: BTreeMap<Module, File>,
}

#[derive(Default)]
struct File {
    path: PathBuf,
    /// Modules that are files of their own, with the path that an attribute gives them.
    children: BTreeMap<String, Option<PathBuf>>,
    /// Names that were imported here, and what they mean: relative to this module.
    imports: BTreeMap<String, Vec<String>>,
    /// Every path that begins with `crate`, `super`, `self` or a module of this file.
    paths: Vec<Vec<String>>,
}

impl Crate {
    /// Reads a crate from its root file.
    pub(super) fn read(root: &Path) -> anyhow::Result<Self> {
        let mut read = Self::default();
        let directory = root.parent().context("a file is in a directory")?;
        read.add(Vec::new(), root, directory)?;
        Ok(read)
    }

    /// Adds a module; its own modules are files in `directory`.
    fn add(&mut self, module: Module, path: &Path, directory: &Path) -> anyhow::Result<()> {
        let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let file = File::parse(path, &text);
        let children = file.children.clone();
        self.files.insert(module.clone(), file);
        for (child, given) in children {
            let below = directory.join(&child);
            let flat = directory.join(format!("{child}.rs"));
            let path = match given {
                Some(given) => path.with_file_name(given),
                None if flat.exists() => flat,
                None => below.join("mod.rs"),
            };
            self.add([&module[..], &[child]].concat(), &path, &below)?;
        }
        Ok(())
    }

    /// Returns the files that each file needs.
    pub(super) fn needs(&self) -> BTreeMap<&Path, BTreeSet<&Path>> {
        let of = |module: &Module, file: &File| {
            let needed = file.paths.iter().filter_map(|path| self.resolve(module, path, 0));
            needed
                .filter(|needed| needed != module)
                .filter_map(|needed| self.files.get(&needed))
                .map(|f| &*f.path)
                .collect()
        };
        self.files.iter().map(|(module, file)| (&*file.path, of(module, file))).collect()
    }

    /// Returns the module in which `path`, as written in `module`, is defined.
    fn resolve(&self, module: &[String], path: &[String], depth: usize) -> Option<Module> {
        /// Of re-exports that name each other.
        const MOST: usize = 20;
        let mut at = module.to_vec();
        let mut rest = path;
        match path.first()?.as_str() {
            "crate" => (at, rest) = (Vec::new(), &path[1..]),
            "self" => rest = &path[1..],
            "super" => {}
            first if self.files.get(module)?.children.contains_key(first) => {}
            // Another crate, or a name that another import has brought.
            _ => return None,
        }
        for (index, name) in rest.iter().enumerate() {
            let file = self.files.get(&at)?;
            if name == "super" {
                at.pop()?;
            } else if file.children.contains_key(name) {
                at.push(name.clone());
            } else if let Some(import) = file.imports.get(name).filter(|_| depth < MOST) {
                let path = [&import[..], &rest[index + 1..]].concat();
                return self.resolve(&at, &path, depth + 1);
            } else {
                break;
            }
        }
        Some(at)
    }
}

impl File {
    fn parse(path: &Path, text: &str) -> Self {
        let code = source::code(text);
        let words = words(&code);
        let mut file = Self { path: path.to_owned(), ..Self::default() };
        for window in words.windows(3) {
            if let ["mod", name, ";"] = window {
                file.children.insert((*name).to_owned(), given_path(text, name));
            }
        }
        let mut at = 0;
        while at < words.len() {
            let is_use = words[at] == "use";
            let begin = at + usize::from(is_use);
            let starts = |word: &str| matches!(word, "crate" | "super" | "self");
            let is_visibility = at > 1 && words[at - 2..at] == ["(", "in"];
            let is_path = starts(words[at]) && words.get(at + 1) == Some(&"::") && !is_visibility;
            if !is_use && !is_path {
                at += 1;
                continue;
            }
            let mut found = Vec::new();
            at = tree(&words, begin, &[], &mut found).max(at + 1);
            for (name, path) in found {
                let first = path.first().map_or("", String::as_str);
                if starts(first) || is_use && file.children.contains_key(first) {
                    file.paths.push(path.clone());
                }
                if is_use {
                    file.imports.insert(name, path);
                }
            }
        }
        file
    }
}

/// Returns the path in an attribute `#[path = "…"]` of a module, on the line before it.
fn given_path(text: &str, module: &str) -> Option<PathBuf> {
    let is_module = |line: &str| line.split_whitespace().last() == Some(&*format!("{module};"));
    let lines = text.lines().zip(text.lines().skip(1));
    let attribute = lines.filter(|(_, next)| is_module(next)).find_map(|(line, _)| line.strip_prefix("#[path = \""));
    Some(PathBuf::from(attribute?.strip_suffix("\"]")?))
}

/// Splits code into words, `::` and single characters.
fn words(code: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = code.trim_start();
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let length = if is_word(first) {
            rest.find(|c| !is_word(c)).unwrap_or(rest.len())
        } else if rest.starts_with("::") {
            2
        } else {
            first.len_utf8()
        };
        words.push(&rest[..length]);
        rest = rest[length..].trim_start();
    }
    words
}

/// Reads a path or a tree of paths at `at`: each with the name by which it is known. Returns where it ends.
fn tree(words: &[&str], mut at: usize, prefix: &[String], found: &mut Vec<(String, Vec<String>)>) -> usize {
    let mut path = prefix.to_vec();
    loop {
        match words.get(at).copied() {
            Some("{") => {
                at += 1;
                while !matches!(words.get(at), None | Some(&"}")) {
                    at = tree(words, at, &path, found).max(at + 1);
                }
                return at + 1;
            }
            Some("*") => {
                found.push(("*".to_owned(), path));
                return at + 1;
            }
            Some(word) if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => {
                if word != "self" || path.is_empty() {
                    path.push(word.to_owned());
                }
                at += 1;
            }
            _ => return at,
        }
        if words.get(at) == Some(&"::") {
            at += 1;
            // `::<`: a call's type parameters.
            if words.get(at) != Some(&"<") {
                continue;
            }
        }
        let name = if words.get(at) == Some(&"as") { words.get(at + 1).copied() } else { None };
        let known = name.map_or_else(|| path.last().cloned().unwrap_or_default(), str::to_owned);
        found.push((known, path));
        return at + if name.is_some() { 2 } else { 0 };
    }
}

/// Files that need each other, directly or by way of others: each circle once.
pub(super) fn circles<'a>(needs: &BTreeMap<&'a Path, BTreeSet<&'a Path>>) -> Vec<Vec<&'a Path>> {
    let reachable = |from: &'a Path| {
        let mut seen = BTreeSet::new();
        let mut next = vec![from];
        while let Some(file) = next.pop() {
            next.extend(needs.get(file).into_iter().flatten().filter(|needed| seen.insert(**needed)));
        }
        seen
    };
    let reach: BTreeMap<&Path, BTreeSet<&Path>> = needs.keys().map(|file| (*file, reachable(file))).collect();
    let mut circles = BTreeSet::new();
    for (file, reached) in &reach {
        if reached.contains(file) {
            circles.insert(reached.iter().filter(|other| reach[**other].contains(file)).copied().collect::<Vec<_>>());
        }
    }
    circles.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Crate {
        /// Makes a crate of files that are not on disk: module, path and text of each.
        pub(in crate::lint) fn of(files: &[(&str, &str, &str)]) -> Self {
            let module = |name: &str| name.split("::").filter(|n| !n.is_empty()).map(str::to_owned).collect();
            let files = files.iter().map(|(name, path, text)| (module(name), File::parse(Path::new(path), text)));
            Self { files: files.collect() }
        }
    }

    fn circles_of(files: &[(&str, &str)]) -> Vec<Vec<String>> {
        let read = Crate::of(&files.iter().map(|(name, text)| (*name, *name, *text)).collect::<Vec<_>>());
        let names = |circle: Vec<&Path>| circle.iter().map(|path| path.display().to_string()).collect();
        circles(&read.needs()).into_iter().map(names).collect()
    }

    #[test]
    fn two_files_that_need_each_other_are_a_circle() {
        let files = [("", "mod a; mod b;"), ("a", "use crate::b::{C, D as E};"), ("b", "fn f() { super::a::g(); }")];
        assert_eq!(circles_of(&files), [["a", "b"]]);
    }

    #[test]
    fn a_circle_may_be_long() {
        let files = [
            ("", "mod a; mod b; mod c;"),
            ("a", "use crate::b;"),
            ("b", "use super::{c::{self, X}};"),
            ("c", "type T = crate::a::T;"),
        ];
        assert_eq!(circles_of(&files), [["a", "b", "c"]]);
    }

    #[test]
    fn re_exports_are_followed_to_where_an_item_is() {
        let files = [
            ("", "mod a; mod b; pub use self::{a::A, b::B}; pub struct Root;"),
            ("a", "use crate::Root; use std::fmt;"),
            ("b", "use crate::a;"),
        ];
        assert_eq!(circles_of(&files), [["", "a", "b"]]);
        let files = [("", "mod a; mod b; pub use a::A; pub use b::B;"), ("a", ""), ("b", "use crate::A;")];
        assert_eq!(circles_of(&files), [[""; 0]; 0]);
    }

    #[test]
    fn a_module_may_be_given_a_path() {
        let text = "mod a;\n#[path = \"../b.rs\"]\nmod b;\n";
        let file = File::parse(Path::new("x/main.rs"), text);
        let children: Vec<_> = file.children.into_iter().collect();
        assert_eq!(children, [("a".to_owned(), None), ("b".to_owned(), Some(PathBuf::from("../b.rs")))]);
    }

    #[test]
    fn how_far_something_is_seen_is_no_need() {
        let files = [("", "mod a;"), ("a", "mod b; use b::C;"), ("a::b", "pub(in crate::a) const C: u8 = 1;")];
        assert_eq!(circles_of(&files), [[""; 0]; 0]);
    }

    #[test]
    fn tests_and_other_crates_are_no_needs() {
        let files = [
            ("", "mod a; mod b;"),
            ("a", "use crate::b::B; use tokio::b;"),
            ("b", "use a::x; #[cfg(test)] mod tests { use crate::a::A; }"),
        ];
        assert_eq!(circles_of(&files), [[""; 0]; 0]);
    }
}
