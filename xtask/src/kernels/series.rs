//! Which kernels are wanted, and which of those that there are fit.

use std::str::FromStr;

use anyhow::{Context as _, bail};

/// The kernels that are tried by default: the oldest that the programs are made for, and what Debian
/// has brought since.
pub const USUAL: &str = "5.10,6.1,6.12,newest";

/// A list of series.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(Vec<Series>);

/// A kernel by the beginning of its version, or the newest of all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Series {
    /// "6.1" fits 6.1.192, but not 6.12.
    Begins(Vec<u32>),
    /// The highest version that there is.
    Newest,
}

impl Wanted {
    /// Returns the series, in the order in which they were asked for.
    pub fn series(&self) -> impl Iterator<Item = &Series> {
        self.0.iter()
    }
}

/// As it is given on the command line.
impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.iter().map(Series::to_string).collect::<Vec<_>>().join(","))
    }
}

impl Default for Wanted {
    fn default() -> Self {
        USUAL.parse().expect("a constant that a test parses")
    }
}

impl FromStr for Wanted {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> anyhow::Result<Self> {
        list.split(',').map(str::parse).collect::<anyhow::Result<_>>().map(Self)
    }
}

impl FromStr for Series {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if text == "newest" {
            return Ok(Self::Newest);
        }
        let numbers = text.split('.').map(str::parse).collect::<Result<Vec<_>, _>>();
        let numbers = numbers.with_context(|| format!("{text:?} is neither a version such as 6.1 nor `newest`"))?;
        if numbers.len() < 2 {
            bail!("{text:?} is not enough of a version: give two numbers at least, such as 6.1");
        }
        Ok(Self::Begins(numbers))
    }
}

impl std::fmt::Display for Series {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Begins(numbers) => f.write_str(&numbers.iter().map(u32::to_string).collect::<Vec<_>>().join(".")),
            Self::Newest => f.write_str("newest"),
        }
    }
}

impl Series {
    /// Returns the highest of these Debian versions that fits.
    pub fn best<'a>(&self, versions: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
        let fits = |version: &&str| match self {
            Self::Begins(numbers) => upstream(version).starts_with(numbers),
            Self::Newest => true,
        };
        versions.into_iter().filter(fits).max_by_key(|version| upstream(version))
    }
}

/// Returns the numbers of the upstream version in a Debian version: 7, 3 and 4 of "7.3.4-1~bpo13+1".
fn upstream(version: &str) -> Vec<u32> {
    let upstream = version.split('-').next().unwrap_or_default();
    upstream.split('.').map_while(|number| number.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_series_is_read_as_it_is_shown() {
        let wanted: Wanted = "5.10,6.12.117,newest".parse().unwrap();
        assert_eq!(wanted.to_string(), "5.10,6.12.117,newest");
        assert_eq!(Wanted::default().series().count(), 4);
        for wrong in ["", "6", "6.x", "latest", "6.1,"] {
            assert!(wrong.parse::<Wanted>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn the_highest_version_of_a_series_is_the_best() {
        let versions = ["6.12.95-1~bpo12+1", "6.12.117-1", "6.1.9-1", "6.1.176-1", "7.3.4-1~bpo13+1", "5.10.262-1"];
        let best = |series: &str| series.parse::<Series>().unwrap().best(versions);
        assert_eq!(best("6.1"), Some("6.1.176-1"));
        assert_eq!(best("6.12"), Some("6.12.117-1"));
        assert_eq!(best("6.12.95"), Some("6.12.95-1~bpo12+1"));
        assert_eq!(best("newest"), Some("7.3.4-1~bpo13+1"));
        assert_eq!(best("5.15"), None);
    }
}
