//! What every object needs beside its programs.

// The verifier refuses a program that can reach this loop, so a panic cannot happen.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are only for programs with a licence that is compatible with the GPL.
// SAFETY: the section is where the loader looks for the licence, and nothing else is in it.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
