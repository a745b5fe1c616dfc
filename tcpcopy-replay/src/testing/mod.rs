//! Surroundings for an engine in virtual time, shared by tests and benchmarks of several crates (feature `testing`).

pub mod steady;
