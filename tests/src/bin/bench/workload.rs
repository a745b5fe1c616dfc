//! What the live clients do.

use std::time::Duration;

use lab::http::{Limit, Load, Method, Style};

/// Load of one kind.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    /// In tables, file names and on the command line.
    pub name: &'static str,
    /// What it is there to show.
    pub purpose: &'static str,
    /// Live connections at once.
    pub connections: usize,
    /// When requests are sent.
    pub pace: Pace,
    /// Whether the contender that loads the target directly has a turn, too.
    pub direct: bool,
    shape: Shape,
}

/// When requests are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// An open loop at that many requests per second, all connections together: equal work for every contender.
    Fixed(u32),
    /// A closed loop: as fast as answers come.
    Closed,
    /// An open loop at twice the rate of the closed one under `tcpcopy`, which is measured first.
    Twice(Option<u32>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Keep-alive GETs of a file.
    Get(&'static str),
    /// GETs of the small file, a connection for each.
    Connections,
    /// Keep-alive POSTs of that many octets.
    Post(usize),
}

/// Files that both servers have: name, octets. nginx refuses a POST only where there is a file, see there.
pub const FILES: [(&str, usize); 4] = [("small", 64), ("1k", 1 << 10), ("100k", 100 << 10), ("upload", 1)];

const fn at(name: &'static str, rate: u32, connections: usize, shape: Shape, purpose: &'static str) -> Workload {
    Workload { name, purpose, connections, pace: Pace::Fixed(rate), direct: false, shape }
}

const fn closed(name: &'static str, connections: usize, shape: Shape, purpose: &'static str) -> Workload {
    Workload { name, purpose, connections, pace: Pace::Closed, direct: false, shape }
}

const fn twice(name: &'static str, connections: usize, shape: Shape, purpose: &'static str) -> Workload {
    Workload { name, purpose, connections, pace: Pace::Twice(None), direct: true, shape }
}

const fn with_direct(workload: Workload) -> Workload {
    Workload { direct: true, ..workload }
}

/// All of them. CPU time is compared where the rate is fixed: at equal work.
pub const ALL: [Workload; 14] = [
    at("calm", 100, 16, Shape::Get("small"), "replay lag of a quiet service"),
    with_direct(at("keep-alive", 5_000, 32, Shape::Get("small"), "the cost of a small request")),
    with_direct(at("connections", 1_280, 16, Shape::Connections, "the cost of a connection for each request")),
    at("1k", 5_000, 32, Shape::Get("1k"), "1 KB responses"),
    at("100k", 500, 8, Shape::Get("100k"), "100 KB responses"),
    at("uploads", 500, 8, Shape::Post(64 << 10), "64 KB uploads"),
    at("256", 5_000, 256, Shape::Get("small"), "memory with hundreds of open connections"),
    at("4096", 5_000, 4_096, Shape::Get("small"), "many open connections"),
    closed("closed-1", 1, Shape::Get("small"), "one client, as fast as answers come"),
    closed("closed-32", 32, Shape::Get("small"), "keep-alive, as fast as answers come"),
    closed("closed-connections", 16, Shape::Connections, "a connection each, as fast as answers come"),
    with_direct(closed("closed-uploads", 8, Shape::Post(64 << 10), "64 KB uploads, as fast as answers come")),
    twice("overload", 256, Shape::Get("small"), "twice what the machine sustains, keep-alive"),
    twice("overload-connections", 256, Shape::Connections, "twice what the machine sustains, a connection each"),
];

impl Workload {
    /// Returns the workload of this name; with `@` and a number behind it, at that many requests per second.
    pub fn named(name: &str) -> Result<Self, String> {
        if let Some((name, rate)) = name.split_once('@') {
            let rate = rate.parse().ok().filter(|rate| (1..=1_000_000).contains(rate));
            let rate = rate.ok_or("behind `@` belongs a rate in requests per second, 1 to 1,000,000")?;
            return Ok(Self { pace: Pace::Fixed(rate), ..Self::named(name)? });
        }
        let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let found = ALL.into_iter().find(|workload| workload.name == name);
        found.ok_or_else(|| format!("there is no workload {name:?}; there are {}", names()))
    }

    /// Returns the rate at which every contender has the same work to do.
    pub fn fixed_rate(&self) -> Option<u32> {
        match self.pace {
            Pace::Fixed(rate) => Some(rate),
            Pace::Closed | Pace::Twice(_) => None,
        }
    }

    /// Returns the closed loop whose throughput an overload is twice of.
    pub fn sustained(&self) -> Option<Self> {
        matches!(self.pace, Pace::Twice(_)).then_some(Self { pace: Pace::Closed, connections: 32, ..*self })
    }

    /// Returns the same at twice that throughput, requests per second.
    pub fn overload(self, sustained: f64) -> Self {
        Self { pace: Pace::Twice(Some((2.0 * sustained) as u32)), ..self }
    }

    /// Describes how the requests come, for tables.
    pub fn describe_pace(&self) -> String {
        match self.pace {
            Pace::Fixed(rate) | Pace::Twice(Some(rate)) => format!("{rate} requests/s"),
            Pace::Closed => "closed loop".into(),
            Pace::Twice(None) => "twice the closed loop's rate".into(),
        }
    }

    /// Returns the load on `server` for `time`.
    pub fn load(&self, server: std::net::SocketAddr, time: Duration) -> Load {
        let (style, method) = match self.shape {
            Shape::Get(file) => (Style::KeepAlive, Method::Get(format!("/{file}"))),
            Shape::Connections => (Style::PerRequest, Method::Get("/small".into())),
            Shape::Post(octets) => (Style::KeepAlive, Method::Post(octets)),
        };
        let load = Load::keep_alive(server, self.connections, Limit::Time(time));
        let rate = match self.pace {
            Pace::Fixed(rate) => Some(rate),
            Pace::Closed => None,
            Pace::Twice(rate) => rate,
        };
        Load { style, method, rate, open: rate.is_some(), ..load }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_found() {
        for workload in ALL {
            assert_eq!(Workload::named(workload.name), Ok(workload));
        }
        assert!(Workload::named("fast").unwrap_err().contains("keep-alive, connections"));
    }
}
