//! Time: waiting for what happens, never for what the clock says.

use std::{
    thread,
    time::{Duration, Instant},
};

/// How long tests wait for what must happen. It ends tests that fail, and no others: whatever it limits is waited for
/// no longer than it takes. So it is longer than a busy machine may take, and is no bound on how fast anything is.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Returns the time, in ns of `CLOCK_MONOTONIC`: the clock that all namespaces of a machine and the eBPF programs
/// share.
pub fn monotonic_ns() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Waits until `condition` holds, at most for `limit`; whether it did. For conditions of the kernel's or of other
/// people's programs that nothing tells us about: whatever can wake us is waited for by other means.
pub fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
}
