//! The log of the eBPF programs.

use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};

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
