//! Raw-packet injection of replayed segments.
//!
//! ```text
//! Transmit ─► tcpcopy_wire (headers, checksums, segmentation) ─► batch (one buffer, one sendmmsg) ─► socket
//!                                              path (route, next hop, MTU; watched by a thread) ──────┘
//! ```
//!
//! Two backends. A *packet socket* (AF_PACKET) hands packets to the interface as they are: nothing on this host,
//! netfilter included, sees them, and it is nearly twice as fast. It needs to know the next hop. A *raw socket*
//! (IPPROTO_RAW) lets the kernel route: it reaches everything, this host itself included, but passes netfilter.
//!
//! On an Ethernet the packet socket takes whole *frames*, which lets a large payload leave as one super-packet, and the
//! checksums to the interface (`tcpcopy_wire::EthernetHeader`).

mod address;
mod batch;
mod checks;
mod error;
mod injector;
mod path;
mod socket;
mod stats;

pub use error::{Backend, InjectError};
pub use injector::{Injector, Sending};
pub use path::Paths;
pub(crate) use socket::raw as raw_socket;
pub use stats::InjectStats;
