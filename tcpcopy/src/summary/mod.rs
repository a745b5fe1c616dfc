//! The figures of a run, as a table for people and as JSON for scripts: two views of what the declarations hand out.

#[cfg(test)]
pub(crate) mod page;

use std::{collections::BTreeMap, fmt, time::Duration};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value as Json, json};
use tcpcopy_common::figures::{Family, Label, Section, Unit, Value, Visit};

/// The version of the JSON: raised when a key is renamed or goes, or its unit changes; new keys leave it as it is.
const FORMAT: u32 = 1;

/// Percentiles of a distribution that are shown, with their names.
const PERCENTILES: [(&str, f64); 4] = [("p50", 50.0), ("p90", 90.0), ("p99", 99.0), ("p999", 99.9)];

/// The figures of a program at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    program: &'static str,
    sections: BTreeMap<Section, Vec<Row>>,
}

/// One figure, or one number of a distribution.
#[derive(Clone, Debug, PartialEq)]
struct Row {
    name: String,
    number: Number,
    /// Whether the table shows it.
    shown: bool,
}

/// A number with its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Count(u64),
    Bytes(u64),
    Microseconds(f64),
    Seconds(f64),
}

/// Collects what it is handed.
struct Collector(BTreeMap<Section, Vec<Row>>);

impl Report {
    /// Collects the figures of `program` that `visit` hands out.
    #[must_use]
    pub fn of(program: &'static str, visit: impl FnOnce(&mut dyn Visit)) -> Self {
        let mut collector = Collector(BTreeMap::new());
        visit(&mut collector);
        Self { program, sections: collector.0 }
    }

    /// Returns the JSON: the version of its format, the program, and an object of numbers for each section, zeros
    /// included.
    #[must_use]
    pub fn to_json(&self) -> Json {
        let mut all = Map::from_iter([
            ("format".to_owned(), json!(FORMAT)),
            ("program".to_owned(), json!(self.program)),
            ("version".to_owned(), json!(env!("CARGO_PKG_VERSION"))),
        ]);
        all.extend(self.sections.iter().map(|(section, rows)| {
            let rows = rows.iter().map(|row| (row.name.clone(), row.number.to_json())).collect();
            (section.name().to_owned(), Json::Object(rows))
        }));
        Json::Object(all)
    }
}

impl Visit for Collector {
    fn figure(&mut self, family: &'static Family, labels: &[Label<'_>], value: Value<'_>) {
        let rows = self.0.entry(family.section).or_default();
        let zeros = family.section.shows_zeros();
        match value {
            Value::Number(n) => {
                let number = if family.unit == Unit::Bytes { Number::Bytes(n) } else { Number::Count(n) };
                let name = labels.first().map_or(family.name, |label| label.value).to_owned();
                rows.push(Row { name, number, shown: zeros || n > 0 });
            }
            Value::Time(time) => {
                let number = if family.unit == Unit::Seconds { Number::seconds(time) } else { Number::micros(time) };
                rows.push(Row { name: family.name.to_owned(), number, shown: zeros || !time.is_zero() });
            }
            Value::Distribution(samples) => {
                // Nothing was measured where there is no sample.
                let shown = zeros || samples.count() > 0;
                let mut row = |name: &str, number| rows.push(Row { name: name.to_owned(), number, shown });
                for (name, percent) in PERCENTILES {
                    row(name, Number::micros(samples.percentile(percent)));
                }
                row("max", Number::micros(samples.max()));
                row("count", Number::Count(samples.count()));
            }
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new();
        table.load_style(UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(["", "figure", "value", "unit"]);
        if let Some(column) = table.column_mut(2) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        for (section, rows) in &self.sections {
            for (i, row) in rows.iter().filter(|row| row.shown).enumerate() {
                let title = if i == 0 { words(section.name()) } else { String::new() };
                table.add_row([title, words(&row.name), row.number.value(), row.number.unit().to_owned()]);
            }
        }
        write!(f, "{table}")
    }
}

impl Number {
    fn micros(time: Duration) -> Self {
        Self::Microseconds(time.as_nanos() as f64 / 1e3)
    }

    fn seconds(time: Duration) -> Self {
        Self::Seconds(time.as_secs_f64())
    }

    fn to_json(self) -> Json {
        match self {
            Self::Count(n) | Self::Bytes(n) => json!(n),
            Self::Microseconds(n) | Self::Seconds(n) => json!(n),
        }
    }

    fn value(self) -> String {
        match self {
            Self::Count(n) | Self::Bytes(n) => grouped(n),
            Self::Microseconds(n) | Self::Seconds(n) => format!("{n:.1}"),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Count(_) => "",
            Self::Bytes(_) => "B",
            Self::Microseconds(_) => "µs",
            Self::Seconds(_) => "s",
        }
    }
}

/// Returns a name as people write it.
fn words(name: &str) -> String {
    name.replace('_', " ")
}

/// Writes 1234567 as "1 234 567", with narrow no-break spaces (ISO 80000-1).
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::with_capacity(digits.len() * 2);
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    use tcpcopy_common::figures::{LabelValue, counter, gauge, histogram};

    use super::*;

    /// A distribution of one sample, or of none.
    struct Sample(Duration);

    impl tcpcopy_common::figures::Distribution for Sample {
        fn count(&self) -> u64 {
            u64::from(!self.0.is_zero())
        }

        fn max(&self) -> Duration {
            self.0
        }

        fn percentile(&self, percent: f64) -> Duration {
            self.0.mul_f64(percent / 100.0)
        }
    }

    fn report(bytes: u64, naps: u64, reset: u64, lag: Duration) -> Report {
        static CAPTURED: Family = counter(Section::Stages).named("captured_bytes").bytes();
        static NAPS: Family = counter(Section::Cost).named("naps");
        static REASONS: &[LabelValue] = &[LabelValue { name: "target_reset", help: "It reset the connection." }];
        static ABORTED: Family = counter(Section::Aborted).named("aborted").by("reason", REASONS);
        static DURATION: Family = gauge(Section::Run).named("duration").seconds();
        static LAG: Family = histogram(Section::Lag).named("lag");
        Report::of("tcpcopy", |visitor| {
            visitor.figure(&NAPS, &[], Value::Number(naps));
            visitor.figure(&CAPTURED, &[], Value::Number(bytes));
            let label = Label { key: "reason", value: REASONS[0].name };
            visitor.figure(&ABORTED, &[label], Value::Number(reset));
            visitor.figure(&DURATION, &[], Value::Time(Duration::from_millis(1500)));
            visitor.figure(&LAG, &[], Value::Distribution(&Sample(lag)));
        })
    }

    #[test]
    fn table_and_json_hold_the_same_figures() {
        let report = report(1_234_567, 7, 3, Duration::from_micros(10));
        assert_eq!(
            report.to_json(),
            json!({
                "format": 1,
                "program": "tcpcopy",
                "version": env!("CARGO_PKG_VERSION"),
                "run": {"duration": 1.5},
                "stages": {"captured_bytes": 1_234_567},
                "aborted": {"target_reset": 3},
                "cost": {"naps": 7},
                "lag_us": {"p50": 5.0, "p90": 9.0, "p99": 9.9, "p999": 9.99, "max": 10.0, "count": 1},
            })
        );
        let table = report.to_string();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split(['│', '┆']).map(str::trim).collect())
            .filter(|r: &Vec<_>| r.len() > 3)
            .collect();
        let has = |row: [&str; 4]| rows.iter().any(|r| r[1..5] == row);
        assert!(has(["stages", "captured bytes", "1\u{202f}234\u{202f}567", "B"]), "{table}");
        assert!(has(["aborted", "target reset", "3", ""]) && has(["lag us", "p50", "5.0", "µs"]), "{table}");
        assert!(table.find("stages").unwrap() < table.find("cost").unwrap(), "not in the order of sections\n{table}");
    }

    #[test]
    fn zeros_are_in_the_json_and_in_the_table_only_where_one_looks_for_them() {
        let report = report(0, 0, 0, Duration::ZERO);
        let json = report.to_json();
        assert_eq!((&json["aborted"], &json["cost"]), (&json!({"target_reset": 0}), &json!({"naps": 0})));
        assert_eq!(json["lag_us"]["count"], 0);
        let table = report.to_string();
        assert!(table.contains("captured bytes"), "{table}");
        assert!(["aborted", "naps", "lag"].iter().all(|absent| !table.contains(absent)), "{table}");
    }
}
