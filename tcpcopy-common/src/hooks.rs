//! What the programs of the test host know of the interfaces that they are attached to.

use bytemuck::{Pod, Zeroable};

/// Sessions are learned from what comes in by the interface.
pub const LEARNS: u32 = 1;
/// Responses that go out by the interface are swallowed, or may go out by it.
pub const SWALLOWS: u32 = 2;

/// A socket by which a program recognises the network namespace of `intercept`: of UDP, at 127.0.0.1, where nothing is
/// sent. Interfaces have their indices per namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct Landmark {
    /// Its `SO_MARK`, host order: random, so that no other socket at the address is taken for it. Zero while there is none.
    pub mark: u32,
    /// Its port, network order.
    pub port: [u8; 2],
    /// Zero.
    pub _reserved: [u8; 2],
}

const _: () = assert!(size_of::<Landmark>() == 8);
