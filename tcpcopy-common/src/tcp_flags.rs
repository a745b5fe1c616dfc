//! The control bits of a TCP header.

use core::{
    fmt,
    ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Not},
};

use bytemuck::{Pod, Zeroable};

/// The control bits of a segment: octet 13 of its TCP header, as it stood there (RFC 9293, section 3.1).
///
/// The bits themselves are this module's constants, so that `use tcp_flags::{ACK, SYN}` brings in what a file reads.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Pod, Zeroable)]
pub struct TcpFlags(u8);

/// No more data from the sender.
pub const FIN: TcpFlags = TcpFlags(0x01);
/// Synchronise sequence numbers.
pub const SYN: TcpFlags = TcpFlags(0x02);
/// Reset the connection.
pub const RST: TcpFlags = TcpFlags(0x04);
/// Push function.
pub const PSH: TcpFlags = TcpFlags(0x08);
/// The acknowledgement field is significant.
pub const ACK: TcpFlags = TcpFlags(0x10);
/// The urgent pointer is significant.
pub const URG: TcpFlags = TcpFlags(0x20);

impl TcpFlags {
    /// No bit.
    pub const NONE: Self = Self(0);

    /// Takes the octet of a header; all values are valid, bits without a constant here (ECE, CWR) are kept.
    #[inline(always)]
    pub const fn from_octet(octet: u8) -> Self {
        Self(octet)
    }

    /// Returns the octet of the header.
    #[inline(always)]
    pub const fn octet(self) -> u8 {
        self.0
    }

    /// Returns these bits if `condition` holds, else none.
    #[inline(always)]
    pub const fn when(self, condition: bool) -> Self {
        if condition { self } else { Self::NONE }
    }

    /// Tells whether all bits of `other` are set.
    #[inline(always)]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Tells whether any bit of `other` is set.
    #[inline(always)]
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }
}

impl BitOr for TcpFlags {
    type Output = Self;

    #[inline(always)]
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for TcpFlags {
    #[inline(always)]
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

impl BitAnd for TcpFlags {
    type Output = Self;

    #[inline(always)]
    fn bitand(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }
}

impl BitAndAssign for TcpFlags {
    #[inline(always)]
    fn bitand_assign(&mut self, other: Self) {
        self.0 &= other.0;
    }
}

impl Not for TcpFlags {
    type Output = Self;

    #[inline(always)]
    fn not(self) -> Self {
        Self(!self.0)
    }
}

impl fmt::Debug for TcpFlags {
    /// Writes the names as in `SYN|ACK`; bits without a constant as hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (PSH, "PSH"), (ACK, "ACK")];
        let mut separator = "";
        let mut rest = *self;
        for (flag, name) in names.into_iter().filter(|&(flag, _)| self.contains(flag)) {
            write!(f, "{separator}{name}")?;
            separator = "|";
            rest &= !flag;
        }
        if rest != Self::NONE || separator.is_empty() {
            write!(f, "{separator}{:#04x}", rest.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use std::format;

    use super::*;

    #[test]
    fn all_bits_or_any() {
        let flags = SYN | ACK;
        assert!(flags.contains(SYN) && flags.contains(SYN | ACK) && flags.contains(TcpFlags::NONE));
        assert!(!flags.contains(SYN | FIN) && flags.intersects(SYN | FIN));
        assert!(!flags.intersects(FIN | RST | PSH) && !flags.intersects(TcpFlags::NONE));
        assert_eq!((flags & !ACK, (flags & SYN).octet()), (SYN, 0x02));
    }

    #[test]
    fn reads_as_names() {
        let texts = [0x00, 0x02, 0x12, 0x19, 0x50, 0x20].map(|octet| format!("{:?}", TcpFlags::from_octet(octet)));
        assert_eq!(texts, ["0x00", "SYN", "SYN|ACK", "FIN|PSH|ACK", "ACK|0x40", "0x20"]);
    }
}
