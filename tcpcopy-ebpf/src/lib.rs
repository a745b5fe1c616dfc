//! What the eBPF programs know about packets, apart from the programs: everything here runs on a host too, where it is
//! tested and fuzzed.
#![no_std]
#![expect(missing_docs, reason = "fields and constants have the names of the RFCs")]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

mod context;
pub mod options;
pub mod packet;
pub mod parse;
