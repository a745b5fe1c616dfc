//! TCP options.

use tcpcopy_common::{
    capture::MAX_TCP_OPTIONS,
    mark::{EXID, KIND as EXPERIMENT, LENGTH as MARK_LENGTH, Mark},
    response::{ResponseHeader, option},
};

use crate::packet::{Packet, bounded};

/// IANA option kinds.
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NO_OPERATION: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// The longest option that is read: the mark.
const LONGEST: usize = MARK_LENGTH;

/// The options field of a segment.
pub struct Options {
    /// Zeros behind `len`: an end-of-options option, and room to read an option that would end there.
    octets: [u8; MAX_TCP_OPTIONS + LONGEST],
    len: u8,
}

// Not `NoUninit`, which would let it be copied. No padding: see `Ip`.
const _: () = assert!(size_of::<Options>() == MAX_TCP_OPTIONS + LONGEST + 1);

/// What a SYN says about its owner.
pub enum Marking {
    Unmarked,
    Marked(Mark),
    /// Our experiment identifier, in an option of another length.
    Malformed,
}

impl Options {
    /// No options. (To be filled in place: moving it would take twice the stack.)
    pub const NONE: Self = Self { octets: [0; MAX_TCP_OPTIONS + LONGEST], len: 0 };

    /// Reads the `len` octets at `offset` into [`NONE`](Self::NONE). A length that the field cannot have, or one that
    /// the packet has not, gives no options.
    #[inline(always)]
    pub fn read(&mut self, packet: &impl Packet, offset: u32, len: u32) {
        let Some(len) = bounded(len, MAX_TCP_OPTIONS as u32) else { return };
        // SAFETY: the length is neither zero nor more than there is room for.
        if unsafe { packet.load_bytes(offset, self.octets.as_mut_ptr(), len) }.is_ok() {
            self.len = len as u8;
        }
    }

    /// Returns whether these are the timestamps and nothing else, padded as nearly everybody does (RFC 7323, appendix
    /// A).
    #[inline(always)]
    pub fn are_timestamps(&self) -> bool {
        self.len == 12 && self.array(0) == [kind::NO_OPERATION, kind::NO_OPERATION, kind::TIMESTAMPS, 10]
    }

    /// Looks for the mark.
    #[inline(always)]
    pub fn marking(&self) -> Marking {
        let mut marking = Marking::Unmarked;
        self.for_each(|option| {
            if option.kind != EXPERIMENT || option.len < 4 || self.array(option.start + 2) != EXID {
                return Search::Continue;
            }
            marking = match option.len {
                MARK_LENGTH => Marking::Marked(bytemuck::cast(self.array::<MARK_LENGTH>(option.start))),
                _ => Marking::Malformed,
            };
            Search::Stop
        });
        marking
    }

    /// Writes down the options that the replay engine asks about.
    ///
    /// `report` must be in a ring or a map, and is written to at once (hence volatile): what is on the stack or in a
    /// register is part of the state for which the verifier follows every path apart, and there are too many
    /// combinations of options.
    #[inline(always)]
    pub fn describe(&self, report: &mut ResponseHeader) {
        if !self.describe_usual(report) {
            self.describe_each(report);
        }
    }

    /// The same, with a function of its own for what is not as usual: where it returns, the verifier is left with nothing of
    /// the paths that it has followed within. Verifiers before Linux 6.5 know less of what a function returns, and are
    /// better off without.
    #[inline(always)]
    pub fn describe_apart(&self, report: &mut ResponseHeader) {
        if !self.describe_usual(report) {
            self.describe_each_apart(report);
        }
    }

    /// Writes down what nearly all segments of an open connection look like (RFC 7323, appendix A), or those without
    /// options. Whether it is one of these.
    #[inline(always)]
    fn describe_usual(&self, report: &mut ResponseHeader) -> bool {
        if self.len >= 12 && self.array(0) == [kind::NO_OPERATION, kind::NO_OPERATION, kind::TIMESTAMPS, 10] {
            self.timestamps(2, report);
            return true;
        }
        self.len == 0
    }

    #[inline(never)]
    fn describe_each_apart(&self, report: &mut ResponseHeader) {
        self.describe_each(report);
    }

    #[inline(always)]
    fn describe_each(&self, report: &mut ResponseHeader) {
        self.for_each(|option| {
            match (option.kind, option.len) {
                (kind::MSS, 4) => set(&mut report.mss, self.array(option.start + 2)),
                (kind::WINDOW_SCALE, 3) => {
                    let [shift] = self.array(option.start + 2);
                    set(&mut report.window_scale, shift);
                }
                (kind::TIMESTAMPS, 10) => self.timestamps(option.start, report),
                _ => {}
            }
            Search::Continue
        });
    }

    #[inline(always)]
    fn timestamps(&self, start: usize, report: &mut ResponseHeader) {
        set(&mut report.tsval, self.array(start + 2));
        add(&mut report.options, option::TIMESTAMPS);
    }

    /// Calls `visit` for each option, up to one that is malformed.
    ///
    /// The loop goes over the octets and not over the options, so that the verifier knows the position at each turn.
    /// With a position that depends on the packet it would follow every combination of options, which are too many.
    #[inline(always)]
    fn for_each(&self, mut visit: impl FnMut(TcpOption) -> Search) {
        // These two are in memory (hence volatile), as octets, of which the verifier only knows that they are octets.
        let mut next = 0u8;
        let field_end = self.len;
        for start in 0..MAX_TCP_OPTIONS {
            if start < get(&next) as usize {
                continue;
            }
            match self.array(start) {
                [kind::END] => return,
                [kind::NO_OPERATION] => {}
                [kind] => {
                    let [len]: [u8; 1] = self.array(start + 1);
                    let end = start + len as usize;
                    if len < 2 || end > get(&field_end) as usize {
                        return;
                    }
                    if let Search::Stop = visit(TcpOption { kind, start, len: len as usize }) {
                        return;
                    }
                    set(&mut next, end as u8);
                }
            }
        }
    }

    /// Returns `N` octets at `at`: no farther behind the start of an option than the longest reaches.
    #[inline(always)]
    fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        // SAFETY: an option starts within the field, behind which there is room for the longest. The verifier, which
        // knows the position at each turn of the loop, checks it. (An index would bring a call to panic, which the
        // verifier refuses although it is never reached.)
        unsafe { self.octets.as_ptr().add(at).cast::<[u8; N]>().read() }
    }
}

#[inline(always)]
fn get(field: &u8) -> u8 {
    // SAFETY: the reference is valid.
    unsafe { (&raw const *field).read_volatile() }
}

#[inline(always)]
fn set<T>(field: &mut T, value: T) {
    // SAFETY: the reference is valid.
    unsafe { (&raw mut *field).write_volatile(value) };
}

#[inline(always)]
fn add(field: &mut u8, bit: u8) {
    let old = get(field);
    set(field, old | bit);
}

enum Search {
    Continue,
    Stop,
}

struct TcpOption {
    kind: u8,
    start: usize,
    len: usize,
}
