//! tcpcopy: duplicates live TCP traffic to a test host, packet by packet.
//!
//! Data flows one way through these modules, on each of two hosts:
//!
//! ```text
//! SOURCE  bpf::capture ─ ring ─► replay::worker ─► inject ─► network
//!                                      ▲
//!                                      └── control::link ◄─ network      (responses, as headers)
//! TARGET  bpf::intercept ─ ring ─► intercept ─► control::link ─► network
//! ```
//!
//! The replay itself, the loop of its workers included, is the crate [`tcpcopy_replay`], which has no IO; packets are
//! built by [`tcpcopy_wire`]. Everything here is the IO around them.

pub mod affinity;
pub mod bpf;
pub mod cli;
pub mod clock;
pub mod control;
pub mod finding;
pub mod inject;
pub mod intercept;
pub mod log_limit;
pub mod mailbox;
pub mod memory;
pub mod net;
pub mod poll;
pub mod privileges;
pub mod process;
pub mod source;
pub mod summary;
