//! Loading and attaching the eBPF programs, and reading their rings and counters.
//!
//! [`capture`] is what the program `tcpcopy` uses: it captures live segments into one ring per worker. [`intercept`] is
//! what `intercept` uses: it learns replayed sessions and swallows the responses to them. Both hand out [`RingReader`]s,
//! and both detach whatever they attached when they are dropped. Programs are attached with BPF links wherever the kernel
//! has them, because a link dies with its process however that ends; only the clsact fallback cannot promise that.
//!
//! The programs themselves are the crate `tcpcopy-ebpf`; the types that both sides share, `tcpcopy-common`.

pub mod capture;
pub mod clients;
mod counters;
mod error;
mod instances;
pub mod intercept;
mod loader;
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

use aya::maps::MapError;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

pub use capture::{Attachment, Capture, CaptureRule, CaptureSetup, Hook};
pub use clients::{ClientFilter, Network, NetworkError};
pub use counters::{Counter, CounterValues, TargetCounters};
pub use error::{BpfError, KernelFeature};
pub use instances::InstanceMaps;
pub use intercept::{Intercept, InterceptSetup, Interceptor, TcAttach};
pub use ring::RingReader;
pub use selection::{Sampling, Share};
pub use sessions::{Sessions, Walk};

/// Reads the log records of the eBPF programs and hands them to [`log`]: call `flush` whenever it becomes readable.
pub type ProgramLogger = aya_log::EbpfLogger<&'static dyn log::Log>;

/// A task that forwards the log of the eBPF programs; ends when it is dropped.
#[derive(Debug)]
pub struct LogForwarder(JoinHandle<()>);

impl Drop for LogForwarder {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Forwards what the eBPF programs log to [`log`]. Needs a tokio runtime.
///
/// # Errors
/// When the runtime cannot watch the logger's descriptor.
pub fn forward_log(logger: ProgramLogger) -> std::io::Result<LogForwarder> {
    // SAFETY: the logger owns its descriptor, which is the same as long as it lives.
    let logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
    let mut logger = logger.map_err(|e| e.into_parts().1)?;
    Ok(LogForwarder(tokio::spawn(async move {
        while let Ok(mut ready) = logger.readable_mut().await {
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    })))
}

/// Takes the absence of what was to be removed for success.
fn absent_is_fine(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
