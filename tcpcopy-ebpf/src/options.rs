//! TCP options.

use bytemuck::Zeroable;
use tcpcopy_common::{
    capture::MAX_TCP_OPTIONS,
    mark::{EXID, KIND as EXPERIMENT, LENGTH as MARK_LENGTH, Mark},
};

use crate::packet::{Packet, opaque};

/// IANA option kinds.
mod kind {
    pub const END: u8 = 0;
    pub const NO_OPERATION: u8 = 1;
    pub const MSS: u8 = 2;
    pub const WINDOW_SCALE: u8 = 3;
    pub const SACK_PERMITTED: u8 = 4;
    pub const TIMESTAMPS: u8 = 8;
}

/// The options field of a segment.
pub struct Options {
    /// Zeros, which is the end-of-options option, behind `len`.
    octets: [u8; MAX_TCP_OPTIONS],
    len: usize,
}

/// The options that the replay engine asks about.
#[derive(Clone, Copy, Zeroable)]
pub struct Known {
    pub mss: [u8; 2],
    /// `Some` would not do: this is copied into a record.
    pub window_scale: u8,
    pub sack_permitted: u8,
    pub timestamps: u8,
    pub tsval: [u8; 4],
    pub tsecr: [u8; 4],
}

/// What a SYN says about its owner.
pub enum Marking {
    Unmarked,
    Marked(Mark),
    /// Our experiment identifier, in an option of another length.
    Malformed,
}

impl Options {
    /// Reads the `len` octets at `offset`. A length that the field cannot have, or one that the packet has not, gives no
    /// options.
    #[inline(always)]
    pub fn read(packet: &impl Packet, offset: u32, len: u32) -> Self {
        let mut octets = [0; MAX_TCP_OPTIONS];
        let len = opaque(len as usize);
        // SAFETY: the length is neither zero nor more than there is room for.
        let read = len != 0
            && len <= MAX_TCP_OPTIONS
            && unsafe { packet.load_bytes(offset, octets.as_mut_ptr(), len as u32) }.is_ok();
        Self { octets, len: if read { len } else { 0 } }
    }

    /// Looks for the mark.
    #[inline(always)]
    pub fn marking(&self) -> Marking {
        let mut at = 0;
        while let Some(option) = self.next(&mut at) {
            if option.kind == EXPERIMENT && option.len >= 4 && self.array(option.start + 2) == Some(EXID) {
                if option.len != MARK_LENGTH {
                    return Marking::Malformed;
                }
                return match self.array::<MARK_LENGTH>(option.start) {
                    Some(mark) => Marking::Marked(bytemuck::cast(mark)),
                    None => Marking::Malformed,
                };
            }
        }
        Marking::Unmarked
    }

    /// Collects the options that are of interest.
    #[inline(always)]
    pub fn known(&self) -> Known {
        let mut known = Known { window_scale: tcpcopy_common::response::NO_WINDOW_SCALE, ..Known::zeroed() };
        // What nearly all segments of an open connection look like (RFC 7323, appendix A).
        if self.array(0) == Some([kind::NO_OPERATION, kind::NO_OPERATION, kind::TIMESTAMPS, 10]) {
            self.timestamps(2, &mut known);
            return known;
        }
        let mut at = 0;
        while let Some(option) = self.next(&mut at) {
            match (option.kind, option.len) {
                (kind::MSS, 4) => known.mss = self.array(option.start + 2).unwrap_or_default(),
                (kind::WINDOW_SCALE, 3) => {
                    let [shift] = self.array(option.start + 2).unwrap_or_default();
                    known.window_scale = shift;
                }
                (kind::SACK_PERMITTED, 2) => known.sack_permitted = 1,
                (kind::TIMESTAMPS, 10) => self.timestamps(option.start, &mut known),
                _ => {}
            }
        }
        known
    }

    #[inline(always)]
    fn timestamps(&self, start: usize, known: &mut Known) {
        if let (Some(tsval), Some(tsecr)) = (self.array(start + 2), self.array(start + 6)) {
            (known.timestamps, known.tsval, known.tsecr) = (1, tsval, tsecr);
        }
    }

    /// The next option at or behind `at`, which is moved behind it.
    #[inline(always)]
    fn next(&self, at: &mut usize) -> Option<TcpOption> {
        // At most the whole field is padding.
        for _ in 0..MAX_TCP_OPTIONS {
            let start = *at;
            let [kind] = self.array(start)?;
            match kind {
                kind::END => return None,
                kind::NO_OPERATION => *at += 1,
                kind => {
                    let [len] = self.array(start + 1)?;
                    let len = len as usize;
                    if len < 2 || start + len > self.len {
                        return None;
                    }
                    *at += len;
                    return Some(TcpOption { kind, start, len });
                }
            }
        }
        None
    }

    /// `N` octets from `at`, if the field is that long.
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let at = opaque(at);
        if at > MAX_TCP_OPTIONS - N {
            return None;
        }
        let mut array = [0; N];
        let mut i = 0;
        while i < N {
            // SAFETY: the bound was checked for all `N`. (A slice would bring a second check, and a call to panic.)
            array[i] = unsafe { *self.octets.as_ptr().add(at + i) };
            i += 1;
        }
        Some(array)
    }
}

struct TcpOption {
    kind: u8,
    start: usize,
    len: usize,
}
