//! `cargo xtask test`: what CI runs.

use std::{
    io::{BufRead as _, BufReader},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{build, fuzz, kernels, packages, setup, shell};

/// Which tests.
#[derive(clap::Args)]
pub struct Arguments {
    /// Only unit and property tests, which need neither root nor other programs.
    #[arg(long, conflicts_with_all = ["e2e", "fuzz"])]
    unit: bool,
    /// Only the end-to-end tests.
    #[arg(long, conflicts_with = "fuzz")]
    e2e: bool,
    /// Only the fuzz targets.
    #[arg(long)]
    fuzz: bool,
    /// For daily work, in less than three minutes once all is built: the unit tests, and of the end-to-end tests one
    /// for each promise.
    #[arg(long, conflicts_with_all = ["unit", "e2e", "fuzz", "filter"])]
    quick: bool,
    /// Only whether the programs load and mirror on Debian's kernels of these series; without LIST 5.10,6.1,6.12,newest
    #[arg(long, value_name = "LIST", num_args = 0..=1, default_missing_value = kernels::USUAL)]
    #[arg(conflicts_with_all = ["unit", "e2e", "fuzz", "quick", "filter"])]
    kernels: Option<kernels::Wanted>,
    /// How long each fuzz target is fuzzed.
    #[arg(long, default_value_t = 60, value_name = "S")]
    fuzz_seconds: u64,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// The end-to-end tests of `--quick`, by file: requests arrive, nothing leaks, the target's own traffic and production
/// go on, mistakes are explained, nothing is left behind.
const QUICK: &[(&str, &[&str])] = &[
    ("bad_input", &["wrong_command_lines_are_refused", "a_limit_on_open_files_is_explained"]),
    ("http", &["nginx_to_apache_by_tc_and_raw_sockets", "keep_alive_limits_of_the_servers_may_differ"]),
    ("leftovers", &["intercept_leaves_nothing_behind"]),
    ("no_leak", &["without_a_channel_nothing_is_injected"]),
    ("own_traffic", &["a_direct_connection_on_the_four_tuple_of_a_replayed_session_is_answered"]),
    ("production_first", &["a_target_that_does_not_exist_any_more_does_not_disturb_live_traffic"]),
    ("selection", &["only_the_clients_asked_for_are_mirrored"]),
];

/// Results of several test programs.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
    /// Test programs that have said how many tests they run.
    programs: u64,
    /// Tests that were announced, and of which no result has been seen.
    due: u64,
    /// Within the list of failures at the end of a test program's output.
    listing: bool,
    /// Lines that begin with SKIP: tests which passed only because they could not run here.
    skipped: Vec<String>,
    failures: Vec<String>,
    /// Commands that failed, for whatever reason.
    broken: Vec<String>,
}

/// Runs the tests, all of them even if some fail, and sums up.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    setup::toolchain()?;
    let mut tally = Tally::default();
    if let Some(wanted) = &arguments.kernels {
        tally.kernels(wanted, &kernels::fetch(wanted)?);
        return tally.report();
    }
    // A filter can mean neither a fuzz target nor a kernel.
    let part = arguments.unit || arguments.e2e || arguments.fuzz || arguments.quick;
    let everything = !part && arguments.filter.is_none();
    if !arguments.e2e && !arguments.fuzz {
        let mut command = shell::cargo();
        command.args(["test", "--workspace", "--exclude", "tcpcopy-ebpf", "--exclude", "lab", "--no-fail-fast"]);
        command.args(&arguments.filter);
        tally.run(&mut command)?;
    }
    if arguments.fuzz || everything {
        tally.fuzz(arguments.fuzz_seconds)?;
    }
    if !arguments.unit && !arguments.fuzz {
        packages::install(packages::Purpose::Test)?;
        build::release()?;
        let mut command = shell::cargo();
        // Optimised, because the laboratory measures; one by one, because the tests load the whole machine.
        command.args(["test", "--package", "lab", "--release", "--no-fail-fast"]);
        if arguments.quick {
            command.args(QUICK.iter().flat_map(|(file, _)| ["--test", file]));
        }
        command.args(["--", "--test-threads=1"]);
        if arguments.quick {
            command.arg("--exact").args(QUICK.iter().flat_map(|(_, names)| *names));
        }
        command.args(&arguments.filter);
        if !shell::is_root() && shell::output(Command::new("sudo").args(["-n", "true"])).is_ok() {
            let runner = format!("CARGO_TARGET_{}_RUNNER", shell::host()?.to_uppercase().replace('-', "_"));
            command.env(runner, "sudo --preserve-env");
        }
        tally.run(&mut command)?;
    }
    if everything {
        let wanted = kernels::Wanted::default();
        match kernels::fetch(&wanted) {
            Ok(kernels) => tally.kernels(&wanted, &kernels),
            Err(error) => tally.skip(&format!("programs on other kernels: {error:#}")),
        }
    }
    tally.report()
}

impl Tally {
    fn run(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let line = shell::shown(command);
        eprintln!("$ {line}");
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start `{line}`"))?;
        let stdout = child.stdout.take().context("the tests' standard output is not a pipe")?;
        let mut stdout = BufReader::new(stdout);
        let mut output = Vec::new();
        let before = self.programs;
        // Not everything that a test prints needs to be UTF-8.
        while stdout.read_until(b'\n', &mut output)? > 0 {
            let line = String::from_utf8_lossy(&output);
            self.count(line.trim_end());
            // By the macro, which libtest captures: what the tests of this file run must not be counted as tests by
            // whoever runs them.
            print!("{line}");
            output.clear();
        }
        if !child.wait()?.success() {
            self.broken.push(line);
        } else if self.due > 0 || self.programs == before {
            // What libtest prints is meant for people. When it changes, nothing must seem to pass because it is not
            // found.
            let due = self.due;
            self.broken
                .push(format!("{line}\n    ended well, but its output is not understood ({due} tests without result)"));
        }
        self.due = 0;
        Ok(())
    }

    /// Fuzzes every target for `seconds`. Each counts as a test.
    fn fuzz(&mut self, seconds: u64) -> anyhow::Result<()> {
        fuzz::Campaign { seconds }.run(|(name, outcome)| match outcome {
            Ok(what) => {
                self.passed += 1;
                println!("test fuzz {name} ... ok ({what})");
            }
            Err(why) => {
                self.failed += 1;
                println!("test fuzz {name} ... FAILED\n{why}");
                self.failures.push(format!("fuzz {name}"));
                self.broken.push(format!("cargo xtask fuzz {name} --seconds {seconds}{}", essence(why)));
            }
        })
    }

    /// Tries the programs on other kernels.
    fn kernels(&mut self, wanted: &kernels::Wanted, kernels: &[kernels::Kernel]) {
        let failed = self.failed;
        let run = kernels::run(kernels, |kernels::Outcome { name, failure }| match failure {
            None => {
                self.passed += 1;
                println!("test {name} ... ok");
            }
            Some(why) => {
                self.failed += 1;
                println!("test {name} ... FAILED\n{why}");
                self.failures.push(name);
            }
        });
        let command = format!("cargo xtask test --kernels {wanted}");
        match run {
            Ok(()) if self.failed == failed => {}
            Ok(()) => self.broken.push(command),
            Err(error) => self.broken.push(format!("{command}: {error:#}")),
        }
    }

    /// Notes a test that could not run here, where everybody sees it.
    fn skip(&mut self, what: &str) {
        println!("\nSKIP {what}");
        // Counted as one that passed, as the others are.
        self.passed += 1;
        self.skipped.push(what.to_owned());
    }

    /// Takes a line of libtest's, or of a test's that goes past its capturing.
    fn count(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            self.listing = false;
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
                else {
                    continue;
                };
                let counted = match what {
                    "passed" => &mut self.passed,
                    "failed" => &mut self.failed,
                    "ignored" => &mut self.ignored,
                    _ => continue,
                };
                *counted += number;
                self.due = self.due.saturating_sub(number);
            }
        } else if let Some(number) = announced(line) {
            self.programs += 1;
            self.due += number;
        } else if let Some(skip) = line.strip_prefix("SKIP ") {
            self.skipped.push(skip.to_owned());
        } else if line == "failures:" {
            // It comes twice: before what the tests said, and before their names alone.
            self.listing = true;
        } else if let Some(name) = line.strip_prefix("    ").filter(|_| self.listing) {
            self.failures.push(name.to_owned());
        } else if !line.is_empty() {
            self.listing = false;
        }
    }

    fn report(&self) -> anyhow::Result<()> {
        println!(
            "\ntests: {} passed, {} failed, {} ignored, {} skipped",
            self.passed.saturating_sub(self.skipped.len() as u64),
            self.failed,
            self.ignored,
            self.skipped.len()
        );
        for name in &self.skipped {
            println!("  skipped: {name}");
        }
        for name in &self.failures {
            println!("  FAILED:  {name}");
        }
        if self.broken.is_empty() {
            return Ok(());
        }
        bail!("these commands failed:\n    {}", self.broken.join("\n    "))
    }
}

/// Returns the number in `running 7 tests`.
fn announced(line: &str) -> Option<u64> {
    let (number, what) = line.strip_prefix("running ")?.split_once(' ')?;
    number.parse().ok().filter(|_| what == "test" || what == "tests")
}

/// Returns the panic in what a fuzzer said, and how to see it again: the end may be all that is left of a log.
fn essence(why: &str) -> String {
    let panic = why.lines().skip_while(|line| !line.contains("panicked at")).take(2);
    let again = why.lines().skip_while(|line| !line.starts_with("    replay:"));
    panic.chain(again).map(|line| format!("\n    {}", line.trim_start())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_essence_of_a_finding_is_its_panic_and_its_reproduction() {
        let why = "INFO: x\nthread panicked at a.rs:1:2:\nno end\nstack backtrace:\n  0: f\nexit\n\
                   \x20   replay: cargo\n    elsewhere: xxd";
        assert_eq!(
            essence(why),
            "\n    thread panicked at a.rs:1:2:\n    no end\n    replay: cargo\n    elsewhere: xxd"
        );
        assert_eq!(essence("it could not be started"), "");
    }

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        let lines = "
running 4 tests
test a::good ... ok
test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 3 tests
test a::c ...\x20
SKIP a::c: needs root
ok
test a::b ... FAILED

failures:

---- a::b stdout ----
    SKIP is no skip where a test only says so
thread 'a::b' panicked at x.rs:1:1:
    indented

failures:
    a::b

test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s
";
        lines.lines().for_each(|line| tally.count(line));
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 1, 1));
        assert_eq!((tally.programs, tally.due), (2, 0));
        assert_eq!(tally.skipped, ["a::c: needs root"]);
        assert_eq!(tally.failures, ["a::b"]);
    }

    #[test]
    fn output_that_is_not_understood_is_a_failure() {
        for (script, understood) in [
            ("echo 'running 1 test'; echo 'test result: ok. 1 passed; 0 failed;'", true),
            ("echo 'running 1 test'; printf '\\377\\n'; echo 'test result: ok. 1 passed;'", true),
            (
                "echo 'running 0 tests'; echo 'test result: ok. 0 passed;'; \
                 echo 'running 2 tests'; echo '2 have passed'",
                false,
            ),
            ("echo 'running 0 tests'; echo 'test result: ok. 0 passed;'", true),
            ("echo all is well", false),
        ] {
            let mut tally = Tally::default();
            tally.run(Command::new("sh").args(["-c", script])).unwrap();
            assert_eq!(tally.report().is_ok(), understood, "{script}: {:?}", tally.broken);
        }
    }

    #[test]
    fn the_quick_tests_exist() {
        for (file, names) in QUICK {
            let path = shell::workspace().join("tests/tests").join(file).with_extension("rs");
            let text = std::fs::read_to_string(&path).unwrap();
            for name in *names {
                assert!(text.contains(&format!("fn {name}()")), "{} has no test {name}", path.display());
            }
        }
    }
}
