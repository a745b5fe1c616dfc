//! A limit on log lines that others can provoke: packets, connections of strangers, sockets.
//!
//! Whoever can send a packet must not be able to fill the disk, or to bury what else the log has to say. So each line
//! that a packet can provoke, however indirectly, goes through `limited!` with a [`LogLimit`] of its own: the first few
//! of a period are written, the rest is counted, and the count is told with the next line, or at the end. The levels
//! `debug` and `trace`, which an operator asks for, are not limited.

use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Lines in one [`PERIOD`].
const LINES: u32 = 10;
const PERIOD: Duration = Duration::from_secs(10);

/// The limits that have suppressed something; each is a static, so there are no more than places in the source.
static EXCEEDED: Mutex<Vec<&'static LogLimit>> = Mutex::new(Vec::new());

/// Lets a few lines of a kind through per period, and counts the rest.
#[derive(Debug)]
pub struct LogLimit {
    about: &'static str,
    window: Mutex<Window>,
    listed: AtomicBool,
}

#[derive(Debug)]
struct Window {
    start: Option<Instant>,
    lines: u32,
    suppressed: u64,
}

/// How many lines were not written before this one; says so after it, when there were any.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suppressed(u64);

impl LogLimit {
    /// Makes a limit on the lines about something, in the plural: "refused control connections".
    #[must_use]
    pub const fn new(about: &'static str) -> Self {
        let window = Window { start: None, lines: 0, suppressed: 0 };
        Self { about, window: Mutex::new(window), listed: AtomicBool::new(false) }
    }

    /// Returns whether a line may be written at `now`: then how many were suppressed since the last one that might.
    pub fn admit(&'static self, now: Instant) -> Option<Suppressed> {
        let admitted = self.lock().admit(now);
        if admitted.is_none() && !self.listed.swap(true, Ordering::Relaxed) {
            EXCEEDED.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        }
        admitted
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Window {
    fn admit(&mut self, now: Instant) -> Option<Suppressed> {
        if self.start.is_none_or(|start| now.saturating_duration_since(start) >= PERIOD) {
            self.start = Some(now);
            self.lines = 0;
        }
        if self.lines == LINES {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(Suppressed(std::mem::take(&mut self.suppressed)))
    }
}

impl fmt::Display for Suppressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            0 => Ok(()),
            1 => f.write_str(" (1 such line suppressed before this one)"),
            n => write!(f, " ({n} such lines suppressed before this one)"),
        }
    }
}

/// Tells how many lines were suppressed that no later line has told of: at the end of the program.
pub fn tell_suppressed() {
    for limit in EXCEEDED.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        let suppressed = std::mem::take(&mut limit.lock().suppressed);
        if suppressed > 0 {
            log::warn!("{suppressed} further lines about {} were suppressed", limit.about);
        }
    }
}

/// Logs like `log::log!`, within a limit: `limited!(LIMIT, Level::Warn, "{peer} …")`, or within one of the place's own,
/// which is told what it is about: `limited!("broken channels", Level::Warn, "{peer} …")`.
macro_rules! limited {
    ($about:literal, $level:expr, $($argument:tt)+) => {{
        static LIMIT: $crate::log_limit::LogLimit = $crate::log_limit::LogLimit::new($about);
        $crate::log_limit::limited!(LIMIT, $level, $($argument)+);
    }};
    ($limit:expr, $level:expr, $($argument:tt)+) => {
        if log::log_enabled!($level)
            && let Some(suppressed) = $limit.admit(std::time::Instant::now())
        {
            log::log!($level, "{}{suppressed}", format_args!($($argument)+));
        }
    };
}
pub(crate) use limited;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_leaves_ten_lines_a_period_and_its_size() {
        static LIMIT: LogLimit = LogLimit::new("tests");
        let start = Instant::now();
        for _ in 0..LINES {
            assert_eq!(LIMIT.admit(start), Some(Suppressed(0)));
        }
        for _ in 0..1000 {
            assert_eq!(LIMIT.admit(start + PERIOD / 2), None);
        }
        assert_eq!(LIMIT.admit(start + PERIOD), Some(Suppressed(1000)));
        assert_eq!(LIMIT.admit(start + PERIOD), Some(Suppressed(0)));
        let listed = EXCEEDED.lock().unwrap().iter().filter(|limit| limit.about == "tests").count();
        assert_eq!(listed, 1, "what is suppressed last is told at the end");
    }

    #[test]
    fn what_was_suppressed_is_told_after_the_line() {
        let told = |n| format!("refused{}", Suppressed(n));
        assert_eq!(told(0), "refused");
        assert_eq!(told(1), "refused (1 such line suppressed before this one)");
        assert_eq!(told(7), "refused (7 such lines suppressed before this one)");
    }
}
