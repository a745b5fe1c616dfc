//! Every program loads, each by itself, on whatever kernel runs the tests: `cargo xtask test --kernels` runs this on
//! those of Debian.

use aya::{
    maps::Map,
    programs::{ProgramInfo, SchedClassifier, Xdp},
    util::KernelVersion,
};
use tcpcopy_common::capture::criterion;

use super::privileged;
use crate::bpf::{
    BpfError, InstanceMaps,
    names::{global, map, program},
    object::{Object, Side},
    refusal::refusal,
};

const CAPTURE_PROGRAMS: [&str; 5] =
    [program::CAPTURE_TC, program::CAPTURE_TC_L3, program::CAPTURE_XDP, program::ANSWER_TC, program::ANSWER_TC_L3];

const INTERCEPT_PROGRAMS: [&str; 6] = [
    program::LEARN,
    program::LEARN_L3,
    program::SWALLOW_TCX,
    program::SWALLOW_TCX_L3,
    program::SWALLOW_CLSACT,
    program::SWALLOW_CLSACT_L3,
];

/// What is not asked for is removed by the verifier, and so neither checked nor counted.
#[derive(Clone, Copy)]
enum Setting {
    /// As the programs are loaded without options.
    Plain,
    /// Everything that an option adds, and the log.
    Full,
}

impl Setting {
    const fn name(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Full => "full",
        }
    }

    fn object(self, side: Side) -> Object {
        match (self, side) {
            (Self::Plain, Side::Capture) => Object::load(side, false, |_| {}),
            (Self::Plain, Side::Intercept) => Object::load(side, false, |loader| {
                loader.override_global(global::WITH_PREFIXES, InstanceMaps::with_prefixes(), true);
            }),
            (Self::Full, Side::Capture) => Object::load(side, true, |loader| {
                loader
                    .override_global(global::CAPTURE_WORKERS, &4u32, true)
                    .override_global(global::CAPTURE_CRITERIA, &(criterion::CLIENT | criterion::SAMPLE), true)
                    .override_global(global::CAPTURE_HANDSHAKES, &1u32, true);
            }),
            (Self::Full, Side::Intercept) => Object::load(side, true, |loader| {
                loader.override_global(global::REFLECT, &1u32, true).override_global(
                    global::WITH_PREFIXES,
                    InstanceMaps::with_prefixes(),
                    true,
                );
            }),
        }
        .unwrap()
    }
}

/// What became of one program. Its lines on standard output are what `cargo xtask test --kernels` reads.
enum Outcome {
    /// Loaded, with so many verified instructions if the kernel tells (Linux 5.16).
    Loads(Option<u32>),
    /// The kernel lacks something that it has not for any program.
    Lacks(&'static str),
    Refused(String),
}

fn load(object: &mut Object, name: &'static str) -> Outcome {
    let loaded = if name == program::CAPTURE_XDP {
        let program = object.program::<Xdp>(name).unwrap();
        program.load().and_then(|()| program.info())
    } else {
        let program = object.program::<SchedClassifier>(name).unwrap();
        program.load().and_then(|()| program.info())
    };
    let verified = |info: ProgramInfo| info.verified_instruction_count().filter(|count| *count > 0);
    match loaded.map(verified) {
        Ok(verified) => Outcome::Loads(verified),
        Err(error) => match refusal(name, &error) {
            BpfError::Kernel(feature) => Outcome::Lacks(feature.name()),
            error => Outcome::Refused(error.to_string()),
        },
    }
}

/// Verified instructions that no program needs on this kernel. The verifier gives up after a million; what is near that
/// takes seconds to load, and is one change away from not loading at all.
///
/// From Linux 6.8 to 7.1 the verifier learns the most from comparisons, and so follows the fewest paths.
fn bound() -> u32 {
    let newest = KernelVersion::new(7, 2, 0);
    match KernelVersion::current().unwrap() {
        version if version >= KernelVersion::new(6, 8, 0) && version < newest => 250_000,
        _ => 400_000,
    }
}

#[test]
fn every_program_loads_far_from_the_verifier_s_limit() {
    if !privileged() {
        return;
    }
    let mut refused = Vec::new();
    for setting in [Setting::Plain, Setting::Full] {
        let capture = CAPTURE_PROGRAMS.map(|program| (Side::Capture, program));
        let intercept = INTERCEPT_PROGRAMS.map(|program| (Side::Intercept, program));
        for (side, program) in capture.into_iter().chain(intercept) {
            // An object of its own, so that the kernel cannot know anything of the program yet.
            let outcome = load(&mut setting.object(side), program);
            let line = match &outcome {
                Outcome::Loads(Some(verified)) => format!("loads {verified}"),
                Outcome::Loads(None) => "loads".to_owned(),
                Outcome::Lacks(feature) => format!("lacks {feature}"),
                Outcome::Refused(why) => format!("refused {}", why.replace('\n', " | ")),
            };
            println!("PROGRAM {program} {} {line}", setting.name());
            let good = match outcome {
                Outcome::Loads(verified) => verified.is_none_or(|verified| verified < bound()),
                Outcome::Lacks(_) => KernelVersion::current().unwrap() < KernelVersion::new(5, 18, 0),
                Outcome::Refused(_) => false,
            };
            if !good {
                refused.push(format!("{program} ({}): {line}", setting.name()));
            }
        }
    }
    assert!(refused.is_empty(), "less than {} verified instructions, but:\n{}", bound(), refused.join("\n"));
}

/// The kernel refuses a ring that is not a whole number of pages, which have up to 64 KiB.
#[test]
fn a_ring_s_placeholder_suits_every_page_size() {
    if !privileged() {
        return;
    }
    let object = Object::load(Side::Intercept, false, |_| {}).unwrap();
    // The rings within the array of maps are of the same type.
    let Map::RingBuf(reports) = object.map(map::REPORTS).unwrap() else { panic!("the reports are not in a ring") };
    let bytes = reports.info().unwrap().max_entries();
    assert!(bytes.is_power_of_two() && bytes % (64 << 10) == 0, "{bytes}");
}
