//! tcpcopy: duplicates live TCP traffic to a test host, packet by packet.
//!
//! Data flows one way through these modules, on each of two hosts:
//!
//! ```text
//! SOURCE  bpf::capture ─ ring ─► source::worker ─► replay ─► inject ─► network
//!                                      ▲
//!                                      └── control::link ◄─ network      (responses, as headers)
//! TARGET  bpf::intercept ─ ring ─► intercept ─► control::link ─► network
//! ```
//!
//! The replay itself is the crate [`tcpcopy_replay`], which has no IO. Everything here is the IO around it.

pub mod affinity;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod control;
pub mod inject;
pub mod intercept;
pub mod mailbox;
pub mod memory;
pub mod nap;
pub mod net;
pub mod process;
pub mod source;
pub mod summary;
