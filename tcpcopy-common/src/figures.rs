//! One model of figures: each is declared once, with name, unit and help, and whoever shows figures visits them.
//!
//! [`figures!`](crate::figures!) declares a struct of them and makes how it is merged and visited;
//! [`counters`](crate::counters) declares those that programs keep in per-CPU arrays. A figure belongs to a
//! [`Section`]; section and name together are its key in the JSON, and what a table or a metric is named after. It is
//! handed out as a [`Value`] with its [`Family`], and with [`Label`]s where the family has one figure per value of a
//! label.

use core::time::Duration;

mod section;

pub use section::Section;

/// What kind of number a figure is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A total that only grows.
    Counter,
    /// A present state, which may fall.
    Gauge,
    /// The distribution of many samples.
    Histogram,
}

/// What a figure is measured in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A number of things; the name says of which.
    Count,
    /// Octets.
    Bytes,
    /// Seconds, with a fraction.
    Seconds,
    /// Microseconds, with a fraction.
    Microseconds,
}

/// One value of a label, as it is declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelValue {
    /// The value: snake case.
    pub name: &'static str,
    /// What it means.
    pub help: &'static str,
}

/// The label by which the figures of a family differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelKey {
    /// The key: snake case.
    pub key: &'static str,
    /// Every value that there is.
    pub values: &'static [LabelValue],
}

/// The declaration of a figure, or of one per value of a label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Family {
    /// Where it belongs.
    pub section: Section,
    /// Its name within the section: snake case. A family with a label is alone in its section, where the values of the
    /// label are the names.
    pub name: &'static str,
    /// Whether it can fall, and whether it has a distribution.
    pub kind: Kind,
    /// What it is measured in.
    pub unit: Unit,
    /// What it tells: sentences, perhaps with line breaks.
    pub help: &'static str,
    /// The label, where there are several figures.
    pub label: Option<LabelKey>,
}

/// Declares a total, named after its field.
#[must_use]
pub const fn counter(section: Section) -> Family {
    Family { section, name: "", kind: Kind::Counter, unit: Unit::Count, help: "", label: None }
}

/// Declares a present state, named after its field.
#[must_use]
pub const fn gauge(section: Section) -> Family {
    Family { kind: Kind::Gauge, ..counter(section) }
}

/// Declares a distribution of times, named after its field.
#[must_use]
pub const fn histogram(section: Section) -> Family {
    Family { kind: Kind::Histogram, unit: Unit::Microseconds, ..counter(section) }
}

impl Family {
    /// Names the figure other than its field.
    #[must_use]
    pub const fn named(self, name: &'static str) -> Self {
        Self { name, ..self }
    }

    /// Declares that it is measured in octets.
    #[must_use]
    pub const fn bytes(self) -> Self {
        Self { unit: Unit::Bytes, ..self }
    }

    /// Declares that it is measured in seconds.
    #[must_use]
    pub const fn seconds(self) -> Self {
        Self { unit: Unit::Seconds, ..self }
    }

    /// Declares a figure per value of a label.
    #[must_use]
    pub const fn by(self, key: &'static str, values: &'static [LabelValue]) -> Self {
        Self { label: Some(LabelKey { key, values }), ..self }
    }

    /// Completes a declaration by what is known of the field: its name, unless it has another, and its documentation.
    #[doc(hidden)]
    #[must_use]
    pub const fn declared(self, field: &'static str, help: &'static str) -> Self {
        let name = if self.name.is_empty() { field } else { self.name };
        Self { name, help: help.trim_ascii(), ..self }
    }
}

/// A label with its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label<'a> {
    /// The key.
    pub key: &'static str,
    /// The value.
    pub value: &'a str,
}

/// The value of a figure.
#[derive(Clone, Copy)]
pub enum Value<'a> {
    /// A number of things or octets.
    Number(u64),
    /// A time.
    Time(Duration),
    /// A distribution of times.
    Distribution(&'a dyn Distribution),
}

/// The samples of a histogram.
pub trait Distribution {
    /// Returns how many there are.
    fn count(&self) -> u64;

    /// Returns the longest; zero without samples.
    fn max(&self) -> Duration;

    /// Returns the time that `percent` (0 to 100) of the samples do not exceed; zero without samples.
    fn percentile(&self, percent: f64) -> Duration;
}

/// Shows figures, or passes them on.
pub trait Visit {
    /// Handles one figure. `labels` is empty, or has the one that `family` declares.
    fn figure(&mut self, family: &'static Family, labels: &[Label<'_>], value: Value<'_>);
}

/// A set of figures.
pub trait Figures {
    /// Adds what another part of the program has counted: every figure, by construction.
    fn merge(&mut self, other: &Self);

    /// Calls `visitor` with every figure, zeros included, in the order of their declaration.
    fn visit(&self, visitor: &mut dyn Visit);
}

/// The type of a field that holds one figure or several.
pub trait Figure {
    /// What is declared of it: a [`Family`], or what several need.
    type Declaration: 'static;

    /// Adds another's.
    fn add(&mut self, other: &Self);

    /// Hands it out.
    fn hand_out(&self, declaration: &'static Self::Declaration, visitor: &mut dyn Visit);
}

/// The declaration of a field that is a set of figures itself: they have their own.
#[derive(Clone, Copy, Debug)]
pub struct Group;

impl Group {
    #[doc(hidden)]
    #[must_use]
    pub const fn declared(self, _field: &'static str, _help: &'static str) -> Self {
        self
    }
}

impl Figure for u64 {
    type Declaration = Family;

    fn add(&mut self, other: &Self) {
        *self = self.wrapping_add(*other);
    }

    fn hand_out(&self, family: &'static Family, visitor: &mut dyn Visit) {
        visitor.figure(family, &[], Value::Number(*self));
    }
}

/// A counter that several threads share.
#[cfg(target_has_atomic = "64")]
impl Figure for core::sync::atomic::AtomicU64 {
    type Declaration = Family;

    fn add(&mut self, other: &Self) {
        let sum = self.get_mut();
        *sum = sum.wrapping_add(other.load(core::sync::atomic::Ordering::Relaxed));
    }

    fn hand_out(&self, family: &'static Family, visitor: &mut dyn Visit) {
        visitor.figure(family, &[], Value::Number(self.load(core::sync::atomic::Ordering::Relaxed)));
    }
}

/// A time that parts of the program have in common, such as that of the run.
impl Figure for Duration {
    type Declaration = Family;

    fn add(&mut self, other: &Self) {
        *self = (*self).max(*other);
    }

    fn hand_out(&self, family: &'static Family, visitor: &mut dyn Visit) {
        visitor.figure(family, &[], Value::Time(*self));
    }
}

/// Declares a struct of figures: the fields' documentation is the figures' help, and what stands after `=` the rest of
/// their declaration. [`Figures`] is implemented from the list of fields, so none can be forgotten when parts are
/// merged or shown.
///
/// ```
/// use tcpcopy_common::figures::{Figures, Section, counter};
///
/// tcpcopy_common::figures! {
///     /// What a queue counts.
///     #[derive(Default)]
///     pub struct Queue {
///         /// Packets that found it full.
///         pub full: u64 = counter(Section::NotInjected),
///     }
/// }
///
/// let mut sum = Queue { full: 1 };
/// sum.merge(&Queue { full: 2 });
/// assert_eq!(sum.full, 3);
/// ```
#[macro_export]
macro_rules! figures {
    ($(#[$attribute:meta])* $vis:vis struct $name:ident {
        $($(#[doc = $help:literal])* $field_vis:vis $field:ident: $type:ty = $declaration:expr,)*
    }) => {
        $(#[$attribute])*
        $vis struct $name { $($(#[doc = $help])* $field_vis $field: $type,)* }

        impl $crate::figures::Figures for $name {
            fn merge(&mut self, other: &Self) {
                let Self { $($field,)* } = other;
                $($crate::figures::Figure::add(&mut self.$field, $field);)*
            }

            fn visit(&self, visitor: &mut dyn $crate::figures::Visit) {
                let Self { $($field,)* } = self;
                $({
                    static DECLARATION: <$type as $crate::figures::Figure>::Declaration =
                        $declaration.declared(stringify!($field), concat!($($help, "\n",)*));
                    $crate::figures::Figure::hand_out($field, &DECLARATION, visitor);
                })*
            }
        }

        impl $crate::figures::Figure for $name {
            type Declaration = $crate::figures::Group;

            fn add(&mut self, other: &Self) {
                $crate::figures::Figures::merge(self, other);
            }

            fn hand_out(&self, _: &'static $crate::figures::Group, visitor: &mut dyn $crate::figures::Visit) {
                $crate::figures::Figures::visit(self, visitor);
            }
        }
    };
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::sync::atomic::AtomicU64;
    use std::{string::String, vec::Vec};

    use super::*;

    figures! {
        #[derive(Debug, Default)]
        struct Inner {
            /// How many.
            shared: AtomicU64 = counter(Section::Reports),
        }
    }

    figures! {
        #[derive(Debug, Default)]
        struct Outer {
            /// What was taken in,
            /// in two lines.
            taken: u64 = counter(Section::Stages).named("taken_bytes").bytes(),
            /// The rest.
            inner: Inner = Group,
            /// How long it took.
            duration: Duration = gauge(Section::Run).seconds(),
        }
    }

    #[derive(Default)]
    struct Seen(Vec<(&'static Family, String)>);

    impl Visit for Seen {
        fn figure(&mut self, family: &'static Family, labels: &[Label<'_>], value: Value<'_>) {
            assert_eq!(labels, []);
            self.0.push((
                family,
                match value {
                    Value::Number(n) => std::format!("{n}"),
                    Value::Time(time) => std::format!("{time:?}"),
                    Value::Distribution(_) => String::new(),
                },
            ));
        }
    }

    fn outer(n: u64) -> Outer {
        Outer { taken: n, inner: Inner { shared: AtomicU64::new(10 * n) }, duration: Duration::from_secs(n) }
    }

    #[test]
    fn every_figure_is_visited_with_its_declaration() {
        let mut seen = Seen::default();
        outer(3).visit(&mut seen);
        let taken = Family {
            section: Section::Stages,
            name: "taken_bytes",
            kind: Kind::Counter,
            unit: Unit::Bytes,
            help: "What was taken in,\n in two lines.",
            label: None,
        };
        assert_eq!(*seen.0[0].0, taken);
        let all: Vec<_> = seen.0.iter().map(|(family, value)| (family.name, value.as_str())).collect();
        assert_eq!(all, [("taken_bytes", "3"), ("shared", "30"), ("duration", "3s")]);
    }

    #[test]
    fn every_figure_is_merged() {
        let mut sum = outer(3);
        Figures::merge(&mut sum, &outer(4));
        assert_eq!((sum.taken, sum.inner.shared.into_inner(), sum.duration), (7, 70, Duration::from_secs(4)));
    }
}
