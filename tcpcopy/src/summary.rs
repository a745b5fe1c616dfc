//! The figures at the end of a run, as a table for people and as JSON for scripts.

use std::{fmt, path::Path, time::Duration};

use anyhow::Context as _;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value, json};

/// Named sections of figures, in the order in which they are shown.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    sections: Vec<Section>,
}

/// One section: an object in the JSON.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    name: &'static str,
    rows: Vec<(&'static str, Figure)>,
}

/// A figure with its unit. In the JSON all are numbers: counts, octets, and microseconds or seconds as the name says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Figure {
    /// A number of things.
    Count(u64),
    /// A number of octets.
    Bytes(u64),
    /// A short time, shown in µs.
    Micros(f64),
    /// A long time, shown in s.
    Seconds(f64),
}

impl Report {
    /// Appends a section, or nothing if it has no rows.
    #[must_use]
    pub fn section(mut self, name: &'static str, rows: impl IntoIterator<Item = (&'static str, Figure)>) -> Self {
        let rows: Vec<_> = rows.into_iter().collect();
        if !rows.is_empty() {
            self.sections.push(Section { name, rows });
        }
        self
    }

    /// Finds a figure.
    #[must_use]
    pub fn get(&self, section: &str, name: &str) -> Option<Figure> {
        let section = self.sections.iter().find(|s| s.name == section)?;
        section.rows.iter().find(|(n, _)| *n == name).map(|(_, f)| *f)
    }

    /// The JSON: an object of objects of numbers.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let section = |s: &Section| s.rows.iter().map(|(n, f)| ((*n).to_owned(), f.to_json())).collect::<Map<_, _>>();
        Value::Object(self.sections.iter().map(|s| (s.name.to_owned(), Value::Object(section(s)))).collect())
    }

    /// Writes the JSON to `path`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        std::fs::write(path, format!("{:#}\n", self.to_json()))
            .with_context(|| format!("cannot write the summary to {} (--summary-json)", path.display()))
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
        for section in &self.sections {
            for (i, (name, figure)) in section.rows.iter().enumerate() {
                let title = if i == 0 { section.name.replace('_', " ") } else { String::new() };
                table.add_row([title, name.replace('_', " "), figure.value(), figure.unit().to_owned()]);
            }
        }
        write!(f, "{table}")
    }
}

impl Figure {
    /// A short time.
    #[must_use]
    pub fn micros(d: Duration) -> Self {
        Self::Micros(d.as_nanos() as f64 / 1e3)
    }

    fn to_json(self) -> Value {
        match self {
            Self::Count(n) | Self::Bytes(n) => json!(n),
            Self::Micros(n) | Self::Seconds(n) => json!(n),
        }
    }

    fn value(self) -> String {
        match self {
            Self::Count(n) | Self::Bytes(n) => grouped(n),
            Self::Micros(n) | Self::Seconds(n) => format!("{n:.1}"),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Count(_) => "",
            Self::Bytes(_) => "B",
            Self::Micros(_) => "µs",
            Self::Seconds(_) => "s",
        }
    }
}

/// 1234567 as "1 234 567", with narrow no-break spaces (ISO 80000-1).
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
    use super::*;

    #[test]
    fn table_and_json_hold_the_same_figures() {
        let report = Report::default()
            .section("stages", [("captured_bytes", Figure::Bytes(1_234_567)), ("wake_ups", Figure::Count(7))])
            .section("empty", [])
            .section("lag_us", [("p50", Figure::micros(Duration::from_nanos(1500)))]);
        assert_eq!(
            report.to_json(),
            json!({"stages": {"captured_bytes": 1_234_567, "wake_ups": 7}, "lag_us": {"p50": 1.5}})
        );
        let table = report.to_string();
        assert!(table.contains("captured bytes") && table.contains("1\u{202f}234\u{202f}567"), "{table}");
        assert!(!table.contains("empty"));
    }
}
