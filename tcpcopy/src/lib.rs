//! tcpcopy: duplicates live TCP traffic to a test host, packet by packet.
//!
//! Data flows one way through these modules, on each of two hosts:
//!
//! ```text
//! SOURCE  bpf::source ─ ring ─► source::worker ─► engine ─► inject ─► network
//!                                     ▲
//!                                     └── control::link ◄─ network      (responses, as headers)
//! TARGET  bpf::target ─ ring ─► target ─► control::link ─► network
//! ```
//!
//! [`engine`] is sans-IO: it reads no clock, no random source and no socket. Everything else here is the IO around it.

pub mod affinity;
pub mod bpf;
pub mod cli;
pub mod control;
pub mod engine;
pub mod inject;
pub mod mailbox;
pub mod memory;
pub mod nap;
pub mod net;
pub mod segment;
pub mod source;
pub mod summary;
pub mod target;
pub mod time;
