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
    /// Requests per second of all connections together; without it the loop is closed: as fast as answers come.
    pub rate: Option<u32>,
    shape: Shape,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Shape {
    /// Keep-alive GETs of a file.
    Get(&'static str),
    /// GETs of the small file, a connection for each.
    Connections,
    /// Keep-alive POSTs of so many octets.
    Post(usize),
}

/// Files that both servers have: name, octets. nginx refuses a POST only where there is a file, see there.
pub const FILES: [(&str, usize); 4] = [("small", 64), ("1k", 1 << 10), ("100k", 100 << 10), ("upload", 1)];

const fn at(name: &'static str, rate: u32, connections: usize, shape: Shape, purpose: &'static str) -> Workload {
    Workload { name, purpose, connections, rate: Some(rate), shape }
}

const fn closed(name: &'static str, connections: usize, shape: Shape, purpose: &'static str) -> Workload {
    Workload { name, purpose, connections, rate: None, shape }
}

/// All of them. CPU time is compared where the rate is fixed: at equal work.
pub const ALL: [Workload; 11] = [
    at("calm", 100, 16, Shape::Get("small"), "replay lag of a quiet service"),
    at("keep-alive", 5_000, 32, Shape::Get("small"), "the cost of a small request"),
    at("connections", 1_280, 16, Shape::Connections, "the cost of a connection for each request"),
    at("1k", 5_000, 32, Shape::Get("1k"), "1 KB responses"),
    at("100k", 500, 8, Shape::Get("100k"), "100 KB responses"),
    at("uploads", 500, 8, Shape::Post(64 << 10), "64 KB uploads"),
    at("4096", 5_000, 4_096, Shape::Get("small"), "many open connections"),
    closed("closed-1", 1, Shape::Get("small"), "one client, as fast as answers come"),
    closed("closed-32", 32, Shape::Get("small"), "keep-alive, as fast as answers come"),
    closed("closed-connections", 16, Shape::Connections, "a connection each, as fast as answers come"),
    closed("closed-uploads", 8, Shape::Post(64 << 10), "64 KB uploads, as fast as answers come"),
];

impl Workload {
    /// The workload of this name.
    pub fn named(name: &str) -> Result<Self, String> {
        let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
        let found = ALL.into_iter().find(|workload| workload.name == name);
        found.ok_or_else(|| format!("there is no workload {name:?}; there are {}", names()))
    }

    /// The load on `server` for so long.
    pub fn load(&self, server: std::net::SocketAddr, time: Duration) -> Load {
        let (style, method) = match self.shape {
            Shape::Get(file) => (Style::KeepAlive, Method::Get(format!("/{file}"))),
            Shape::Connections => (Style::PerRequest, Method::Get("/small".into())),
            Shape::Post(octets) => (Style::KeepAlive, Method::Post(octets)),
        };
        let load = Load::keep_alive(server, self.connections, Limit::Time(time));
        Load { style, method, rate: self.rate, ..load }
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
