//! Booting a guest, and reading what it says.

use std::{fs, path::Path, process::Command};

use anyhow::Context as _;

use super::archive::Kernel;
use crate::shell;

/// Seconds until an emulator is ended that does not end by itself. One has work for two minutes, but may have to share
/// its processor with twenty others.
const PATIENCE: &str = "3600";
/// Lines of a transcript that are shown with a failure.
const LINES_SHOWN: usize = 30;

/// What a guest has said, as far as it came.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Transcript {
    /// What became of each program in each setting, in the order of loading.
    pub programs: Vec<Program>,
    /// Live requests, and how many of them were mirrored.
    pub mirrored: Option<(u64, u64)>,
    booted: bool,
    programs_exit: Option<i32>,
    mirror_exit: Option<i32>,
    text: String,
}

/// One eBPF program in one setting.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Its name.
    pub name: String,
    /// "plain" or "full".
    pub setting: String,
    /// What the kernel did with it.
    pub loading: Loading,
}

/// What a kernel does with a program.
#[derive(Debug, PartialEq, Eq)]
pub enum Loading {
    /// It is loaded, with that many verified instructions if the kernel tells.
    Loads(Option<u64>),
    /// The kernel lacks a feature, as is known of it.
    Lacks(String),
    /// It is refused, for this reason.
    Refused(String),
}

/// Boots a kernel, a second time if the first attempt does not come to its end. The whole transcript is kept beside the
/// kernel.
pub fn run(kernel: &Kernel, initramfs: &Path) -> anyhow::Result<Transcript> {
    let mut transcript = Transcript::default();
    for again in ["", ", once more"] {
        eprintln!("booting Linux {} in an emulator{again}", kernel.release);
        transcript = Transcript::read(&boot(&kernel.image, initramfs)?);
        if transcript.mirror_exit.is_some() {
            break;
        }
    }
    let file = kernel.directory.join("transcript");
    fs::write(&file, &transcript.text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(transcript)
}

fn boot(image: &Path, initramfs: &Path) -> anyhow::Result<String> {
    // KVM is not asked for, as it is often missing, or emulated itself: then slower than this.
    let machine = ["-M", "q35", "-accel", "tcg", "-cpu", "max", "-m", "1536", "-smp", "1"];
    // The guest's time is that of its instructions, 2 ns for each, and goes on at once where it would only wait. So no
    // limit in the guest is missed because this machine has other work.
    let time = ["-icount", "shift=1,sleep=off"];
    let console = ["-nodefaults", "-nographic", "-serial", "stdio", "-no-reboot"];
    let mut command = Command::new("timeout");
    command
        .args([PATIENCE, "qemu-system-x86_64"])
        .args(machine)
        .args(time)
        .args(console)
        .arg("-kernel")
        .arg(image)
        .arg("-initrd")
        .arg(initramfs)
        .args(["-append", "console=ttyS0 panic=-1 loglevel=3 mitigations=off rdinit=/init"])
        .stdin(std::process::Stdio::null());
    let line = shell::shown(&command);
    let output = command.output().with_context(|| format!("could not start `{line}`"))?;
    // How it ended says nothing: a kernel that panics ends it as one does that is switched off.
    Ok(String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr))
}

impl Transcript {
    fn read(said: &str) -> Self {
        let mut this = Self::default();
        for line in said.lines().map(without_controls) {
            if let Some((_, result)) = line.split_once("RESULT ") {
                let mut words = result.split_whitespace();
                match (words.next(), words.next().and_then(|exit| exit.parse().ok())) {
                    (Some("boot"), _) => this.booted = true,
                    (Some("programs"), exit) => this.programs_exit = exit,
                    (Some("mirror"), exit) => this.mirror_exit = exit,
                    _ => {}
                }
            } else if let Some((_, program)) = line.split_once("PROGRAM ") {
                // Before the first one stands the name of the test.
                this.programs.extend(Program::read(program));
            } else if let Some(counts) = mirrored(&line) {
                this.mirrored = Some(counts);
            }
            this.text.push_str(&line);
            this.text.push('\n');
        }
        this
    }

    /// Says why not all programs were loaded, if so.
    pub fn loading_failure(&self) -> Option<String> {
        if self.programs_exit == Some(0) && !self.programs.is_empty() {
            return None;
        }
        let refused = self.programs.iter().filter_map(|program| match &program.loading {
            Loading::Refused(why) => Some(format!("{} ({}): {why}", program.name, program.setting)),
            _ => None,
        });
        let refused: Vec<String> = refused.collect();
        Some(if refused.is_empty() { self.end() } else { refused.join("\n") })
    }

    /// Says why not everything was mirrored, if so.
    pub fn mirror_failure(&self) -> Option<String> {
        let whole = self.mirrored.is_some_and(|(live, mirrored)| live > 0 && live == mirrored);
        (self.mirror_exit != Some(0) || !whole).then(|| self.end())
    }

    fn end(&self) -> String {
        let lines: Vec<&str> = self.text.lines().collect();
        let stage = match (self.booted, self.programs_exit) {
            (false, _) => "the kernel did not boot",
            (true, None) => "the guest did not come to the end of the loading of programs",
            (true, Some(_)) => "the guest's last words",
        };
        format!("{stage}:\n{}", lines[lines.len().saturating_sub(LINES_SHOWN)..].join("\n"))
    }
}

impl Program {
    /// Reads what the test in the guest prints: name, setting, what became of it, and more on that.
    fn read(line: &str) -> Option<Self> {
        let mut words = line.splitn(4, ' ');
        let (name, setting, what) = (words.next()?, words.next()?, words.next()?);
        let more = words.next().unwrap_or_default();
        let loading = match what {
            "loads" => Loading::Loads(more.parse().ok()),
            "lacks" => Loading::Lacks(more.to_owned()),
            _ => Loading::Refused(more.to_owned()),
        };
        Some(Self { name: name.to_owned(), setting: setting.to_owned(), loading })
    }
}

/// Reads live and mirrored requests in the last line of the demo's table.
fn mirrored(line: &str) -> Option<(u64, u64)> {
    let mut words = line.trim().strip_prefix("all ")?.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

/// Returns a line without the carriage return and what tells a terminal how to show it.
fn without_controls(line: &str) -> String {
    let mut clean = String::new();
    let mut rest = line.chars().filter(|c| *c != '\r');
    while let Some(c) = rest.next() {
        if c == '\x1b' {
            // "ESC [ … letter", or "ESC letter".
            if rest.next() == Some('[') {
                rest.by_ref().find(|c| c.is_ascii_alphabetic());
            }
        } else {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "\x1bc\x1b[?7l\x1b[2JSeaBIOS\r\nRESULT boot 5.10.0-46-cloud-amd64\r\n\
        test bpf::tests::loading::x ... PROGRAM capture_tc plain loads 107702\r\n\
        PROGRAM learn plain loads\r\n\
        PROGRAM capture_xdp plain lacks XDP with fragments\r\n\
        ok\r\nRESULT programs 0\r\n\
        \u{20}all                          899        899      0          1.00 ms   4.00 ms \r\n\
        RESULT mirror 0\r\n";

    #[test]
    fn a_good_transcript_has_no_failures() {
        let transcript = Transcript::read(GOOD);
        let program = |i: usize| &transcript.programs[i];
        assert_eq!((program(0).name.as_str(), program(0).setting.as_str()), ("capture_tc", "plain"));
        assert_eq!(program(0).loading, Loading::Loads(Some(107_702)));
        assert_eq!(program(1).loading, Loading::Loads(None));
        assert_eq!(program(2).loading, Loading::Lacks("XDP with fragments".into()));
        assert_eq!(transcript.mirrored, Some((899, 899)));
        assert_eq!((transcript.loading_failure(), transcript.mirror_failure()), (None, None));
    }

    #[test]
    fn a_refused_program_fails_with_its_reason() {
        let text = GOOD
            .replace("learn plain loads", "learn full refused R4 invalid | processed 9")
            .replace("RESULT programs 0", "RESULT programs 101");
        let failure = Transcript::read(&text).loading_failure().unwrap();
        assert_eq!(failure, "learn (full): R4 invalid | processed 9");
    }

    #[test]
    fn a_guest_that_falls_silent_fails_both_tests() {
        for (words, stage) in [
            ("SeaBIOS\nint3: 0000\n", "the kernel did not boot"),
            ("RESULT boot 6.1\nPROGRAM learn plain loads 1\n", "the guest did not come to the end"),
        ] {
            let transcript = Transcript::read(words);
            assert!(transcript.loading_failure().unwrap().starts_with(stage));
            assert!(transcript.mirror_failure().unwrap().starts_with(stage));
        }
    }

    #[test]
    fn no_program_at_all_is_no_success() {
        let transcript = Transcript::read("RESULT boot 6.1\nrunning 0 tests\nRESULT programs 0\nRESULT mirror 0\n");
        assert!(transcript.loading_failure().is_some());
        assert!(transcript.mirror_failure().is_some(), "no request was seen");
    }

    #[test]
    fn a_lost_request_fails_whatever_the_demo_says() {
        let transcript = Transcript::read(&GOOD.replace("899        899      0", "899        898      1"));
        assert_eq!(transcript.mirrored, Some((899, 898)));
        assert!(transcript.mirror_failure().is_some());
    }
}
