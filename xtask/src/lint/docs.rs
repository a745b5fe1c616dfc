//! The files that the documents name: a map with rooms that are gone leads nobody.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};

use crate::shell;

/// Where the documents are that a reader of today follows. The changelog tells of files as they were.
const DOCUMENTS: &[&str] = &["README.md", "CONTRIBUTING.md", "docs"];

/// Fails with every file that a document names and that the tree does not have.
pub(super) fn check() -> anyhow::Result<()> {
    let workspace = shell::workspace();
    let mut files = Vec::new();
    collect(workspace, &mut files)?;
    let mut missing = Vec::new();
    for document in &files {
        let Ok(name) = document.strip_prefix(workspace) else { continue };
        if name.extension().is_none_or(|extension| extension != "md") || !DOCUMENTS.iter().any(|d| name.starts_with(d))
        {
            continue;
        }
        let text = fs::read_to_string(document).with_context(|| format!("cannot read {}", name.display()))?;
        let unknown = named(&text).filter(|file| !files.iter().any(|known| known.ends_with(file)));
        missing.extend(unknown.map(|file| format!("{} names {file}", name.display())));
    }
    if !missing.is_empty() {
        bail!("these files are not there:\n- {}", missing.join("\n- "));
    }
    Ok(())
}

/// Appends the files below a directory, except what is built and what is hidden.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot list {}", directory.display()))? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name == "target" || name.starts_with('.') {
            continue;
        }
        if path.is_dir() {
            collect(&path, files)?;
        } else {
            files.push(path);
        }
    }
    Ok(())
}

/// The source files that a text names between backticks, each by a whole path or by the end of one. `a/{b,c}.rs` names two.
fn named(text: &str) -> impl Iterator<Item = String> {
    // Fences come in pairs, so that what is code stays at the odd places.
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|code| code.ends_with(".rs") && !code.contains(|c: char| c.is_whitespace() || c == '*' || c == '<'))
        .flat_map(|code| match code.split_once('{').and_then(|(front, rest)| Some((front, rest.split_once('}')?))) {
            Some((front, (names, back))) => names.split(',').map(|name| format!("{front}{name}{back}")).collect(),
            None => vec![code.to_owned()],
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_that_a_document_names_is_there() {
        check().unwrap();
    }

    #[test]
    fn names_are_files_between_backticks() {
        let text = "a.rs, `b/a.rs` and `c/{d,e}.rs`, `cargo run f.rs`\n```sh\ng.rs\n```\n`x/*.rs` `h.rs`";
        assert_eq!(named(text).collect::<Vec<_>>(), ["b/a.rs", "c/d.rs", "c/e.rs", "h.rs"]);
    }
}
