//! Loading and attaching the eBPF programs, and reading their rings and counters.
//!
//! [`capture`] is what the program `tcpcopy` uses: it captures live segments into one ring per worker. [`intercept`] is
//! what `intercept` uses: it learns replayed sessions and swallows the responses to them. Both hand out
//! [`RingReader`]s, and both detach whatever they attached when they are dropped. Programs are attached with BPF links
//! wherever the kernel has them, because a link dies with its process however that ends; only the clsact fallback
//! cannot promise that.
//!
//! The programs themselves are the crate `tcpcopy-ebpf`; the types that both sides share, `tcpcopy-common`.

pub mod capture;
pub mod clients;
mod counters;
mod error;
mod instances;
pub mod intercept;
mod loader;
mod logging;
mod names;
mod object;
mod refusal;
pub mod ring;
pub mod selection;
pub mod sessions;
mod stacking;
mod sys;
mod tc;
#[cfg(test)]
mod tests;

pub use capture::{Attachment, Capture, CaptureRule, CaptureSetup, Hook};
pub use clients::{ClientFilter, Network, NetworkError};
pub use counters::{Counter, CounterValues, TargetCounters};
pub use error::{BpfError, KernelFeature};
pub use instances::InstanceMaps;
pub use intercept::{Intercept, InterceptSetup, Interceptor, TcAttach};
pub use logging::{LogForwarder, ProgramLogger, forward_log};
pub use ring::RingReader;
pub use selection::{Sampling, Share};
pub use sessions::{Sessions, Walk};
