//! Why the kernel refuses to load a program, in words that lead to a remedy.

use std::io;

use aya::programs::ProgramError;
use rustix::{io::Errno, thread::CapabilitySet};

use super::{
    error::{BpfError, KernelFeature, is_eperm, with_causes},
    names::program,
};
use crate::privileges;

/// The program that is loaded with a flag: packets may be in fragments.
const FRAGMENTS: &str = program::CAPTURE_XDP;
/// How much of the verifier's log goes into the error. It ends with the reason.
const LOG_LINES: usize = 5;

/// Makes an error of what the kernel answered to the loading of `program`.
pub(super) fn refusal(program: &'static str, error: &ProgramError) -> BpfError {
    if is_eperm(error) {
        return BpfError::Permission;
    }
    match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            log::debug!("the verifier on `{program}` ({io_error}):\n{verifier_log}");
            judge(program, io_error, &verifier_log.to_string())
        }
        other => BpfError::Load { program, kernel: release(), reason: with_causes(other) },
    }
}

/// Tells what is behind the kernel's answer and the verifier's log.
fn judge(program: &'static str, answer: &io::Error, log: &str) -> BpfError {
    let errno = Errno::from_io_error(answer);
    match last_lines(log, LOG_LINES) {
        // The verifier has not even begun: the kernel does not know the flag.
        None if program == FRAGMENTS && errno == Some(Errno::INVAL) => BpfError::Kernel(KernelFeature::XdpFragments),
        None => BpfError::Load { program, kernel: release(), reason: answer.to_string() },
        Some(_) if errno == Some(Errno::ACCESS) && lacks_perfmon() => BpfError::Perfmon { program },
        Some(end) => BpfError::Verifier { program, kernel: release(), log: end },
    }
}

/// Returns the kernel's release, as `uname -r` prints it.
fn release() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

/// Returns the last `count` lines of `text` that are not blank, if there are any.
fn last_lines(text: &str, count: usize) -> Option<String> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    let end = &lines[lines.len().saturating_sub(count)..];
    (!end.is_empty()).then(|| end.join("\n"))
}

/// Returns whether the verifier does not trust this thread with pointers: without `CAP_PERFMON` it hardens programs
/// against speculation, and refuses some that it would accept otherwise. Unknown counts as having it.
fn lacks_perfmon() -> bool {
    !privileges::missing(CapabilitySet::PERFMON).is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(program: &'static str, errno: Errno, log: &str) -> String {
        judge(program, &errno.into(), log).to_string()
    }

    #[test]
    fn a_refusal_by_the_verifier_names_kernel_and_reason() {
        let log = "1\n2\n3\n4: (85) call bpf_skb_load_bytes#26\n\nR4 invalid zero-sized read\nprocessed 9 insns\nx\n";
        let text = text("learn", Errno::NOSPC, log);
        assert!(text.contains("`learn` was refused by the kernel's verifier"), "{text}");
        assert!(text.contains(&release()), "{text}");
        assert!(
            text.ends_with("\n3\n4: (85) call bpf_skb_load_bytes#26\nR4 invalid zero-sized read\nprocessed 9 insns\nx")
        );
        assert!(!text.contains("os error"), "{text}");
    }

    #[test]
    fn without_a_log_the_kernel_s_answer_is_named() {
        let text = text("learn", Errno::NOMEM, "\n");
        assert!(text.contains("`learn`") && text.contains("os error 12"), "{text}");
    }

    #[test]
    fn a_flag_that_the_kernel_does_not_know_is_told_from_a_program_that_it_refuses() {
        assert!(text(FRAGMENTS, Errno::INVAL, "").contains("came with Linux 5.18: capture at TC ingress"));
        for other in [
            text("capture_tc", Errno::INVAL, ""),
            text(FRAGMENTS, Errno::INVAL, "R1 type=ctx expected=fp"),
            text(FRAGMENTS, Errno::ACCESS, ""),
        ] {
            assert!(!other.contains("5.18"), "{other}");
        }
    }
}
