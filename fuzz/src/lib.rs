//! What coverage-guided fuzzing runs: one function per target, which takes any octets and panics where something does
//! not hold.
//!
//! ```text
//! fuzz_targets/NAME.rs   the program that libFuzzer drives (without `cfg(fuzzing)`: one that runs the files it is
//!                        given)
//! corpus/NAME/           inputs that reach what others do not, and inputs that failed once
//! tests/corpus.rs        runs all of these with every `cargo test`
//! ```
//!
//! `cargo xtask fuzz --help` says how to run them, `docs/testing.md` how to add one.

#[cfg(feature = "programs")]
pub mod arguments;
#[cfg(feature = "programs")]
pub mod control;
pub mod engine;
pub mod packet;

/// A fuzz target, as a function.
pub type Target = fn(&[u8]);

/// All of them, by name.
pub const TARGETS: &[(&str, Target)] = &[
    ("packet", packet::run),
    ("engine", engine::run),
    #[cfg(feature = "programs")]
    ("control", control::run),
    #[cfg(feature = "programs")]
    ("arguments", arguments::run),
];

/// The program of the target whose module is called `$name`.
#[macro_export]
macro_rules! target {
    ($name:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| $crate::$name::run(data));

        #[cfg(not(fuzzing))]
        fn main() {
            $crate::replay($crate::$name::run);
        }
    };
}

/// Runs a target on the files that the command line names.
#[cfg(not(fuzzing))]
pub fn replay(target: Target) {
    for path in std::env::args_os().skip(1) {
        let path = std::path::PathBuf::from(path);
        let data = std::fs::read(&path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()));
        eprintln!("{}: {} octets", path.display(), data.len());
        target(&data);
    }
}

/// Whether to tell what an input means, and what happens: for looking into a failure.
fn tells() -> bool {
    static TELLS: std::sync::LazyLock<bool> = std::sync::LazyLock::new(|| std::env::var_os("FUZZ_TRACE").is_some());
    *TELLS
}
