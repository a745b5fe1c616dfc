//! What is to be known of HTTP/2: how a connection begins, and which frames nobody answers.
//!
//! From the beginning on several requests may be under way, all of them in one segment, too. A client sends an
//! acknowledgement of SETTINGS or PING, or a WINDOW_UPDATE, because it has read something; the server says nothing to
//! it. A request that follows must not wait for an answer to that, but for one to what was asked before.

/// Octets of a frame's header (RFC 9113, section 4.1).
const HEADER: usize = 9;
/// The ACK flag of SETTINGS and PING (RFC 9113, sections 6.5 and 6.7).
const ACK: u8 = 1;

/// What a client sends first (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Whether with these octets a client begins to speak HTTP/2.
pub(crate) fn begin_connection(octets: &[u8]) -> bool {
    octets.starts_with(PREFACE)
}

/// Whether these octets are whole frames, to none of which a server answers (RFC 9113, section 6). They say so
/// themselves: the lengths fit, and frames that are not on a stream are not.
pub(crate) fn are_unanswered(octets: &[u8]) -> bool {
    let mut rest = octets;
    while let Some((&[l0, l1, l2, kind, flags, s0, s1, s2, s3], payload)) = rest.split_first_chunk::<HEADER>() {
        let len = usize::from(l0) << 16 | usize::from(l1) << 8 | usize::from(l2);
        let on_stream = [s0 & 0x7f, s1, s2, s3] != [0; 4];
        let unanswered = match (kind, len) {
            // PRIORITY and RST_STREAM.
            (2, 5) | (3, 4) => on_stream,
            // SETTINGS and PING.
            (4, 0) | (6, 8) => flags == ACK && !on_stream,
            // GOAWAY.
            (7, 8..) => !on_stream,
            // WINDOW_UPDATE.
            (8, 4) => true,
            _ => false,
        };
        match payload.get(len..) {
            Some(after) if unanswered => rest = after,
            _ => return false,
        }
    }
    rest.is_empty() && !octets.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS_ACK: [u8; 9] = [0, 0, 0, 4, 1, 0, 0, 0, 0];
    const WINDOW_UPDATE: [u8; 13] = [0, 0, 4, 8, 0, 0, 0, 0, 7, 0, 0, 1, 0];

    fn frame(kind: u8, flags: u8, stream: u8, len: u8) -> Vec<u8> {
        [&[0, 0, len, kind, flags, 0, 0, 0, stream][..], &vec![7; len.into()]].concat()
    }

    #[test]
    fn acknowledgements_and_credit_are_not_answered() {
        for unanswered in [
            SETTINGS_ACK.to_vec(),
            WINDOW_UPDATE.to_vec(),
            [&SETTINGS_ACK[..], &WINDOW_UPDATE, &frame(6, 1, 0, 8)].concat(),
            frame(3, 0, 1, 4),
            frame(2, 0, 1, 5),
            frame(7, 0, 0, 30),
        ] {
            assert!(are_unanswered(&unanswered), "{unanswered:?}");
        }
    }

    #[test]
    fn requests_are_and_whatever_is_no_frame() {
        for other in [
            Vec::new(),
            PREFACE.to_vec(),
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
            // SETTINGS, PING, HEADERS and DATA.
            frame(4, 0, 0, 6),
            frame(6, 0, 0, 8),
            frame(1, 4, 1, 20),
            frame(0, 1, 1, 20),
            [WINDOW_UPDATE.to_vec(), frame(0, 1, 1, 20)].concat(),
            // Of a wrong length, on no stream or on one, cut off, with something after it.
            frame(8, 0, 0, 5),
            frame(3, 0, 0, 4),
            frame(4, 1, 1, 0),
            WINDOW_UPDATE[..12].to_vec(),
            SETTINGS_ACK[..8].to_vec(),
            [&SETTINGS_ACK[..], &[0]].concat(),
        ] {
            assert!(!are_unanswered(&other), "{other:?}");
        }
    }
}
