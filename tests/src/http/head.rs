//! Heads of requests and responses.

/// What matters in a head.
#[derive(Debug, PartialEq, Eq)]
pub struct Head<'a> {
    /// Three words in a request, at least two in a response.
    pub first_line: &'a str,
    /// `Content-Length`.
    pub content_length: Option<u64>,
    /// `Connection: close`.
    pub close: bool,
    /// `Transfer-Encoding: chunked`.
    pub chunked: bool,
    /// `Expect: 100-continue`.
    pub expects_continue: bool,
    /// Octets of the head with its empty line.
    pub length: usize,
}

/// Returns the identifier in a request's URI: the digits after `id=`.
pub fn request_id(uri: &str) -> Option<u64> {
    let digits = &uri[uri.find("id=")? + 3..];
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Returns the head at the beginning of `octets`; `Ok(None)` when it is not complete yet.
pub fn parse(octets: &[u8]) -> Result<Option<Head<'_>>, &'static str> {
    const LONGEST: usize = 64 << 10;
    let Some(end) = octets.windows(4).position(|w| w == b"\r\n\r\n") else {
        return if octets.len() > LONGEST { Err("a head of more than 64 KiB") } else { Ok(None) };
    };
    let text = str::from_utf8(&octets[..end]).map_err(|_| "a head that is not text")?;
    let mut lines = text.split("\r\n");
    let mut head = Head {
        first_line: lines.next().unwrap_or_default(),
        content_length: None,
        close: false,
        chunked: false,
        expects_continue: false,
        length: end + 4,
    };
    for line in lines {
        let (name, value) = line.split_once(':').ok_or("a header line without a colon")?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            head.content_length = Some(value.parse().map_err(|_| "a Content-Length that is no number")?);
        } else if name.eq_ignore_ascii_case("connection") {
            head.close = value.eq_ignore_ascii_case("close");
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            head.chunked = value.eq_ignore_ascii_case("chunked");
        } else if name.eq_ignore_ascii_case("expect") {
            head.expects_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    Ok(Some(head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_are_parsed_when_they_are_complete() {
        let octets = b"POST /x?id=7 HTTP/1.1\r\ncontent-length: 3\r\nConnection: Close\r\n\r\nabc";
        for end in 0..octets.len() - 3 {
            assert_eq!(parse(&octets[..end]), Ok(None));
        }
        let head = parse(octets).unwrap().unwrap();
        assert_eq!((head.first_line, head.content_length, head.close), ("POST /x?id=7 HTTP/1.1", Some(3), true));
        assert_eq!(&octets[head.length..], b"abc");
        assert!(parse(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n").is_err());
    }

    #[test]
    fn the_identifier_is_found_in_the_uri() {
        assert_eq!(crate::http::request_id("/size/10?id=42&x=1"), Some(42));
        assert_eq!(crate::http::request_id("/size/10"), None);
    }
}
