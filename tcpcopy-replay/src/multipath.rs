//! Multipath TCP (RFC 8684), as far as a replay over one path needs it: which octets of a connection went by another
//! subflow.
//!
//! A replayed connection is plain TCP, and so is what is sent on it: one subflow's octets. They are the connection's as
//! long as that has no other subflow in use, which every mapping tells: the data sequence number of an octet is then as
//! far from the connection's initial one as the octet is from the subflow's start.

/// IANA's option kind.
pub(crate) const KIND: u8 = 30;

/// Subtypes (RFC 8684, section 3).
const MP_CAPABLE: u8 = 0;
const MP_JOIN: u8 = 1;
const DSS: u8 = 2;
/// Flags of a DSS option (section 3.3): a Data ACK is present, and has eight octets; the mapping is, and its number has.
const DATA_ACK: u8 = 1;
const LONG_DATA_ACK: u8 = 2;
const MAPPING: u8 = 4;
const LONG_NUMBER: u8 = 8;

/// What a segment says of its connection's other subflows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Multipath {
    /// Nothing: it is plain TCP, or has no mapping.
    #[default]
    Nothing,
    /// It opens another subflow of a connection.
    Join,
    /// The client's key, in the segments that come first: the initial data sequence number follows from it.
    Key([u8; 8]),
    /// A mapping: where its octets are in the connection.
    Mapping {
        /// The data sequence number of the first, its lower half.
        data: u32,
        /// Its place in the subflow, of which the first octet is 1.
        subflow: u32,
    },
}

impl Multipath {
    /// Reads an option of [`KIND`], kind and length included.
    pub(crate) fn read(option: &[u8]) -> Self {
        let &[_, _, subtype, flags, ref rest @ ..] = option else { return Self::Nothing };
        match subtype >> 4 {
            MP_JOIN => Self::Join,
            // With the keys of both hosts. (In version 0 the number follows from the key in another way, and such a segment has
            // no octets.)
            MP_CAPABLE if rest.len() >= 16 && subtype & 0x0f == 1 => {
                rest.first_chunk().map_or(Self::Nothing, |key| Self::Key(*key))
            }
            DSS if flags & MAPPING != 0 => Self::mapping(flags, rest).unwrap_or_default(),
            _ => Self::Nothing,
        }
    }

    fn mapping(flags: u8, rest: &[u8]) -> Option<Self> {
        let ack = match (flags & DATA_ACK != 0, flags & LONG_DATA_ACK != 0) {
            (false, _) => 0,
            (true, false) => 4,
            (true, true) => 8,
        };
        let number = if flags & LONG_NUMBER != 0 { 4 } else { 0 };
        let (data, rest) = rest.get(ack + number..)?.split_first_chunk()?;
        let (subflow, rest) = rest.split_first_chunk()?;
        let (&length, _) = rest.split_first_chunk()?;
        // An infinite mapping: what follows is plain TCP (section 3.7).
        if u16::from_be_bytes(length) == 0 {
            return None;
        }
        Some(Self::Mapping { data: u32::from_be_bytes(*data), subflow: u32::from_be_bytes(*subflow) })
    }
}

/// What is known of the place that a live connection's octets have in a multipath connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Subflow {
    /// It has said nothing of one.
    #[default]
    Alone,
    /// It is all of one, so far, whose initial data sequence number is this, its lower half.
    Whole(u32),
    /// It is a part of one: octets are missing between its own.
    Part,
}

impl Subflow {
    /// Learns from a segment; `complete` says whether the subflow was captured from its start. What is part of a
    /// connection stays it.
    pub(crate) fn learn(&mut self, word: Multipath, complete: bool) {
        *self = match (*self, word) {
            (known, Multipath::Nothing) => known,
            (Self::Part, _) | (_, Multipath::Join) => Self::Part,
            _ if !complete => Self::Part,
            (Self::Alone, Multipath::Key(key)) => Self::Whole(initial_number(&key)),
            (Self::Whole(initial), Multipath::Key(_)) => Self::Whole(initial),
            // Nothing can be before the first octet.
            (Self::Alone, Multipath::Mapping { data, subflow: 1 }) => Self::Whole(data.wrapping_sub(1)),
            (Self::Whole(initial), Multipath::Mapping { data, subflow }) if data.wrapping_sub(subflow) == initial => {
                Self::Whole(initial)
            }
            (_, Multipath::Mapping { .. }) => Self::Part,
        };
    }
}

/// Returns the lower half of the initial data sequence number that belongs to a key (RFC 8684, section 3.1): that of the
/// first octet is one more.
fn initial_number(key: &[u8; 8]) -> u32 {
    let [.., low] = sha256_of_8(key);
    low
}

/// The round constants of SHA-256 (FIPS 180-4, section 4.2.2).
const K: [u32; 64] = [
    0x428a_2f98,
    0x7137_4491,
    0xb5c0_fbcf,
    0xe9b5_dba5,
    0x3956_c25b,
    0x59f1_11f1,
    0x923f_82a4,
    0xab1c_5ed5,
    0xd807_aa98,
    0x1283_5b01,
    0x2431_85be,
    0x550c_7dc3,
    0x72be_5d74,
    0x80de_b1fe,
    0x9bdc_06a7,
    0xc19b_f174,
    0xe49b_69c1,
    0xefbe_4786,
    0x0fc1_9dc6,
    0x240c_a1cc,
    0x2de9_2c6f,
    0x4a74_84aa,
    0x5cb0_a9dc,
    0x76f9_88da,
    0x983e_5152,
    0xa831_c66d,
    0xb003_27c8,
    0xbf59_7fc7,
    0xc6e0_0bf3,
    0xd5a7_9147,
    0x06ca_6351,
    0x1429_2967,
    0x27b7_0a85,
    0x2e1b_2138,
    0x4d2c_6dfc,
    0x5338_0d13,
    0x650a_7354,
    0x766a_0abb,
    0x81c2_c92e,
    0x9272_2c85,
    0xa2bf_e8a1,
    0xa81a_664b,
    0xc24b_8b70,
    0xc76c_51a3,
    0xd192_e819,
    0xd699_0624,
    0xf40e_3585,
    0x106a_a070,
    0x19a4_c116,
    0x1e37_6c08,
    0x2748_774c,
    0x34b0_bcb5,
    0x391c_0cb3,
    0x4ed8_aa4a,
    0x5b9c_ca4f,
    0x682e_6ff3,
    0x748f_82ee,
    0x78a5_636f,
    0x84c8_7814,
    0x8cc7_0208,
    0x90be_fffa,
    0xa450_6ceb,
    0xbef9_a3f7,
    0xc671_78f2,
];
/// Its initial hash value (section 5.3.3).
const H: [u32; 8] =
    [0x6a09_e667, 0xbb67_ae85, 0x3c6e_f372, 0xa54f_f53a, 0x510e_527f, 0x9b05_688c, 0x1f83_d9ab, 0x5be0_cd19];

/// The SHA-256 of eight octets (FIPS 180-4, section 6.2): one block. Once for each multipath connection.
fn sha256_of_8(octets: &[u8; 8]) -> [u32; 8] {
    let [a, b, c, d, e, f, g, h] = *octets;
    let mut w = [0u32; 64];
    w[0] = u32::from_be_bytes([a, b, c, d]);
    w[1] = u32::from_be_bytes([e, f, g, h]);
    w[2] = 0x8000_0000;
    w[15] = 64;
    for t in 16..64 {
        let [x, y] = [w[t - 15], w[t - 2]];
        let s0 = x.rotate_right(7) ^ x.rotate_right(18) ^ (x >> 3);
        let s1 = y.rotate_right(17) ^ y.rotate_right(19) ^ (y >> 10);
        w[t] = w[t - 16].wrapping_add(s0).wrapping_add(w[t - 7]).wrapping_add(s1);
    }
    let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = H;
    for (k, w) in K.iter().zip(w) {
        let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
        let choice = (e & f) ^ (!e & g);
        let t1 = h.wrapping_add(s1).wrapping_add(choice).wrapping_add(*k).wrapping_add(w);
        let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
        let t2 = s0.wrapping_add((a & b) ^ (a & c) ^ (b & c));
        (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
    }
    let mut hash = H;
    for (sum, word) in hash.iter_mut().zip([a, b, c, d, e, f, g, h]) {
        *sum = sum.wrapping_add(word);
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_the_one_that_others_compute() {
        // printf 'tcpcopy!' | sha256sum; printf '\0\0\0\0\0\0\0\0' | sha256sum
        let hex = |hash: [u32; 8]| hash.iter().map(|word| format!("{word:08x}")).collect::<String>();
        assert_eq!(hex(sha256_of_8(b"tcpcopy!")), "36ab241fbe75c799692e6618488c30e1c8c639e1867994092bcb22f55bb7b33c");
        assert_eq!(hex(sha256_of_8(&[0; 8])), "af5570f5a1810b7af78caf4bc70a660f0df51e42baf91d4de5b2328de0e83dfc");
    }

    #[test]
    fn options_are_read_with_numbers_of_either_length() {
        let mapping = Multipath::Mapping { data: 0x0102_0304, subflow: 7 };
        let short = [30, 14, 0x20, 4, 1, 2, 3, 4, 0, 0, 0, 7, 0, 100];
        let long = [30, 26, 0x20, 0x0f, 9, 9, 9, 9, 9, 9, 9, 9, 8, 8, 8, 8, 1, 2, 3, 4, 0, 0, 0, 7, 0, 100];
        let acked = [30, 20, 0x20, 5, 9, 9, 9, 9, 1, 2, 3, 4, 0, 0, 0, 7, 0, 100, 5, 5];
        assert_eq!([&short[..], &long, &acked].map(Multipath::read), [mapping; 3]);
        let only_ack = [30, 8, 0x20, 1, 9, 9, 9, 9];
        let infinite = [30, 14, 0x20, 4, 1, 2, 3, 4, 0, 0, 0, 7, 0, 0];
        let empty_capable = [30, 4, 1, 0x81];
        for nothing in [&only_ack[..], &infinite, &empty_capable, &short[..13], &[30, 2], &[30, 3, 0x20]] {
            assert_eq!(Multipath::read(nothing), Multipath::Nothing, "{nothing:?}");
        }
        let join = [30, 12, 0x10, 1, 1, 2, 3, 4, 5, 6, 7, 8];
        assert_eq!(Multipath::read(&join), Multipath::Join);
        let mut keys = [&[30, 22, 1, 0x81][..], b"tcpcopy!", &[7; 8], &[0, 5]].concat();
        assert_eq!(Multipath::read(&keys), Multipath::Key(*b"tcpcopy!"));
        keys[2] = 0;
        assert_eq!(Multipath::read(&keys), Multipath::Nothing, "version 0");
    }

    #[test]
    fn a_subflow_is_whole_until_a_number_is_left_out() {
        let initial = initial_number(b"tcpcopy!");
        let key = Multipath::Key(*b"tcpcopy!");
        let mapping = |data: u32, subflow| Multipath::Mapping { data: initial.wrapping_add(data), subflow };
        let after = |complete, words: &[Multipath]| {
            let mut subflow = Subflow::default();
            words.iter().for_each(|&word| subflow.learn(word, complete));
            subflow
        };
        assert_eq!(after(true, &[Multipath::Nothing]), Subflow::Alone);
        assert_eq!(after(true, &[key, mapping(6, 6), key, mapping(1, 1), Multipath::Nothing]), Subflow::Whole(initial));
        assert_eq!(after(true, &[mapping(1, 1), mapping(9, 9)]), Subflow::Whole(initial));
        assert_eq!(after(true, &[key, mapping(7, 6)]), Subflow::Part);
        assert_eq!(after(true, &[key, mapping(7, 6), mapping(6, 6)]), Subflow::Part, "for ever");
        assert_eq!(after(true, &[mapping(6, 6)]), Subflow::Part, "what came before is not known");
        assert_eq!(after(false, &[mapping(1, 1)]), Subflow::Part);
        assert_eq!(after(true, &[Multipath::Join]), Subflow::Part);
    }
}
