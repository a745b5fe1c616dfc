//! The programs under test, as they are run on real hosts.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::{
    Family, Host, Lab, Program, Summary,
    capture::{End, Packet, Sniffer},
};

/// The port of the live service.
pub const LIVE_PORT: u16 = 80;
/// The port of the service under test.
pub const TARGET_PORT: u16 = 8080;

/// How to run the programs; the default is what a user would type first.
#[derive(Clone, Debug, Default)]
pub struct MirrorOptions {
    /// `--hook`.
    pub hook: Option<&'static str>,
    /// `--inject`.
    pub inject: Option<&'static str>,
    /// Other interfaces to capture on than the source's.
    pub interfaces: Vec<&'static str>,
    /// Other rules than both families of the source's [`LIVE_PORT`] to the target's [`TARGET_PORT`].
    pub rules: Option<String>,
    /// Further arguments of `tcpcopy`.
    pub tcpcopy: Vec<String>,
    /// Further arguments of `intercept`.
    pub intercept: Vec<String>,
    /// `RUST_LOG` of both, when this process has none.
    pub log: Option<&'static str>,
}

impl MirrorOptions {
    /// Makes options of further arguments of both programs, as typed: between spaces.
    pub fn arguments(tcpcopy: &str, intercept: &str) -> Self {
        let words = |line: &str| line.split_ascii_whitespace().map(str::to_owned).collect();
        Self { tcpcopy: words(tcpcopy), intercept: words(intercept), ..Self::default() }
    }
}

/// Returns where one of the programs is: in `TCPCOPY_BIN_DIR`, or where cargo built it beside us.
pub fn program(name: &str) -> anyhow::Result<PathBuf> {
    let directory = match std::env::var_os("TCPCOPY_BIN_DIR") {
        Some(directory) => PathBuf::from(directory),
        None => {
            let ours = std::env::current_exe()?;
            let directory = ours.parent().context("an executable is in a directory")?;
            // Tests are in a directory of their own below the one of the programs.
            if directory.ends_with("deps") { directory.parent().unwrap_or(directory) } else { directory }.to_owned()
        }
    };
    let path = directory.join(name);
    ensure!(
        path.exists(),
        "{} does not exist: build it with `cargo build --package tcpcopy --bins`, with --release if the tests are",
        path.display()
    );
    Ok(path)
}

/// Makes a pre-shared key in a directory, by the command that users have for it.
pub fn make_key(directory: &Path, name: &str) -> anyhow::Result<PathBuf> {
    let path = directory.join(name);
    let output = Command::new(program("tcpcopy")?).arg("keygen").arg(&path).output()?;
    ensure!(output.status.success(), "tcpcopy keygen failed: {}", String::from_utf8_lossy(&output.stderr));
    Ok(path)
}

/// Returns the rule that copies a live service of `source` to the service under test.
pub fn rule(source: &Host, target: &Host, family: Family) -> String {
    let (live, test): (SocketAddr, SocketAddr) = (source.socket(family, LIVE_PORT), target.socket(family, TARGET_PORT));
    format!("{live}-{test}")
}

/// `intercept` and `tcpcopy`, running in a laboratory, and sniffers at the clients which look for leaks.
pub struct Mirror {
    /// `tcpcopy`: `None` only while a test has taken it out.
    pub tcpcopy: Option<Program>,
    /// `intercept`, likewise.
    pub intercept: Option<Program>,
    options: MirrorOptions,
    source: Host,
    target: Host,
    sniffers: Vec<Sniffer>,
    directory: TempDir,
    table: String,
    logs: String,
}

/// What a mirror has left when it was stopped.
#[derive(Debug)]
pub struct Outcome {
    /// The summary of `tcpcopy`.
    pub tcpcopy: Summary,
    /// The summary of `intercept`.
    pub intercept: Summary,
    /// What they wrote to standard output: the tables of their summaries.
    pub table: String,
    /// The logs of both.
    pub logs: String,
    /// Packets from the target that reached a client.
    pub leaked: Vec<Packet>,
}

impl Mirror {
    /// Starts both programs and waits until they are ready.
    pub fn start(lab: &Lab, options: MirrorOptions) -> anyhow::Result<Self> {
        let mut mirror = Self::prepare(lab, options)?;
        mirror.start_intercept()?;
        mirror.start_tcpcopy()?;
        Ok(mirror)
    }

    /// Prepares everything but does not start the programs.
    pub fn prepare(lab: &Lab, options: MirrorOptions) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tclab-").tempdir()?;
        make_key(directory.path(), "psk")?;
        let of_role = |role: &'static str| lab.hosts().filter(move |host| host.role.starts_with(role));
        let sniffers = of_role("client")
            .flat_map(|client| of_role("target").map(move |target| Sniffer::start(client, target, End::Source)))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            tcpcopy: None,
            intercept: None,
            options,
            source: lab.source.clone(),
            target: lab.target.clone(),
            sniffers,
            directory,
            table: String::new(),
            logs: String::new(),
        })
    }

    /// Returns the key file.
    pub fn key(&self) -> PathBuf {
        self.directory.path().join("psk")
    }

    /// Returns a directory that lives as long as the mirror.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Starts `intercept` on the target and waits until it is ready.
    pub fn start_intercept(&mut self) -> anyhow::Result<()> {
        let program = Program::start("intercept", &mut self.intercept_command()?)?;
        program.wait_ready()?;
        self.intercept = Some(program);
        Ok(())
    }

    /// Starts `tcpcopy` on the source and waits until it is ready.
    pub fn start_tcpcopy(&mut self) -> anyhow::Result<()> {
        let source = self.source.clone();
        let program = Program::start("tcpcopy", &mut self.tcpcopy_command(&source)?)?;
        program.wait_ready()?;
        self.tcpcopy = Some(program);
        Ok(())
    }

    /// Makes the command that runs `intercept` on the target.
    pub fn intercept_command(&self) -> anyhow::Result<Command> {
        let mut command = self.intercept_on(&self.target)?;
        command.arg("--summary-json").arg(self.directory.path().join("intercept.json"));
        Ok(command)
    }

    /// Makes the command that runs `intercept` on a host.
    pub fn intercept_on(&self, target: &Host) -> anyhow::Result<Command> {
        let mut command = target.command(program("intercept")?);
        command.args(["-i", &target.interface, "--psk-file"]).arg(self.key());
        command.args(&self.options.intercept);
        self.log_level(&mut command);
        Ok(command)
    }

    /// Makes the command that runs `tcpcopy` on a source.
    pub fn tcpcopy_command(&self, source: &Host) -> anyhow::Result<Command> {
        let mut command = self.tcpcopy_without_summary(source)?;
        command.arg("--summary-json").arg(self.directory.path().join(format!("{}.json", source.role)));
        Ok(command)
    }

    /// Makes the command that runs `tcpcopy` on a source, and writes no file.
    pub fn tcpcopy_without_summary(&self, source: &Host) -> anyhow::Result<Command> {
        let mut command = source.command(program("tcpcopy")?);
        let rules = self
            .options
            .rules
            .clone()
            .unwrap_or_else(|| Family::BOTH.map(|family| rule(source, &self.target, family)).join(","));
        command.args(["-x", &rules, "-s", &self.target.v4.to_string(), "--psk-file"]).arg(self.key());
        let own = [source.interface.as_str()];
        let interfaces: &[&str] = if self.options.interfaces.is_empty() { &own } else { &self.options.interfaces };
        interfaces.iter().for_each(|interface| {
            command.args(["-i", interface]);
        });
        for (option, value) in [("--hook", self.options.hook), ("--inject", self.options.inject)] {
            command.args(value.iter().flat_map(|value| [option, value]));
        }
        command.args(&self.options.tcpcopy);
        self.log_level(&mut command);
        Ok(command)
    }

    fn log_level(&self, command: &mut Command) {
        if let (Some(level), None) = (self.options.log, std::env::var_os("RUST_LOG")) {
            command.env("RUST_LOG", level);
        }
    }

    /// Returns the running `tcpcopy`.
    ///
    /// # Panics
    /// When a test has taken it out.
    pub fn tcpcopy(&self) -> &Program {
        self.tcpcopy.as_ref().expect("tcpcopy runs")
    }

    /// Returns the running `intercept`.
    ///
    /// # Panics
    /// When a test has taken it out.
    pub fn intercept(&self) -> &Program {
        self.intercept.as_ref().expect("intercept runs")
    }

    /// Returns the summary that a program wrote when it ended.
    pub fn summary(&self, name: &str) -> anyhow::Result<Summary> {
        let path = self.directory.path().join(format!("{name}.json"));
        let text = fs::read_to_string(&path).with_context(|| format!("there is no summary {}", path.display()))?;
        Ok(Summary(serde_json::from_str(&text).with_context(|| format!("{} is not JSON: {text}", path.display()))?))
    }

    /// Stops those programs that still run, `tcpcopy` first. Fails when one logged an error.
    pub fn stop_programs(&mut self) -> anyhow::Result<()> {
        for (name, program) in [("tcpcopy", self.tcpcopy.take()), ("intercept", self.intercept.take())] {
            if let Some(program) = program {
                let ended = program.stop()?;
                self.table.push_str(&format!("{}\n", ended.stdout));
                self.logs.push_str(&format!("The log of {name}:\n{}\n", ended.stderr));
            }
        }
        Ok(())
    }

    /// Stops the programs and then the sniffers.
    pub fn stop(mut self) -> anyhow::Result<Outcome> {
        self.stop_programs()?;
        let mut leaked = Vec::new();
        for sniffer in std::mem::take(&mut self.sniffers) {
            leaked.extend(sniffer.stop()?);
        }
        Ok(Outcome {
            tcpcopy: self.summary("source")?,
            intercept: self.summary("intercept")?,
            table: std::mem::take(&mut self.table),
            logs: std::mem::take(&mut self.logs),
            leaked,
        })
    }
}

impl Outcome {
    /// Asserts that no packet of the target reached a client.
    ///
    /// # Panics
    /// When one did.
    pub fn assert_no_leak(&self) {
        let shown: Vec<String> = self.leaked.iter().take(10).map(Packet::describe).collect();
        assert!(shown.is_empty(), "{} packets of the target reached a client: {shown:#?}", self.leaked.len());
    }

    /// Asserts the same for packets of the service under test to other client ports than `own`, which the client has
    /// used for requests of its own to the target.
    ///
    /// # Panics
    /// When one leaked.
    pub fn assert_no_leak_but(mut self, own: &[u16]) {
        self.leaked.retain(|packet| packet.source_port == TARGET_PORT && !own.contains(&packet.destination_port));
        self.assert_no_leak();
    }
}
