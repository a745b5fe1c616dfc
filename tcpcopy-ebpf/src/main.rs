//! The eBPF programs of tcpcopy.
#![no_std]
#![no_main]

// The verifier refuses a program that can reach this loop, so a panic cannot happen.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
