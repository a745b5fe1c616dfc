//! IP fragments of responses.
//!
//! Only the first fragment has the ports, by which it is recognised; the others, which follow at once, are recognised
//! by what they share with it.

use bytemuck::NoUninit;
use tcpcopy_common::flow::IpAddress;

/// What the fragments of a datagram share.
#[repr(C)]
#[derive(Clone, Copy, NoUninit)]
pub struct FragmentKey {
    pub source: IpAddress,
    pub destination: IpAddress,
    pub id: u32,
}
