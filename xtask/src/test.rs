//! `cargo xtask test`: what CI runs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, bail};

use crate::{build, fuzz, packages, setup, shell};

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
    /// How long each fuzz target is fuzzed.
    #[arg(long, default_value_t = 60, value_name = "S")]
    fuzz_seconds: u64,
    /// Only tests whose name contains this.
    filter: Option<String>,
}

/// Results of several test programs.
#[derive(Default)]
struct Tally {
    passed: u64,
    failed: u64,
    ignored: u64,
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
    if !arguments.e2e && !arguments.fuzz {
        let mut command = shell::cargo();
        command.args(["test", "--workspace", "--exclude", "tcpcopy-ebpf", "--exclude", "lab", "--no-fail-fast"]);
        command.args(&arguments.filter);
        tally.run(&mut command)?;
    }
    // Which have no names that a filter could mean.
    if arguments.fuzz || !arguments.unit && !arguments.e2e && arguments.filter.is_none() {
        tally.fuzz(arguments.fuzz_seconds)?;
    }
    if !arguments.unit && !arguments.fuzz {
        packages::install(packages::Purpose::Test)?;
        build::release()?;
        let mut command = shell::cargo();
        // Optimised, because the laboratory measures; one by one, because the tests load the whole machine.
        command.args(["test", "--package", "lab", "--release", "--no-fail-fast"]);
        command.args(&arguments.filter);
        command.args(["--", "--test-threads=1"]);
        if !shell::is_root() && shell::output(Command::new("sudo").args(["-n", "true"])).is_ok() {
            let runner = format!("CARGO_TARGET_{}_RUNNER", shell::host()?.to_uppercase().replace('-', "_"));
            command.env(runner, "sudo --preserve-env");
        }
        tally.run(&mut command)?;
    }
    tally.report()
}

impl Tally {
    fn run(&mut self, command: &mut Command) -> anyhow::Result<()> {
        let line = shell::shown(command);
        eprintln!("$ {line}");
        let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("could not start `{line}`"))?;
        let stdout = child.stdout.take().context("the tests' standard output is not a pipe")?;
        for line in BufReader::new(stdout).lines() {
            let line = line?;
            self.count(&line);
            writeln!(std::io::stdout().lock(), "{line}")?;
        }
        if !child.wait()?.success() {
            self.broken.push(line);
        }
        Ok(())
    }

    /// Fuzzes every target for so long. Each counts as a test.
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

    fn count(&mut self, line: &str) {
        if let Some(result) = line.strip_prefix("test result: ") {
            for part in result.split(['.', ';']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(what)) = (words.next().and_then(|n| n.parse::<u64>().ok()), words.next())
                else {
                    continue;
                };
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => (),
                }
            }
        } else if let Some(skip) = line.strip_prefix("SKIP ") {
            self.skipped.push(skip.to_owned());
        } else if let Some(name) = line.strip_prefix("test ").and_then(|l| l.strip_suffix(" ... FAILED")) {
            self.failures.push(name.to_owned());
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

/// The panic in what a fuzzer said, and how to see it again: the end may be all that is left of a log.
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
        let why = "INFO: x\nthread panicked at a.rs:1:2:\nno end\nstack backtrace:\n  0: f\nexit\n    replay: cargo\n    elsewhere: xxd";
        assert_eq!(
            essence(why),
            "\n    thread panicked at a.rs:1:2:\n    no end\n    replay: cargo\n    elsewhere: xxd"
        );
        assert_eq!(essence("it could not be started"), "");
    }

    #[test]
    fn result_lines_are_added_up() {
        let mut tally = Tally::default();
        for line in [
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s",
            "SKIP leak: needs root",
            "test a::b ... FAILED",
            "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s",
        ] {
            tally.count(line);
        }
        assert_eq!((tally.passed, tally.failed, tally.ignored), (5, 1, 1));
        assert_eq!(tally.skipped, ["leak: needs root"]);
        assert_eq!(tally.failures, ["a::b"]);
    }
}
