//! TCP options: the programs' reader against a plain one, and against etherparse's.

use etherparse::{TcpOptionElement, TcpOptionsIterator};
use tcpcopy_common::{
    mark,
    response::{NO_WINDOW_SCALE, ResponseHeader, option},
};
use tcpcopy_ebpf::options::{Marking, Options};

use super::Octets;

/// What the options of a segment say, in the fields of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Said {
    mss: [u8; 2],
    window_scale: u8,
    tsval: Option<[u8; 4]>,
}

const NOTHING: Said = Said { mss: [0; 2], window_scale: NO_WINDOW_SCALE, tsval: None };

/// The mark in the options.
#[derive(Debug, PartialEq, Eq)]
enum Marked {
    No,
    Malformed,
    By(mark::Mark),
}

/// Where in a packet the field begins, how long it is said to be, and the packet.
pub(super) fn check(data: &[u8]) {
    let &[offset, len, linear, ref packet @ ..] = data else { return };
    let read = |linear| {
        let mut options = Options::NONE;
        options.read(&Octets::new(packet, linear), offset.into(), len.into());
        (said(&options), marked(&options))
    };
    let ours = read(packet.len());
    assert_eq!(ours, read(linear.into()));
    // A field that is longer than there can be, or than the packet, is none.
    let field = packet.get(offset.into()..).and_then(|rest| rest.get(..len.into())).filter(|field| field.len() <= 40);
    let field = field.unwrap_or(&[]);
    if crate::tells() {
        eprintln!("{field:02x?}: {ours:?}");
    }
    assert_eq!(ours, (plainly_said(field), plainly_marked(field)));
    if let Some(theirs) = said_to_etherparse(field) {
        assert_eq!(ours.0, theirs);
    }
}

pub(super) fn said_in(field: &[u8]) -> (ResponseHeader, Marking) {
    let mut options = Options::NONE;
    options.read(&Octets::new(field, field.len()), 0, field.len() as u32);
    (report(&options), options.marking())
}

fn report(options: &Options) -> ResponseHeader {
    let mut report: ResponseHeader = bytemuck::Zeroable::zeroed();
    report.window_scale = NO_WINDOW_SCALE;
    options.describe(&mut report);
    report
}

fn said(options: &Options) -> Said {
    let report = report(options);
    let tsval = (report.options & option::TIMESTAMPS != 0).then_some(report.tsval);
    assert!(tsval.is_some() || report.tsval == [0; 4]);
    Said { mss: report.mss, window_scale: report.window_scale, tsval }
}

fn marked(options: &Options) -> Marked {
    match options.marking() {
        Marking::Unmarked => Marked::No,
        Marking::Malformed => Marked::Malformed,
        Marking::Marked(mark) => Marked::By(mark),
    }
}

/// Options up to the first that is malformed: kind, then the octets behind the length (RFC 9293, section 3.1).
fn plainly(mut field: &[u8]) -> Vec<(u8, &[u8])> {
    let mut options = Vec::new();
    loop {
        match *field {
            [] | [0, ..] => return options,
            [1, ref rest @ ..] => field = rest,
            [kind, len, ..] if len >= 2 && usize::from(len) <= field.len() => {
                options.push((kind, &field[2..len.into()]));
                field = &field[len.into()..];
            }
            _ => return options,
        }
    }
}

fn plainly_said(field: &[u8]) -> Said {
    let mut said = NOTHING;
    // The one form in which the programs do not look further.
    let only_timestamps = field.len() >= 12 && field[..4] == [1, 1, 8, 10];
    for (kind, body) in plainly(field).into_iter().take(if only_timestamps { 1 } else { usize::MAX }) {
        match (kind, body) {
            (2, &[a, b]) => said.mss = [a, b],
            (3, &[shift]) => said.window_scale = shift,
            (8, &[a, b, c, d, _, _, _, _]) => said.tsval = Some([a, b, c, d]),
            _ => {}
        }
    }
    said
}

fn plainly_marked(field: &[u8]) -> Marked {
    let ours = plainly(field).into_iter().find(|(kind, body)| *kind == mark::KIND && body.starts_with(&mark::EXID));
    match ours {
        None => Marked::No,
        Some((kind, body)) if body.len() == mark::LENGTH - 2 => {
            Marked::By(bytemuck::pod_read_unaligned(&[&[kind, mark::LENGTH as u8], body].concat()))
        }
        Some(_) => Marked::Malformed,
    }
}

/// `None` where etherparse sees an error, or an option that it does not know.
fn said_to_etherparse(field: &[u8]) -> Option<Said> {
    if field.starts_with(&[1, 1, 8, 10]) {
        return None;
    }
    let mut said = NOTHING;
    for element in TcpOptionsIterator::from_slice(field) {
        match element.ok()? {
            TcpOptionElement::MaximumSegmentSize(mss) => said.mss = mss.to_be_bytes(),
            TcpOptionElement::WindowScale(shift) => said.window_scale = shift,
            TcpOptionElement::Timestamp(value, _) => said.tsval = Some(value.to_be_bytes()),
            TcpOptionElement::Noop
            | TcpOptionElement::SelectiveAcknowledgement(..)
            | TcpOptionElement::SelectiveAcknowledgementPermitted => {}
        }
    }
    Some(said)
}
