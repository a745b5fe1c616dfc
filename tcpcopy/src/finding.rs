//! Findings: what a start-up check, or a watch while the program runs, has to tell the operator.
//!
//! A finding is a value, so that the check decides nothing about how it is told: the log prints it, a report lists
//! it. It says what is the matter, by which evidence and with which consequence, and what helps.

use std::fmt;

use crate::log_limit::{LogLimit, limited};

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing is wrong.
    Info,
    /// Something will not work, or not as expected, unless the operator acts.
    Warning,
    /// The program cannot do its work.
    Error,
}

/// One thing to tell the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "a finding that is not told is lost"]
pub struct Finding {
    /// How much it matters.
    pub severity: Severity,
    /// What is the matter: a clause without a full stop.
    pub what: String,
    /// The evidence, or the consequence that the operator will see.
    pub why: Option<String>,
    /// What helps.
    pub remedy: Option<String>,
    /// The option by which the operator says so: what is below the command line leaves it to [`cli`](crate::cli) to
    /// name it.
    pub option: Option<&'static str>,
}

impl Finding {
    /// Finds that something is worth knowing.
    pub fn info(what: impl Into<String>) -> Self {
        Self { severity: Severity::Info, what: what.into(), why: None, remedy: None, option: None }
    }

    /// Finds that something will not work as expected.
    pub fn warning(what: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::info(what) }
    }

    /// Finds that the program cannot do its work.
    pub fn error(what: impl Into<String>) -> Self {
        Self { severity: Severity::Error, ..Self::info(what) }
    }

    /// Adds the evidence, or the consequence.
    pub fn because(self, why: impl Into<String>) -> Self {
        Self { why: Some(why.into()), ..self }
    }

    /// Adds what helps.
    pub fn remedy(self, remedy: impl Into<String>) -> Self {
        Self { remedy: Some(remedy.into()), ..self }
    }

    /// Adds the option that helps, if one does.
    pub fn option(self, option: Option<&'static str>) -> Self {
        Self { option, ..self }
    }

    /// Prints it to the log, at the level of its severity.
    pub fn log(&self) {
        log::log!(self.level(), "{self}");
    }

    /// Prints it to the log within a limit: what a packet can provoke.
    pub fn log_within(&self, limit: &'static LogLimit) {
        limited!(limit, self.level(), "{self}");
    }

    const fn level(&self) -> log::Level {
        match self.severity {
            Severity::Info => log::Level::Info,
            Severity::Warning => log::Level::Warn,
            Severity::Error => log::Level::Error,
        }
    }
}

/// One line: what, why, after a semicolon the remedy, and in parentheses the option.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        if let Some(option) = self.option {
            write!(f, " ({option})")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_one_line_of_what_why_and_remedy() {
        let finding = Finding::warning("the table is full").because("9 of 9 entries").remedy("make it larger");
        assert_eq!(finding.to_string(), "the table is full: 9 of 9 entries; make it larger");
        let finding = finding.option(Some("-t N"));
        assert_eq!(finding.to_string(), "the table is full: 9 of 9 entries; make it larger (-t N)");
        assert_eq!(Finding::error("no route").to_string(), "no route");
        assert_eq!(Finding::info("idle").remedy("wait").to_string(), "idle; wait");
    }

    #[test]
    fn severities_are_ordered_by_how_much_they_matter() {
        assert!(Severity::Info < Severity::Warning && Severity::Warning < Severity::Error);
    }
}
