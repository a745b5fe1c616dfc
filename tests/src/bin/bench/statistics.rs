//! What several rounds come to.

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    contender::Contender, crowd::Crowd, measure::Sample, programs::ProgramCost, softirq::SoftirqShare,
    workload::Workload,
};

/// A figure over all rounds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The median.
    pub median: f64,
    /// The least.
    pub min: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Returns the spread of figures; `None` without any.
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (&min, &max) = (sorted.first()?, sorted.last()?);
        let upper = sorted[sorted.len() / 2];
        let median =
            if sorted.len().is_multiple_of(2) { f64::midpoint(sorted[sorted.len() / 2 - 1], upper) } else { upper };
        Some(Self { median, min, max })
    }
}

/// All samples. Contender 0 is the one without a mirror, with which the others are compared round by round.
pub struct Results {
    /// In the order of the table.
    pub workloads: Vec<Workload>,
    /// Also in the order of the table.
    pub contenders: Vec<Contender>,
    /// What the eBPF programs cost.
    pub programs: Vec<ProgramCost>,
    /// How much of the processes' time is their packets' way through the receiver.
    pub softirqs: Vec<SoftirqShare>,
    /// A very large number of open connections.
    pub crowd: Option<Crowd>,
    /// By workload, by contender, by round.
    samples: Vec<Vec<Vec<Sample>>>,
}

impl Results {
    /// Creates results without a sample.
    pub fn new(workloads: &[Workload], contenders: &[Contender]) -> Self {
        let samples = vec![vec![Vec::new(); contenders.len()]; workloads.len()];
        Self {
            workloads: workloads.to_vec(),
            contenders: contenders.to_vec(),
            programs: Vec::new(),
            softirqs: Vec::new(),
            crowd: None,
            samples,
        }
    }

    /// Adds what a round has yielded.
    pub fn add(&mut self, workload: usize, contender: usize, sample: Sample) {
        self.samples[workload][contender].push(sample);
    }

    /// Returns the samples of one line of the table.
    pub fn samples(&self, workload: usize, contender: usize) -> &[Sample] {
        &self.samples[workload][contender]
    }

    /// Returns the contenders that a workload was run with.
    pub fn lines(&self, workload: usize) -> impl Iterator<Item = usize> {
        (0..self.contenders.len()).filter(move |&c| !self.samples(workload, c).is_empty())
    }

    /// Returns the spread of a figure that not every contender has.
    pub fn spread(&self, workload: usize, contender: usize, figure: impl Fn(&Sample) -> Option<f64>) -> Option<Spread> {
        Spread::of(self.samples(workload, contender).iter().filter_map(figure))
    }

    /// Returns the whole-machine time per mirrored request beyond the same round without a mirror, µs: the target's own
    /// serving is in it. `None` where loops are closed, because the contenders then do not do the same work.
    pub fn beyond(&self, workload: usize, contender: usize) -> Option<Spread> {
        self.workloads[workload].fixed_rate()?;
        let pairs = self.samples(workload, 0).iter().zip(self.samples(workload, contender));
        if contender == 0 { None } else { Spread::of(pairs.map(|(without, with)| with.machine - without.machine)) }
    }

    /// Returns everything as JSON.
    pub fn to_json(&self) -> Value {
        let line = |w: usize, c: usize| {
            json!({
                "contender": self.contenders[c].name(),
                "machine_beyond_us": self.beyond(w, c),
                "samples": self.samples(w, c),
            })
        };
        let workload = |w: usize| {
            let Workload { name, purpose, connections, .. } = self.workloads[w];
            let pace = self.workloads[w].describe_pace();
            let lines: Vec<Value> = self.lines(w).map(|c| line(w, c)).collect();
            json!({"workload": name, "purpose": purpose, "connections": connections, "pace": pace, "contenders": lines})
        };
        json!({
            "machine": machine(),
            "workloads": (0..self.workloads.len()).map(workload).collect::<Vec<_>>(),
            "programs": self.programs,
            "softirqs": self.softirqs,
            "crowd": self.crowd,
        })
    }
}

/// Describes the machine in a line: without it no figure means anything.
pub fn machine() -> String {
    let name = rustix::system::uname();
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown processor");
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let model = model.trim_start_matches([' ', '\t', ':']);
    format!("{processors} × {model}, Linux {}", name.release().to_string_lossy())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::ALL;

    #[test]
    fn the_median_lies_in_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]), Some(Spread { median: 2.0, min: 1.0, max: 3.0 }));
        assert_eq!(Spread::of([4.0, 1.0]).unwrap().median, 2.5);
        assert_eq!(Spread::of([]), None);
    }

    #[test]
    fn each_round_is_compared_with_its_own_baseline() {
        let mut results = Results::new(&ALL[1..2], &[Contender::Nothing, Contender::NginxMirror]);
        for (without, with) in [(10.0, 30.0), (20.0, 41.0), (10.0, 29.0)] {
            results.add(0, 0, Sample { machine: without, ..Sample::default() });
            results.add(0, 1, Sample { machine: with, ..Sample::default() });
        }
        assert_eq!(results.beyond(0, 1), Some(Spread { median: 20.0, min: 19.0, max: 21.0 }));
        assert_eq!(results.beyond(0, 0), None);
    }
}
