//! docs/figures.md, written from the declarations.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use tcpcopy_common::figures::{Family, Kind, Label, Section, Unit, Value, Visit};

use super::{PERCENTILES, words};

const HEAD: &str = "\
# Figures

What `tcpcopy` and `intercept` count. The table at the end of a run, on SIGUSR1 too, shows those that are not zero;
`--summary-json` writes all of them, zeros included, one object for each section: `jq .bytes.sent` reads one. Beside the
sections stand `format` (the version of this format: raised when a key is renamed or goes, or its unit changes),
`program` and `version`.

A *counter* is a total that only grows, a *gauge* a present state. Figures of several workers are summed. Octets are
payload unless the name says otherwise. This page is generated from the declarations: `cargo xtask figures`.
";

/// The families of a program, each once, in the order of their sections.
#[derive(Default)]
struct Families(BTreeMap<Section, Vec<&'static Family>>);

impl Visit for Families {
    fn figure(&mut self, family: &'static Family, labels: &[Label<'_>], value: Value<'_>) {
        let declared = family.label.map(|label| label.key);
        assert_eq!(labels.first().map(|label| label.key), declared, "{family:?}");
        assert_eq!(family.kind == Kind::Histogram, matches!(value, Value::Distribution(_)), "{family:?}");
        let families = self.0.entry(family.section).or_default();
        if declared.is_none() || families.last() != Some(&family) {
            families.push(family);
        }
    }
}

fn families(visit: impl FnOnce(&mut dyn Visit)) -> Families {
    let mut families = Families::default();
    visit(&mut families);
    families
}

fn page() -> String {
    let mut page = HEAD.to_owned();
    for (program, families) in programs() {
        writeln!(page, "\n## {program}").unwrap();
        let mut listed = None;
        for (section, families) in families.0 {
            writeln!(page, "\n### {}\n\n{}\n", section.name(), one_line(section.help())).unwrap();
            // Each set of values of a label is explained once.
            let label = families.iter().find_map(|family| family.label);
            match (label, listed) {
                (Some(label), Some((values, place))) if label.values == values => {
                    writeln!(page, "Figures and their meaning are those of [{place}](#{place}).").unwrap();
                    continue;
                }
                (Some(label), _) => listed = Some((label.values, section.name())),
                (None, _) => {}
            }
            writeln!(page, "| Figure | Kind | Unit | |\n|---|---|---|---|").unwrap();
            families.into_iter().for_each(|family| rows(&mut page, family));
        }
    }
    page
}

fn rows(page: &mut String, family: &Family) {
    let unit = match family.unit {
        Unit::Count => "",
        Unit::Bytes => "octets",
        Unit::Seconds => "s",
        Unit::Microseconds => "µs",
    };
    let mut row = |name: &str, kind: &str, unit: &str, help: &str| {
        writeln!(page, "| `{name}` | {kind} | {unit} | {} |", one_line(help).replace('|', "\\|")).unwrap();
    };
    let kind = match family.kind {
        Kind::Counter => "counter",
        Kind::Gauge => "gauge",
        Kind::Histogram => {
            let help = one_line(family.help);
            for (name, percent) in PERCENTILES {
                row(name, "percentile", unit, &format!("{percent} % of the samples are not longer."));
            }
            row("max", "maximum", unit, "The longest sample.");
            return row("count", "counter", "", &format!("How many samples there are. {help}"));
        }
    };
    match family.label {
        Some(label) => label.values.iter().for_each(|value| row(value.name, kind, unit, value.help)),
        None => row(family.name, kind, unit, family.help),
    }
}

fn one_line(help: &str) -> String {
    help.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn programs() -> [(&'static str, Families); 2] {
    [
        ("tcpcopy", families(|visitor| crate::source::visit_nothing_counted(visitor))),
        ("intercept", families(|visitor| crate::intercept::visit_nothing_counted(visitor))),
    ]
}

#[test]
fn figures_are_documented() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/figures.md"));
    if std::env::var_os("TCPCOPY_WRITE_FIGURES").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page(), "docs/figures.md is not what the declarations say: run `cargo xtask figures`");
}

#[test]
fn each_figure_has_one_name_of_its_own_and_says_what_it_is() {
    let snake = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_lowercase())
            && name.chars().all(|c| matches!(c, 'a'..='z' | '0'..='9' | '_'))
    };
    let sentence = |help: &str| help.starts_with(|c: char| c.is_uppercase()) && help.ends_with(['.', ')']);
    for (program, families) in programs() {
        for (section, families) in families.0 {
            assert!(snake(section.name()) && sentence(section.help()), "{section:?}: {}", section.help());
            let labelled = families.iter().any(|f| f.label.is_some() || f.kind == Kind::Histogram);
            assert!(
                !labelled || families.len() == 1,
                "{program}: {} is not alone in its section",
                words(section.name())
            );
            let mut names: Vec<&str> = families.iter().map(|family| family.name).collect();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), families.len(), "{program}: a name is there twice in {}", section.name());
            for family in families {
                assert!(snake(family.name), "{family:?}");
                assert!(
                    sentence(family.help) && !family.help.contains("](") && !family.help.contains("[`"),
                    "{family:?}"
                );
                let stands_alone =
                    !["Their ", "Those ", "The same "].iter().any(|start| family.help.starts_with(start));
                assert!(stands_alone, "the help means another figure: {family:?}");
                let says_bytes = [section.name(), family.name].iter().any(|name| name.contains("bytes"));
                assert_eq!(
                    says_bytes || section == Section::Discarded,
                    family.unit == Unit::Bytes,
                    "the name says another unit: {family:?}"
                );
                for value in family.label.iter().flat_map(|label| label.values) {
                    assert!(snake(value.name) && sentence(value.help), "{value:?}");
                }
            }
        }
    }
}
