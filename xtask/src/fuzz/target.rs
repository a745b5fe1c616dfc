//! Coverage-guided fuzzing with libFuzzer.
//!
//! The crate `fuzz` is laid out for cargo-fuzz, but this does without: all that cargo-fuzz adds to a build are the
//! compiler flags below, and one tool less has to be installed on a new machine.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context as _, bail};

use crate::{packages, setup, shell};

/// Coverage for libFuzzer: counters of edges, the table that names them, and the operands of comparisons.
const COVERAGE: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    // A branch that is folded away is one that is not seen.
    "-Cllvm-args=-simplifycfg-branch-fold-threshold=0",
    "-Ccodegen-units=1",
];
/// What libFuzzer is told in every run. An input that takes longer is a livelock; none needs to be longer.
const LIMITS: &[&str] = &["-timeout=20", "-rss_limit_mb=2048", "-max_len=4096", "-detect_leaks=0"];
/// The targets that need the programs, not only the core: by the feature `programs` of the crate `fuzz`.
const OF_THE_PROGRAMS: &[&str] = &["arguments", "control"];
/// Maximum octets of a finding that is printed whole, for a machine that is gone when the log is read.
const MOST_PRINTED: usize = 4096;

/// Returns the fuzz targets, by the files that they begin in.
pub fn names() -> anyhow::Result<Vec<String>> {
    let directory = shell::workspace().join("fuzz/fuzz_targets");
    let mut names = Vec::new();
    for entry in fs::read_dir(&directory).with_context(|| format!("cannot read {}", directory.display()))? {
        names.extend(entry?.path().file_stem().map(|stem| stem.to_string_lossy().into_owned()));
    }
    names.sort();
    Ok(names)
}

/// Fails where there is no such target.
pub fn check_name(name: &str) -> anyhow::Result<()> {
    let names = names()?;
    if !names.iter().any(|known| known == name) {
        bail!("there is no fuzz target {name:?}, but: {}", names.join(", "));
    }
    Ok(())
}

/// The fuzzers, compiled.
pub struct Build {
    programs: PathBuf,
}

impl Build {
    /// Compiles all of them, or `only` that one, in a directory of their own, as every crate in them is instrumented.
    pub fn new(only: Option<&str>) -> anyhow::Result<Self> {
        setup::toolchain()?;
        packages::install(packages::Purpose::Fuzz)?;
        let host = shell::host()?;
        let directory = shell::target_dir().join("fuzzing");
        let which: &[&str] = match only {
            None => &["--bins"],
            Some(name) if OF_THE_PROGRAMS.contains(&name) => &["--bin", name],
            Some(name) => &["--bin", name, "--no-default-features"],
        };
        let flags = [&["--cfg=fuzzing", "-Zsanitizer=address"], COVERAGE].concat();
        shell::run(
            shell::nightly("cargo")
                .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f"))
                // With a target the flags are not for build scripts and macros.
                .args(["build", "--quiet", "--package", "fuzz", "--profile", "fuzz", "--target", &host])
                .args(which)
                .arg("--target-dir")
                .arg(&directory),
        )?;
        Ok(Self { programs: directory.join(host).join("fuzz") })
    }

    /// Returns one of them.
    pub fn target(&self, name: &str) -> anyhow::Result<Target> {
        let own = shell::target_dir().join("fuzzing").join("found").join(name);
        let target = Target {
            name: name.to_owned(),
            program: self.programs.join(name),
            corpus: Path::new("fuzz/corpus").join(name),
            found: own.join("corpus"),
            findings: own.join("findings"),
        };
        for directory in [&target.corpus, &target.found, &target.findings] {
            fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        Ok(target)
    }
}

/// One fuzzer, and its directories.
pub struct Target {
    name: String,
    program: PathBuf,
    /// Committed.
    corpus: PathBuf,
    /// Not committed: what was found on this machine.
    found: PathBuf,
    findings: PathBuf,
}

impl Target {
    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(LIMITS);
        command.arg(format!("-artifact_prefix={}/", self.findings.display()));
        command.env("ASAN_OPTIONS", "detect_odr_violation=0:abort_on_error=0");
        command.env_remove("FUZZ_TRACE");
        if std::env::var_os("RUST_BACKTRACE").is_none() {
            command.env("RUST_BACKTRACE", "1");
        }
        command
    }

    fn for_so_long(&self, seconds: u64) -> Command {
        let mut command = self.command();
        command.arg(format!("-max_total_time={seconds}")).arg("-print_final_stats=1");
        // The first is where it writes to.
        command.arg(&self.found).arg(&self.corpus);
        command
    }

    /// Fuzzes until the time is over or something fails.
    pub fn fuzz(&self, seconds: u64) -> anyhow::Result<()> {
        let before = self.files_in(&self.findings)?;
        let mut command = self.for_so_long(seconds);
        let line = shell::shown(&command);
        eprintln!("$ {line}");
        let status = command.status().with_context(|| format!("could not start `{line}`"))?;
        if status.success() {
            return Ok(());
        }
        bail!("{} fails ({status}){}", self.name, self.reproduction(&before)?)
    }

    /// Runs the target on inputs of one's own.
    pub fn replay(&self, inputs: &[PathBuf], trace: bool) -> anyhow::Result<()> {
        let mut command = self.command();
        command.args(inputs);
        if trace {
            command.env("FUZZ_TRACE", "1");
        }
        shell::run(&mut command)
    }

    /// Takes into the corpus what reaches something that it does not, then leaves out of it what is not needed. Inputs
    /// with a name that a person gave them stay.
    pub fn minimise(&self) -> anyhow::Result<()> {
        let merged = self.found.with_file_name("merged");
        let _ = fs::remove_dir_all(&merged);
        fs::create_dir_all(&merged)?;
        let mut command = self.command();
        // One input for each edge is enough; how often it is passed is for the fuzzer to find out again.
        command.args(["-set_cover_merge=1", "-use_counters=0"]).arg(&merged).args([&self.corpus, &self.found]);
        shell::run(&mut command)?;
        let is_named = |path: &Path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.len() != 40 || !name.chars().all(|c| c.is_ascii_hexdigit())
        };
        for path in self.files_in(&self.corpus)?.iter().filter(|path| !is_named(path)) {
            fs::remove_file(path)?;
        }
        let kept = self.files_in(&merged)?;
        for path in &kept {
            fs::copy(path, self.corpus.join(path.file_name().unwrap_or_default()))?;
        }
        println!("{}: {} inputs reach everything", self.corpus.display(), kept.len());
        Ok(())
    }

    fn files_in(&self, directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let entries = fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))?;
        entries.map(|entry| Ok(entry?.path())).collect()
    }

    /// Says how to see again what was found since `before`.
    fn reproduction(&self, before: &[PathBuf]) -> anyhow::Result<String> {
        let mut text = String::new();
        for path in self.files_in(&self.findings)?.iter().filter(|path| !before.contains(path)) {
            let input = fs::read(path)?;
            write!(text, "\n    replay: cargo xtask fuzz {} {} --trace", self.name, path.display())?;
            if input.len() <= MOST_PRINTED {
                let hexadecimal: String = input.iter().map(|octet| format!("{octet:02x}")).collect();
                write!(text, "\n    elsewhere after: echo {hexadecimal} | xxd -r -p > FILE")?;
            }
        }
        Ok(text)
    }
}

/// Every target for so long, as many at a time as there are processors.
pub struct Campaign {
    pub seconds: u64,
}

/// What became of a target: a line about it, or why it failed.
pub type Outcome = (String, Result<String, String>);

impl Campaign {
    /// Fuzzes, and tells of each target as it is done.
    pub fn run(&self, mut tell: impl FnMut(&Outcome)) -> anyhow::Result<()> {
        let build = Build::new(None)?;
        let names = names()?;
        let (sender, outcomes) = std::sync::mpsc::channel();
        let queue = std::sync::Mutex::new(names.iter());
        let processors = thread::available_parallelism().map_or(1, usize::from);
        thread::scope(|scope| {
            for _ in 0..processors.min(names.len()) {
                let (sender, queue, build) = (sender.clone(), &queue, &build);
                scope.spawn(move || {
                    loop {
                        let Some(name) = queue.lock().ok().and_then(|mut queue| queue.next()) else { return };
                        let outcome = build.target(name).and_then(|target| target.fuzz_quietly(self.seconds));
                        let outcome = outcome.unwrap_or_else(|error| Err(format!("{error:#}")));
                        let _ = sender.send((name.clone(), outcome));
                    }
                });
            }
            drop(sender);
            outcomes.iter().for_each(|outcome| tell(&outcome));
        });
        Ok(())
    }
}

impl Target {
    /// Fuzzes, and keeps what libFuzzer says for the case that something fails.
    fn fuzz_quietly(&self, seconds: u64) -> anyhow::Result<Result<String, String>> {
        let before = self.files_in(&self.findings)?;
        let log = self.findings.with_file_name("log");
        let file = fs::File::create(&log).with_context(|| format!("cannot create {}", log.display()))?;
        let mut command = self.for_so_long(seconds);
        // What one machine has gone through, another goes through in the same order: a change is not blamed for what a
        // lucky draw finds beside it. `cargo xtask fuzz TARGET` draws anew each time.
        command.arg("-seed=1");
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let line = shell::shown(&command);
        let status = command.status().with_context(|| format!("could not start `{line}`"))?;
        let said = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
        if status.success() {
            let runs = said.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            return Ok(Ok(format!("{} inputs in {seconds} s", runs.unwrap_or("unknown").trim())));
        }
        // What comes before is how its coverage grew.
        let from = said.lines().count().saturating_sub(200);
        let tail: Vec<&str> = said.lines().skip(from).collect();
        Ok(Err(format!("{}\n{status}{}", tail.join("\n"), self.reproduction(&before)?)))
    }
}
