//! Loading and attaching the eBPF programs, and reading their rings and counters.
