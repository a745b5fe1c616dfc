//! What became of each program on each kernel, as a table.

use std::fmt::Write as _;

use super::{
    Trial,
    guest::{Loading, Program},
};

/// Renders a row for each program, with the instructions that the verifier has followed in its plain and in its full
/// setting, and one for the mirroring; a column for each kernel.
pub fn render(trials: &[Trial]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for program in trials.iter().flat_map(|trial| &trial.transcript.programs) {
        if !names.contains(&program.name.as_str()) {
            names.push(&program.name);
        }
    }
    let heading = std::iter::once("verified instructions".to_owned())
        .chain(trials.iter().map(|trial| format!("Linux {}", trial.version)))
        .collect();
    let programs = names.iter().map(|name| {
        let cells = trials.iter().map(|trial| {
            let settings = trial.transcript.programs.iter().filter(|program| program.name == *name);
            cell(settings.collect())
        });
        std::iter::once((*name).to_owned()).chain(cells).collect()
    });
    let mirrored = trials.iter().map(|trial| match trial.transcript.mirrored {
        Some((live, mirrored)) => format!("{mirrored} of {live}"),
        None => "–".to_owned(),
    });
    let last = std::iter::once("requests mirrored".to_owned()).chain(mirrored).collect();
    let rows: Vec<Vec<String>> = std::iter::once(heading).chain(programs).chain([last]).collect();
    aligned(&rows)
}

/// Renders the settings of a program, or what they have in common.
fn cell(settings: Vec<&Program>) -> String {
    let mut texts: Vec<String> = settings
        .iter()
        .map(|program| match &program.loading {
            Loading::Loads(Some(count)) => count.to_string(),
            Loading::Loads(None) => "loads".to_owned(),
            Loading::Lacks(_) => "not on this kernel".to_owned(),
            Loading::Refused(_) => "REFUSED".to_owned(),
        })
        .collect();
    texts.dedup();
    if texts.is_empty() { "–".to_owned() } else { texts.join(" / ") }
}

/// Columns as wide as they must be: the first to the left, the others to the right.
fn aligned(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max();
    let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or_default()).collect();
    let mut text = String::new();
    for row in rows {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            // Writing to a string does not fail.
            let _ = if column == 0 { write!(text, "{cell:<width$}") } else { write!(text, "  {cell:>width$}") };
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::guest::Transcript;

    fn program(name: &str, setting: &str, loading: Loading) -> Program {
        Program { name: name.into(), setting: setting.into(), loading }
    }

    #[test]
    fn each_kernel_is_a_column_and_each_program_a_row() {
        let old = vec![
            program("learn", "plain", Loading::Loads(None)),
            program("learn", "full", Loading::Loads(None)),
            program("capture_xdp", "plain", Loading::Lacks("XDP with fragments".into())),
        ];
        let new = vec![
            program("learn", "plain", Loading::Loads(Some(124_755))),
            program("learn", "full", Loading::Refused("R4".into())),
        ];
        let trial = |version: &str, programs, mirrored| Trial {
            version: version.into(),
            transcript: {
                let mut transcript = Transcript::default();
                (transcript.programs, transcript.mirrored) = (programs, mirrored);
                transcript
            },
        };
        assert_eq!(
            render(&[trial("5.10.262", old, Some((922, 922))), trial("7.3.4", new, None)]),
            "verified instructions      Linux 5.10.262       Linux 7.3.4\n\
             learn                               loads  124755 / REFUSED\n\
             capture_xdp            not on this kernel                 –\n\
             requests mirrored              922 of 922                 –\n"
        );
    }
}
