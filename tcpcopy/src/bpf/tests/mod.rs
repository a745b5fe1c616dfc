//! Tests of the programs, run in the kernel.
