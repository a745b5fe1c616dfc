//! Records: frames as they travel, length first, and encrypted when there is a key.
//!
//! | octets | content |
//! |---|---|
//! | 2 | length of the body, little-endian |
//! | length | a frame; with a key, one Noise transport message: the encrypted frame and a tag of 16 octets |

use snow::TransportState;

use super::frame::{Frame, FrameError, MAX_FRAME};

/// Octets before the body.
pub(super) const HEADER: usize = 2;
/// The largest body.
pub(super) const MAX_BODY: usize = MAX_FRAME + TAG;
/// Octets that encryption adds (Poly1305).
pub(super) const TAG: usize = 16;

const _: () = assert!(MAX_BODY == u16::MAX as usize);

/// What turns frames into records and back; keeps a buffer for the work.
pub(super) struct Cipher {
    noise: Option<Box<TransportState>>,
    scratch: Vec<u8>,
}

/// A record that does not open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OpenError {
    /// The tag is wrong: another key, or octets changed, lost or repeated on the way.
    Decrypt,
    Frame(FrameError),
}

impl Cipher {
    /// Records in plain text, for `--insecure`.
    pub(super) const fn plain() -> Self {
        Self { noise: None, scratch: Vec::new() }
    }

    pub(super) fn noise(state: TransportState) -> Self {
        Self { noise: Some(Box::new(state)), scratch: Vec::new() }
    }

    /// How long the record of `frame` is.
    pub(super) const fn sealed_len(&self, frame: &Frame<'_>) -> usize {
        HEADER + frame.encoded_len() + if self.noise.is_some() { TAG } else { 0 }
    }

    /// Appends the record of `frame` to `out`. It must then be sent, in order: the peer counts the records.
    pub(super) fn seal(&mut self, frame: &Frame<'_>, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let start = out.len();
        let len = self.sealed_len(frame) - HEADER;
        let header = u16::try_from(len).map_err(|_| FrameError::TooLarge(len))?.to_le_bytes();
        let Some(noise) = &mut self.noise else {
            out.extend_from_slice(&header);
            return frame.encode(out).inspect_err(|_| out.truncate(start));
        };
        let encoded = if let Some(encoded) = frame.encoded() {
            encoded
        } else {
            self.scratch.clear();
            frame.encode(&mut self.scratch)?;
            &self.scratch
        };
        out.extend_from_slice(&header);
        out.resize(start + HEADER + len, 0);
        // Fails only beyond 2^64 messages or for sizes that were checked above.
        noise.write_message(encoded, &mut out[start + HEADER..]).map_err(|_| {
            out.truncate(start);
            FrameError::TooLarge(len)
        })?;
        Ok(())
    }

    /// Decodes the body of a record.
    pub(super) fn open<'a>(&'a mut self, body: &'a [u8]) -> Result<Frame<'a>, OpenError> {
        let Some(noise) = &mut self.noise else {
            return Frame::decode(body).map_err(OpenError::Frame);
        };
        // Grows to the largest record seen, so that a channel that has not proved itself costs little.
        if self.scratch.len() < body.len() {
            self.scratch.resize(body.len(), 0);
        }
        let len = noise.read_message(body, &mut self.scratch).map_err(|_| OpenError::Decrypt)?;
        Frame::decode(&self.scratch[..len]).map_err(OpenError::Frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::testing::ciphers;

    #[test]
    fn sealed_len_is_what_seal_appends() {
        for (mut cipher, _) in [ciphers(true), ciphers(false)] {
            let mut out = vec![0; 3];
            let frame = Frame::Hurry;
            cipher.seal(&frame, &mut out).unwrap();
            assert_eq!(out.len() - 3, cipher.sealed_len(&frame));
            assert_eq!(usize::from(u16::from_le_bytes([out[3], out[4]])), out.len() - 3 - HEADER);
        }
    }

    #[test]
    fn a_frame_that_does_not_fit_leaves_the_channel_intact() {
        for (mut a, mut b) in [ciphers(true), ciphers(false)] {
            let mut out = Vec::new();
            assert!(a.seal(&Frame::Hello { worker: 0, resume: None, name: "\n", prefixes: &[] }, &mut out).is_err());
            assert!(out.is_empty());
            a.seal(&Frame::Bye, &mut out).unwrap();
            assert_eq!(b.open(&out[HEADER..]), Ok(Frame::Bye));
        }
    }

    #[test]
    fn every_changed_bit_a_lost_and_a_repeated_record_are_noticed() {
        let (mut a, mut b) = ciphers(true);
        let mut first = Vec::new();
        a.seal(&Frame::Hurry, &mut first).unwrap();
        let mut second = Vec::new();
        a.seal(&Frame::Bye, &mut second).unwrap();
        for bit in 0..(first.len() - HEADER) * 8 {
            let mut body = first[HEADER..].to_vec();
            body[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(b.open(&body), Err(OpenError::Decrypt), "bit {bit}");
        }
        assert_eq!(b.open(&second[HEADER..]), Err(OpenError::Decrypt), "the first is missing");
        assert_eq!(b.open(&first[HEADER..]), Ok(Frame::Hurry));
        assert_eq!(b.open(&first[HEADER..]), Err(OpenError::Decrypt), "it came before");
        assert_eq!(b.open(&second[HEADER..]), Ok(Frame::Bye));
    }

    #[test]
    fn a_record_shorter_than_its_tag_is_refused() {
        let (_, mut b) = ciphers(true);
        for len in 0..TAG {
            assert_eq!(b.open(&[0; TAG][..len]), Err(OpenError::Decrypt));
        }
    }
}
