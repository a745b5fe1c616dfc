//! Joining: whether a target connection may begin in the middle of its live connection.
//!
//! A request of HTTP/1 says all that a server has to know. Other protocols may build on what was said before: a preface
//! (HTTP/2, gRPC), a login (PostgreSQL, MySQL). A server that meets such a request first ends the connection at once.
//! What such an end costs must not be paid for each request, so a connection of an unknown protocol is on trial when it
//! begins in the middle, until the target has answered it twice or has let it live:
//!
//! - If the target ends it before, without an answer that is as long as the live server's, the live connection stays out
//!   (`Reason::Unjoinable`). In protocols that are known to have a memory, the length of a complaint does not matter.
//! - After [`MOST_REFUSALS`] in a row no connection of the rule is joined any more, as if only complete ones were
//!   wanted, and the operator is told.

use std::time::Duration;

use crate::input::offset::LiveOffset;

/// Refused joins of a rule in a row, after which there are no more. Several, because a target may end a connection by
/// chance, when it is restarted for instance; few, because each costs the target a connection and an error in its log.
const MOST_REFUSALS: u8 = 3;

/// A target that ends a connection by choice, not because of what it has read, has not read anything for so long: no
/// server has a shorter idle time-out.
pub(crate) const AT_ONCE: Duration = Duration::from_secs(1);

/// So many octets of a request tell whether it is one of HTTP/1.
pub(crate) const HEAD: usize = 8192;

/// The method that is longest in IANA's registry has 17 octets.
const LONGEST_METHOD: usize = 20;

/// What is known of joining the connections of a rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Joins {
    /// In a row.
    refused: u8,
}

impl Joins {
    /// Whether no connection is joined any more.
    pub(crate) const fn are_over(self) -> bool {
        self.refused >= MOST_REFUSALS
    }

    /// Records that the target has ended a joined connection at once; returns whether there are no joins from now on.
    pub(crate) const fn refuse(&mut self) -> bool {
        self.refused = self.refused.saturating_add(1);
        self.refused == MOST_REFUSALS
    }

    /// Records that the target goes on with a joined connection.
    pub(crate) const fn accept(&mut self) {
        if !self.are_over() {
            self.refused = 0;
        }
    }
}

/// What is known of a target connection's beginning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// It began with the live connection, at a request that needs nothing before it, or the target went on with it.
    Good,
    /// It began in the middle; `stateful`: of a protocol that cannot be joined there.
    OnTrial { stateful: bool },
}

impl Standing {
    /// The standing of a connection that begins at `offset` with these octets.
    pub(crate) fn at(offset: LiveOffset, head: &[u8]) -> Self {
        if offset == LiveOffset::START || is_self_contained(head) {
            Self::Good
        } else {
            Self::OnTrial { stateful: is_stateful(head) }
        }
    }
}

/// Whether a request needs nothing that was said before: one of HTTP/1, by its request line (RFC 9112, section 3).
pub(crate) fn is_self_contained(head: &[u8]) -> bool {
    let line = head.split(|&octet| octet == b'\n').next().unwrap_or_default();
    let whole = line.len() < head.len();
    let mut words = line.strip_suffix(b"\r").unwrap_or(line).split(|&octet| octet == b' ');
    let method = words.next().unwrap_or_default();
    let token = |octet: &u8| octet.is_ascii_uppercase() || matches!(octet, b'-' | b'_');
    if !(1..=LONGEST_METHOD).contains(&method.len()) || !method.iter().all(token) {
        return false;
    }
    if whole {
        return words.next_back().is_some_and(|version| version.starts_with(b"HTTP/1."));
    }
    // Of a line that is not whole, as when segments are small, what is there must fit.
    words.next().is_none_or(|target| matches!(target.first(), None | Some(b'/' | b'h' | b'*')))
}

/// Whether a request is one of HTTP/2 (a HEADERS frame, RFC 9113, section 6.2) or of MySQL (a command packet), as far as
/// its beginning can tell.
fn is_stateful(head: &[u8]) -> bool {
    let Some((&[a, b, c, d, _, s0, s1, s2, s3], _)) = head.split_first_chunk::<9>() else { return is_command(head) };
    let stream = u32::from_be_bytes([s0, s1, s2, s3]);
    // A HEADERS frame fits the smallest maximum, 2¹⁴; a client's streams are odd.
    let headers = d == 1 && u32::from_be_bytes([0, a, b, c]) <= 1 << 14 && stream & 1 == 1 && stream >> 31 == 0;
    headers || is_command(head)
}

/// Whether this is a command packet of MySQL, whole: its length, little-endian, and the sequence number 0.
fn is_command(head: &[u8]) -> bool {
    match head.split_first_chunk::<4>() {
        Some((&[a, b, c, 0], command)) => {
            !command.is_empty() && usize::try_from(u32::from_le_bytes([a, b, c, 0])) == Ok(command.len())
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_http_1_need_nothing_before_them() {
        for request in [
            &b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"[..],
            b"M-SEARCH * HTTP/1.1\r\n",
            b"POST /a%20b?c=d HTTP/1.0\n\n",
            b"CONNECT example.com:443 HTTP/1.1\r\n",
            b"GET /long",
            b"GET http://a/",
            b"GE",
            b"GET ",
            b"GET /\xe4 HTTP/1.1\r\n",
        ] {
            assert!(is_self_contained(request), "{}", request.escape_ascii());
        }
        for other in [
            &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..],
            b"\0\0\x2a\x01\x04\0\0\0\x03",
            b"Q\0\0\0\x1bSELECT / FROM HTTP/1.1\0",
            b"\x21\0\0\0\x03SELECT 1",
            b"GET key\r\n",
            b"MAIL FROM:<a@b>\r\n",
            b"get / HTTP/1.1\r\n",
            b" / HTTP/1.1\r\n",
            b"GET key",
            b"\n",
            b"",
            b"AAAAAAAAAAAAAAAAAAAAAAAAA / HTTP/1.1\r\n",
        ] {
            assert!(!is_self_contained(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn only_refusals_in_a_row_end_joining_and_they_do_for_good() {
        let mut joins = Joins::default();
        assert_eq!([joins.refuse(), joins.refuse()], [false; 2]);
        joins.accept();
        assert_eq!([joins.refuse(), joins.refuse(), joins.refuse(), joins.refuse()], [false, false, true, false]);
        joins.accept();
        assert!(joins.are_over());
    }

    #[test]
    fn what_begins_with_the_live_connection_is_in_good_standing() {
        let later = LiveOffset::START.plus(1);
        assert_eq!(Standing::at(LiveOffset::START, b"\0"), Standing::Good);
        assert_eq!(Standing::at(later, b"\0"), Standing::OnTrial { stateful: false });
        let headers = b"\0\0\x02\x01\x04\0\0\0\x05ab";
        for (stateful, head) in [
            (true, &headers[..]),
            (true, b"\x09\0\0\0\x03SELECT 1"),
            (false, b"\x0a\0\0\0\x03SELECT 1"),
            (false, b"query"),
        ] {
            assert_eq!(Standing::at(later, head), Standing::OnTrial { stateful }, "{}", head.escape_ascii());
        }
        assert_eq!(Standing::at(later, b"GET / HTTP/1.1\r\n"), Standing::Good);
    }
}
