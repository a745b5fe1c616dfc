//! What runs in the guests, and where everything is kept.

use std::{path::PathBuf, process::Stdio};

use anyhow::Context as _;

use crate::{build, setup, shell};

/// What runs in the guests.
pub(super) struct Programs {
    /// The unit tests of the library, among them those that load each program.
    pub(super) tests: PathBuf,
    /// The demo and both programs under test.
    pub(super) others: [PathBuf; 3],
}

/// Returns the directory below which everything of this module is kept.
pub(super) fn directory() -> PathBuf {
    shell::target_dir().join("kernels")
}

impl Programs {
    pub(super) fn build() -> anyhow::Result<Self> {
        setup::toolchain()?;
        let mut command = shell::cargo();
        command.args(["test", "--package", "tcpcopy", "--lib", "--no-run"]);
        command.args(["--message-format", "json-render-diagnostics"]).stderr(Stdio::inherit());
        eprintln!("$ {}", shell::shown(&command));
        let messages = shell::output(&mut command)?;
        let tests = executable(&messages).context("cargo does not tell where it has put the unit tests")?;
        let names = ["tcpcopy", "intercept", "demo"];
        shell::run(
            shell::cargo()
                .args(["build", "--release", "--package", "tcpcopy", "--package", "lab"])
                .args(names.iter().flat_map(|name| ["--bin", name])),
        )?;
        Ok(Self { tests, others: names.map(build::program) })
    }
}

/// Returns the executable that cargo names in its messages, one JSON object a line. There is one at most.
fn executable(messages: &str) -> Option<PathBuf> {
    let (_, rest) = messages.split_once("\"executable\":\"")?;
    let (path, _) = rest.split_once('"')?;
    Some(PathBuf::from(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_executable_of_the_unit_tests_is_found_among_cargo_s_messages() {
        let messages = "{\"reason\":\"compiler-artifact\",\"executable\":null,\"fresh\":true}\n\
                        {\"reason\":\"compiler-artifact\",\"executable\":\"/t/debug/deps/tcpcopy-1\",\"fresh\":true}\n\
                        {\"reason\":\"build-finished\",\"success\":true}\n";
        assert_eq!(executable(messages), Some(PathBuf::from("/t/debug/deps/tcpcopy-1")));
        assert_eq!(executable("{\"executable\":null}"), None);
    }
}
