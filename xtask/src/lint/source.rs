//! A Rust source file, as far as its imports need it: without comments, strings, tests and modules in the midst of it.

/// Blanks out comments and the contents of string and character literals; lines and columns stay where they are.
fn without_literals(text: &str) -> Vec<u8> {
    let source = text.as_bytes();
    let mut code = source.to_vec();
    let mut at = 0;
    while at < source.len() {
        let end = match source[at..] {
            [b'/', b'/', ..] => at + length_until(&source[at..], b"\n"),
            [b'/', b'*', ..] => end_of_block_comment(source, at),
            [b'r', b'"' | b'#', ..] if !is_word(source, at) => end_of_raw_string(source, at).unwrap_or(at),
            [b'"', ..] => end_of_quoted(source, at, b'"'),
            // A lifetime has no quote two octets on.
            [b'\'', b'\\', ..] | [b'\'', _, b'\'', ..] => end_of_quoted(source, at, b'\''),
            _ => at,
        };
        if end == at {
            at += 1;
            continue;
        }
        code[at..end].iter_mut().filter(|octet| **octet != b'\n').for_each(|octet| *octet = b' ');
        at = end;
    }
    code
}

/// Returns whether the octet before `at` belongs to the same word.
fn is_word(source: &[u8], at: usize) -> bool {
    at > 0 && (source[at - 1].is_ascii_alphanumeric() || source[at - 1] == b'_')
}

fn length_until(source: &[u8], pattern: &[u8]) -> usize {
    source.windows(pattern.len()).position(|window| window == pattern).unwrap_or(source.len())
}

fn end_of_block_comment(source: &[u8], begin: usize) -> usize {
    let (mut depth, mut at) = (0, begin);
    while at < source.len() {
        match source[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] if depth == 1 => return at + 2,
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
    at
}

fn end_of_raw_string(source: &[u8], begin: usize) -> Option<usize> {
    let hashes = source[begin + 1..].iter().take_while(|octet| **octet == b'#').count();
    let open = begin + 1 + hashes;
    (source.get(open) == Some(&b'"')).then(|| {
        let close = [&b"\""[..], &vec![b'#'; hashes]].concat();
        (open + 1 + length_until(&source[open + 1..], &close) + close.len()).min(source.len())
    })
}

fn end_of_quoted(source: &[u8], begin: usize, quote: u8) -> usize {
    let mut at = begin + 1;
    while at < source.len() {
        match source[at] {
            b'\\' => at += 2,
            octet if octet == quote => return at + 1,
            _ => at += 1,
        }
    }
    source.len()
}

/// Returns the code of a file without its tests and without modules that are written in the midst of it.
pub(super) fn code(text: &str) -> String {
    let mut code = without_literals(text);
    blank_items(&mut code, b"#[cfg(test)]");
    blank_inline_modules(&mut code);
    String::from_utf8_lossy(&code).into_owned()
}

/// Blanks out each item behind such an attribute.
fn blank_items(code: &mut [u8], attribute: &[u8]) {
    let mut at = 0;
    while at < code.len() {
        at += length_until(&code[at..], attribute);
        let end = end_of_item(code, (at + attribute.len()).min(code.len()));
        code[at..end].fill(b' ');
    }
}

fn blank_inline_modules(code: &mut [u8]) {
    let mut at = 0;
    while at < code.len() {
        at += length_until(&code[at..], b"mod ");
        let head = at + code[at..].iter().take_while(|octet| !b"{;".contains(octet)).count();
        if code.get(head) == Some(&b'{') && !is_word(code, at) {
            let end = end_of_item(code, at);
            code[at..end].fill(b' ');
        }
        at = (at + 4).min(code.len());
    }
}

/// Returns where the item ends that begins at `begin`: at a semicolon, or where its braces are closed.
fn end_of_item(code: &[u8], begin: usize) -> usize {
    let mut depth = 0;
    for (at, octet) in code.iter().enumerate().skip(begin) {
        match octet {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => {
                depth -= 1;
                if depth == 0 && *octet == b'}' {
                    return at + 1;
                }
            }
            b';' if depth == 0 => return at + 1,
            _ => {}
        }
    }
    code.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_code_is_left_out() {
        let text = r##"
            use a::b; // use comment::x;
            /* use block::x; /* nested */ */
            const S: &str = "use string::x; \" {";
            const R: &str = r#"use raw::x; " "#;
            const C: [char; 2] = ['"', '\''];
            fn f<'a>(x: &'a str) {}
            #[cfg(test)]
            use only::tests;
            mod inside { use inside::x; }
            mod outside;
            #[cfg(test)]
            mod tests { use tests::x; fn g() { { } } }
            use c::d;
        "##;
        let code = code(text);
        for kept in ["use a::b;", "fn f<'a>(x: &'a str) {}", "mod outside;", "use c::d;"] {
            assert!(code.contains(kept), "{kept} in {code}");
        }
        for gone in ["comment", "block", "string", "raw", "only", "inside", "tests"] {
            assert!(!code.contains(gone), "{gone} in {code}");
        }
    }
}
