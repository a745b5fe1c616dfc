//! Runs every target on its corpus: what fuzzing has found stays found, on any toolchain.

use std::{fs, panic, path::Path};

#[test]
fn every_input_of_the_corpus_passes() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for &(name, target) in fuzz::TARGETS {
        let directory = corpus.join(name);
        let mut inputs: Vec<_> = fs::read_dir(&directory)
            .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
            .map(|entry| entry.expect("a directory entry").path())
            .collect();
        inputs.sort();
        assert!(inputs.len() >= 10, "the corpus of {name} has only {} inputs", inputs.len());
        for path in inputs {
            let data = fs::read(&path).expect("a readable input");
            let ended = panic::catch_unwind(|| target(&data));
            assert!(ended.is_ok(), "replay: cargo xtask fuzz {name} {}", path.display());
        }
    }
}
