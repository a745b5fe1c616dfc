//! The control channel with a peer that says anything: frames, records on an established channel, and handshakes.
//!
//! The first octet says which of them the rest is for.

use std::collections::HashSet;

use tcpcopy::control::{
    Batch, Frame, FrameError, Hello, LinkError, MAX_TARGETS, RefusalCode, Resume, Token, frame::MAX_FRAME, fuzzing,
    fuzzing::Peer,
};
use tcpcopy_common::prefix::Prefix;

/// The target.
pub fn run(data: &[u8]) {
    let Some((&kind, data)) = data.split_first() else { return };
    match kind % 4 {
        0 => frame(data),
        1 => link(data),
        2 => accept(data),
        _ => introduce(data),
    }
}

/// Decoding and encoding are inverses, and what is decoded lies within its bounds.
fn frame(octets: &[u8]) {
    let frame = match Frame::decode(octets) {
        Ok(frame) => frame,
        Err(error) => {
            let expected = match error {
                FrameError::Empty => octets.is_empty(),
                FrameError::TooLarge(len) => len == octets.len() && len > MAX_FRAME,
                FrameError::UnknownKind(kind) => octets[0] == kind,
                FrameError::Body { kind, len } => octets[0] == kind && octets.len() == 1 + len,
                FrameError::OutOfPlace(_) => false,
            };
            assert!(expected, "{error:?}");
            return;
        }
    };
    within_bounds(&frame);
    assert_eq!(frame.encoded_len(), octets.len());
    let mut again = Vec::new();
    frame.encode(&mut again).expect("a frame that was decoded");
    // A refusal's code has one meaning, but more than one name within this program.
    assert_eq!(again, octets, "{frame:?}");
    if let Frame::Responses(responses) = frame {
        let mut batch = Batch::new();
        for response in responses.iter() {
            assert!(response.prefix().len() <= usize::from(Prefix::MOST.octets()));
            assert!(response.prefix().len() <= response.header().payload_len as usize);
            assert!(batch.push(&response), "reports that came in one frame");
        }
        assert_eq!((batch.len(), batch.is_empty()), (responses.len(), octets.len() == 1));
        let mut third = Vec::new();
        Frame::Responses(batch.responses()).encode(&mut third).expect("reports that were decoded");
        assert_eq!(third, octets, "reports that are made differ from those that came");
    }
}

fn within_bounds(frame: &Frame<'_>) {
    match frame {
        Frame::Hello { name, prefixes, .. } => {
            assert!(name.len() <= 64 && !name.contains(char::is_control) && prefixes.len() <= MAX_TARGETS);
        }
        Frame::Refused { text, .. } => assert!(text.len() <= 256 && !text.contains(char::is_control)),
        _ => {}
    }
}

/// An established channel: how long the pieces are in which the octets come makes no difference.
fn link(data: &[u8]) {
    let &[side, chunk, ref octets @ ..] = data else { return };
    let of_tcpcopy = side & 1 != 0;
    let whole = receive(octets, usize::MAX, of_tcpcopy);
    let pieces = receive(octets, chunk.into(), of_tcpcopy);
    if crate::tells() {
        eprintln!("{whole:?}");
    }
    assert_eq!(whole, pieces, "in pieces of {chunk} octets");
    let allowed: &[u8] = if of_tcpcopy { &[4, 5, 6, 8] } else { &[6, 7] };
    assert!(whole.frames.iter().all(|frame| allowed.contains(&frame[0])), "a frame out of place is handed over");
    // Every frame that was handed over came in this order, in records of its own.
    let mut rest = octets;
    for frame in &whole.frames {
        let length = usize::from(u16::from_le_bytes([rest[0], rest[1]]));
        assert_eq!(&rest[2..2 + length], &frame[..]);
        rest = &rest[2 + length..];
    }
    assert!(whole.answered.is_empty(), "a link says nothing by itself");
}

#[derive(Debug, PartialEq, Eq)]
struct Received {
    /// As encoded again.
    frames: Vec<Vec<u8>>,
    error: String,
    answered: Vec<u8>,
}

fn receive(octets: &[u8], chunk: usize, of_tcpcopy: bool) -> Received {
    let mut link = fuzzing::link(Peer::new(octets, chunk), of_tcpcopy);
    let mut frames = Vec::new();
    let mut calls = 0;
    let error = loop {
        let mut here = 0;
        let received = link.receive(|frame| {
            within_bounds(&frame);
            let mut encoded = Vec::new();
            frame.encode(&mut encoded).expect("a frame that came");
            frames.push(encoded);
            here += 1;
        });
        match received {
            Ok(n) => assert_eq!(n, here),
            Err(error) => break error,
        }
        calls += 1;
        assert!(calls <= octets.len() + 1, "the link does not come to an end");
    };
    assert!(!matches!(error, LinkError::Io(_) | LinkError::Decrypt), "{error:?}");
    // What was queued before is still to be said.
    while !link.flush().expect("a peer that hears everything") {}
    Received { frames, error: format!("{error:?}"), answered: fuzzing::heard(link) }
}

const KEY: [u8; 32] = [7; 32];
/// Octets that are read before it is known who speaks: preamble, a message of the key exchange, the largest Hello with
/// its length and its tag.
const READ_OF_A_STRANGER: usize = 8 + 2 + 48 + 2 + 25 + 64 + MAX_TARGETS * 20 + 16;

/// `intercept` and a stranger.
fn accept(data: &[u8]) {
    let &[mode, chunk, ref octets @ ..] = data else { return };
    let with_key = mode & 1 != 0;
    let mut peer = Peer::new(octets, chunk.into());
    let heard = fuzzing::accept(&mut peer, &fuzzing::security(with_key.then_some(KEY)));
    let heard = heard.expect("the server waits for a peer that has closed");
    if crate::tells() {
        eprintln!("{heard:?}");
    }
    assert!(peer.said() <= READ_OF_A_STRANGER, "{} octets are read of a stranger", peer.said());
    match heard {
        Ok(Err(refusal)) => {
            assert!(!with_key, "a stranger has the key");
            assert_eq!(refusal.code, RefusalCode::BadPrefix);
            assert!(!refusal.text().is_empty() && refusal.text().len() <= 256);
        }
        Ok(Ok(hello)) => {
            assert!(!with_key, "a stranger has the key");
            let targets: HashSet<_> = hello.prefixes.iter().map(|(target, _)| target).collect();
            assert!(targets.len() == hello.prefixes.len() && targets.len() <= MAX_TARGETS);
            assert!(hello.name().len() <= 64 && !hello.name().contains(char::is_control));
            // What the server took for a hello is one: an honest client with this hello says the same.
            let mut honest = Peer::new(&[], 1);
            let again = Hello::new(hello.worker, hello.resume, hello.name()).with_prefixes(hello.prefixes.clone());
            let _ = fuzzing::introduce_to(&mut honest, &fuzzing::security(None), &again);
            let preamble = honest.into_heard();
            assert_eq!(&octets[..preamble.len().min(7)], &preamble[..preamble.len().min(7)]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let said = peer.into_heard();
    assert!(said.len() <= 8 + 2 + 48, "{} octets are said to a stranger", said.len());
}

/// `tcpcopy` and something that listens where `intercept` should.
fn introduce(data: &[u8]) {
    let &[mode, chunk, ref octets @ ..] = data else { return };
    let with_key = mode & 1 != 0;
    let resume = (mode & 2 != 0).then_some(Resume { instance: 9, token: Token([3; 16]) });
    let hello = Hello::new(u16::from(mode), resume, "source");
    let mut peer = Peer::new(octets, chunk.into());
    let answered = fuzzing::introduce_to(&mut peer, &fuzzing::security(with_key.then_some(KEY)), &hello);
    let answered = answered.expect("the client waits for a peer that has closed");
    if crate::tells() {
        eprintln!("{answered:?}");
    }
    assert!(peer.said() <= READ_OF_A_STRANGER, "{} octets are read of a stranger", peer.said());
    match answered {
        Ok(answer) => {
            assert!(!with_key, "a stranger has the key");
            if let Err(refusal) = answer {
                assert!(refusal.text().len() <= 256 && !refusal.text().contains(char::is_control));
                assert!(!matches!(refusal.code, RefusalCode::Other(1..=3)));
            }
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    let said = peer.into_heard();
    if with_key {
        // Preamble, and the first message of the key exchange: nothing that tells who we are.
        assert!(said.len() <= 8 + 2 + 48 && !said.windows(6).any(|part| part == b"source"));
    }
}
